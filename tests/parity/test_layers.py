"""Layers and blocks against torch and timm, in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import timm.layers
import torch
from flax import nnx

from tests.helpers.closeness import assert_close, relative_error
from tests.helpers.reference import call, images, nhwc, ours, reference, statistics
from tests.helpers.tolerances import EVALUATION, LAYER
from tests.helpers.torch_layers import batch_norms, torch_gradient
from tresnet_jax.models import layers, pooling
from tresnet_jax.models.batch_norm import BatchNormAct, activate

pytestmark = pytest.mark.usefixtures('x64')
SIZES = [(8, 8), (7, 9), (2, 5), (3, 2), (25, 13)]


@pytest.mark.parametrize('size', SIZES)
@pytest.mark.parametrize(
    'our_layer, their_layer',
    [
        (pooling.blur_pool, timm.layers.BlurPool2d(6).double()),
        (pooling.avg_pool, torch.nn.AvgPool2d(2, 2, ceil_mode=True, count_include_pad=False)),
        (pooling.avg_pool_dilated, timm.layers.AvgPool2dSame(2, 1, ceil_mode=True, count_include_pad=False)),
        (pooling.max_pool, torch.nn.MaxPool2d(3, 2, 1)),
    ],
    ids=['blur_pool', 'avg_pool', 'avg_pool_dilated', 'max_pool'],
)
def test_pooling(our_layer, their_layer, size):
    """Values and gradients agree for even and odd sizes.

    The values are negative, so that a border of zeros would win a maximum.
    """
    x, weight = images(2, 6, *size) - 3.0, images(2, 6, 25, 25, seed=4)
    expected, gradient = torch_gradient(their_layer, x, weight)

    def loss(x):
        y = our_layer(x)
        _, h, w, _ = y.shape
        return (y * nhwc(weight)[:, :h, :w]).sum(), y

    got_gradient, got = jax.jit(jax.grad(loss, has_aux=True))(nhwc(x))
    assert_close(got, nhwc(expected), LAYER)
    assert_close(got_gradient, nhwc(gradient), LAYER)


@pytest.mark.parametrize('size', SIZES)
def test_max_pool_of_equal_pixels_and_nan(size):
    """The first of equal pixels gets the gradient, and a NaN is the maximum of its windows."""
    x, weight = torch.round(images(2, 6, *size)), images(2, 6, 13, 13, seed=4)
    x[0, 0, -1, 0] = float('nan')
    expected, gradient = torch_gradient(torch.nn.MaxPool2d(3, 2, 1), x, weight)
    got, gradient_of = jax.vjp(jax.jit(pooling.max_pool), nhwc(x))
    np.testing.assert_array_equal(got, nhwc(expected))
    _, h, w, _ = got.shape
    (got_gradient,) = gradient_of(jnp.asarray(nhwc(weight)[:, :h, :w]))
    assert_close(got_gradient, nhwc(gradient), LAYER)


@pytest.mark.parametrize('channels', [1, 3, 5])
def test_space_to_depth(channels):
    x = images(2, channels, 8, 20)
    np.testing.assert_array_equal(layers.space_to_depth(jnp.asarray(nhwc(x))), nhwc(timm.layers.SpaceToDepth()(x)))


def test_squeeze_excite():
    theirs = timm.layers.SEModule(24, rd_channels=10).double()
    mine = layers.SqueezeExcite(24, 10, dtype=jnp.float64, rngs=nnx.Rngs(0))
    for name in ('fc1', 'fc2'):
        weight = getattr(theirs, name).weight.detach().numpy().transpose(2, 3, 1, 0)
        getattr(mine, name).kernel[...] = jnp.asarray(weight)
        getattr(mine, name).bias[...] = jnp.asarray(getattr(theirs, name).bias.detach().numpy())
    x = images(2, 24, 5, 7)
    assert_close(call(mine, nhwc(x)), nhwc(theirs(x)), LAYER)


@pytest.mark.parametrize('slope', [None, 0.0, 1e-3, 1e-2])
@pytest.mark.parametrize('shape', [(2, 5, 3, 4), (2, 5, 1, 1)], ids=str)
def test_batch_norm(slope, shape):
    """Evaluation, a training step, its running statistics (unbiased, n = 24 and n = 2) and its gradients agree."""
    theirs, mine = batch_norms(slope)
    x, weight = images(*shape) * 2 + 1, images(*shape, seed=3)
    theirs.eval()
    assert_close(call(mine, nhwc(x)), nhwc(theirs(x)), LAYER)

    theirs.train()
    mine.train()
    expected, gradient = torch_gradient(theirs, x, weight)
    graphdef, params, stats = nnx.split(mine, nnx.Param, nnx.BatchStat)

    def loss(params, x):
        layer = nnx.merge(graphdef, params, nnx.to_pure_dict(stats))
        y = layer(x)
        return (y * nhwc(weight)).sum(), (y, nnx.to_pure_dict(nnx.state(layer, nnx.BatchStat)))

    grad = jax.jit(jax.grad(loss, argnums=(0, 1), has_aux=True))
    (got_params, got_gradient), (got, new) = grad(nnx.to_pure_dict(params), nhwc(x))
    # With two values per channel the gradient is a difference of nearly equal numbers.
    tolerance = LAYER if shape[2] > 1 else 1e-9
    assert_close(got, nhwc(expected), LAYER)
    mean, var = statistics(theirs[0])
    assert_close(new, {'mean': mean.numpy(), 'var': var.numpy()}, LAYER)
    assert_close(got_params, {'scale': theirs[0].weight.grad.numpy(), 'bias': theirs[0].bias.grad.numpy()}, tolerance)
    assert_close(got_gradient, nhwc(gradient), tolerance)


def test_one_value_per_channel_is_an_error_in_training_as_in_torch():
    theirs, mine = batch_norms(0.0)
    x = images(1, 5, 1, 1)
    with pytest.raises(ValueError, match='more than 1 value per channel'):
        theirs.train()(x)
    mine.train()
    with pytest.raises(ValueError, match='more than 1 value per channel'):
        mine(nhwc(x))


def test_a_large_mean_does_not_cancel():
    """The float32 variance is right for a mean of 100 and a deviation of 0.01.

    E[x^2] - E[x]^2 would be off by hundreds of percent.
    """
    x = (100 + 0.01 * images(8, 4, 9, 9)).float()
    theirs = torch.nn.BatchNorm2d(4).train()
    mine = BatchNormAct(4, slope=None, dtype=jnp.float32, axis_name=None)
    mine.train()
    exact = torch.nn.BatchNorm2d(4).double().train()(x.double())
    noise = relative_error(nhwc(theirs(x)), nhwc(exact))
    assert relative_error(mine(jnp.asarray(nhwc(x))), nhwc(exact)) <= 10 * noise


@pytest.mark.parametrize('slope', [None, 0.0, 0.01])
def test_the_activation_has_torchs_derivative_at_zero(slope):
    x = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    (x if slope is None else torch.nn.functional.leaky_relu(x, slope)).sum().backward()
    assert jax.grad(lambda x: activate(x, slope))(0.0) == x.grad.item()


@pytest.mark.parametrize('name', ['test_resnet', 'test_tresnet', 'resnet26d', 'tresnet_v2_l'])
def test_the_first_block_of_every_stage(name):
    """The blocks with a projection agree on an odd map."""
    model = reference(name)
    mine = ours(model, name, dtype='float64')
    body = model.body if hasattr(model, 'body') else model
    for index, stage in enumerate(mine._stages(), start=1):
        theirs = getattr(body, f'layer{index}')[0]
        first = stage[0].conv1
        x = images(1, getattr(first, 'conv', first).in_features, 9, 6)
        got = jax.jit(lambda block, x: block(x, None))(stage[0], nhwc(x))
        assert_close(got, nhwc(theirs(x.clone())), EVALUATION)
