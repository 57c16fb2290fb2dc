"""Pooling layers of both families: blur, average and maximum pooling, and the global pooling before the classifier.

Feature maps are (B, H, W, C).
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from tresnet_jax.models.layers import at_least_float32, is_half

POOL_TYPES = ('', 'avg', 'max', 'avgmax', 'catavgmax', 'fast', 'fastavg', 'fastmax', 'fastavgmax', 'fastcatavgmax')


def _neighbours(x: jax.Array, axis: int, border: float) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Return every second pixel along an axis, the first one included, with its neighbours.

    Returns:
        The pixels before, the pixels themselves, and the pixels after; `border` where there is no neighbour.
    """
    n = x.shape[axis]
    even, odd = (jax.lax.slice_in_dim(x, start, n, 2, axis) for start in (0, 1))

    def pad(low: int, high: int) -> jax.Array:
        widths = [(low, high, 0) if i == axis else (0, 0, 0) for i in range(x.ndim)]
        return jax.lax.pad(odd, jnp.asarray(border, x.dtype), widths)

    return pad(1, n % 2 - 1), even, pad(0, n % 2)


def blur_pool(x: jax.Array) -> jax.Array:
    """Apply a binomial 3x3 filter with reflected borders and stride 2 (Zhang, arXiv:1904.11486).

    This is timm's ``BlurPool2d``. Compared with a depthwise convolution, shifted slices move fewer bytes on a GPU and
    are much faster on a CPU. The weights are powers of two, so the products are exact.

    Args:
        x: (B, H, W, C).

    Returns:
        (B, ceil(H/2), ceil(W/2), C), in the dtype of x.
    """

    def taps(x: jax.Array, axis: int) -> tuple[jax.Array, jax.Array, jax.Array]:
        # Replacing the zeros at the border by the reflected pixels is fused; jnp.pad would write a padded copy.
        before, at, after = _neighbours(x, axis, 0)
        position = jax.lax.broadcasted_iota(jnp.int32, at.shape, axis, out_sharding=jax.typeof(at).sharding)
        reflected = jnp.where(position == 0, after, before)
        if x.shape[axis] % 2:
            after = jnp.where(position == at.shape[axis] - 1, before, after)
        return reflected, at, after

    def weighted(before: jax.Array, at: jax.Array, after: jax.Array) -> jax.Array:
        return before * 0.25 + at * 0.5 + after * 0.25

    if is_half(x):
        # All nine pixels at once: XLA for GPUs would write the map that is filtered along one axis to memory, in
        # float32. In float32 this gains less, and on a CPU the gradient takes longer.
        y = weighted(*(weighted(*taps(column, 1)) for column in taps(at_least_float32(x), 2)))
    else:
        y = weighted(*taps(weighted(*taps(x, 1)), 2))
    return y.astype(x.dtype)


class BlurPool(nnx.Module):
    """`blur_pool` as a layer."""

    def __call__(self, x: jax.Array) -> jax.Array:
        return blur_pool(x)


class AvgPool(nnx.Module):
    """The average pooling before a shortcut's 1x1 convolution (timm's ``downsample_avg``).

    Stride 2 is torch's ``AvgPool2d(2, 2, ceil_mode=True, count_include_pad=False)``: windows at an odd border average
    only the pixels they cover. Stride 1, for dilated stages, is timm's ``AvgPool2dSame``: it pads before pooling, so
    the zeros count.
    """

    def __init__(self, stride: int):
        self.stride = stride

    def __call__(self, x: jax.Array) -> jax.Array:
        return avg_pool_dilated(x) if self.stride == 1 else avg_pool(x)


def avg_pool(x: jax.Array) -> jax.Array:
    """Average over 2x2 pixels with stride 2: (B, H, W, C) -> (B, ceil(H/2), ceil(W/2), C).

    Windows at an odd border average only the pixels they cover.
    """
    h, w = x.shape[1:3]
    rows, columns = (np.where(np.arange(0, n, 2) == n - 1, 1, 2) for n in (h, w))
    y = at_least_float32(jnp.pad(x, ((0, 0), (0, h % 2), (0, w % 2), (0, 0))))
    # A sum of slices instead of reduce_window: in bfloat16 residual blocks, XLA's fusions for a CPU computed a
    # reduction wrongly (JAX 0.11 to 0.12.0.1).
    y = y[:, ::2, ::2] + y[:, 1::2, ::2] + y[:, ::2, 1::2] + y[:, 1::2, 1::2]
    return (y * jnp.asarray(1 / np.outer(rows, columns)[None, :, :, None], y.dtype)).astype(x.dtype)


def avg_pool_dilated(x: jax.Array) -> jax.Array:
    """Average over 2x2 pixels with stride 1, padded with a row and a column of zeros at the end, which count."""
    x = jnp.pad(x, ((0, 0), (0, 1), (0, 1), (0, 0)))
    return 0.25 * (x[:, :-1, :-1] + x[:, 1:, :-1] + x[:, :-1, 1:] + x[:, 1:, 1:])


def _maximum(x: jax.Array, y: jax.Array) -> jax.Array:
    """Return the larger of two, or NaN if either is NaN; for equal values the gradient goes to x."""
    return jnp.where((y > x) | jnp.isnan(y), y, x)


def _reduce_window(x: jax.Array) -> jax.Array:
    # Flax accepts pairs of padding too, but its annotation says str.
    return nnx.max_pool(x, (3, 3), (2, 2), padding=((1, 1), (1, 1)))  # pyright: ignore[reportArgumentType]


@jax.custom_jvp
def _max_pool(x: jax.Array) -> jax.Array:
    """Compute `max_pool` in half precision for an even height and width, keeping a byte per maximum for the gradient.

    XLA's own gradient on a GPU finds the places again, as four maps of int32, and adds to a map of zeros.
    """
    return _reduce_window(x)


@_max_pool.defjvp
def _(primals: tuple[jax.Array], tangents: tuple[jax.Array]) -> tuple[jax.Array, jax.Array]:
    (x,), (tangent,) = primals, tangents
    h, w = x.shape[1:3]
    y, place = _max_and_place(x)

    def code(row: jax.Array, column: jax.Array) -> jax.Array:
        # A window has three rows. Their indices modulo 4 differ, also from the row before; so do columns.
        return (row % 4 * 4 + column % 4).astype(jnp.uint8)

    row, column = (jax.lax.broadcasted_iota(jnp.int32, (1, h, w, 1), axis) for axis in (1, 2))
    theirs = code(place // w, place % w)
    here = _blocks(code(row, column))
    zero, total = jnp.zeros((), x.dtype), jnp.zeros_like(y)
    # A pixel belongs to the window of its block of 2x2 pixels. One in an odd row also belongs to the window below.
    for below, right in ((0, 0), (0, 1), (1, 0), (1, 1)):
        back = jax.lax.pad(theirs, jnp.uint8(255), ((0, 0, 0), (-below, below, 0), (-right, right, 0), (0, 0, 0)))
        sums = jnp.where(back[:, :, None, :, None] == here, _blocks(tangent), zero).sum((2, 4), dtype=x.dtype)
        total += jax.lax.pad(sums, zero, ((0, 0, 0), (below, -below, 0), (right, -right, 0), (0, 0, 0)))
    return y, total


def _blocks(x: jax.Array) -> jax.Array:
    """Reshape (B, H, W, C) to blocks of 2x2 pixels, (B, H/2, 2, W/2, 2, C)."""
    b, h, w, c = x.shape
    # One axis at a time: JAX cannot tell how a reshape of several splits an array whose sharding is explicit.
    return x.reshape(b, h // 2, 2, w, c).reshape(b, h // 2, 2, w // 2, 2, c)


def _max_and_place(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return the maxima of `max_pool`, and the index of the first pixel that has each: row * W + column, int32.

    One integer holds both, because XLA does not fuse a window's reduction of two values with what follows.
    """
    bits = jax.lax.bitcast_convert_type(jnp.abs(x), jnp.int16)
    ordered = jnp.where(x < 0, ~bits, bits).astype(jnp.int32)  # NaN is the largest
    row, column = (jax.lax.broadcasted_iota(jnp.int32, (1, *x.shape[1:3], 1), axis) for axis in (1, 2))
    key = ordered * 2**16 + (2**16 - 1 - (row * x.shape[2] + column))
    padding = ((0, 0), (1, 1), (1, 1), (0, 0))
    key = jax.lax.reduce_window(key, jnp.int32(-(2**31)), jax.lax.max, (1, 3, 3, 1), (1, 2, 2, 1), padding)
    ordered = (key >> 16).astype(jnp.int16)
    y = jax.lax.bitcast_convert_type(jnp.where(ordered < 0, ~ordered, ordered), x.dtype)
    return jnp.where(ordered < 0, -y, y), 2**16 - 1 - (key & (2**16 - 1))


def max_pool(x: jax.Array) -> jax.Array:
    """Take the maximum of 3x3 pixels with stride 2 and padding 1, as torch's ``MaxPool2d(3, 2, 1)``.

    The gradient goes to the first of equal pixels, row by row, as in torch. A CPU pools along W and then along H,
    because the gradient of XLA's own pooling takes five times as long there.

    Args:
        x: (B, H, W, C).

    Returns:
        (B, ceil(H/2), ceil(W/2), C).
    """

    def by_axes(x: jax.Array) -> jax.Array:
        for axis in (2, 1):
            x = functools.reduce(_maximum, _neighbours(x, axis, -jnp.inf))
        return x

    h, w = x.shape[1:3]
    fits = h % 2 == w % 2 == 0 and h * w <= 2**16  # a value of 16 bits and its place in one integer
    return jax.lax.platform_dependent(x, cpu=by_axes, default=_max_pool if is_half(x) and fits else _reduce_window)


def check_pool_type(pool_type: str) -> str:
    """Return `pool_type`, one of timm's names.

    Raises:
        ValueError: the name is unknown.
    """
    if pool_type not in POOL_TYPES:
        raise ValueError(f'unknown global_pool {pool_type!r}; expected one of {", ".join(map(repr, POOL_TYPES))}')
    return pool_type


def pool_multiplier(pool_type: str) -> int:
    """Return the length of the pooled vector divided by the channels of the feature map."""
    return 2 if pool_type.endswith('catavgmax') else 1


def pool_kind(pool_type: str) -> str:
    """Return what a pooling does: 'avg', 'max', 'avgmax', 'catavgmax', or '' for nothing.

    The names that begin with 'fast' are timm's and pool in the same way; 'fast' alone is 'avg'.
    """
    return pool_type.removeprefix('fast') or ('avg' if pool_type else '')


def global_pool(x: jax.Array, pool_type: str) -> jax.Array:
    """Pool over H and W: (B, H, W, C) -> (B, C); (B, 2 C) for 'catavgmax', x itself for ''."""
    kind = pool_kind(pool_type)
    if not kind:
        return x
    if kind == 'avg':
        return x.mean((1, 2))
    if kind == 'max':
        return x.max((1, 2))
    average, maximum = x.mean((1, 2)), x.max((1, 2))
    if kind == 'avgmax':
        return 0.5 * average + 0.5 * maximum
    return jnp.concatenate([average, maximum], axis=-1)
