"""How a convolution runs: the one place that decides. On a GPU or TPU as XLA's own, on a CPU as what is faster there.

Nothing here changes what is computed, and derivatives of any order and mode work.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

Convolve = Callable[[jax.Array, jax.Array], jax.Array]

# JAX 0.10 runs a convolution to no more channels than this in one thread, unless it is done otherwise; 0.12 uses all.
ONE_THREAD = 64 if jax.__version_info__ < (0, 11) else 0
WIDE = 32 * 32  # pixels from which that is worth it
COLOURS = 4  # channels of an image, of which patches are small


def conv_general_dilated(
    lhs: jax.Array,
    rhs: jax.Array,
    window_strides: Sequence[int],
    padding: str | Sequence[tuple[int, int]],
    *,
    rhs_dilation: Sequence[int],
    **kwargs: Any,
) -> jax.Array:
    """As ``jax.lax.conv_general_dilated``, for ``nnx.Conv`` without groups; a 1x1 kernel is taken to be unpadded.

    Args:
        lhs: (B, H, W, C_in), any floating dtype.
        rhs: (h, w, C_in, C_out), the same dtype.
        window_strides: for H and W.
        padding: before and behind, for H and W; or 'SAME' or 'VALID'.
        rhs_dilation: for H and W.
        **kwargs: passed on where XLA convolves.

    Returns:
        (B, H', W', C_out), the dtype of the inputs.
    """

    window = rhs.shape[:2]
    if isinstance(padding, str):
        spans = [dilation * (k - 1) + 1 for dilation, k in zip(rhs_dilation, window, strict=True)]
        padding = lax.padtype_to_pads(lhs.shape[1:3], spans, window_strides, padding)

    def direct(lhs: jax.Array, rhs: jax.Array) -> jax.Array:
        return lax.conv_general_dilated(lhs, rhs, window_strides, padding, rhs_dilation=rhs_dilation, **kwargs)

    def met(lhs: jax.Array) -> list[jax.Array]:
        return _pixels_met(lhs, window, starts, window_strides, padding, rhs_dilation)

    def products(lhs: jax.Array, rhs: jax.Array) -> jax.Array:
        pairs = zip(met(lhs), rhs.reshape(-1, *rhs.shape[2:]), strict=True)
        return functools.reduce(jnp.add, (pixels @ weights for pixels, weights in pairs))

    def patches(lhs: jax.Array, rhs: jax.Array) -> jax.Array:
        return jnp.concatenate(met(lhs), -1) @ rhs.reshape(-1, rhs.shape[-1])

    def uneven(lhs: jax.Array, rhs: jax.Array) -> jax.Array:
        return _uneven(lhs, rhs, padding, **kwargs)

    sizes = zip(lhs.shape[1:3], padding, rhs_dilation, window, strict=True)
    # In how many places along H and W the kernel fits, at a stride of one.
    starts = [n + sum(pads) - dilation * (k - 1) for n, pads, dilation, k in sizes]
    outputs = math.prod(-(-n // stride) for n, stride in zip(starts, window_strides, strict=True))
    on_cpu: Convolve = direct
    if window == (1, 1) and set(window_strides) == {1}:
        on_cpu = _pointwise
    # XLA takes a map with fewer pixels than the kernel for the kernel, and what that becomes runs at a hundredth of the
    # speed. The input's gradient is convolved from the output's map.
    elif outputs < math.prod(window):
        on_cpu = products
    elif max(rhs.shape[2:]) <= ONE_THREAD and outputs >= WIDE:
        if rhs.shape[2] <= COLOURS:
            on_cpu = patches
        elif set(window_strides) == set(rhs_dilation) == {1} and padding[1][0] > 0:
            on_cpu = uneven
    if lhs.dtype.itemsize < 4:
        on_cpu = _in_float32(on_cpu)
    if on_cpu is direct:
        return direct(lhs, rhs)
    return lax.platform_dependent(lhs, rhs, cpu=on_cpu, default=direct)


def _pointwise(lhs: jax.Array, rhs: jax.Array) -> jax.Array:
    """A 1x1 convolution as one matrix product over all pixels: XLA's own, its weight gradient above all, is slow."""
    pixels, weights = lhs.reshape(-1, lhs.shape[-1]), rhs[0, 0]
    if weights.shape[0] > weights.shape[1]:
        weights = _gradient_transposed(weights)
    return (pixels @ weights).reshape(*lhs.shape[:-1], -1)


@jax.custom_jvp
def _gradient_transposed(weights: jax.Array) -> jax.Array:
    """The weights themselves, whose gradient is computed as its transpose.

    Of the two factors of a weight gradient XLA writes the first one transposed, by default the inputs: here, where they
    have more channels, the outputs' gradient.
    """
    return weights


@_gradient_transposed.defjvp
def _(primals: tuple[jax.Array], tangents: tuple[jax.Array]) -> tuple[jax.Array, jax.Array]:
    # The barrier keeps XLA from exchanging the factors and dropping both transpositions.
    return primals[0], lax.optimization_barrier(tangents[0].T).T


def _pixels_met(
    lhs: jax.Array,
    window: tuple[int, ...],
    starts: Sequence[int],
    window_strides: Sequence[int],
    padding: Sequence[tuple[int, int]],
    rhs_dilation: Sequence[int],
) -> list[jax.Array]:
    """For each place in the kernel the pixels that it meets, (B, H', W', C_in)."""
    padded = jnp.pad(lhs, ((0, 0), *padding, (0, 0)))

    def met(*place: int) -> jax.Array:
        corners = (d * at for d, at in zip(rhs_dilation, place, strict=True))
        rows, columns = (slice(a, a + n, s) for a, n, s in zip(corners, starts, window_strides, strict=True))
        return padded[:, rows, columns]

    return [met(row, column) for row in range(window[0]) for column in range(window[1])]


def _uneven(lhs: jax.Array, rhs: jax.Array, padding: Sequence[tuple[int, int]], **kwargs: Any) -> jax.Array:
    """A convolution with a row too many in its output and a column too many in its input.

    XLA gives convolutions to YNNPACK unless an edge is longer in the output than in the input, or in the kernel than in
    the input. Here one is for the output, for the input's gradient, and for the kernel's; so all three run in Eigen,
    which uses all threads.
    """
    (top, bottom), (left, right) = padding
    lhs = jnp.pad(lhs, ((0, 0), (0, 0), (1, 0), (0, 0)))
    return lax.conv_general_dilated(lhs, rhs, (1, 1), ((top + 1, bottom), (left - 1, right)), **kwargs)[:, 1:]


def _in_float32(convolve: Convolve) -> Convolve:
    """For half precision: a CPU has no such units, and XLA's fusions around bfloat16 convolutions gave wrong numbers.

    Seen from JAX 0.11 to 0.12.0.1: in a residual block with a pooled shortcut, and where the mean over a map took the
    convolutions before it into one fusion, which the barrier keeps it from.
    """

    def run(lhs: jax.Array, rhs: jax.Array) -> jax.Array:
        return lax.optimization_barrier(convolve(lhs.astype(jnp.float32), rhs.astype(jnp.float32))).astype(lhs.dtype)

    return run


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
