"""3x3 convolutions by Winograd's method, F(4x4, 3x3), on a CPU: a quarter of the multiplications, and a larger error.

Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks", arXiv:1509.09308. The kernel, and each tile of 6x6
input pixels, is transformed into 36 numbers per channel. Their products are summed over the input channels, and each
36 sums are transformed into a tile of 4x4 output pixels.
"""

import functools
import math
import operator
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax

from tresnet_jax.models.initializers import ShapesOnly, normal
from tresnet_jax.models.layers import at_least_float32

TRANSFORMED_KERNEL = 'kernels'  # its name among the parameters of a layer
KERNEL_SIZE = 3  # edge of a kernel
TILE = 4  # edge of an output tile
INPUT_TILE = TILE + KERNEL_SIZE - 1  # edge of an input tile, and of its transform
# Finite points at which the method evaluates polynomials; infinity is the sixth. Their powers are exact in float32, and
# the error is a fifth of that with the usual points 0, ±1, ±2.
POINTS = (0.0, 5 / 8, -5 / 8, 3 / 2, -3 / 2)

# Where the method is faster than XLA's convolution, measured on two cores.
MIN_CHANNELS = 48  # with fewer, the products save less time than the transforms take
MIN_TILES = 49  # an image with this many tiles, that is a 28x28 map, fills a matrix product alone
GROUP = 8  # images with fewer tiles are transformed in groups of this size
MIN_GROUP_TILES = 4  # if each has at least this many tiles, those of a 7x7 map


def _tiles(pixels: int) -> int:
    """Return how many tiles cover an edge."""
    return -(-pixels // TILE)


def images_at_once(batch: Any, height: int, width: int) -> int:
    """Return how many images of a batch to transform together; 0 where the method is not faster.

    Few images, so that the 36 numbers per tile and channel stay in the cache, but enough to fill a matrix product. A
    symbolic batch may have any size, so it is used only with maps of which one image suffices.

    Args:
        batch: images in the batch, an int or a symbolic dimension of ``jax.export``.
        height, width: the feature map's, in pixels.
    """
    tiles = _tiles(height) * _tiles(width)
    if tiles >= MIN_TILES:
        return 1
    fills = tiles >= MIN_GROUP_TILES and isinstance(batch, int) and batch % GROUP == 0
    return GROUP if fills else 0


class Transforms(NamedTuple):
    """The matrices of the method, float64, for one axis: of the kernel (6, 3), the pixels (6, 6), the output (4, 6)."""

    kernel: np.ndarray
    pixels: np.ndarray
    output: np.ndarray


@functools.cache
def _transforms() -> Transforms:
    """Construct the matrices as Toom and Cook do, by evaluation and interpolation at `POINTS` and infinity."""
    kernel, pixels = np.zeros((INPUT_TILE, KERNEL_SIZE)), np.zeros((INPUT_TILE, INPUT_TILE))
    output = np.zeros((TILE, INPUT_TILE))
    for i, p in enumerate(POINTS):
        others = [q for q in POINTS if q != p]
        kernel[i] = p ** np.arange(KERNEL_SIZE) / math.prod(p - q for q in others)
        pixels[i, :-1] = np.poly(others)[::-1]
        output[:, i] = p ** np.arange(TILE)
    # At infinity only the highest power counts.
    kernel[-1, -1] = output[-1, -1] = 1
    pixels[-1] = np.poly(POINTS)[::-1]
    return Transforms(kernel, pixels, output)


def _combine(matrix: np.ndarray, parts: Sequence[jax.Array], axis: int) -> jax.Array:
    """Return the sums of `parts` weighted by each row of a matrix, stacked along an axis."""
    weighted = [[float(weight) * part for weight, part in zip(row, parts, strict=True) if weight] for row in matrix]
    return jnp.stack([functools.reduce(operator.add, terms) for terms in weighted], axis)


def convolve(x: jax.Array, kernels: jax.Array) -> jax.Array:
    """Convolve feature maps with a transformed kernel: (B, H, W, C_in), (36, C_in, C_out) -> (B, H, W, C_out)."""
    _, pixels, output = _transforms()
    b, h, w, c = x.shape
    rows, columns = _tiles(h), _tiles(w)
    x = jnp.pad(x, ((0, 0), (1, TILE * rows + 1 - h), (1, TILE * columns + 1 - w), (0, 0)))

    def pixels_of_tiles(x: jax.Array, tiles: int) -> list[jax.Array]:
        """Return the first pixel of every tile along axis 2, the second, and so on."""
        return [lax.slice_in_dim(x, start, start + TILE * (tiles - 1) + 1, TILE, 2) for start in range(INPUT_TILE)]

    # Without the barriers XLA would recompute the sums along one axis for each sum along the other.
    x = lax.optimization_barrier(_combine(pixels, pixels_of_tiles(x, columns), 0))
    # Now (6, B, H, columns of tiles, C): axis 2 is H, and its sums go in front.
    x = lax.optimization_barrier(_combine(pixels, pixels_of_tiles(x, rows), 0))
    y = lax.dot_general(x.reshape(INPUT_TILE**2, -1, c), kernels, (((2,), (1,)), ((0,), (0,))))
    y = y.reshape(INPUT_TILE, INPUT_TILE, b, rows, columns, -1)
    y = lax.optimization_barrier(_combine(output, list(y), 3))
    y = _combine(output, list(y), 4)
    return y.reshape(b, TILE * rows, TILE * columns, -1)[:, :h, :w]


class WinogradConv(nnx.Conv):
    """A 3x3 convolution for evaluation, by Winograd's method where it is faster (`images_at_once`).

    Otherwise, and on a GPU or TPU, it runs as the convolution it was made from. The largest error divided by the
    largest output is 1e-6 to 4e-6 in float32, and 1e-14 in float64. Half precision is computed in float32 and rounded
    once.

    Args:
        conv: the convolution to replace; its parameters are shared.

    Attributes:
        kernels: the transformed kernel, (36, C_in, C_out), float32 or float64; four times the memory of the kernel.
    """

    def __init__(self, conv: nnx.Conv):
        super().__init__(
            conv.in_features,
            conv.out_features,
            (KERNEL_SIZE, KERNEL_SIZE),
            padding=conv.padding,
            use_bias=conv.use_bias,
            dtype=conv.dtype,
            param_dtype=conv.param_dtype,
            kernel_init=normal(0),  # only the shapes: the parameters are replaced below
            bias_init=normal(0),
            conv_general_dilated=conv.conv_general_dilated,
            rngs=ShapesOnly(),
        )
        self.kernel, self.bias = conv.kernel, conv.bias
        kernel = np.asarray(conv.kernel[...], np.float64)
        transform = _transforms().kernel
        kernels = np.kron(transform, transform) @ kernel.reshape(KERNEL_SIZE**2, -1)
        kernels = kernels.reshape(INPUT_TILE**2, *kernel.shape[2:])
        self.kernels = nnx.Param(jax.device_put(kernels.astype(conv.param_dtype)))

    @staticmethod
    def supports(conv: nnx.Conv) -> bool:
        """Return whether the method can be faster: 3x3, stride 1, padding 1, undilated, and enough channels."""
        shape = (conv.kernel_size, conv.strides, conv.kernel_dilation, conv.padding)
        fits = shape == ((KERNEL_SIZE, KERNEL_SIZE), 1, 1, ((1, 1), (1, 1)))
        return fits and MIN_CHANNELS <= min(conv.in_features, conv.out_features)

    def __call__(self, inputs: jax.Array) -> jax.Array:
        """(B, H, W, C_in) -> (B, H, W, C_out)."""
        group_size = images_at_once(*inputs.shape[:3])
        if not group_size:
            return super().__call__(inputs)
        in_groups = functools.partial(self._in_groups, group_size=group_size)
        return lax.platform_dependent(inputs, cpu=in_groups, default=super().__call__)

    def _in_groups(self, x: jax.Array, group_size: int) -> jax.Array:
        b, *image = x.shape
        groups = at_least_float32(x.astype(self.dtype)).reshape(b // group_size, group_size, *image)
        y = lax.map(lambda group: convolve(group, self.kernels[...]), groups).reshape(*x.shape[:3], -1)
        if self.bias is not None:
            y += self.bias[...].astype(y.dtype).reshape(1, 1, 1, -1)
        return y.astype(self.dtype)
