"""The functional form under JAX's transformations, and batch norm over several devices."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import tresnet_jax

SMALL = ('test_resnet', 'test_tresnet')
pytestmark = pytest.mark.usefixtures('x64')


def images(batch: int, size: int = 32, seed: int = 0) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).standard_normal((batch, size, size, 3)))


def model(name: str, **options):
    """A float64 model that has been through a few training steps, so that no gamma is zero and no statistic fresh."""
    made = tresnet_jax.create_model(name, num_classes=10, dtype='float64', **options)
    rng = np.random.default_rng(1)
    state = nnx.to_flat_state(nnx.state(made, nnx.Param))
    for path, leaf in state:
        if path[-1] == 'scale':
            leaf[...] = jnp.asarray(rng.uniform(0.4, 1.2, leaf.shape) * rng.choice([-1, 1], leaf.shape))
    nnx.update(made, nnx.from_flat_state(state))
    return made


call = jax.jit(lambda model, x: model(x))


def close(a, b, tolerance=1e-12) -> None:
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert np.abs(np.asarray(x) - np.asarray(y)).max() <= tolerance * np.abs(np.asarray(y)).max()


@pytest.mark.parametrize('name', SMALL)
def test_evaluation_is_pure(name):
    made = model(name)
    apply, params, stats = tresnet_jax.functional(made)
    x = images(3)
    expected = made(x)  # operation by operation
    close(call(made, x), expected)
    close(jax.jit(apply)(params, stats, x), expected)
    close(jax.jit(jax.vmap(lambda image: apply(params, stats, image[None])[0]))(x), expected)


@pytest.mark.parametrize('name', SMALL)
def test_training_step(name):
    """The functional step and the stateful one agree, and neither changes the other's statistics."""
    made = model(name)
    apply, params, stats = tresnet_jax.functional(made)
    x = images(4)
    before = jax.tree.map(np.asarray, stats)
    evaluate, train = jax.jit(apply), jax.jit(functools.partial(apply, train=True))
    logits, new = train(params, stats, x)
    close(stats, before, 0)
    assert made.train() is made
    close(made(x), logits)
    close(nnx.to_pure_dict(nnx.state(made, nnx.BatchStat)), new)
    assert made.eval() is made
    close(call(made, x), evaluate(params, new, x))
    assert not np.allclose(call(made, x), evaluate(params, stats, x))


@pytest.mark.parametrize('train', [False, True])
@pytest.mark.parametrize('name', SMALL)
def test_derivatives_agree_with_each_other(name, train):
    """jvp, grad and a difference quotient; a Hessian-vector product is finite and symmetric."""
    apply, params, stats = tresnet_jax.functional(model(name))
    x = images(4)
    weight = jnp.asarray(np.random.default_rng(2).standard_normal((4, 10)))

    @jax.jit
    def loss(params):
        out = apply(params, stats, x, train=train)
        return ((out[0] if train else out) * weight).sum()

    rng = np.random.default_rng(3)
    direction, other = (
        jax.tree.map(lambda p: jnp.asarray(rng.standard_normal(p.shape)) * 1e-2, params) for _ in range(2)
    )
    _, slope = jax.jvp(loss, (params,), (direction,))
    gradient = jax.grad(loss)(params)
    dot = lambda a, b: sum(jnp.vdot(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))  # noqa: E731
    close(slope, dot(gradient, direction), 1e-10)
    step = 1e-6
    ahead = loss(jax.tree.map(lambda p, d: p + step * d, params, direction))
    behind = loss(jax.tree.map(lambda p, d: p - step * d, params, direction))
    close((ahead - behind) / (2 * step), slope, 1e-3)  # kinks of the ReLUs lie within the step

    product = jax.jit(lambda v: jax.jvp(jax.grad(loss), (params,), (v,))[1])
    close(dot(product(direction), other), dot(product(other), direction), 1e-8)


@pytest.mark.parametrize('name', SMALL)
def test_synchronised_batch_norm_sees_the_whole_batch(name):
    """Four devices with two images each give the outputs, statistics and gradients of one with eight."""
    x = images(8)
    apply, params, stats = tresnet_jax.functional(model(name))
    synchronised, *_ = tresnet_jax.functional(model(name, axis_name='batch'))
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
    apply, params, stats = tresnet_jax.functional(model('test_resnet'))
    parts = x.reshape(4, 2, *x.shape[1:])

    def mean(x):
        return apply(params, stats, x, train=True)[1]['bn1']['mean']

    got = jax.pmap(mean)(parts)
    for device in range(4):
        close(got[device], jax.jit(mean)(parts[device]))


def test_randomness_needs_a_key_and_repeats_with_it():
    apply, params, stats = tresnet_jax.functional(model('test_tresnet', drop_path_rate=0.5, drop_rate=0.5))
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


@pytest.mark.parametrize('dtype', ['bfloat16', 'float16', 'float32'])
@pytest.mark.parametrize('name', SMALL)
def test_compute_dtypes(name, dtype):
    """Parameters stay float32; outputs are near float64's, within the rounding of the compute dtype."""
    made = tresnet_jax.create_model(f'{name}.fashion_mnist', pretrained=True, dtype=dtype)
    exact = tresnet_jax.create_model(f'{name}.fashion_mnist', pretrained=True, dtype='float64')
    assert {leaf.dtype.name for leaf in jax.tree.leaves(nnx.state(made))} == {'float32'}
    x = images(4)
    got, expected = call(made, x), call(exact, x)
    assert got.dtype.name == dtype
    rounding = float(jnp.finfo(dtype).eps)
    assert np.abs(np.asarray(got, np.float64) - expected).max() <= 8 * rounding * np.abs(expected).max()
    apply, params, stats = tresnet_jax.functional(made)
    _, stats = jax.jit(functools.partial(apply, train=True))(params, stats, x)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(stats)} == {'float32'}


def test_wrong_input_is_named():
    made = model('test_resnet')
    for shape in ((1, 3, 32, 32), (32, 32, 3), (1, 32, 32, 4)):
        with pytest.raises(ValueError, match=r'expected images of shape \(B, H, W, 3\)'):
            made(jnp.zeros(shape))
