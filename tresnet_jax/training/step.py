"""The data-parallel training step: each device handles its share of the batch; only reductions cross devices.

A batch is a dict of arrays, already on the local devices of this process. With
b = batch_size / (processes * local devices):

    key       shape                  dtype    content
    image     (devices, b, H, W, 3)  uint8    RGB images, augmented on the host but not normalised
    label     (devices, b)           int32    class, 0 to num_classes - 1; with one class per image
    target    (devices, b, classes)  float32  probability of each class; with any number of classes per image
    index     (devices, b)           int32    position of the image in the source; -1 for padding
    mask      (devices, b)           float32  evaluation only: 1 for an image, 0 for padding and unreadable images

`over_devices` maps a step over the leading axis: one device sees (b, H, W, 3) images and (b,) labels. `index` is not
used here; the loop removes it from training batches and keeps it for error messages.

    make_train_step:  (TrainState, batch) -> (TrainState, metrics), with a third argument if there is a teacher
    make_eval_step:   ((params, batch_stats), batch) -> sums

States, metrics and sums are the same on every device, and have no device axis outside of the step. The metrics are
scalars over the batch of all devices and hosts: `loss`; with one class per image `top1`, the share of images whose
label is the likeliest class; `grad_norm`, the norm of all gradients together; `finite`, whether loss and gradient are
finite. The sums are those of `loss`, `top1` and `top5` over the images with mask 1, and their `count`.
`make_multilabel_eval_step` returns the outputs instead, because its metrics are those of a whole data set.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from tresnet_jax.models.base import Tree
from tresnet_jax.training.batch_augment import cutout, mix, random_erasing
from tresnet_jax.training.config import TrainConfig
from tresnet_jax.training.devices import AXIS
from tresnet_jax.training.distillation import Distillation
from tresnet_jax.training.losses import create_loss, smooth_binary
from tresnet_jax.training.optim import is_frozen
from tresnet_jax.training.semantic import SemanticTree, semantic_hits, semantic_losses

Batch = dict[str, jax.Array]  # the batch of this process, or the share of one device
Metrics = dict[str, jax.Array]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """Everything that a step changes. It is the same on every device.

    Attributes:
        step: () int32, number of steps done, including skipped ones.
        params, batch_stats: the trees of the model.
        opt_state: the state of the optax optimiser.
        ema: the moving average, {'params': ..., 'batch_stats': ...}; None if the run keeps none.
        nonfinite: () int32, number of steps with a non-finite loss or gradient, which were skipped.
    """

    step: jax.Array
    params: Any
    batch_stats: Tree
    opt_state: Any
    ema: Any
    nonfinite: jax.Array


def create_state(params: Tree, batch_stats: Tree, optimizer: optax.GradientTransformation, ema: bool) -> TrainState:
    """Return the state before the first step.

    Args:
        params, batch_stats: the trees of the model, as `functional` returns them.
        optimizer: as `create_optimizer` returns it.
        ema: keep a moving average.
    """
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        batch_stats=batch_stats,
        opt_state=optimizer.init(params),
        ema=jax.tree.map(jnp.copy, {'params': params, 'batch_stats': batch_stats}) if ema else None,
        nonfinite=jnp.zeros((), jnp.int32),
    )


def over_devices(
    step: Callable[..., Any], *, donate: bool = False, devices: Sequence[Any] | None = None, fixed: Any = None
) -> Callable[[Any, Batch], Any]:
    """Map a step over devices with pmap. The library calls pmap nowhere else.

    Args:
        step: a function of a state, the same on every device, and of the device's share of a batch. Reductions over
            the axis AXIS must make its results the same on every device.
        donate: reuse the memory of the old state for the new one; the old state is deleted.
        devices: the devices; None: as many devices of this process as the batch has shares.
        fixed: a third argument of `step`, the same on every device in all steps; None: it takes two.

    Returns:
        A function of the state and of a batch with arrays (devices, b, ...). It returns what `step` returns.
    """
    mapped = jax.pmap(
        step,
        axis_name=AXIS,
        in_axes=(None, 0) if fixed is None else (None, 0, None),
        out_axes=None,
        donate_argnums=(0,) if donate else (),
        devices=devices,
    )
    return mapped if fixed is None else lambda state, batch: mapped(state, batch, fixed)


def make_train_step(
    apply: Callable[..., Any],
    optimizer: optax.GradientTransformationExtraArgs,
    config: TrainConfig,
    *,
    num_classes: int,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    mixing_steps: int | None = None,
    loss: Callable[[jax.Array, jax.Array], jax.Array] | None = None,
    distillation: Distillation | None = None,
) -> Callable[..., tuple[TrainState, Metrics]]:
    """Return the training step for `over_devices`; the module docstring describes its inputs and outputs.

    A step with a non-finite loss or gradient changes only the counters `step` and `nonfinite`. After more than
    `config.skip_nonfinite` of them, no step changes anything else.

    Args:
        apply: as ``functional(model, config.freeze)`` returns it.
        optimizer: as `create_optimizer` returns it; another one of optax needs ``optax.with_extra_args_support``.
        config: augmentation, smoothing, accumulation, moving average, frozen parts, skipped steps.
        num_classes: number of classes of the model.
        mean, std: normalisation of each channel, for values in [0, 1].
        mixing_steps: number of steps after which images are no longer mixed; None: all steps mix.
        loss: function of logits and targets; None: `create_loss` of the configuration, without weights of classes.
        distillation: how to learn from a teacher too. The step then takes the teacher's (params, batch_stats) as its
            third argument, and its metrics have `task_loss` and `kd_loss`, whose weighted sum is the loss.
    """

    criterion = create_loss(config) if loss is None else loss
    pairs = 2 if config.mixes else 1

    def loss_of(
        params: Tree,
        batch_stats: Tree,
        key: jax.Array,
        batch: Batch,
        mixing: jax.Array | None = None,
        teacher: tuple[Tree, Tree] | None = None,
    ) -> tuple[jax.Array, Any]:
        augment_keys, model_keys = jax.vmap(jax.random.split, out_axes=1)(batch['key'])
        images, targets = augment(key, augment_keys, batch, config, num_classes, mean, std, mixing)
        params = jax.tree_util.tree_map_with_path(
            lambda path, leaf: jax.lax.stop_gradient(leaf) if is_frozen(path, config.freeze) else leaf, params
        )
        if distillation is None:
            logits, batch_stats = apply(params, batch_stats, images, train=True, rngs={'dropout': model_keys})
        else:
            logits, outputs, batch_stats = distillation.student(apply, params, batch_stats, images, model_keys)
        logits = logits.astype(targets.dtype)
        loss = criterion(logits, targets)
        metrics = {'loss': loss}
        if distillation is not None:
            assert teacher is not None
            metrics |= {'task_loss': loss, 'kd_loss': distillation.loss(outputs, teacher, images)}
            of_task, of_teacher = distillation.shares
            loss = metrics['loss'] = of_task * loss + of_teacher * metrics['kd_loss']
        if 'label' in batch:
            metrics['top1'] = jnp.mean(jax.lax.argmax(logits, 1, jnp.int32) == batch['label'], dtype=loss.dtype)
        return loss, (batch_stats, metrics)

    gradient = jax.grad(loss_of, has_aux=True)

    def step(state: TrainState, batch: Batch, teacher: tuple[Tree, Tree] | None = None) -> tuple[TrainState, Metrics]:
        batch_key, image_key = jax.random.split(jax.random.fold_in(jax.random.key(config.seed), state.step))
        # One key per image, from its position in the batch of all devices, so the number of devices does not matter.
        count = batch['image'].shape[0]
        positions = jax.lax.axis_index(AXIS) * count + jnp.arange(count, dtype=jnp.int32)
        batch = batch | {'key': jax.vmap(jax.random.fold_in, (None, 0))(image_key, positions)}
        compute = functools.partial(gradient, teacher=teacher)
        if mixing_steps is not None:
            compute = functools.partial(compute, mixing=state.step < mixing_steps)
        grads, batch_stats, metrics = _accumulated(compute, state, batch_key, batch, config.accumulate, pairs)
        # Average the running statistics even when batch norm is not synchronised: evaluation uses one copy.
        grads, batch_stats, metrics = jax.lax.pmean((grads, batch_stats, metrics), AXIS)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params, step=state.step)
        params = optax.apply_updates(state.params, updates)
        ema = state.ema
        if ema is not None:
            ema = moving_average(ema, {'params': params, 'batch_stats': batch_stats}, state.step, config)

        norm = _norm(grads)
        finite = jnp.isfinite(metrics['loss']) & jnp.isfinite(norm)
        new = TrainState(state.step, params, batch_stats, opt_state, ema, state.nonfinite)
        good = finite & (state.nonfinite <= config.skip_nonfinite)
        new = jax.tree.map(lambda new, old: jnp.where(good, new, old), new, state)
        new = dataclasses.replace(new, step=state.step + 1, nonfinite=state.nonfinite + (~finite).astype(jnp.int32))
        return new, metrics | {'grad_norm': norm, 'finite': finite}

    return step


def _norm(tree: Tree) -> jax.Array:
    """Return the Euclidean norm of all leaves together."""
    squares = [jnp.sum(jnp.square(leaf)) for leaf in jax.tree.leaves(tree)]
    # Without the barrier XLA for GPUs adds the running sum in the kernel of each square, and so computes the gradients
    # in the order of the leaves, from the stem on: the activations of all layers live until then. TResNet-M, 128
    # images, abn_memory 'lean': 2,469 instead of 1,910 MB of temporaries.
    return jnp.sqrt(sum(jax.lax.optimization_barrier(squares)))


def augment(
    key: jax.Array,
    image_keys: jax.Array,
    batch: Batch,
    config: TrainConfig,
    num_classes: int,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    mixing: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Normalise, erase and mix the images of one device.

    Args:
        key: of `jax.random`, for mixing whole batches; the same on all devices.
        image_keys: (b,), one per image, for the rest.
        batch: 'image' (b, H, W, 3) uint8, and 'label' (b,) int32 or 'target' (b, classes) float32.
        config: cutout, reprob, remode, mixup, cutmix and their options, prefetcher, smoothing, dtype.
        num_classes: number of classes of the model.
        mean, std: normalisation of each channel, for values in [0, 1].
        mixing: () bool; False: do not mix. None: mix.

    Returns:
        Images (b, H, W, 3) and mixed targets (b, num_classes), smoothed unless the loss itself does; both float32, or
        float64 with that dtype.
    """
    dtype = jnp.dtype(config.dtype) if config.dtype == 'float64' else jnp.dtype(jnp.float32)
    images = batch['image'].astype(dtype)
    smoothing = config.target_smoothing
    if 'label' in batch:
        targets = optax.smooth_labels(jax.nn.one_hot(batch['label'], num_classes, dtype=dtype), smoothing)
    else:
        targets = smooth_binary(all_classes(batch['target'].astype(dtype), num_classes), smoothing)
    if config.mixup_mode != 'batch':
        image_keys, key = jax.vmap(jax.random.split, out_axes=1)(image_keys)
    mixes = functools.partial(
        mix,
        key,
        mixup_alpha=config.mixup,
        cutmix_alpha=config.cutmix,
        cutmix_minmax=config.cutmix_minmax,
        probability=config.mixup_prob,
        switch_probability=config.mixup_switch_prob,
        mode=config.mixup_mode,
        enabled=mixing,
    )
    if config.prefetcher:
        images, targets = mixes(images, targets)
        images = jnp.round(images)
    images = normalise(images, mean, std, dtype)
    cutout_keys, erasing_keys = jax.vmap(jax.random.split, out_axes=1)(image_keys)
    if config.cutout:
        images = cutout(cutout_keys, images, size=config.cutout, fill='random', mean=mean, std=std)
    if config.reprob:
        images = random_erasing(erasing_keys, images, probability=config.reprob, mode=config.remode)
    return (images, targets) if config.prefetcher else mixes(images, targets)


def all_classes(targets: jax.Array, num_classes: int) -> jax.Array:
    """Return targets (b, classes of the data) with zeros for the other classes of the model."""
    return jnp.pad(targets, ((0, 0), (0, num_classes - targets.shape[1])))


def normalise(images: jax.Array, mean: tuple[float, ...], std: tuple[float, ...], dtype: Any) -> jax.Array:
    """Return (images / 255 - mean) / std. `images` have channels last; mean and std have one value for each."""
    x = images.astype(dtype) / 255
    shift, scale = (jnp.asarray(values, dtype).reshape((1,) * (x.ndim - 1) + (-1,)) for values in (mean, std))
    return (x - shift) / scale


def _accumulated(
    gradient: Callable[..., Any], state: TrainState, key: jax.Array, batch: Batch, parts: int, group: int
) -> tuple[Tree, Tree, Metrics]:
    """Compute a batch in `parts`, one after the other; each part starts from the statistics of the one before.

    Groups of `group` consecutive images go to the parts in turn, so that the images that the devices compute at the
    same time, whose batch norm is synchronised, do not depend on the number of devices.

    Returns:
        The mean gradient, the statistics after the last part, and the mean metrics.
    """
    if parts == 1:
        grads, (batch_stats, metrics) = gradient(state.params, state.batch_stats, key, batch)
        return grads, batch_stats, metrics

    def one(carry, part):
        sums, batch_stats = carry
        grads, (batch_stats, metrics) = gradient(state.params, batch_stats, *part)
        return (jax.tree.map(jnp.add, sums, grads), batch_stats), metrics

    def divide(x):
        return x.reshape(-1, parts, group, *x.shape[1:]).swapaxes(0, 1).reshape(parts, -1, *x.shape[1:])

    split = jax.tree.map(divide, batch)
    start = (jax.tree.map(jnp.zeros_like, state.params), state.batch_stats)
    (sums, batch_stats), metrics = jax.lax.scan(one, start, (jax.random.split(key, parts), split))
    return jax.tree.map(lambda x: x / parts, sums), batch_stats, jax.tree.map(jnp.mean, metrics)


def moving_average(ema: Any, new: Any, step: jax.Array, config: TrainConfig) -> Any:
    """Return decay * ema + (1 - decay) * new, as timm's ``ModelEmaV3``.

    The first step copies `new`. With `model_ema_warmup` the decay is at most 1 - (1 + step)^(-2/3).
    """
    dtype = jax.tree.leaves(new)[0].dtype
    decay = jnp.where(step == 0, 0, jnp.asarray(config.model_ema_decay, dtype))
    if config.model_ema_warmup:
        decay = jnp.minimum(decay, 1 - (1 + step.astype(dtype)) ** jnp.asarray(-2 / 3, dtype))
    return optax.incremental_update(new, ema, 1 - decay)


def make_eval_step(
    apply: Callable[..., Any],
    *,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    dtype: Any = jnp.float32,
    each_image: bool = False,
    tree: SemanticTree | None = None,
) -> Callable[[tuple[Tree, Tree], Batch], dict[str, Any]]:
    """Return the evaluation step for `over_devices`.

    Args:
        apply: as `functional` returns it.
        mean, std: normalisation of each channel, for values in [0, 1].
        dtype: dtype of the normalised images, the loss and the sums.
        each_image: also return values of each image.
        tree: of the classes, for a model that was trained with the semantic softmax. The loss is then the semantic
            softmax, and there are also the sums semantic_hits and semantic_levels (`semantic_hits`).

    Returns:
        A function of (params, batch_stats) and of a batch with 'mask' and, if images have several right classes,
        'accepted', (b, classes) int32 padded with -1. It returns sums over the images of all devices
        and hosts whose mask is 1: loss (cross entropy), top1, top5 and count. With `each_image`, it also returns
        'images', a dict of arrays (B,) of the whole batch: index, mask, label, loss, top5, predicted (the likeliest
        class) and probability (of that class).
    """

    def step(variables: tuple[Tree, Tree], batch: Batch) -> Metrics:
        images = normalise(batch['image'], mean, std, dtype)
        logits = apply(*variables, images).astype(dtype)
        mask = batch['mask'].astype(dtype)
        if tree is None:
            loss = optax.softmax_cross_entropy_with_integer_labels(logits, batch['label'])
        else:
            loss = semantic_losses(logits, jax.nn.one_hot(batch['label'], logits.shape[-1], dtype=dtype), tree)
        accepted = batch.get('accepted', batch['label'][:, None])
        best = (jax.lax.top_k(logits, min(5, logits.shape[-1]))[1][:, :, None] == accepted[:, None]).any(-1)
        each = {'loss': loss, 'top1': best[:, 0], 'top5': best.any(-1), 'count': jnp.ones_like(mask)}
        if tree is not None:
            each['semantic_hits'], each['semantic_levels'] = semantic_hits(logits, batch['label'], tree)
        sums = jax.lax.psum({name: (value.astype(dtype) * mask).sum() for name, value in each.items()}, AXIS)
        if not each_image:
            return sums
        found = {name: batch[name] for name in ('index', 'mask', 'label')} | {'loss': loss, 'top5': each['top5']}
        found |= {'predicted': logits.argmax(-1), 'probability': jax.nn.softmax(logits).max(-1)}
        return sums | {'images': jax.lax.all_gather(found, AXIS, tiled=True)}

    return step


def make_multilabel_eval_step(
    apply: Callable[..., Any], *, mean: tuple[float, ...], std: tuple[float, ...], dtype: Any = jnp.float32
) -> Callable[[tuple[Tree, Tree], Batch], Batch]:
    """Return the evaluation step for `over_devices` of images with any number of classes.

    Args:
        apply, mean, std, dtype: as for `make_eval_step`.

    Returns:
        A function of (params, batch_stats) and of a batch with 'target', 'mask' and 'index'. It returns logits,
        targets, mask and index of the whole batch, over all devices and hosts, and the sigmoid cross entropy of each
        image, (B,).
    """

    def step(variables: tuple[Tree, Tree], batch: Batch) -> Batch:
        logits = apply(*variables, normalise(batch['image'], mean, std, dtype)).astype(dtype)
        targets = batch['target'].astype(dtype)
        logits = logits[:, : targets.shape[-1]]  # the model may have more classes than the data
        loss = optax.sigmoid_binary_cross_entropy(logits, targets).mean(-1)
        found = {'logits': logits, 'targets': targets, 'loss': loss} | {name: batch[name] for name in ('mask', 'index')}
        # The results of a step must be the same on every device.
        return jax.lax.all_gather(found, AXIS, tiled=True)

    return step
