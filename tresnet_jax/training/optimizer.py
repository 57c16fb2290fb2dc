"""The optimiser: optax transformations put together as timm's ``create_optimizer_v2`` groups parameters."""

import jax
import optax

from tresnet_jax.model import Tree
from tresnet_jax.training.config import TrainConfig
from tresnet_jax.training.parts import is_frozen, layer_scales


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
