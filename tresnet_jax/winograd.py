"""3x3 convolutions by Winograd's method, F(4x4, 3x3), on a CPU: a quarter of the multiplications, and a larger error.

Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks", arXiv:1509.09308. Each tile of 6x6 pixels and the
kernel become 36 numbers a channel, their products over channels are summed, and that sum becomes 4x4 pixels.
"""

import functools
import math
import operator
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from tresnet_jax import convolution

TILE = 4  # pixels of a tile's edge in the output
# Where the polynomials of the method are evaluated, infinity aside. With the usual 0, ±1, ±2 the error is five times as
# large. Their powers are exact in float32.
POINTS = (0.0, 5 / 8, -5 / 8, 3 / 2, -3 / 2)
ALONE = 49  # tiles from which a picture fills a matrix product: those of a map of 28x28
LEAST_TILES = 16  # those of 14x14
LEAST_CHANNELS = 48  # with fewer the products save less than the transforms cost


def conv_general_dilated(
    lhs: jax.Array,
    rhs: jax.Array,
    window_strides: Sequence[int],
    padding: str | Sequence[tuple[int, int]],
    *,
    rhs_dilation: Sequence[int],
    **kwargs: Any,
) -> jax.Array:
    """As `convolution.conv_general_dilated`, and by Winograd's method on a CPU where that pays (`pictures_at_once`).

    On a GPU or TPU it is XLA's own. The largest error over the largest value is 2e-6 in float32, four times that of
    XLA's convolution, and 1e-14 in float64; half precision is computed in float32 and rounded once.
    """

    def ordinary(lhs: jax.Array, rhs: jax.Array) -> jax.Array:
        return convolution.conv_general_dilated(
            lhs, rhs, window_strides, padding, rhs_dilation=rhs_dilation, **kwargs
        )

    fits = rhs.shape[:2] == (3, 3) and set(window_strides) == set(rhs_dilation) == {1}
    fits = fits and [tuple(pads) for pads in padding] == [(1, 1), (1, 1)]
    together = pictures_at_once(lhs.shape, rhs.shape[-1]) if fits else 0
    if not together:
        return ordinary(lhs, rhs)
    fast = functools.partial(_by_groups, together=together)
    if lhs.dtype.itemsize < 4:
        fast = convolution.in_float32(fast)
    return lax.platform_dependent(lhs, rhs, cpu=fast, default=ordinary)


def pictures_at_once(shape: Sequence[Any], out_chans: int) -> int:
    """How many pictures to transform together for maps of a shape (B, H, W, C_in); 0 where the method does not pay.

    Few, so that their 36 numbers a tile stay in the cache, but enough for matrix products of some size. Measured on
    two cores. B may be symbolic: then what holds for one picture is done.
    """
    batch, height, width, in_chans = shape
    pictures = batch if isinstance(batch, int) else 1
    tiles = _tiles(height) * _tiles(width)
    together = 1 if tiles >= ALONE else 8
    pays = tiles >= LEAST_TILES and pictures % together == 0 and min(in_chans, out_chans) >= LEAST_CHANNELS
    # Each call transforms the kernel as well: that must be no more than twice what the pixels cost.
    pays = pays and in_chans * out_chans <= 2 * pictures * tiles * (in_chans + out_chans)
    return together if pays else 0


def _tiles(pixels: int) -> int:
    return -(-pixels // TILE)


@functools.cache
def _matrices() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Those for the kernel (6, 3), the pixels (6, 6) and the output (4, 6), by Toom and Cook; float64."""
    others = [[q for q in POINTS if q != p] for p in POINTS]
    kernel, pixels, output = np.zeros((6, 3)), np.zeros((6, 6)), np.zeros((4, 6))
    for i, (p, rest) in enumerate(zip(POINTS, others, strict=True)):
        kernel[i] = p ** np.arange(3) / math.prod(p - q for q in rest)
        pixels[i, :5] = np.poly(rest)[::-1]
        output[:, i] = p ** np.arange(4)
    # At infinity the highest power alone counts.
    kernel[5, 2] = output[3, 5] = 1
    pixels[5] = np.poly(POINTS)[::-1]
    return kernel, pixels, output


def _by_groups(lhs: jax.Array, rhs: jax.Array, together: int) -> jax.Array:
    (b, h, w, c), out_chans = lhs.shape, rhs.shape[-1]
    each_way = _matrices()[0]
    both_ways = jnp.asarray(np.kron(each_way, each_way), rhs.dtype)
    kernels = (both_ways @ rhs.reshape(9, -1)).reshape(36, c, out_chans)
    groups = lhs.reshape(b // together, together, h, w, c)
    return lax.map(lambda group: _convolve(group, kernels), groups).reshape(b, h, w, out_chans)


def _convolve(x: jax.Array, kernels: jax.Array) -> jax.Array:
    """(B, H, W, C_in) and (36, C_in, C_out) -> (B, H, W, C_out)."""
    _, pixels, output = _matrices()
    b, h, w, c = x.shape
    rows, columns = _tiles(h), _tiles(w)
    x = jnp.pad(x, ((0, 0), (1, TILE * rows + 1 - h), (1, TILE * columns + 1 - w), (0, 0)))

    def every_fourth(x: jax.Array, tiles: int) -> list[jax.Array]:
        return [lax.slice_in_dim(x, start, start + TILE * (tiles - 1) + 1, TILE, 2) for start in range(6)]

    # Barriers: XLA would compute the sums along one axis anew for each sum along the other.
    x = lax.optimization_barrier(_combine(pixels, every_fourth(x, columns), 0))
    # Six sums along W, pictures, rows, columns, channels; every fourth row, and the sums along H in front.
    x = lax.optimization_barrier(_combine(pixels, every_fourth(x, rows), 0))
    y = lax.dot_general(x.reshape(36, -1, c), kernels, (((2,), (1,)), ((0,), (0,))))
    y = y.reshape(6, 6, b, rows, columns, -1)
    y = lax.optimization_barrier(_combine(output, list(y), 3))
    y = _combine(output, list(y), 4)
    return y.reshape(b, TILE * rows, TILE * columns, -1)[:, :h, :w]


def _combine(matrix: np.ndarray, parts: Sequence[jax.Array], axis: int) -> jax.Array:
    """The sums of parts that the rows of a matrix weigh, stacked along an axis."""
    weighed = [[float(weight) * part for weight, part in zip(row, parts, strict=True) if weight] for row in matrix]
    return jnp.stack([functools.reduce(operator.add, terms) for terms in weighed], axis)
