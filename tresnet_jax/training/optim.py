"""The optimiser: optax transformations put together as timm's ``create_optimizer_v2`` groups parameters."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from tresnet_jax.models.base import PARTS, Tree, part_attributes
from tresnet_jax.training.config import TrainConfig


def create_optimizer(config: TrainConfig, schedule: optax.Schedule, params: Tree) -> optax.GradientTransformation:
    """Clipping, weight decay, the optimiser itself, the rate of each layer; frozen parameters are left alone.

    Weight decay is on kernels alone ("true weight decay", Bag of Tricks, arXiv:1812.01187): parameters with one axis,
    biases and norms, have none. For SGD it is added to the gradient before the momentum as torch does, for AdamW it
    is decoupled.

    Args:
        config: `opt` and what belongs to it, `clip_grad`, `freeze`, `layer_decay`.
        schedule: step -> learning rate.
        params: the tree that will be trained, for its structure.
    """

    def kernels(tree: Tree) -> Tree:
        return jax.tree.map(lambda leaf: leaf.ndim > 1, tree)

    chain = [] if config.clip_grad is None else [optax.clip_by_global_norm(config.clip_grad)]
    if config.opt in ('sgd', 'momentum'):
        chain += [
            optax.add_decayed_weights(config.weight_decay, kernels),
            optax.trace(config.momentum, nesterov=config.opt == 'sgd'),
            optax.scale_by_learning_rate(schedule),
        ]
    else:
        chain.append(optax.adamw(schedule, weight_decay=config.weight_decay, mask=kernels))
    if config.layer_decay is not None:
        chain.append(scale_each(layer_scales(params, config.layer_decay)))
    optimizer = optax.chain(*chain)
    if not config.freeze:
        return optimizer
    labels = jax.tree_util.tree_map_with_path(
        lambda path, _: 'frozen' if is_frozen(path, config.freeze) else 'trained', params
    )
    return optax.partition({'trained': optimizer, 'frozen': optax.set_to_zero()}, labels)


def scale_each(factors: Tree) -> optax.GradientTransformation:
    """Multiply each update by its own factor."""
    # Under optax.partition the updates of frozen leaves are masked out, which a plain tree.map would not match.
    is_masked = lambda leaf: isinstance(leaf, optax.MaskedNode)  # noqa: E731

    def update(updates, params=None):
        del params
        return jax.tree.map(lambda u, f: u if is_masked(u) else u * f, updates, factors, is_leaf=is_masked)

    return optax.stateless(update)


def keys_of(path: Sequence[Any]) -> tuple[str, ...]:
    """A path of jax.tree_util as plain names: ('layer1', '0', 'conv1', 'kernel'), without TResNet's 'body'."""
    names = tuple(str(entry.key) for entry in path)
    return names[1:] if names[0] == 'body' else names


def part_of(path: Sequence[Any]) -> str:
    """The part a parameter belongs to: stem, layer1 to layer4, head."""
    first = keys_of(path)[0]
    return next((part for part in PARTS[:-1] if first in part_attributes(part)), 'head')


def is_frozen(path: Sequence[Any], frozen: Sequence[str]) -> bool:
    """Whether a parameter belongs to one of the parts; 'backbone' is all but the head."""
    part = part_of(path)
    return part in frozen or ('backbone' in frozen and part != 'head')


def layer_scales(params: Tree, decay: float) -> Tree:
    """Factors on the learning rate, one a parameter: 1 for the head, `decay` for the last block, and so on to the stem.

    timm's ``param_groups_layer_decay``: the stem, each block and the head are a layer each.
    """
    leaves = jax.tree_util.tree_leaves_with_path(params)
    layers = sorted({_layer(path) for path, _ in leaves})
    depth = {layer: len(layers) - 1 - i for i, layer in enumerate(layers)}
    return jax.tree_util.tree_map_with_path(lambda path, _: decay ** depth[_layer(path)], params)


def _layer(path: Sequence[Any]) -> tuple[int, int]:
    """The stage and the block in it."""
    part, names = part_of(path), keys_of(path)
    return PARTS.index(part), int(names[1]) if part.startswith('layer') else 0


def create_schedule(config: TrainConfig, steps: int, steps_per_epoch: float) -> optax.Schedule:
    """The schedule of a run.

    Args:
        config: `sched` and what belongs to it; epochs there become steps here.
        steps: of the whole run.
        steps_per_epoch: steps in an epoch.

    'cosine' and 'step' are timm's (``timm/scheduler``, updated at each step): a linear warm-up from `warmup_lr` lies
    over the beginning of the curve. 'one_cycle' is torch's ``OneCycleLR`` with cosine annealing (Smith,
    arXiv:1708.07120).
    """
    lr = config.peak_lr
    if config.sched == 'one_cycle':
        return one_cycle(lr, steps, config.pct_start, config.div_factor, config.final_div_factor)
    warmup = min(round(config.warmup_epochs * steps_per_epoch), steps)
    if config.sched == 'cosine':
        curve = _cosine(lr, config.min_lr, steps)
    elif config.sched == 'step':
        curve = _staircase(lr, config.decay_epochs * steps_per_epoch, config.decay_rate)
    else:
        curve = optax.constant_schedule(lr)
    return _with_warmup(curve, config.warmup_lr, lr, warmup)


def one_cycle(lr: float, steps: int, pct_start: float, div_factor: float, final_div_factor: float) -> optax.Schedule:
    """lr / div_factor -> lr in the first `pct_start` of the steps, -> lr / div_factor / final_div_factor at the last.

    torch's: the turning point need not be a whole step.
    """
    first, last = lr / div_factor, lr / div_factor / final_div_factor
    # A turning point before the first step, as torch computes it for a very short run, would divide by zero.
    up, end = max(pct_start * steps - 1, 1e-6), max(steps - 1, 1)

    def schedule(step):
        step = jnp.asarray(step, _float())
        rising = _anneal(first, lr, step / up)
        falling = _anneal(lr, last, jnp.minimum((step - up) / max(end - up, 1e-6), 1))
        return jnp.where(step <= up, rising, falling)

    return schedule


def _anneal(start: float, end: float, share: jax.Array) -> jax.Array:
    return end + (start - end) / 2 * (1 + jnp.cos(jnp.pi * share))


def _cosine(lr: float, end: float, steps: int) -> Callable:
    return lambda step: _anneal(lr, end, jnp.minimum(jnp.asarray(step, _float()) / steps, 1))


def _staircase(lr: float, length: float, rate: float) -> Callable:
    return lambda step: lr * rate ** jnp.floor(jnp.asarray(step, _float()) / length)


def _with_warmup(curve: Callable, start: float, lr: float, warmup: int) -> optax.Schedule:
    if warmup == 0:
        return curve

    def schedule(step):
        rising = start + (lr - start) / warmup * jnp.asarray(step, _float())
        return jnp.where(step < warmup, rising, curve(step))

    return schedule


def _float() -> jnp.dtype:
    """float64 where it is on."""
    return jax.dtypes.canonicalize_dtype(jnp.float64)
