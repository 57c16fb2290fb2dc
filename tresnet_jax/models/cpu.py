"""Other forms of what XLA compiles badly for a CPU: convolutions, and values that several loops read.

`conv_general_dilated` picks the fastest form of a convolution; `computed_once` keeps XLA from computing a value again
for every loop that reads it. On a GPU or TPU both lower to the plain operation. Neither changes what is computed, and
derivatives of every order work in forward and reverse mode.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from tresnet_jax.models.meshes import shard_like

Convolve = Callable[[jax.Array, jax.Array], jax.Array]
Pads = Sequence[tuple[int, int]]  # pixels before and after, for H and W

# JAX 0.10 runs a convolution with at most this many channels on one thread; later versions use all threads.
SINGLE_THREAD_CHANNELS = 64 if jax.__version_info__ < (0, 11) else 0
MIN_PIXELS = 32 * 32  # output pixels from which avoiding the single thread pays off
IMAGE_CHANNELS = 4  # an image has at most this many channels, and its patches take little memory


def _pointwise(lhs: jax.Array, rhs: jax.Array) -> jax.Array:
    """Compute a 1x1 convolution as one matrix product over all pixels.

    XLA's own 1x1 convolution is slow, especially its weight gradient.
    """
    pixels, weights = lhs.reshape(-1, lhs.shape[-1]), rhs[0, 0]
    if weights.shape[0] > weights.shape[1]:
        weights = _transpose_gradient(weights)
    return (pixels @ weights).reshape(*lhs.shape[:-1], -1)


@jax.custom_jvp
def _transpose_gradient(weights: jax.Array) -> jax.Array:
    """Return the weights unchanged, and compute their gradient as its transpose.

    XLA writes the first factor of a weight gradient to memory transposed. By default that factor is the input;
    transposing the gradient makes it the output's gradient, which is smaller where the output has fewer channels.
    """
    return weights


@_transpose_gradient.defjvp
def _(primals: tuple[jax.Array], tangents: tuple[jax.Array]) -> tuple[jax.Array, jax.Array]:
    # Without the barrier XLA exchanges the factors and drops both transpositions.
    return primals[0], lax.optimization_barrier(tangents[0].T).T


def _shifted_inputs(
    lhs: jax.Array,
    window: tuple[int, ...],
    stride_1_sizes: Sequence[int],
    window_strides: Sequence[int],
    padding: Pads,
    rhs_dilation: Sequence[int],
) -> list[jax.Array]:
    """Return, for each tap of the kernel row by row, the input pixels it multiplies: (B, H', W', C_in) each.

    `stride_1_sizes` are the height and width that the output would have with a stride of 1.
    """
    padded = jnp.pad(lhs, ((0, 0), *padding, (0, 0)))

    def pixels(*tap: int) -> jax.Array:
        starts = (dilation * index for dilation, index in zip(rhs_dilation, tap, strict=True))
        rows, columns = (
            slice(start, start + size, stride)
            for start, size, stride in zip(starts, stride_1_sizes, window_strides, strict=True)
        )
        return padded[:, rows, columns]

    return [pixels(row, column) for row in range(window[0]) for column in range(window[1])]


def _in_eigen(lhs: jax.Array, rhs: jax.Array, padding: Pads, **kwargs: Any) -> jax.Array:
    """Convolve with an extra input column and an extra output row, so that XLA uses Eigen, which is multithreaded.

    XLA gives a convolution to YNNPACK unless an edge is longer in the output than in the input, or in the kernel than
    in the input. With the extra row and column, that is true of one edge in the forward convolution and in those of
    both gradients. The input must be padded on the left.
    """
    (top, bottom), (left, right) = padding
    lhs = jnp.pad(lhs, ((0, 0), (0, 0), (1, 0), (0, 0)))
    return lax.conv_general_dilated(lhs, rhs, (1, 1), ((top + 1, bottom), (left - 1, right)), **kwargs)[:, 1:]


def _in_float32(convolve: Convolve) -> Convolve:
    """Convolve half-precision arrays in float32 and round once.

    A CPU has no half-precision units, and from JAX 0.11 to 0.12.0.1 XLA's fusions around bfloat16 convolutions gave
    wrong numbers: in a residual block with a pooled shortcut, and where the mean over a feature map was fused with the
    convolutions before it. The barrier prevents that fusion.
    """

    def run(lhs: jax.Array, rhs: jax.Array) -> jax.Array:
        return lax.optimization_barrier(convolve(lhs.astype(jnp.float32), rhs.astype(jnp.float32))).astype(lhs.dtype)

    return run


def conv_general_dilated(
    lhs: jax.Array,
    rhs: jax.Array,
    window_strides: Sequence[int],
    padding: str | Pads,
    *,
    rhs_dilation: Sequence[int],
    **kwargs: Any,
) -> jax.Array:
    """Compute ``jax.lax.conv_general_dilated``, in the form that is fastest on the platform it is compiled for.

    This is the ``conv_general_dilated`` of an ``nnx.Conv`` without groups. A 1x1 kernel must be unpadded.

    Args:
        lhs: images or feature maps, (B, H, W, C_in), any floating dtype.
        rhs: the kernel, (h, w, C_in, C_out), the same dtype.
        window_strides: strides along H and W.
        padding: pixels before and after, for H and W; or 'SAME' or 'VALID'.
        rhs_dilation: dilation of the kernel along H and W.
        **kwargs: passed to ``jax.lax.conv_general_dilated``.

    Returns:
        (B, H', W', C_out), the dtype of the inputs.
    """
    window = rhs.shape[:2]
    if isinstance(padding, str):
        spans = [dilation * (k - 1) + 1 for dilation, k in zip(rhs_dilation, window, strict=True)]
        padding = lax.padtype_to_pads(lhs.shape[1:3], spans, window_strides, padding)
    pads = tuple((before, after) for before, after in padding)
    return _convolution(lhs, rhs, tuple(window_strides), pads, tuple(rhs_dilation), tuple(kwargs.items()))


@functools.partial(jax.jit, static_argnums=(2, 3, 4, 5), inline=True)  # jit: equal convolutions are traced once
def _convolution(
    lhs: jax.Array,
    rhs: jax.Array,
    window_strides: tuple[int, ...],
    padding: Pads,
    rhs_dilation: tuple[int, ...],
    options: tuple[tuple[str, Any], ...],
) -> jax.Array:
    """Compute `conv_general_dilated`; all arguments except the arrays are hashable."""
    kwargs, window = dict(options), rhs.shape[:2]

    def direct(lhs: jax.Array, rhs: jax.Array) -> jax.Array:
        return lax.conv_general_dilated(lhs, rhs, window_strides, padding, rhs_dilation=rhs_dilation, **kwargs)

    def shifted_inputs(lhs: jax.Array) -> list[jax.Array]:
        return _shifted_inputs(lhs, window, stride_1_sizes, window_strides, padding, rhs_dilation)

    def sum_of_products(lhs: jax.Array, rhs: jax.Array) -> jax.Array:
        pairs = zip(shifted_inputs(lhs), rhs.reshape(-1, *rhs.shape[2:]), strict=True)
        return functools.reduce(jnp.add, (pixels @ weights for pixels, weights in pairs))

    def im2col(lhs: jax.Array, rhs: jax.Array) -> jax.Array:
        return jnp.concatenate(shifted_inputs(lhs), -1) @ rhs.reshape(-1, rhs.shape[-1])

    def in_eigen(lhs: jax.Array, rhs: jax.Array) -> jax.Array:
        return _in_eigen(lhs, rhs, padding, **kwargs)

    sizes = zip(lhs.shape[1:3], padding, rhs_dilation, window, strict=True)
    stride_1_sizes = [n + sum(pads) - dilation * (k - 1) for n, pads, dilation, k in sizes]
    output_pixels = math.prod(-(-n // stride) for n, stride in zip(stride_1_sizes, window_strides, strict=True))
    on_cpu: Convolve = direct
    if window == (1, 1) and set(window_strides) == {1}:
        on_cpu = _pointwise
    # XLA mistakes a feature map smaller than the kernel for the kernel, and the result runs at a hundredth of the
    # speed. The size that counts is the output's, because the input's gradient is a convolution of the output's.
    elif output_pixels < math.prod(window):
        on_cpu = sum_of_products
    elif max(rhs.shape[2:]) <= SINGLE_THREAD_CHANNELS and output_pixels >= MIN_PIXELS:
        if rhs.shape[2] <= IMAGE_CHANNELS:
            on_cpu = im2col
        elif set(window_strides) == set(rhs_dilation) == {1} and padding[1][0] > 0:
            on_cpu = in_eigen
    if lhs.dtype.itemsize < 4:
        on_cpu = _in_float32(on_cpu)
    if on_cpu is direct:
        return direct(lhs, rhs)
    return lax.platform_dependent(lhs, rhs, cpu=on_cpu, default=direct)


@functools.partial(jax.jit, static_argnums=0, inline=True)  # jit: a call outside of jit compiles the condition once
def computed_once(function: Callable[..., jax.Array], *inputs: jax.Array) -> jax.Array:
    """Evaluate ``function(*inputs)`` exactly once; every consumer shares the result.

    XLA for a CPU duplicates sums and activations into every loop that reads them. A residual block reads the sum at the
    end of the block before, so the last block of a stage would add up the branches of all blocks: a quadratic number
    of additions, every branch kept in memory, and ever larger loops to compile. A branch of a condition is a separate
    computation, which XLA does not duplicate. An optimisation barrier would not help: XLA removes it before it fuses.
    On a GPU or TPU this is a plain call.

    JAX traces `function` once for each function and each set of shapes and dtypes, so it must be hashable and pure. Its
    derivatives are JAX's, wrapped in conditions of their own; a custom derivative around the call avoids those.

    Args:
        function: takes arrays and returns one array.
        *inputs: its arguments.
    """

    def unused(*inputs: jax.Array) -> jax.Array:
        output = jax.eval_shape(function, *inputs)
        return shard_like(jnp.zeros_like(output), output)

    def as_branch(*inputs: jax.Array) -> jax.Array:
        # The barrier hides from XLA that the predicate is constant.
        return lax.cond(lax.optimization_barrier(jnp.array(True)), function, unused, *inputs)

    return lax.platform_dependent(*inputs, cpu=as_branch, default=function)
