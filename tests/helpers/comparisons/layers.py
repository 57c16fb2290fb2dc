"""Single layers: pools, blur, squeeze-excite, batch norm, activations."""

# pyright: reportPrivateImportUsage=false
# timm does not mark what it exports.

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import timm
import torch
from flax import nnx

from tests.helpers.closeness import relative_error
from tests.helpers.comparisons.registry import EXACT, comparison, error_of
from tests.helpers.reference import images, nhwc, statistics
from tests.helpers.tolerances import LAYER
from tests.helpers.torch_layers import batch_norms, torch_gradient
from tresnet_jax.models import batch_norm as abn
from tresnet_jax.models import layers, pooling


def pool_error(function: Callable[[jax.Array], jax.Array], theirs: torch.nn.Module) -> float:
    """Return the largest error of a pool's values and gradients.

    All values are negative, so that a border of zeros would win a maximum.
    """
    errors = []
    for size in ((8, 6), (7, 9)):
        x, weight = images(2, 6, *size) - 6.0, images(2, 6, 10, 10, seed=4)
        expected, gradient = torch_gradient(theirs, x, weight)
        got = function(nhwc(x))
        if got.shape != nhwc(expected).shape:
            return float('inf')
        cotangent = nhwc(weight)[:, : got.shape[1], : got.shape[2]]
        got_gradient = jax.grad(lambda x, w=cotangent: (function(x) * w).sum())(nhwc(x))
        errors += [error_of(got, nhwc(expected)), error_of(got_gradient, nhwc(gradient))]
    return max(errors)


@comparison('test_layers.test_pooling', LAYER)
def blur_pool() -> float:
    return pool_error(pooling.BlurPool(), timm.layers.BlurPool2d(6).double())


@comparison('test_layers.test_pooling', LAYER)
def average_pool() -> float:
    return pool_error(pooling.AvgPool(2), torch.nn.AvgPool2d(2, 2, ceil_mode=True, count_include_pad=False))


@comparison('test_layers.test_pooling', LAYER)
def dilated_average_pool() -> float:
    return pool_error(pooling.AvgPool(1), timm.layers.AvgPool2dSame(2, 1, ceil_mode=True, count_include_pad=False))


@comparison('test_layers.test_pooling', LAYER)
def max_pool() -> float:
    return pool_error(lambda x: pooling.max_pool(x), torch.nn.MaxPool2d(3, 2, 1))


@comparison('test_layers.test_space_to_depth', EXACT)
def space_to_depth() -> float:
    x = images(1, 3, 8, 20)
    return error_of(layers.space_to_depth(jnp.asarray(nhwc(x))), nhwc(timm.layers.SpaceToDepth()(x)))


@functools.cache
def timm_squeeze_excite() -> torch.nn.Module:
    torch.manual_seed(0)
    return timm.layers.SEModule(24, rd_channels=10).double()


@comparison('test_layers.test_squeeze_excite', LAYER)
def squeeze_excite() -> float:
    theirs, mine = timm_squeeze_excite(), layers.SqueezeExcite(24, 10, dtype=jnp.dtype('float64'), rngs=nnx.Rngs(0))
    for name in ('fc1', 'fc2'):
        layer, other = getattr(mine, name), getattr(theirs, name)
        layer.kernel[...] = jnp.asarray(other.weight.detach().numpy().transpose(2, 3, 1, 0))
        layer.bias[...] = jnp.asarray(other.bias.detach().numpy())
    x = 3 * images(2, 24, 5, 7)
    return error_of(mine(nhwc(x)), nhwc(theirs(x)))


@comparison('test_layers.test_batch_norm', LAYER)
def batch_norm() -> float:
    theirs, mine = batch_norms(1e-2)
    x = images(2, 5, 3, 4) * 2 + 1
    return error_of(mine(nhwc(x)), nhwc(theirs.eval()(x)))


def batch_norm_step() -> tuple[dict[str, Any], dict[str, Any]]:
    """Return outputs and running statistics of a training step: ours, and torch's."""
    theirs, mine = batch_norms(1e-2)
    x = images(2, 5, 3, 4) * 2 + 1
    mine.train()
    output = nhwc(theirs.train()(x))
    mean, var = statistics(theirs[0])
    expected = {'output': output, 'mean': mean.numpy(), 'var': var.numpy()}
    return {'output': mine(nhwc(x)), 'mean': mine.mean[...], 'var': mine.var[...]}, expected


@comparison('test_layers.test_batch_norm', LAYER)
def batch_norm_training() -> float:
    got, expected = batch_norm_step()
    return error_of(got['output'], expected['output'])


@comparison('test_layers.test_batch_norm', LAYER)
def running_statistics() -> float:
    got, expected = batch_norm_step()
    return max(error_of(got[key], expected[key]) for key in ('mean', 'var'))


@comparison('test_layers.test_a_large_mean_does_not_cancel', 10)
def large_mean() -> float:
    """Return the float32 error as a multiple of torch's own."""
    x = (100 + 0.01 * images(8, 4, 9, 9)).float()
    exact = nhwc(torch.nn.BatchNorm2d(4).double().train()(x.double()))
    noise = relative_error(nhwc(torch.nn.BatchNorm2d(4).train()(x)), exact)
    mine = abn.BatchNormAct(4, slope=None, dtype=jnp.dtype('float32'), axis_name=None)
    mine.train()
    return error_of(mine(jnp.asarray(nhwc(x))), exact) / noise


@comparison('test_layers.test_the_activation_has_torchs_derivative_at_zero', EXACT)
def activation_at_zero() -> float:
    errors = []
    for slope in (0.0, 1e-2):
        x = torch.zeros(1, dtype=torch.float64, requires_grad=True)
        torch.nn.functional.leaky_relu(x, slope).sum().backward()
        assert x.grad is not None
        errors.append(abs(float(jax.grad(abn.activate)(0.0, slope)) - x.grad.item()))
    return max(errors)
