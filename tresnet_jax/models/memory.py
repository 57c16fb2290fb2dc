"""What a training step keeps between its forward and its backward pass, and what it computes again instead."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from tresnet_jax.models.cpu import computed_once

# What is kept by name where the rest is computed again.
STATISTICS = 'statistics'  # numbers of a channel or of an image: means, variances, squeeze-excite's
CONVOLUTION = 'convolution'  # the input of a batch norm


@dataclasses.dataclass(frozen=True)
class Memory:
    """What the blocks of a model keep.

    Attributes:
        invert: batch norms with a leaky ReLU keep their output instead of their input (``inplace_abn.py``).
        end: what is kept of the end of a block's branch (its last convolution, batch norm and squeeze-excite), the
            rest of which is computed again; None keeps all, and all of the shortcut.
        block: the same for both branches together, and for the stem.
    """

    invert: bool = False
    end: tuple[str, ...] | None = None
    block: tuple[str, ...] | None = None

    def relu_of_sum(self, x: jax.Array, shortcut: jax.Array) -> jax.Array:
        """What a block ends with."""
        return relu_of_sum(x, shortcut) if self == PLAIN else relu_of_sum_from_output(x, shortcut)

    def run_end(self, function: Callable[..., Any], module: nnx.Module, x: jax.Array) -> Any:
        """``function(module, x)`` for the end of a branch."""
        return function(module, x) if self.end is None else recomputed(function, module, x, self.end, wait=False)

    def run_shortcut(self, function: Callable[..., Any], module: nnx.Module, x: jax.Array) -> Any:
        """``function(module, x)`` for a shortcut."""
        return function(module, x) if self.end is None else recomputed(function, module, x, (STATISTICS,), wait=False)

    def run_block(self, function: Callable[..., Any], module: nnx.Module, x: jax.Array) -> Any:
        """``function(module, x)`` for both branches of a block, or for the stem."""
        return function(module, x) if self.block is None else recomputed(function, module, x, self.block, wait=True)


PLAIN = Memory()
MODES = {
    'plain': PLAIN,
    'inplace': Memory(invert=True, end=(STATISTICS, CONVOLUTION)),
    'lean': Memory(invert=True, end=(STATISTICS,)),
    'recompute': Memory(block=(STATISTICS, CONVOLUTION)),
}


def memory_mode(abn_memory: str, remat: bool) -> Memory:
    """The mode of a name; with `remat` blocks keep their input alone, and `abn_memory` decides within a block.

    Raises:
        ValueError: there is no such mode.
    """
    if abn_memory not in MODES:
        raise ValueError(f'unknown abn_memory {abn_memory!r}; expected one of {", ".join(MODES)}')
    memory = MODES[abn_memory]
    return dataclasses.replace(memory, end=None, block=(STATISTICS,)) if remat else memory


def recomputed(
    function: Callable[..., Any], module: nnx.Module, x: jax.Array, keep: tuple[str, ...], *, wait: bool
) -> Any:
    """``function(module, x)``, of which the backward pass computes again all but `x` and what is named in `keep`.

    ``jax.checkpoint`` with a say in what is fenced off. A fence (an optimisation barrier) there must be: XLA would see
    that it has the numbers already, and keep them. `jax.checkpoint` puts it around the gradient that arrives too
    (`wait`), so that nothing is computed again before it is there: least memory. Without, the gradient's last
    operation is fused with what follows: fewer bytes moved. Either way there is no forward-mode derivative.

    Args:
        function: of a module and an array; it may update the module's statistics.
        keep: names given with ``checkpoint_name``.
    """
    graphdef, params, stats = nnx.split(module, nnx.Param, nnx.BatchStat)

    def run(params: Any, stats: Any, x: jax.Array) -> tuple[Any, Any]:
        inner = nnx.merge(graphdef, params, stats)
        return function(inner, x), nnx.to_pure_dict(nnx.state(inner, nnx.BatchStat))

    policy = jax.checkpoint_policies.save_only_these_names(*keep)
    unfenced = jax.checkpoint(run, policy=policy, prevent_cse=False)

    def backward(pullback: Any, gradient: Any) -> Any:
        if wait:
            pullback, gradient = jax.lax.optimization_barrier((pullback, gradient))
        else:
            pullback = jax.lax.optimization_barrier(pullback)
        return pullback(gradient)

    run = jax.custom_vjp(run)
    run.defvjp(lambda *args: jax.vjp(unfenced, *args), backward)
    out, new_stats = run(nnx.to_pure_dict(params), nnx.to_pure_dict(stats), x)
    nnx.update(module, new_stats)
    return out


def _relu_of_sum(x: jax.Array, shortcut: jax.Array) -> jax.Array:
    return nnx.relu(x + shortcut)


def _where_positive(y: jax.Array, gradient: jax.Array) -> jax.Array:
    return jnp.where(y > 0, gradient, jnp.zeros_like(gradient))


@jax.custom_jvp
def relu_of_sum(x: jax.Array, shortcut: jax.Array) -> jax.Array:
    """``nnx.relu(x + shortcut)``, whose gradient looks at the output, where ``jax.nn.relu`` writes where x > 0."""
    return computed_once(_relu_of_sum, x, shortcut)


@relu_of_sum.defjvp
def _(primals: tuple[jax.Array, jax.Array], tangents: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
    y = relu_of_sum(*primals)
    # With the checkpoint y is kept, which what follows keeps anyway, and not y > 0.
    return y, jax.checkpoint(_where_positive, prevent_cse=False)(y, tangents[0] + tangents[1])


@jax.custom_vjp
def relu_of_sum_from_output(x: jax.Array, shortcut: jax.Array) -> jax.Array:
    """The same, and XLA may not find the sign elsewhere: of the sum, which it would keep; without ``jvp``."""
    return computed_once(_relu_of_sum, x, shortcut)


def _forward(x: jax.Array, shortcut: jax.Array) -> tuple[jax.Array, jax.Array]:
    y = relu_of_sum_from_output(x, shortcut)
    return y, y


def _backward(y: jax.Array, gradient: jax.Array) -> tuple[jax.Array, jax.Array]:
    gradient = _where_positive(jax.lax.optimization_barrier(y), gradient)
    return gradient, gradient


relu_of_sum_from_output.defvjp(_forward, _backward)
