"""The functional form under JAX's transformations, and batch norm over several devices."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import tresnet_jax
from tests.helpers.closeness import assert_close, assert_identical
from tests.helpers.images import normal_images
from tests.helpers.models import EMBEDDED_TAGS, SMALL, as_trained
from tresnet_jax.models import layers

pytestmark = pytest.mark.usefixtures('x64')

call = jax.jit(lambda model, x: model(x))
images = functools.partial(normal_images, dtype='float64', seed=0)
trained = functools.partial(as_trained, dtype='float64')
close = functools.partial(assert_close, tolerance=1e-12)


@pytest.mark.parametrize('name', SMALL)
def test_evaluation_agrees_under_jit_and_vmap(name):
    made = trained(name)
    apply, params, stats = tresnet_jax.functional(made)
    x = images(4)
    expected = made(x)  # one operation at a time
    close(call(made, x), expected)
    close(jax.jit(apply)(params, stats, x), expected)
    close(jax.jit(jax.vmap(lambda image: apply(params, stats, image[None])[0]))(x), expected)


@pytest.mark.parametrize('name', SMALL)
def test_the_functional_and_the_stateful_training_step_agree(name):
    """The functional one leaves the model's statistics unchanged."""
    made = trained(name)
    apply, params, stats = tresnet_jax.functional(made)
    x = images(4)
    before = jax.tree.map(np.array, stats)
    evaluate, train = jax.jit(apply), jax.jit(functools.partial(apply, train=True))
    logits, new = train(params, stats, x)
    assert_identical(nnx.to_pure_dict(nnx.state(made, nnx.BatchStat)), before)
    assert made.train() is made
    close(made(x), logits)
    close(nnx.to_pure_dict(nnx.state(made, nnx.BatchStat)), new)
    assert made.eval() is made
    close(call(made, x), evaluate(params, new, x))
    assert not np.allclose(call(made, x), evaluate(params, stats, x))


@pytest.mark.parametrize('train', [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.parametrize('name', SMALL)
def test_derivatives_agree_with_each_other(name, train):
    """jvp, grad and a difference quotient agree, and the Hessian is symmetric."""
    apply, params, stats = tresnet_jax.functional(trained(name))
    x = images(4)
    weight = jnp.asarray(np.random.default_rng(2).standard_normal((4, 10)))

    def loss(params):
        out = apply(params, stats, x, train=train)
        return ((out[0] if train else out) * weight).sum()

    def dot(a, b):
        return sum(jnp.vdot(*pair) for pair in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))

    @jax.jit
    def derivatives(params, direction, other):
        """Return the loss, its slope and its gradient along `direction`, and direction' H other."""
        gradient, product = jax.jvp(jax.grad(loss), (params,), (other,))
        value, slope = jax.jvp(loss, (params,), (direction,))
        return value, slope, dot(gradient, direction), dot(product, direction)

    rng = np.random.default_rng(3)
    direction, other = (
        jax.tree.map(lambda p: jnp.asarray(rng.standard_normal(p.shape)) * 1e-2, params) for _ in range(2)
    )
    _, slope, along_gradient, curvature = derivatives(params, direction, other)
    assert_close(slope, along_gradient, 1e-10)
    assert_close(curvature, derivatives(params, other, direction)[3], 1e-8)
    step = 1e-6
    ahead, behind = (
        derivatives(jax.tree.map(lambda p, d: p + sign * step * d, params, direction), direction, other)[0]  # noqa: B023
        for sign in (1, -1)
    )
    assert_close((ahead - behind) / (2 * step), slope, 1e-3)  # kinks of the ReLUs lie within the step


@pytest.mark.parametrize('name', SMALL)
def test_synchronised_batch_norm_sees_the_whole_batch(name):
    """Four devices with two images each give the outputs, statistics and gradients of one device with eight."""
    x = images(8)
    apply, params, stats = tresnet_jax.functional(trained(name))
    synchronised, *_ = tresnet_jax.functional(trained(name, axis_name='batch'))
    weight = jnp.asarray(np.random.default_rng(2).standard_normal((8, 10)))

    def loss(apply, params, x, weight):
        logits, new = apply(params, stats, x, train=True)
        return (logits * weight).sum(), (logits, new)

    alone = jax.jit(jax.grad(functools.partial(loss, apply), has_aux=True))
    expected, (logits, new) = alone(params, x, weight)

    def step(params, x, weight):
        grads, (logits, new) = jax.grad(functools.partial(loss, synchronised), has_aux=True)(params, x, weight)
        return jax.lax.psum(grads, 'batch'), logits, new

    run = jax.pmap(step, axis_name='batch', in_axes=(None, 0, 0), out_axes=(None, 0, None))
    got, got_logits, got_new = run(params, x.reshape(4, 2, *x.shape[1:]), weight.reshape(4, 2, 10))
    close(got_logits.reshape(8, 10), logits)
    close(got_new, new)
    largest = max(float(jnp.abs(g).max()) for g in jax.tree.leaves(expected))
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        assert np.abs(a - b).max() <= 1e-11 * largest


def test_unsynchronised_devices_keep_their_own_statistics():
    x = images(8)
    apply, params, stats = tresnet_jax.functional(trained('test_resnet'))
    parts = x.reshape(4, 2, *x.shape[1:])

    def mean(x):
        return apply(params, stats, x, train=True)[1]['bn1']['mean']

    got = jax.pmap(mean)(parts)
    for device in range(4):
        close(got[device], jax.jit(mean)(parts[device]))


def test_randomness_needs_a_key_and_repeats_with_it():
    apply, params, stats = tresnet_jax.functional(trained('test_tresnet', drop_path_rate=0.5, drop_rate=0.5))
    x = images(4)
    with pytest.raises(ValueError, match="rngs={'dropout': key}"):
        apply(params, stats, x, train=True)
    run = jax.jit(lambda key: apply(params, stats, x, train=True, rngs={'dropout': key})[0])
    keys = [jax.random.key(i) for i in (0, 0, 1)]
    first, again, other = map(run, keys)
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)
    evaluate = jax.jit(apply)
    close(evaluate(params, stats, x), evaluate(params, stats, x, rngs={'dropout': keys[0]}))


@pytest.mark.parametrize('shape', [(2, 1, 1, 1), (2, 3, 3, 5)])
def test_a_key_for_each_image(shape):
    """Each image is dropped as it would be alone, with a new key for each layer; a single key is used as before."""
    keys = jax.random.split(jax.random.key(0), 2)
    streams = nnx.Rngs(dropout=keys), *(nnx.Rngs(dropout=key) for key in keys)
    x = jnp.ones((2, 3, 3, 5))
    drawn = []
    for _ in range(2):
        both, *alone = (layers.draw_key(rngs, '') for rngs in streams)
        drawn.append(layers.drop(x, both, 0.5, shape))
        for image, key in zip(drawn[-1], alone, strict=True):
            kept = jax.random.bernoulli(key, 0.5, shape[1:])
            np.testing.assert_array_equal(image, jnp.where(kept, x[0] / 0.5, 0))
    assert shape[1] == 1 or not np.array_equal(*drawn)
    with pytest.raises(ValueError, match=r'one per image: got \(2,\) keys for 1 images'):
        layers.drop(x[:1], both, 0.5, shape)


@functools.cache
def exact_outputs(name: str) -> jax.Array:
    return call(tresnet_jax.create_model(name, pretrained=True, dtype='float64'), images(4))


@pytest.mark.parametrize('dtype', ['bfloat16', 'float16', 'float32'])
@pytest.mark.parametrize('name', EMBEDDED_TAGS)
def test_compute_dtypes(name, dtype):
    """Parameters stay float32, and the error of the outputs is the rounding of the compute dtype."""
    made = tresnet_jax.create_model(name, pretrained=True, dtype=dtype)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(nnx.state(made))} == {'float32'}
    x = images(4)
    got = call(made, x)
    assert got.dtype.name == dtype
    assert_close(got, exact_outputs(name), 8 * float(jnp.finfo(dtype).eps))
    apply, params, stats = tresnet_jax.functional(made)
    _, stats = jax.eval_shape(functools.partial(apply, train=True), params, stats, x)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(stats)} == {'float32'}


def test_an_image_of_another_shape_is_refused():
    made = trained('test_resnet')
    for shape in ((1, 3, 32, 32), (32, 32, 3), (1, 32, 32, 4)):
        with pytest.raises(ValueError, match=r'expected images of shape \(B, H, W, 3\)'):
            made(jnp.zeros(shape))
