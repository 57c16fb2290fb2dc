"""How a convolution runs: the one place that decides. On a GPU or TPU as XLA's own, on a CPU as what is faster there.

Nothing here changes what is computed, and every derivative of any order stays JAX's own.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

# (N, C) x (C, O) -> (N, O), no window: a matrix product that is differentiated as a convolution.
_NO_WINDOW = lax.ConvDimensionNumbers((0, 1), (1, 0), (0, 1))


def conv_general_dilated(lhs: jax.Array, rhs: jax.Array, window_strides: Sequence[int], *args, **kwargs) -> jax.Array:
    """As ``jax.lax.conv_general_dilated``, for ``nnx.Conv``.

    Args:
        lhs: (B, H, W, C_in), any floating dtype.
        rhs: (h, w, C_in, C_out), the same dtype.
        window_strides: for H and W.
        *args: passed on, as kwargs. A 1x1 kernel is taken to be without padding or groups.

    Returns:
        (B, H', W', C_out), the dtype of the inputs.
    """

    def direct(lhs: jax.Array, rhs: jax.Array) -> jax.Array:
        return lax.conv_general_dilated(lhs, rhs, window_strides, *args, **kwargs)

    on_cpu = _pointwise if rhs.shape[:2] == (1, 1) and set(window_strides) == {1} else direct
    if lhs.dtype.itemsize < 4:
        return lax.platform_dependent(lhs, rhs, cpu=_in_float32(on_cpu), default=direct)
    if on_cpu is direct:
        return direct(lhs, rhs)
    return lax.platform_dependent(lhs, rhs, cpu=on_cpu, default=direct)


def _pointwise(lhs: jax.Array, rhs: jax.Array) -> jax.Array:
    """A 1x1 convolution as one matrix product over all pixels, as XLA's own, its weight gradient above all, is slow.

    The weight gradient is a product too, over all pixels, for which XLA transposes the left factor: JAX puts the
    output's gradient there for a dot product, and the input for a convolution. The narrower of them costs less.
    """
    pixels, kernel = lhs.reshape(-1, lhs.shape[-1]), rhs[0, 0]
    if kernel.shape[0] > kernel.shape[1]:
        product = pixels @ kernel
    else:
        product = lax.conv_general_dilated(pixels, kernel, (), (), dimension_numbers=_NO_WINDOW)
    return product.reshape(*lhs.shape[:-1], -1)


def _in_float32(convolve: Any) -> Any:
    """For half precision: a CPU has no such units, and XLA's fusions around bfloat16 convolutions gave wrong numbers.

    Seen from JAX 0.11 to 0.12.0.1 in a residual block with a pooled shortcut.
    """

    def run(lhs: jax.Array, rhs: jax.Array) -> jax.Array:
        return convolve(lhs.astype(jnp.float32), rhs.astype(jnp.float32)).astype(lhs.dtype)

    return run
