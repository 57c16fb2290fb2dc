"""What XLA computes once on a CPU: the programs it makes of a chain of residual sums, and their derivatives."""

import re
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tresnet_jax
from tests.test_inference import assert_close
from tresnet_jax.fusion import computed_once

BRANCHES = np.random.default_rng(0).normal(size=(8, 32, 32)) / 6
INPUTS = np.random.default_rng(1).normal(size=(64, 32))


def relu_of_sum(x, y):
    return jax.nn.relu(x + y)


def chain(x, run: Callable[..., jax.Array] = computed_once):
    """Residual blocks of one matrix product each."""
    for weights in BRANCHES:
        x = run(relu_of_sum, x @ jnp.asarray(weights, x.dtype), x)
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


DERIVATIVES = {
    'itself': lambda f, x: f(x),
    'gradient': lambda f, x: jax.grad(lambda x: (f(x) ** 2).sum())(x),
    'jvp': lambda f, x: jax.jvp(f, (x,), (jnp.cos(x),))[1],
    'linearized': lambda f, x: jax.linearize(f, x)[1](jnp.cos(x)),
    'Hessian product': lambda f, x: jax.jvp(jax.grad(lambda x: (f(x) ** 3).sum()), (x,), (jnp.cos(x),))[1],
    'mapped': lambda f, x: jax.vmap(f)(x[:, None])[:, 0],
    'computed again': lambda f, x: jax.grad(lambda x: (jax.checkpoint(f)(x) ** 2).sum())(x),
}


@pytest.mark.parametrize('derivative', sorted(DERIVATIVES))
def test_derivatives(x64, derivative):
    x = jnp.asarray(INPUTS)
    got, expected = (
        jax.jit(lambda x, f=f: DERIVATIVES[derivative](f, x))(x) for f in (chain, lambda x: chain(x, plainly))
    )
    assert_close([got], [expected], 1e-13)


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
