"""Memory modes: what a training step keeps for its backward pass, and what it recomputes."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from tresnet_jax.models.cpu import computed_once
from tresnet_jax.models.meshes import barrier

# Names (``checkpoint_name``) of values that a mode can keep while it recomputes the rest.
STATISTICS = 'statistics'  # one number per channel or image and channel: means, variances, squeeze-excite's vectors
CONVOLUTION = 'convolution'  # the input of a batch norm


def _relu_of_sum(x: jax.Array, shortcut: jax.Array) -> jax.Array:
    return nnx.relu(x + shortcut)


def _where_positive(y: jax.Array, gradient: jax.Array) -> jax.Array:
    return jnp.where(y > 0, gradient, jnp.zeros_like(gradient))


@jax.custom_jvp
def relu_of_sum(x: jax.Array, shortcut: jax.Array) -> jax.Array:
    """Compute ``nnx.relu(x + shortcut)``; the gradient reads the output.

    ``jax.nn.relu`` alone would write a mask, x > 0, to memory.
    """
    return computed_once(_relu_of_sum, x, shortcut)


@relu_of_sum.defjvp
def _(primals: tuple[jax.Array, jax.Array], tangents: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
    y = relu_of_sum(*primals)
    # The checkpoint keeps y, which the next layer keeps anyway, instead of the mask y > 0. The barrier keeps XLA from
    # taking the sign from the sum, which it would then write too.
    kept = jax.lax.optimization_barrier(y)
    return y, jax.checkpoint(_where_positive, prevent_cse=False)(kept, tangents[0] + tangents[1])


@jax.custom_vjp
def relu_of_sum_from_output(x: jax.Array, shortcut: jax.Array) -> jax.Array:
    """Compute `relu_of_sum`, and keep XLA from taking the sign from the sum, because XLA would then keep the sum.

    There is no forward-mode derivative.
    """
    return computed_once(_relu_of_sum, x, shortcut)


def _relu_of_sum_fwd(x: jax.Array, shortcut: jax.Array) -> tuple[jax.Array, jax.Array]:
    y = relu_of_sum_from_output(x, shortcut)
    return y, y


def _relu_of_sum_bwd(y: jax.Array, gradient: jax.Array) -> tuple[jax.Array, jax.Array]:
    gradient = _where_positive(jax.lax.optimization_barrier(y), gradient)
    return gradient, gradient


relu_of_sum_from_output.defvjp(_relu_of_sum_fwd, _relu_of_sum_bwd)


def recomputed(
    function: Callable[..., Any], module: Any, x: jax.Array, keep: tuple[str, ...], *, wait: bool, early: bool = False
) -> Any:
    """Evaluate ``function(module, x)``; the backward pass recomputes all but `x` and the values named in `keep`.

    Like ``jax.checkpoint``, but the caller chooses what the optimisation barrier covers. A barrier is required: without
    one XLA would find that it has the values already, and keep them. There is no forward-mode derivative.

    Args:
        function: takes a module and an array; it may update the module's statistics.
        module: the module, or a tuple of modules, whose parameters and statistics `function` uses.
        x: the array.
        keep: names given with ``checkpoint_name``.
        wait: let the barrier cover the incoming gradient too, as ``jax.checkpoint`` does. Nothing is then recomputed
            before the gradient arrives, which takes the least memory. Otherwise the gradient's last operation is fused
            with what follows, which moves fewer bytes.
        early: let a barrier cover the resulting gradients, so that gradients of parameters do not wait while the maps
            that they need are kept. XLA then does not fuse the gradient of `x` with what follows.
    """
    graphdef, params, stats = nnx.split(module, nnx.Param, nnx.BatchStat)

    def run(params: Any, stats: Any, x: jax.Array) -> tuple[Any, Any]:
        inner = nnx.merge(graphdef, params, stats)
        return function(inner, x), nnx.to_pure_dict(nnx.state(inner, nnx.BatchStat))

    policy = jax.checkpoint_policies.save_only_these_names(*keep)
    without_barrier = jax.checkpoint(run, policy=policy, prevent_cse=False)

    def backward(pullback: Any, gradient: Any) -> Any:
        if wait:
            pullback, gradient = barrier((pullback, gradient))
        else:
            pullback = barrier(pullback)
        return barrier(pullback(gradient)) if early else pullback(gradient)

    run = jax.custom_vjp(run)
    run.defvjp(lambda *args: jax.vjp(without_barrier, *args), backward)
    out, new_stats = run(nnx.to_pure_dict(params), nnx.to_pure_dict(stats), x)
    # In evaluation nothing has changed, and an enclosing jit may not allow writing to the module.
    if any(not getattr(part, 'use_running_average', True) for _, part in nnx.iter_modules(module)):
        nnx.update(module, new_stats)
    return out


@dataclasses.dataclass(frozen=True)
class Memory:
    """A memory mode: what the blocks of a model keep for the backward pass.

    Attributes:
        invert: batch norms with a leaky ReLU keep their output instead of their input (`batch_norm.inplace_abn`).
        end: names of the values kept at the end of a block's branch (its last convolution, batch norm and
            squeeze-excite). The rest is recomputed, and so is the shortcut, except for its statistics. None: keep
            everything.
        block: the same for both branches of a block together, and for the stem.
    """

    invert: bool = False
    end: tuple[str, ...] | None = None
    block: tuple[str, ...] | None = None

    def relu_of_sum(self, x: jax.Array, shortcut: jax.Array) -> jax.Array:
        """Compute the output of a block from its branch and its shortcut."""
        return relu_of_sum(x, shortcut) if self == PLAIN else relu_of_sum_from_output(x, shortcut)

    def run_end(self, function: Callable[..., Any], module: nnx.Module, x: jax.Array) -> Any:
        """Evaluate ``function(module, x)``, the end of a branch."""
        if self.end is None:
            return function(module, x)
        return recomputed(function, module, x, self.end, wait=False, early=CONVOLUTION not in self.end)

    def run_shortcut(self, function: Callable[..., Any], module: nnx.Module, x: jax.Array) -> Any:
        """Evaluate ``function(module, x)``, a shortcut."""
        return function(module, x) if self.end is None else recomputed(function, module, x, (STATISTICS,), wait=False)

    def run_block(self, function: Callable[..., Any], module: Any, x: jax.Array) -> Any:
        """Evaluate ``function(module, x)``, both branches of a block or the stem."""
        return function(module, x) if self.block is None else recomputed(function, module, x, self.block, wait=True)


PLAIN = Memory()
MODES = {
    'plain': PLAIN,
    'inplace': Memory(invert=True, end=(STATISTICS, CONVOLUTION)),
    'lean': Memory(invert=True, end=(STATISTICS,)),
    'recompute': Memory(block=(STATISTICS, CONVOLUTION)),
}


def memory_mode(abn_memory: str, remat: bool) -> Memory:
    """Return the mode of a name; with `remat`, a block keeps only its input, and `abn_memory` applies within it.

    Raises:
        ValueError: the name is unknown.
    """
    if abn_memory not in MODES:
        raise ValueError(f'unknown abn_memory {abn_memory!r}; expected one of {", ".join(MODES)}')
    memory = MODES[abn_memory]
    return dataclasses.replace(memory, end=None, block=(STATISTICS,)) if remat else memory
