"""What one step does: on every device its share of the batch, and between the devices only sums."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from tresnet_jax.models.base import Tree
from tresnet_jax.training.batch_augment import cutout, mix, random_erasing
from tresnet_jax.training.config import TrainConfig
from tresnet_jax.training.devices import AXIS
from tresnet_jax.training.optim import is_frozen

Batch = dict[str, jax.Array]
Metrics = dict[str, jax.Array]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """All that a step changes, the same on every device.

    Attributes:
        step: () int32, steps done.
        params, batch_stats: the model's trees.
        opt_state: of the optax optimiser.
        ema: {'params': ..., 'batch_stats': ...}, their moving average; None without.
        nonfinite: () int32, steps left out since their loss or gradient was not finite.
    """

    step: jax.Array
    params: Any
    batch_stats: Tree
    opt_state: Any
    ema: Any
    nonfinite: jax.Array


def create_state(params: Tree, batch_stats: Tree, optimizer: optax.GradientTransformation, ema: bool) -> TrainState:
    """The state before the first step."""
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        batch_stats=batch_stats,
        opt_state=optimizer.init(params),
        ema=jax.tree.map(jnp.copy, {'params': params, 'batch_stats': batch_stats}) if ema else None,
        nonfinite=jnp.zeros((), jnp.int32),
    )


def over_devices(
    step: Callable[[Any, Batch], Any], *, donate: bool = False, devices: Sequence[Any] | None = None
) -> Callable[[Any, Batch], Any]:
    """The one place where the devices come in: step(state, batch) on each of them.

    Args:
        step: takes a state that is the same on every device, and the device's share of a batch; sums over the axis
            'batch' make what it returns the same on every device again.
        donate: let the new state take the memory of the old one, which is then gone.
        devices: run on these; None: on as many devices of this process as the batch has shares.

    Returns:
        A function of the state and of a batch whose arrays are (local devices, images of each, ...).
    """
    return jax.pmap(
        step,
        axis_name=AXIS,
        in_axes=(None, 0),
        out_axes=None,
        donate_argnums=(0,) if donate else (),
        devices=devices,
    )


def make_train_step(
    apply: Callable[..., Any],
    optimizer: optax.GradientTransformation,
    config: TrainConfig,
    *,
    num_classes: int,
    mean: tuple[float, ...],
    std: tuple[float, ...],
) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
    """The training step for `over_devices`.

    Args:
        apply: of ``functional(model, config.freeze)``.
        optimizer: of `create_optimizer`.
        config: augmentation, smoothing, accumulation, moving average, and how many bad steps are left out.
        num_classes: of the classifier.
        mean, std: to normalise with, for values in [0, 1].

    A batch is {'image': (b, H, W, 3) uint8, 'label': (b,) int32, ...}. A step whose loss or gradient is not finite
    leaves the state as it was but for two counters; once more than `skip_nonfinite` were, nothing changes any more.
    Metrics are scalars over all devices: loss, top1 (a share), grad_norm, finite.
    """

    def loss_of(params: Tree, batch_stats: Tree, key: jax.Array, batch: Batch) -> tuple[jax.Array, Any]:
        augment_key, model_key = jax.random.split(key)
        images, targets = prepare(augment_key, batch, config, num_classes, mean, std)
        params = jax.tree_util.tree_map_with_path(
            lambda path, leaf: jax.lax.stop_gradient(leaf) if is_frozen(path, config.freeze) else leaf, params
        )
        logits, batch_stats = apply(params, batch_stats, images, train=True, rngs={'dropout': model_key})
        logits = logits.astype(targets.dtype)
        loss = optax.softmax_cross_entropy(logits, targets).mean()
        top1 = jnp.mean(jax.lax.argmax(logits, 1, jnp.int32) == batch['label'], dtype=loss.dtype)
        return loss, (batch_stats, {'loss': loss, 'top1': top1})

    gradient = jax.grad(loss_of, has_aux=True)

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        key = jax.random.fold_in(jax.random.key(config.seed), state.step)
        key = jax.random.fold_in(key, jax.lax.axis_index(AXIS))
        grads, batch_stats, metrics = _accumulated(gradient, state, key, batch, config.accumulate)
        # Statistics are averaged even when each device has its own: they are one for all at evaluation.
        grads, batch_stats, metrics = jax.lax.pmean((grads, batch_stats, metrics), AXIS)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        ema = state.ema
        if ema is not None:
            ema = moving_average(ema, {'params': params, 'batch_stats': batch_stats}, state.step, config)

        norm = optax.tree.norm(grads)
        finite = jnp.isfinite(metrics['loss']) & jnp.isfinite(norm)
        new = TrainState(state.step, params, batch_stats, opt_state, ema, state.nonfinite)
        good = finite & (state.nonfinite <= config.skip_nonfinite)
        new = jax.tree.map(lambda new, old: jnp.where(good, new, old), new, state)
        new = dataclasses.replace(new, step=state.step + 1, nonfinite=state.nonfinite + (~finite).astype(jnp.int32))
        return new, metrics | {'grad_norm': norm, 'finite': finite}

    return step


def prepare(
    key: jax.Array,
    batch: Batch,
    config: TrainConfig,
    num_classes: int,
    mean: tuple[float, ...],
    std: tuple[float, ...],
) -> tuple[jax.Array, jax.Array]:
    """uint8 images and labels -> normalised, erased, mixed images (b, H, W, 3) and soft targets (b, classes)."""
    dtype = jnp.dtype(config.dtype) if config.dtype == 'float64' else jnp.dtype(jnp.float32)
    images = normalise(batch['image'], mean, std, dtype)
    targets = optax.smooth_labels(jax.nn.one_hot(batch['label'], num_classes, dtype=dtype), config.smoothing)
    keys = jax.random.split(key, 3)
    if config.cutout:
        images = cutout(keys[0], images, size=config.cutout, fill='random', mean=mean, std=std)
    if config.reprob:
        images = random_erasing(keys[1], images, probability=config.reprob, mode=config.remode)
    if config.mixup or config.cutmix:
        images, targets = mix(keys[2], images, targets, mixup_alpha=config.mixup, cutmix_alpha=config.cutmix)
    return images, targets


def normalise(images: jax.Array, mean: tuple[float, ...], std: tuple[float, ...], dtype: Any) -> jax.Array:
    """uint8 -> (x / 255 - mean) / std."""
    x = images.astype(dtype) / 255
    shift, scale = (jnp.asarray(values, dtype).reshape((1,) * (x.ndim - 1) + (-1,)) for values in (mean, std))
    return (x - shift) / scale


def _accumulated(
    gradient: Callable[..., Any], state: TrainState, key: jax.Array, batch: Batch, parts: int
) -> tuple[Tree, Tree, Metrics]:
    """Mean gradient, last statistics and mean metrics of a batch computed in so many parts, one after the other."""
    if parts == 1:
        grads, (batch_stats, metrics) = gradient(state.params, state.batch_stats, key, batch)
        return grads, batch_stats, metrics

    def one(carry, part):
        sums, batch_stats = carry
        grads, (batch_stats, metrics) = gradient(state.params, batch_stats, *part)
        return (jax.tree.map(jnp.add, sums, grads), batch_stats), metrics

    split = jax.tree.map(lambda x: x.reshape(parts, x.shape[0] // parts, *x.shape[1:]), batch)
    start = (jax.tree.map(jnp.zeros_like, state.params), state.batch_stats)
    (sums, batch_stats), metrics = jax.lax.scan(one, start, (jax.random.split(key, parts), split))
    return jax.tree.map(lambda x: x / parts, sums), batch_stats, jax.tree.map(jnp.mean, metrics)


def moving_average(ema: Any, new: Any, step: jax.Array, config: TrainConfig) -> Any:
    """decay * ema + (1 - decay) * new, timm's ``ModelEmaV3``: the first step is copied, and with a warm-up the decay
    is at most 1 - (1 + step)^(-2/3)."""
    dtype = jax.tree.leaves(new)[0].dtype
    decay = jnp.where(step == 0, 0, jnp.asarray(config.model_ema_decay, dtype))
    if config.model_ema_warmup:
        decay = jnp.minimum(decay, 1 - (1 + step.astype(dtype)) ** jnp.asarray(-2 / 3, dtype))
    return optax.incremental_update(new, ema, 1 - decay)


def make_eval_step(
    apply: Callable[..., Any], *, mean: tuple[float, ...], std: tuple[float, ...], dtype: Any = jnp.float32
) -> Callable[[tuple[Tree, Tree], Batch], Metrics]:
    """The evaluation step for `over_devices`: sums over all devices, which the caller divides by `count`.

    Takes (params, batch_stats) and a batch with 'mask' (b,): padding has 0 and is not counted.
    Returns sums: loss (cross entropy), top1, top5 and count.
    """

    def step(variables: tuple[Tree, Tree], batch: Batch) -> Metrics:
        images = normalise(batch['image'], mean, std, dtype)
        logits = apply(*variables, images).astype(dtype)
        mask = batch['mask'].astype(dtype)
        loss = optax.softmax_cross_entropy_with_integer_labels(logits, batch['label'])
        best = jax.lax.top_k(logits, min(5, logits.shape[-1]))[1] == batch['label'][:, None]
        each = {'loss': loss, 'top1': best[:, 0], 'top5': best.any(-1), 'count': jnp.ones_like(mask)}
        return jax.lax.psum({name: (value.astype(dtype) * mask).sum() for name, value in each.items()}, AXIS)

    return step
