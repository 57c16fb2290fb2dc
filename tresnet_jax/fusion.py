"""What XLA may not compute again on a CPU."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax


@functools.partial(jax.jit, static_argnums=0, inline=True)  # so that outside of jit a condition is compiled only once
def computed_once(function: Callable[..., jax.Array], *inputs: jax.Array) -> jax.Array:
    """``function(*inputs)``, of which all that reads it reads the one result.

    On a CPU XLA puts sums and activations into every loop that reads them. A block of a residual network reads the sum
    that the one before ends with, so that the last block of a stage would add up the branches of all: the square of
    their number to compute, all their maps to keep, and ever larger loops to compile. A branch of a condition is a
    program of its own, which XLA leaves alone; optimisation barriers are gone by then. On a GPU or TPU the function
    alone remains.

    It is traced once for a function, inputs' shapes and dtypes, so it must be hashable and always do the same. Its
    derivatives are JAX's, in further conditions; where training uses it, a derivative of its own around it saves those.
    """

    def never(*inputs: jax.Array) -> jax.Array:
        return jnp.zeros_like(jax.eval_shape(function, *inputs))

    def apart(*inputs: jax.Array) -> jax.Array:
        # Behind the barrier XLA cannot see that there is no choice.
        return lax.cond(lax.optimization_barrier(jnp.array(True)), function, never, *inputs)

    return lax.platform_dependent(*inputs, cpu=apart, default=function)
