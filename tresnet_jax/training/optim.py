"""The optimiser, with optax. Parameters are grouped as by timm's ``create_optimizer_v2``."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from tresnet_jax.checkpoints.run import PROJECTION
from tresnet_jax.models.base import PARTS, Tree, part_of
from tresnet_jax.models.ml_decoder import QUERIES
from tresnet_jax.training.config import TrainConfig
from tresnet_jax.training.update_rules import RULES, settings_of

# The parts of a model, by the paths of its parameters.


def keys_of(path: Sequence[Any]) -> tuple[str, ...]:
    """Return a path of jax.tree_util as names: ('layer1', '0', 'conv1', 'kernel'), without TResNet's leading 'body'."""
    names = tuple(str(entry.key) for entry in path)
    return names[1:] if names[0] == 'body' else names


def is_frozen(path: Sequence[Any], frozen: Sequence[str]) -> bool:
    """Return whether a parameter belongs to one of the `frozen` parts; 'backbone' is every part but the head.

    The queries of an ML-Decoder, which are random constants, are always frozen. The projection of features for a
    teacher never is.
    """
    names = keys_of(path)
    if PROJECTION in names:
        return False
    part = part_of(names)
    return QUERIES in names or part in frozen or ('backbone' in frozen and part != 'head')


def layer_scales(params: Tree, decay: float) -> Tree:
    """Return the factor on the learning rate of each parameter: 1 for the head, `decay` for the last block, and so on.

    As timm's ``param_groups_layer_decay``: the stem, each block and the head are one layer each.
    """
    leaves = jax.tree_util.tree_leaves_with_path(params)
    layers = sorted({_layer(path) for path, _ in leaves})
    depth = {layer: len(layers) - 1 - i for i, layer in enumerate(layers)}
    return jax.tree_util.tree_map_with_path(lambda path, _: decay ** depth[_layer(path)], params)


def _layer(path: Sequence[Any]) -> tuple[int, int]:
    """Return the position of a parameter's part in PARTS, and of its block in the stage."""
    names = keys_of(path)
    part = part_of(names)
    return PARTS.index(part), int(names[1]) if part.startswith('layer') else 0


# The optimiser.


def scale_each(factors: Tree) -> optax.GradientTransformation:
    """Return the transformation that multiplies each update by its own factor."""
    # Under optax.partition the updates of frozen parameters are MaskedNodes, which a plain tree.map would not match.
    is_masked = lambda leaf: isinstance(leaf, optax.MaskedNode)  # noqa: E731

    def update(updates, params=None):
        del params
        return jax.tree.map(lambda u, f: u if is_masked(u) else u * f, updates, factors, is_leaf=is_masked)

    return optax.stateless(update)


def scale_by_rate(schedule: optax.Schedule) -> optax.GradientTransformationExtraArgs:
    """Return the transformation that multiplies updates by minus the learning rate of the `step` given to ``update``.

    ``optax.scale_by_schedule`` counts its own updates, and would fall behind the run at each skipped step.
    """

    def update(updates, state, params=None, *, step, **others):
        del params, others
        rate = jnp.asarray(schedule(step))
        return jax.tree.map(lambda u: -rate.astype(u.dtype) * u, updates), state

    # optax annotates the field as in the base class, without further arguments.
    return optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)  # pyright: ignore[reportArgumentType]


def clip_norm(limit: float) -> optax.GradientTransformation:
    """Scale all gradients together to a norm of at most `limit`; as in torch, which adds 1e-6 to the norm."""

    def clip(grads, params=None):
        del params
        factor = jnp.minimum(limit / (optax.tree.norm(grads) + 1e-6), 1)
        return jax.tree.map(lambda g: factor.astype(g.dtype) * g, grads)

    return optax.stateless(clip)


def clip_adaptively(factor: float) -> optax.GradientTransformation:
    """Clip the gradient of each output channel to `factor` times its weights (arXiv:2102.06171).

    As in timm, the classifier is not clipped; the projection of features for a teacher is.
    """

    def is_clipped(tree: Tree) -> Tree:
        paths = jax.tree_util.tree_map_with_path
        return paths(lambda path, _: PROJECTION in keys_of(path) or part_of(keys_of(path)) != 'head', tree)

    return optax.masked(optax.adaptive_grad_clip(factor), is_clipped)


CLIP_MODES = {'norm': clip_norm, 'value': optax.clip, 'agc': clip_adaptively}


def create_optimizer(
    config: TrainConfig, schedule: optax.Schedule, params: Tree
) -> optax.GradientTransformationExtraArgs:
    """Return the optimiser: gradient clipping, the rule of `config.opt`, and the factor of each layer.

    Its ``update`` takes the number of the step as `step`, which counts skipped steps too, as timm and torch do: they
    move the schedule on at each batch, whether or not its gradient was used.

    Only kernels have weight decay ("true weight decay", Bag of Tricks, arXiv:1812.01187). Parameters with one axis,
    which are biases and norms, have none. Frozen parameters get no update.

    Args:
        config: opt and its options, momentum, weight_decay, clip_grad, clip_mode, freeze, layer_decay.
        schedule: step -> learning rate.
        params: nested dicts of arrays or of their shapes; only the structure and the shapes are used.

    Raises:
        TrainingError: as `settings_of`.
    """
    clipping = [] if config.clip_grad is None else [CLIP_MODES[config.clip_mode](config.clip_grad)]
    chain = [*clipping, *RULES[config.opt].chain(settings_of(config), scale_by_rate(schedule))]
    if config.layer_decay is not None:
        chain.append(scale_each(layer_scales(params, config.layer_decay)))
    optimizer = optax.chain(*chain)
    labels = jax.tree_util.tree_map_with_path(
        lambda path, _: 'frozen' if is_frozen(path, config.freeze) else 'trained', params
    )
    if 'frozen' not in jax.tree.leaves(labels):
        return optimizer
    return optax.partition({'trained': optimizer, 'frozen': optax.set_to_zero()}, labels)
