"""Pooling layers of both families: blur, average and maximum pooling, and the global pooling before the classifier.

Feature maps are (B, H, W, C).
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from tresnet_jax.models.layers import at_least_float32

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

    def filtered(x: jax.Array, axis: int) -> jax.Array:
        # Replacing the zeros at the border by the reflected pixels is fused; jnp.pad would write a padded copy.
        before, at, after = _neighbours(x, axis, 0)
        position = jax.lax.broadcasted_iota(jnp.int32, at.shape, axis, out_sharding=jax.typeof(at).sharding)
        reflected = jnp.where(position == 0, after, before)
        if x.shape[axis] % 2:
            after = jnp.where(position == at.shape[axis] - 1, before, after)
        return reflected * 0.25 + at * 0.5 + after * 0.25

    return filtered(filtered(at_least_float32(x), 1), 2).astype(x.dtype)


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


def max_pool(x: jax.Array) -> jax.Array:
    """Take the maximum of 3x3 pixels with stride 2 and padding 1, as torch's ``MaxPool2d(3, 2, 1)``.

    The gradient goes to the first of equal pixels, row by row, as in torch. A CPU pools along W and then along H,
    because the gradient of XLA's own pooling takes five times as long there.

    Args:
        x: (B, H, W, C).

    Returns:
        (B, ceil(H/2), ceil(W/2), C).
    """

    def direct(x: jax.Array) -> jax.Array:
        # Flax accepts pairs of padding too, but its annotation says str.
        return nnx.max_pool(x, (3, 3), (2, 2), padding=((1, 1), (1, 1)))  # pyright: ignore[reportArgumentType]

    def by_axes(x: jax.Array) -> jax.Array:
        for axis in (2, 1):
            x = functools.reduce(_maximum, _neighbours(x, axis, -jnp.inf))
        return x

    return jax.lax.platform_dependent(x, cpu=by_axes, default=direct)


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
