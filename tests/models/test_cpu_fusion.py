"""What XLA computes once on a CPU: the programs it makes of a chain of residual sums, and their derivatives."""

import functools
import re
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tresnet_jax
from tests.test_folding import assert_close
from tresnet_jax.models import batch_norm as inplace_abn
from tresnet_jax.models.cpu import computed_once
from tresnet_jax.models.memory import relu_of_sum

BRANCHES = np.random.default_rng(0).normal(size=(8, 32, 32)) / 6
INPUTS = np.random.default_rng(1).normal(size=(64, 32))


def plain_relu_of_sum(x, y):
    return jax.nn.relu(x + y)


def chain(x, run: Callable[..., jax.Array] = computed_once):
    """Residual blocks of one matrix product each."""
    for weights in BRANCHES:
        x = run(plain_relu_of_sum, x @ jnp.asarray(weights, x.dtype), x)
    return x


def plainly(function, *inputs):
    return function(*inputs)


def most_read(run) -> int:
    """By one loop of the program compiled for a CPU, the number of arrays."""
    text = jax.jit(lambda x: chain(x, run)).lower(jnp.asarray(INPUTS, jnp.float32)).compile().as_text() or ''
    return max(len(operands.split(',')) for operands in re.findall(r' fusion\(([^)]*)\), kind=kLoop', text))


def test_no_loop_adds_up_the_branches_before():
    assert most_read(computed_once) == 2
    assert most_read(plainly) > 4, 'XLA does it by itself now: this can go'


def gradient_program(layer: Callable[..., jax.Array]) -> jax.stages.Compiled:
    """Of four matrix products with `layer` behind each, in float32 on a CPU."""

    def loss(weights, x):
        for w in weights:
            x = layer(x @ w)
        return x.sum()

    weights = [jnp.zeros((64, 64), jnp.float32)] * 4
    return jax.jit(jax.grad(loss)).lower(weights, jnp.zeros((4096, 64), jnp.float32)).compile()


def norm(x):
    return inplace_abn.batch_norm_act(x, jnp.ones(64, x.dtype), jnp.zeros(64, x.dtype), 0.0, 1e-5, None)[0]


def test_a_batch_norm_keeps_one_map_of_its_own(monkeypatch):
    """Behind each product one, and the layer's output; without it the map as it came too."""
    one_map = 4096 * 64 * 4
    temporaries = []
    for centre in (inplace_abn.centre, inplace_abn._centre):
        monkeypatch.setattr(inplace_abn, 'centre', centre)
        analysis = gradient_program(norm).memory_analysis()
        assert analysis is not None
        temporaries.append(analysis.temp_size_in_bytes / one_map)
    assert temporaries[0] < temporaries[1] - 3, 'XLA does it by itself now: this can go'


@pytest.mark.parametrize('derivative_inside', [False, True])
def test_the_end_of_a_block_writes_no_mask(derivative_inside):
    end = functools.partial(computed_once, plain_relu_of_sum) if derivative_inside else relu_of_sum
    text = gradient_program(lambda x: end(x, x)).as_text() or ''
    assert bool(re.search(r'= pred\[4096,64\]\S* fusion', text)) == derivative_inside


DERIVATIVES = {
    'itself': lambda f, x: f(x),
    'gradient': lambda f, x: jax.grad(lambda x: (f(x) ** 2).sum())(x),
    'jvp': lambda f, x: jax.jvp(f, (x,), (jnp.cos(x),))[1],
    'linearized': lambda f, x: jax.linearize(f, x)[1](jnp.cos(x)),
    'Hessian product': lambda f, x: jax.jvp(jax.grad(lambda x: (f(x) ** 3).sum()), (x,), (jnp.cos(x),))[1],
    'mapped': lambda f, x: jax.vmap(f)(x[:, None])[:, 0],
    'computed again': lambda f, x: jax.grad(lambda x: (jax.checkpoint(f)(x) ** 2).sum())(x),
}


def end_of_block(function, *inputs):
    return relu_of_sum(*inputs)


@pytest.mark.parametrize('run', [computed_once, end_of_block])
@pytest.mark.parametrize('derivative', sorted(DERIVATIVES))
def test_derivatives(x64, derivative, run):
    x = jnp.asarray(INPUTS)
    got, expected = (
        jax.jit(lambda x, way=way: DERIVATIVES[derivative](lambda x: chain(x, way), x))(x) for way in (run, plainly)
    )
    assert_close([got], [expected], 1e-13)


@pytest.mark.parametrize('derivative', sorted(set(DERIVATIVES) - {'mapped'}))
def test_derivatives_of_a_batch_norm(x64, derivative, monkeypatch):
    x = jnp.asarray(np.random.default_rng(2).normal(size=(32, 64)))
    got = jax.jit(lambda x: DERIVATIVES[derivative](norm, x))(x)
    monkeypatch.setattr(inplace_abn, 'centre', inplace_abn._centre)
    assert_close([got], [jax.jit(lambda x: DERIVATIVES[derivative](norm, x))(x)], 1e-13)


@pytest.mark.parametrize('platform', ['cuda', 'tpu'])
def test_elsewhere_nothing_remains(platform):
    """But what JAX wraps the platform's only branch in, which XLA unwraps."""
    traced = jax.jit(chain).trace(jnp.asarray(INPUTS))
    barriers = {
        to: 'optimization_barrier' in traced.lower(lowering_platforms=(to,)).as_text() for to in (platform, 'cpu')
    }
    assert barriers == {platform: False, 'cpu': True}


def test_a_model_outside_of_jit_compiles_nothing_again(caplog):
    model, x = tresnet_jax.create_model('test_resnet').eval(), jnp.zeros((1, 32, 32, 3))
    with jax.log_compiles():
        model(x)
        assert 'compilation' in caplog.text
        caplog.clear()
        model(x)
    assert 'compilation' not in caplog.text
