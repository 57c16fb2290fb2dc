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
from flax import nnx
from jax import lax

from tresnet_jax.models.initializers import ShapesOnly, normal
from tresnet_jax.models.layers import at_least_float32

KERNELS = 'kernels'  # the name of a layer's transformed kernel among the parameters
TILE = 4  # pixels of a tile's edge in the output
# Where the polynomials of the method are evaluated, infinity aside. Their powers are exact in float32, and the error is
# a fifth of that with the usual 0, ±1, ±2.
POINTS = (0.0, 5 / 8, -5 / 8, 3 / 2, -3 / 2)
LEAST_CHANNELS = 48  # with fewer the products save less than the transforms cost
ALONE = 49  # tiles from which one image fills a matrix product: those of a map of 28x28
TOGETHER, LEAST_TILES = 8, 4  # so many images of so many tiles, those of 7x7, fill one


class WinogradConv(nnx.Conv):
    """A 3x3 convolution in a model for evaluation, by Winograd's method where that pays (`images_at_once`).

    Elsewhere, and on a GPU or TPU, it is the convolution that it was made from. Its largest error over its largest
    output is 1e-6 to 4e-6 in float32, and 1e-14 in float64; half precision is computed in float32 and rounded once.

    Args:
        conv: that convolution, which it shares its parameters with.

    Attributes:
        kernels: the kernel as (36, C_in, C_out), float32 or float64: four times the memory.
    """

    def __init__(self, conv: nnx.Conv):
        super().__init__(
            conv.in_features,
            conv.out_features,
            (3, 3),
            padding=conv.padding,
            use_bias=conv.use_bias,
            dtype=conv.dtype,
            param_dtype=conv.param_dtype,
            kernel_init=normal(0),  # not drawn: the parameters are shapes until they are given
            bias_init=normal(0),
            conv_general_dilated=conv.conv_general_dilated,
            rngs=ShapesOnly(),
        )
        self.kernel, self.bias = conv.kernel, conv.bias
        kernel = np.asarray(conv.kernel[...], np.float64)
        each_way = _matrices()[0]
        kernels = np.kron(each_way, each_way) @ kernel.reshape(9, -1)
        self.kernels = nnx.Param(jax.device_put(kernels.reshape(36, *kernel.shape[2:]).astype(conv.param_dtype)))

    @staticmethod
    def takes(conv: nnx.Conv) -> bool:
        """Whether it is one that there may be a gain for: 3x3, stride 1, padding 1, and not too few channels."""
        shape = (conv.kernel_size, conv.strides, conv.kernel_dilation, conv.padding)
        fits = shape == ((3, 3), 1, 1, ((1, 1), (1, 1)))
        return fits and LEAST_CHANNELS <= min(conv.in_features, conv.out_features)

    def __call__(self, inputs: jax.Array) -> jax.Array:
        """(B, H, W, C_in) -> (B, H, W, C_out)."""
        together = images_at_once(*inputs.shape[:3])
        if not together:
            return super().__call__(inputs)
        by_groups = functools.partial(self._by_groups, together=together)
        return lax.platform_dependent(inputs, cpu=by_groups, default=super().__call__)

    def _by_groups(self, x: jax.Array, together: int) -> jax.Array:
        b, *image = x.shape
        groups = at_least_float32(x.astype(self.dtype)).reshape(b // together, together, *image)
        y = lax.map(lambda group: convolve(group, self.kernels[...]), groups).reshape(*x.shape[:3], -1)
        if self.bias is not None:
            y += self.bias[...].astype(y.dtype).reshape(1, 1, 1, -1)
        return y.astype(self.dtype)


def images_at_once(batch: Any, height: int, width: int) -> int:
    """How many images to transform together; 0 where the method does not pay.

    Few, so that their 36 numbers a tile stay in the cache, but enough for matrix products of some size. Measured on two
    cores. A symbolic batch may be any, so that only maps wide enough for one image at a time are taken.
    """
    tiles = _tiles(height) * _tiles(width)
    if tiles >= ALONE:
        return 1
    fills = tiles >= LEAST_TILES and isinstance(batch, int) and batch % TOGETHER == 0
    return TOGETHER if fills else 0


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


def convolve(x: jax.Array, kernels: jax.Array) -> jax.Array:
    """A convolution: (B, H, W, C_in) and (36, C_in, C_out) -> (B, H, W, C_out)."""
    _, pixels, output = _matrices()
    b, h, w, c = x.shape
    rows, columns = _tiles(h), _tiles(w)
    x = jnp.pad(x, ((0, 0), (1, TILE * rows + 1 - h), (1, TILE * columns + 1 - w), (0, 0)))

    def every_fourth(x: jax.Array, tiles: int) -> list[jax.Array]:
        return [lax.slice_in_dim(x, start, start + TILE * (tiles - 1) + 1, TILE, 2) for start in range(6)]

    # Barriers: XLA would compute the sums along one axis anew for each sum along the other.
    x = lax.optimization_barrier(_combine(pixels, every_fourth(x, columns), 0))
    # Six sums along W, images, rows, columns, channels; every fourth row, and the sums along H in front.
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
