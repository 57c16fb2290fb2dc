"""Layers that are computed together in half precision: the numbers of the separate layers, and of those in float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import tresnet_jax
from tests.helpers.closeness import assert_close
from tests.helpers.images import normal_images
from tests.helpers.models import as_trained
from tresnet_jax.models import excite, pointwise, pooling
from tresnet_jax.models.batch_norm import BatchNormAct, activate, batch_norm_act, slope_at
from tresnet_jax.models.excite import norm_excite
from tresnet_jax.models.hooks import add_forward_hook
from tresnet_jax.models.layers import SqueezeExcite
from tresnet_jax.models.pointwise import pointwise_batch_norm

EPSILON = 1e-5


def separate(x, kernel, scale, bias, axis_name=None):
    product = jnp.einsum('bhwk,kc->bhwc', x, kernel.astype(x.dtype))
    return batch_norm_act(product, scale, bias, None, EPSILON, axis_name)


def joined(x, kernel, scale, bias, axis_name=None):
    return pointwise_batch_norm(x, kernel, scale, bias, EPSILON, axis_name)


def drawn(shape=(4, 5, 6, 8), chans=12, dtype='float64'):
    """Return a map that is correlated between channels and has means, and the parameters of a layer."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=shape) @ rng.normal(size=2 * shape[-1:]) + rng.normal(size=shape[-1])
    kernel, scale, bias = rng.normal(size=(shape[-1], chans)), rng.uniform(-1.5, 1.5, chans), rng.normal(size=chans)
    return tuple(jnp.asarray(a, dtype) for a in (x, kernel, scale, bias))


def everything(function, args):
    """Return the results, the gradients, and a product with the Hessian."""

    def loss(*args):
        y, mean, var = function(*args)
        return jnp.sum(jnp.sin(y) * jnp.cos(jnp.arange(y.size, dtype=y.dtype)).reshape(y.shape)), (y, mean, var)

    gradient = jax.grad(loss, range(len(args)), has_aux=True)
    (gradients, results), (products, _) = jax.jvp(gradient, args, tuple(jnp.cos(a) for a in args))
    return results, gradients, products


def test_a_pointwise_convolution_and_its_batch_norm(x64):
    args = drawn()
    got, expected = (jax.jit(functools.partial(everything, f))(args) for f in (joined, separate))
    assert_close(got, expected, 1e-11)


def test_statistics_over_two_devices(x64):
    x, *parameters = drawn()
    halves = x.reshape(2, -1, *x.shape[1:]) + jnp.arange(2.0).reshape(2, 1, 1, 1, 1)  # each with its own means

    def step(function, x):
        _, pullback, statistics = jax.vjp(
            lambda x: (lambda y, *rest: (jnp.sin(y), rest))(*function(x, *parameters, 'devices')), x, has_aux=True
        )
        return statistics, pullback(jnp.cos(x @ parameters[0]))

    devices = jax.local_devices()[:2]
    got, expected = (
        jax.pmap(functools.partial(step, f), 'devices', devices=devices)(halves) for f in (joined, separate)
    )
    assert_close(got, expected, 1e-11)


def test_half_precision(x64):
    """In bfloat16 the errors of the output and of the input's gradient are those of the separate layers, or smaller.

    Those of the kernel's and the scale's gradients are far smaller. Both on a CPU, which rounds more often than a GPU.
    """
    x, *parameters = drawn((8, 12, 12, 32), 64, 'float32')
    x = jax.nn.relu(x).astype(jnp.bfloat16)
    g = jnp.asarray(np.random.default_rng(1).normal(size=(8, 12, 12, 64)), jnp.bfloat16)

    def results(function, dtype=None):
        args = [x, *parameters] if dtype is None else [a.astype(dtype) for a in (x, *parameters)]
        y, pullback = jax.vjp(lambda *args: function(*args)[0], *args)
        return y, *pullback(g.astype(y.dtype))[:3]

    exact = results(separate, 'float64')
    errors = [
        [float(np.sqrt(np.mean(np.square(np.asarray(a, np.float64) - b)))) for a, b in zip(got, exact, strict=True)]
        for got in (jax.jit(functools.partial(results, f))() for f in (joined, separate))
    ]
    ratios = [mine / theirs for mine, theirs in zip(*errors, strict=True)]
    assert max(ratios[:2]) < 1.5 and max(ratios[2:]) < 0.1, ratios


def test_the_offset_is_that_of_the_rounded_kernel(monkeypatch):
    x, kernel, scale, bias = drawn(dtype='float32')
    x, taken = x.astype(jnp.bfloat16), []
    monkeypatch.setattr(pointwise, '_affine', lambda *args: taken.extend(args) or args[0])
    joined(x, kernel, scale, bias)
    _, folded, offset = taken
    np.testing.assert_array_equal(folded, folded.astype(jnp.bfloat16).astype(jnp.float32))
    assert_close(offset + x.astype(jnp.float32).mean((0, 1, 2)) @ folded, bias, 1e-5)


def test_a_channel_without_variance(x64):
    """Rounding may make its variance negative."""
    _, kernel, scale, bias = drawn((2, 3, 3, 16), 8, 'float32')
    x = jnp.full((2, 3, 3, 16), 57.25, jnp.bfloat16)
    y, pullback = jax.vjp(lambda *args: joined(*args)[0], x, kernel, scale, bias)
    assert all(np.isfinite(np.asarray(a, np.float32)).all() for a in (y, *pullback(y)))


@pytest.mark.parametrize('slope', [None, 0.0, 1e-2])
def test_batch_norm_and_squeeze_excite(x64, slope):
    """Values, running statistics and the gradients of everything."""
    x, _, scale, bias = drawn(chans=8)
    norm = BatchNormAct(8, slope=slope, dtype=x.dtype, axis_name=None)
    norm.scale[...], norm.bias[...] = scale, bias
    norm.train()
    layer = nnx.List([norm, SqueezeExcite(8, 4, dtype=x.dtype, rngs=nnx.Rngs(0))])
    graphdef, params, stats = nnx.split(layer, nnx.Param, nnx.BatchStat)

    def results(function):
        def loss(params, x):
            norm, excite = merged = nnx.merge(graphdef, params, stats, copy=True)
            y = function(norm, excite, x)
            return jnp.sum(jnp.sin(y) * jnp.cos(x)), (y, nnx.to_pure_dict(nnx.state(merged, nnx.BatchStat)))

        return jax.jit(jax.grad(loss, argnums=(0, 1), has_aux=True))(nnx.to_pure_dict(params), x)

    expected = results(lambda norm, excite, x: excite(norm(x)))
    assert_close(results(norm_excite), expected, 1e-11)


@pytest.mark.parametrize(
    'name, mode, layers',
    [('test_tresnet', 'plain', {'pointwise', 'excite'}), ('test_tresnet', 'lean', {'pointwise'}),
     ('test_resnet', 'recompute', {'pointwise'})],
)  # fmt: skip
def test_networks(x64, monkeypatch, name, mode, layers):
    """With these layers in float64, a training step has the numbers of the separate layers."""
    x, options = normal_images(2, 64, dtype='float64'), {'features_only': True, 'out_indices': (1, 2, 3)}

    def results():
        apply, params, stats = tresnet_jax.functional(as_trained(name, dtype='float64', abn_memory=mode, **options))

        def loss(params):
            maps, new = apply(params, stats, x, train=True)
            return sum(jnp.sin(y).mean() for y in maps), (maps, new)

        return jax.jit(jax.value_and_grad(loss, has_aux=True))(params)

    expected, used = results(), set()
    for module, function in ((pointwise, 'pointwise_batch_norm'), (excite, 'norm_excite')):
        monkeypatch.setattr(module, 'is_half', lambda x: True)
        original, short = getattr(module, function), module.__name__.rpartition('.')[2]
        monkeypatch.setattr(
            module, function, lambda *args, original=original, short=short: (used.add(short), original(*args))[1]
        )
    assert_close(results(), expected, 1e-10)
    assert used == layers


def test_hooks_see_every_layer():
    model, seen = as_trained('test_tresnet', dtype='bfloat16'), []
    add_forward_hook(model, lambda path, layer, x, y: seen.append(path))
    apply, *variables = tresnet_jax.functional(model)
    jax.eval_shape(functools.partial(apply, train=True), *variables, jnp.zeros((4, 64, 64, 3)))
    assert ('body', 'layer3', 0, 'conv3', 'bn') in seen and ('body', 'layer1', 0, 'conv2', 'bn') in seen


@pytest.mark.parametrize('slope', [-2.0, -0.5, 0.0, 1e-3, 1.0, 2.0])
def test_the_slope_of_an_activation(slope):
    x = jnp.array([-np.inf, -3.0, -0.0, 0.0, 1e-30, 2.0])
    expected = np.where(x > 0, 1, np.float32(slope))
    np.testing.assert_array_equal(slope_at(x, slope), expected)
    np.testing.assert_array_equal(jax.vmap(jax.grad(lambda x: activate(x, slope)))(x), expected)


# Pooling.


@pytest.mark.parametrize('size', [(6, 4), (5, 7)])
def test_the_blur_of_half_precision_is_rounded_once(size):
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, *size, 3)), jnp.bfloat16)
    exact = pooling.blur_pool(x.astype(jnp.float32))
    np.testing.assert_array_equal(pooling.blur_pool(x), exact.astype(jnp.bfloat16))


@pytest.mark.parametrize('dtype', ['bfloat16', 'float16'])
def test_the_gradient_of_a_max_pool(dtype):
    """It goes to the first of equal pixels; values and forward-mode derivatives agree too."""
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(2, 8, 10, 5)).round(), dtype)
    assert 0 < (x == 0).sum() and np.signbit(x[x == 0]).any()
    x = x.at[0, 2, 3, 1].set(jnp.nan)
    dx, g = jnp.asarray(rng.normal(size=x.shape), dtype), jnp.asarray(rng.integers(-4, 5, (2, 4, 5, 5)), dtype)
    found = []
    for pool in (pooling._max_pool, pooling._reduce_window):
        y, dy = jax.jvp(pool, (x,), (dx,))
        gradient = jax.vjp(pool, x)[1](g)[0]
        found.append([np.asarray(a, np.float32) for a in (y, dy, gradient)])
    for got, expected in zip(*found, strict=True):
        # Where there is a NaN, the gradient of XLA's own goes elsewhere.
        elsewhere = np.ones(got.shape, bool)
        elsewhere[0, : 5 if len(got[0]) == 8 else 3, :6, 1] = False
        np.testing.assert_array_equal(got[elsewhere], expected[elsewhere])
    assert np.isnan(found[0][0][0, 1:2, 1:3, 1]).all()


def test_which_max_pool_a_gpu_runs():
    def gradient_of(x):
        lowered = jax.jit(jax.grad(lambda x: pooling.max_pool(x).sum())).trace(x).lower(lowering_platforms=('cuda',))
        return 'select_and_scatter' in lowered.as_text()

    assert not gradient_of(jnp.zeros((1, 8, 6, 2), jnp.bfloat16))
    assert gradient_of(jnp.zeros((1, 7, 6, 2), jnp.bfloat16))
    assert gradient_of(jnp.zeros((1, 8, 6, 2)))
    assert gradient_of(jnp.zeros((1, 258, 256, 2), jnp.bfloat16))
