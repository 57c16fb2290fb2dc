"""The memory modes of training: the same numbers as the plain mode, and less memory for the backward pass."""

import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import tresnet_jax
from tests.helpers.closeness import assert_close
from tests.helpers.models import as_trained
from tresnet_jax.models.batch_norm import SCALE_FLOOR, batch_norm_act, inplace_abn
from tresnet_jax.models.memory import MODES, relu_of_sum, relu_of_sum_from_output

TRESNET_MODES = [(mode, remat) for mode in MODES for remat in (False, True)][1:]  # all except the plain one
RESNET_MODES = [('plain', True), ('recompute', False), ('recompute', True)]
EVERY_DAY = [('test_tresnet', *row) for row in (('inplace', False), ('recompute', False), ('lean', True))]
EVERY_DAY += [('test_resnet', 'recompute', True)]
CASES = [
    pytest.param(name, *row, marks=[] if (name, *row) in EVERY_DAY else pytest.mark.slow)
    for name, rows in (('test_tresnet', TRESNET_MODES), ('test_resnet', RESNET_MODES))
    for row in rows
]


def functional_model(name: str, **options):
    """Return the functional form of a float64 model that drops values and branches in training."""
    random = {'drop_rate': 0.3, 'drop_path_rate': 0.3}
    return tresnet_jax.functional(as_trained(name, dtype='float64', **random, **options))


def loss_of(apply):
    def loss(params, stats, x):
        logits, stats = apply(params, stats, x, train=True, rngs={'dropout': jax.random.key(3)})
        return jnp.sum(logits * jnp.cos(jnp.arange(logits.size, dtype=logits.dtype)).reshape(logits.shape)), stats

    return loss


@functools.cache
def results(name: str, mode: str, remat: bool):
    """Return ((loss, statistics), gradients) over two devices with synchronised batch norm, dropout and drop path."""
    apply, params, stats = functional_model(name, abn_memory=mode, remat=remat, axis_name='devices')
    x = np.random.default_rng(1).normal(size=(2, 3, 32, 32, 3))
    step = jax.pmap(
        lambda x: jax.lax.pmean(jax.value_and_grad(loss_of(apply), has_aux=True)(params, stats, x), 'devices'),
        axis_name='devices',
        devices=jax.local_devices()[:2],
    )
    return jax.tree.map(lambda leaf: np.asarray(leaf[0]), step(x))


@pytest.mark.parametrize('name, mode, remat', CASES)
def test_every_mode_gives_the_numbers_of_plain(x64, name, mode, remat):
    (loss, stats), gradients = results(name, mode, remat)
    (plain_loss, plain_stats), plain_gradients = results(name, 'plain', False)
    assert_close((loss, stats), (plain_loss, plain_stats), 1e-12)
    # Inverting an activation divides by the scale, which costs a few digits.
    assert_close(gradients, plain_gradients, 1e-10 if mode in ('inplace', 'lean') else 1e-12)


def bytes_kept(name: str, mode: str, remat: bool) -> int:
    """Return the bytes of feature maps that the forward pass keeps for the backward pass."""
    apply, params, stats = functional_model(name, abn_memory=mode, remat=remat)
    x = jnp.zeros((2, 64, 64, 3))
    pullback = jax.eval_shape(lambda params: jax.vjp(lambda p: loss_of(apply)(p, stats, x)[0], params)[1], params)
    kept = [leaf for leaf in jax.tree.leaves(pullback) if len(leaf.shape) == 4 and leaf.shape[0] == len(x)]
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in kept)


def test_the_modes_keep_less_than_plain(x64):
    """JAX itself keeps these bytes. A compiler may drop some that it can compute again."""
    kept = {key: bytes_kept('test_tresnet', *key) for key in [('plain', False), *TRESNET_MODES]}
    assert kept['lean', False] < kept['inplace', False] < 0.7 * kept['plain', False]
    assert kept['recompute', False] < 0.7 * kept['plain', False]
    assert kept['inplace', True] == kept['plain', True] < 0.6 * kept['lean', False]
    resnet = {key: bytes_kept('test_resnet', *key) for key in [('plain', False), *RESNET_MODES]}
    assert resnet['plain', True] < resnet['recompute', False] < resnet['plain', False]


@pytest.mark.parametrize('slope', [1e-2, 1e-3, None])
@pytest.mark.parametrize('sign', [1.0, -1.0])
def test_inplace_gradients_down_to_the_floor(x64, slope, sign):
    rng = np.random.default_rng(0)
    x, g = rng.normal(2, 3, (2, 4, 8, 8, 5))
    scale = sign * np.array([1.0, 0.3, 1e-2, 1e-4, SCALE_FLOOR])
    bias = rng.normal(size=5)

    def gradients(function):
        _, pullback = jax.vjp(lambda *args: function(*args, slope, 1e-5, None)[0], x, scale, bias)
        return pullback(g)

    for got, expected in zip(gradients(inplace_abn), gradients(batch_norm_act), strict=True):
        assert_close(got, expected, 1e-10)


@pytest.mark.parametrize('scale', [0.0, -0.0, 1e-7, -3e-6])
def test_inplace_gradients_below_the_floor(x64, scale):
    """The scale's gradient is too small by |scale| / floor, as documented; the others are finite and right."""
    rng = np.random.default_rng(0)
    x, g = rng.normal(2, 3, (2, 4, 8, 8, 1))

    def gradients(function):
        args = (x, np.array([scale]), np.array([0.7]))
        _, pullback = jax.vjp(lambda *args: function(*args, 1e-3, 1e-5, None)[0], *args)
        return [np.asarray(gradient) for gradient in pullback(g)]

    (dx, dscale, dbias), (plain_dx, plain_dscale, plain_dbias) = gradients(inplace_abn), gradients(batch_norm_act)
    assert np.isfinite(dx).all()
    np.testing.assert_allclose(dx, plain_dx, rtol=0, atol=abs(scale) * 1.1 * np.abs(g).max())
    np.testing.assert_allclose(dscale, plain_dscale * abs(scale) / SCALE_FLOOR, rtol=1e-7, atol=1e-9)
    np.testing.assert_allclose(dbias, plain_dbias, rtol=1e-12)


@pytest.mark.parametrize('run', [relu_of_sum, relu_of_sum_from_output])
def test_the_relu_of_a_sum(x64, run):
    x, shortcut = jnp.array([-2.0, -0.0, 0.0, 3.0, 1.0]), jnp.array([1.0, 0.0, 0.0, 1.0, -1.0])
    np.testing.assert_array_equal(run(x, shortcut), nnx.relu(x + shortcut))
    for gradient in jax.grad(lambda *args: run(*args).sum(), argnums=(0, 1))(x, shortcut):
        np.testing.assert_array_equal(gradient, [0.0, 0.0, 0.0, 1.0, 0.0])


def test_half_precision(x64):
    """In bfloat16 the error of 'inplace' is at most three times that of 'plain', plus rounding."""
    rng = np.random.default_rng(0)
    x, g = rng.normal(2, 3, (2, 64, 8, 8, 32))
    scale, bias = rng.uniform(0.5, 1.5, 32), rng.normal(size=32)

    def gradients(function, x, g):
        wide = jnp.float64 if x.dtype == jnp.float64 else jnp.float32
        args = (x, jnp.asarray(scale, wide), jnp.asarray(bias, wide))
        run = jax.jit(lambda args, g: jax.vjp(lambda *args: function(*args, 1e-3, 1e-5, None)[0], *args)[1](g))
        return run(args, g)

    half = [jnp.asarray(a, jnp.bfloat16) for a in (x, g)]
    exact = gradients(batch_norm_act, *(a.astype(jnp.float64) for a in half))
    for mine, plain, truth in zip(gradients(inplace_abn, *half), gradients(batch_norm_act, *half), exact, strict=True):
        mine, plain = (np.sqrt(np.mean(np.square(np.asarray(a, np.float64) - truth))) for a in (mine, plain))
        assert mine <= 3 * plain + 1e-3 * np.sqrt(np.mean(np.square(truth)))


@pytest.mark.slow
@pytest.mark.parametrize('name', ['test_tresnet', 'test_resnet'])
def test_forward_mode_derivatives_of_plain(x64, name):
    """The plain mode has jvp and products with the Hessian; the other modes do not."""
    apply, params, stats = functional_model(name)
    x = np.random.default_rng(1).normal(size=(2, 32, 32, 3))
    loss = lambda params: loss_of(apply)(params, stats, x)[0]  # noqa: E731
    direction = jax.tree.map(lambda leaf: np.random.default_rng(2).normal(size=leaf.shape) * 1e-2, params)

    @jax.jit
    def products(params):
        value, slope = jax.jvp(loss, (params,), (direction,))
        gradient, hessian_product = jax.jvp(jax.grad(loss), (params,), (direction,))
        dot = lambda a, b: sum(jnp.vdot(*pair) for pair in zip(*map(jax.tree.leaves, (a, b)), strict=True))  # noqa: E731
        return value, slope, dot(gradient, direction), dot(hessian_product, direction)

    _, slope, slope_of_gradient, curvature = products(params)
    assert_close(slope, slope_of_gradient, 1e-10)
    assert np.isfinite(curvature) and curvature != 0


def test_unsupported_modes():
    with pytest.raises(ValueError, match="a ReLU has no inverse: use 'recompute'"):
        tresnet_jax.create_model('test_resnet', abn_memory='inplace')
    with pytest.raises(ValueError, match='a ReLU has no inverse'):
        tresnet_jax.create_model('test_tresnet', abn_memory='lean', abn_slope=0.0)
    with pytest.raises(ValueError, match='unknown abn_memory .thrifty.; expected one of plain, inplace, lean'):
        tresnet_jax.create_model('test_tresnet', abn_memory='thrifty')


def test_the_mode_of_a_model_can_change(x64):
    """Evaluation runs the same operations in all modes, under a jit that closes over the model too."""
    model = tresnet_jax.create_model('test_tresnet', num_classes=3, dtype='float64')
    x = jnp.asarray(np.random.default_rng(0).normal(size=(1, 32, 32, 3)))

    def operations() -> list[str]:
        text = jax.jit(lambda x: model(x)).lower(x).as_text()
        return [name for name in re.findall(r'stablehlo\.(\w+)', text) if name != 'constant']

    plain, expected = operations(), jax.jit(lambda x: model(x))(x)
    for mode, remat in TRESNET_MODES:
        assert model.set_memory(mode, remat) is model
        assert operations() == plain
    np.testing.assert_allclose(jax.jit(lambda x: model(x))(x), expected, rtol=1e-12, atol=0)
