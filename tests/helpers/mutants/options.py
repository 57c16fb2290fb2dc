"""Mistakes in options: drop path, dropout, pooling, heads, feature maps."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from tests.helpers.mutants.resnetd import RESNET_BLOCKS, drop_path_of_the_sum
from tests.helpers.mutants.table import Patch, row, with_options
from tests.helpers.mutants.tresnet import block
from tresnet_jax.models import base as model
from tresnet_jax.models import block as residual
from tresnet_jax.models import layers, pooling, tresnet

# Originals that patches call.
drop = layers.drop
take_indices = model.take_indices
forward_intermediates = model.ImageModel.forward_intermediates
reset_classifier = model.ImageModel.reset_classifier
prune = model.ImageModel.prune_intermediate_layers


def needed(key: jax.Array | None) -> jax.Array:
    assert key is not None
    return key


def drop_without_scaling(x: jax.Array, key: jax.Array, rate: float, shape: tuple[int, ...]) -> jax.Array:
    return jnp.where(jax.random.bernoulli(key, 1.0 - rate, tuple(shape)), x, jnp.zeros((), x.dtype))


def drop_path_of_values(self: layers.DropPath, x: jax.Array, key: jax.Array | None) -> jax.Array:
    """Drop values instead of images."""
    return drop(x, needed(key), self.rate, x.shape) if self.is_random else x


def drop_path_of_the_batch(self: layers.DropPath, x: jax.Array, key: jax.Array | None) -> jax.Array:
    return drop(x, needed(key), self.rate, (1, 1, 1, 1)) if self.is_random else x


def dropout_keeping_the_rate(self: layers.Dropout, x: jax.Array, rngs: nnx.Rngs | None) -> jax.Array:
    """Keep the share that should be dropped; a rate of 1/2 would not show it."""
    return x if self.deterministic or self.rate == 0 else drop(x, layers.draw_key(rngs, ''), 1 - self.rate, x.shape)


def rates_a_stage(rate: float, depths: tuple[int, ...]) -> list[float]:
    """Return one rate for all blocks of a stage."""
    return [rate * stage / 3 for stage, depth in enumerate(depths) for _ in range(depth)]


def rates_in_float64(rate: float, depths: tuple[int, ...]) -> list[float]:
    n = sum(depths)
    return [rate * i / (n - 1) for i in range(n)]


def rates_from_one_end(rate: float, depths: tuple[int, ...]) -> list[float]:
    """Return NumPy's linspace in float32; torch counts the second half from the end."""
    n = sum(depths)
    step = np.float32(rate) / np.float32(n - 1)
    return [float(np.float32(step * np.float32(i))) for i in range(n)]


def pool_with(kind: str, combine: Callable[[jax.Array], jax.Array]) -> Patch:
    original = pooling.global_pool
    return (model, 'global_pool', lambda x, name: combine(x) if name == kind else original(x, name))


def first_n(count: int, indices: Any) -> list[int]:
    return list(range(indices)) if isinstance(indices, int) else take_indices(count, indices)


def maps_in_the_order_asked_for(self: model.ImageModel, x: jax.Array, indices: Any = None, **options: Any) -> Any:
    result = forward_intermediates(self, x, indices, **options)
    maps = result if options.get('intermediates_only') else result[1]
    if isinstance(indices, tuple):
        chosen = take_indices(5, indices)
        maps[:] = [maps[sorted(chosen).index(i)] for i in chosen]
    return result


def reset_to_average(self: model.ImageModel, num_classes: int, global_pool: str | None = None, **options: Any) -> Any:
    """Reset as timm 1.0.29's ResNet does: without an argument the pooling becomes 'avg'."""
    return reset_classifier(self, num_classes, 'avg' if global_pool is None else global_pool, **options)


def pre_logits_without_dropout(
    self: model.ImageModel, x: jax.Array, pre_logits: bool = False, *, rngs: nnx.Rngs | None = None
) -> jax.Array:
    """Take pre_logits before the dropout."""
    x = pooling.global_pool(x, self.global_pool)
    return x if pre_logits else self.get_classifier()(self.head_drop(x, rngs))


MUTANTS = (
    # Drop path and dropout.
    row('drop path is not scaled', 'drop_path', (layers, 'drop', drop_without_scaling)),
    row('drop path drops values', 'drop_path', (layers.DropPath, '__call__', drop_path_of_values)),
    row('drop path drops whole batches', 'drop_path', (layers.DropPath, '__call__', drop_path_of_the_batch)),
    row('drop path keeps what it should drop', 'drop_path',
        (layers, 'drop', lambda x, key, rate, shape: drop(x, key, 1 - rate, shape))),
    row('drop path of the sum', 'drop_path',
        *((made, '__call__', drop_path_of_the_sum) for made in RESNET_BLOCKS)),
    row('drop path before squeeze-excite', 'drop_path', (tresnet.BasicBlock, '__call__', block('1b2ds'))),
    row("a TResNet's rates are one a stage", 'drop_path_rates', (tresnet, 'stagewise_drop_path_rates', rates_a_stage)),
    row("a TResNet's rates are float64", 'drop_path_rates', (tresnet, 'stagewise_drop_path_rates', rates_in_float64)),
    row("a TResNet's rates count from one end", 'drop_path_rates',
        (tresnet, 'stagewise_drop_path_rates', rates_from_one_end)),
    row("a ResNet's rates are float32", 'drop_path_rates',
        (residual, 'DropPath', lambda rate: layers.DropPath(float(np.float32(rate))))),
    row("a ResNet's rates end before the last block", 'drop_path_rates',
        (residual, 'DropPath', lambda rate: layers.DropPath(rate * 7 / 8))),
    row('dropout is not scaled', 'dropout', (layers, 'drop', drop_without_scaling)),
    row('dropout keeps what it should drop', 'dropout', (layers.Dropout, '__call__', dropout_keeping_the_rate)),
    row('pre_logits are taken before the dropout', 'dropout',
        (model.ImageModel, 'forward_head', pre_logits_without_dropout)),
    # Heads and features.
    row("'avgmax' is the sum", 'global_pools', pool_with('avgmax', lambda x: x.mean((1, 2)) + x.max((1, 2)))),
    row("'catavgmax' has the maximum first", 'global_pools',
        pool_with('catavgmax', lambda x: jnp.concatenate([x.max((1, 2)), x.mean((1, 2))], -1))),
    row("'fast' is the maximum", 'global_pools', pool_with('fast', lambda x: x.max((1, 2)))),
    row("'' pools", 'global_pools', pool_with('', lambda x: x.mean((1, 2)))),
    row("the classifier of 'catavgmax' is as wide as the map", 'wide_heads',
        (model, 'pool_multiplier', lambda pool_type: 1)),
    row('a reset without a pooling averages', 'reset_pooling',
        (model.ImageModel, 'reset_classifier', reset_to_average)),
    row('n feature maps are the first n', 'intermediates', (model, 'take_indices', first_n)),
    row('feature maps come in the order asked for', 'intermediates',
        (model.ImageModel, 'forward_intermediates', maps_in_the_order_asked_for)),
    row("a TResNet's backbone gives its stem too", 'backbones', (
        model.ImageModel, 'prune_intermediate_layers',
        lambda self, indices: prune(self, (0, *indices) if indices == (1, 2, 3, 4) else indices))),
    row('stopping early still gives the last map', 'intermediates', (
        model.ImageModel, 'forward_intermediates', with_options(forward_intermediates, stop_early=False))),
)  # fmt: skip
