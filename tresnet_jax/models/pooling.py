"""The pools of both families: blur, average, maximum, and those before the classifier. Maps are (B, H, W, C)."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from tresnet_jax.models.layers import at_least_float32

POOL_TYPES = ('', 'avg', 'max', 'avgmax', 'catavgmax', 'fast', 'fastavg', 'fastmax', 'fastavgmax', 'fastcatavgmax')


def blur_pool(x: jax.Array) -> jax.Array:
    """Binomial 3x3 filter, reflected borders, stride 2: (B, H, W, C) -> (B, ceil(H/2), ceil(W/2), C).

    Zhang, arXiv:1904.11486; timm's ``BlurPool2d``. Shifted slices instead of a depthwise convolution: fewer bytes
    moved on a GPU, and much faster on a CPU. The weights are powers of two, so nothing is lost.
    """

    def filtered(x: jax.Array, axis: int) -> jax.Array:
        # Zeros where the border is, then what is reflected there: nothing is written to memory, as jnp.pad would.
        before, at, after = _threes(x, axis, 0)
        position = jax.lax.broadcasted_iota(jnp.int32, at.shape, axis)
        reflected = jnp.where(position == 0, after, before)
        if x.shape[axis] % 2:
            after = jnp.where(position == at.shape[axis] - 1, before, after)
        return reflected * 0.25 + at * 0.5 + after * 0.25

    return filtered(filtered(at_least_float32(x), 1), 2).astype(x.dtype)


def _threes(x: jax.Array, axis: int, border: float) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Every second pixel along an axis, from the first one on, between the one before it and the one after it."""
    n = x.shape[axis]
    at, odd = (jax.lax.slice_in_dim(x, start, n, 2, axis) for start in (0, 1))

    def pad(low: int, high: int) -> jax.Array:
        widths = [(low, high, 0) if i == axis else (0, 0, 0) for i in range(x.ndim)]
        return jax.lax.pad(odd, jnp.asarray(border, x.dtype), widths)

    return pad(1, n % 2 - 1), at, pad(0, n % 2)


class BlurPool(nnx.Module):
    def __call__(self, x: jax.Array) -> jax.Array:
        return blur_pool(x)


class AvgPool(nnx.Module):
    """The pool before a shortcut's 1x1 convolution (timm's ``downsample_avg``).

    Stride 2 is torch's ``AvgPool2d(2, 2, ceil_mode=True, count_include_pad=False)``: an odd border is averaged over
    the pixels that are there. Stride 1, used when a stage is dilated, is timm's ``AvgPool2dSame``, which pads outside
    the pool and so counts the zeros.
    """

    def __init__(self, stride: int):
        self.stride = stride

    def __call__(self, x: jax.Array) -> jax.Array:
        return avg_pool_dilated(x) if self.stride == 1 else avg_pool(x)


def avg_pool(x: jax.Array) -> jax.Array:
    """2x2, stride 2: (B, H, W, C) -> (B, ceil(H/2), ceil(W/2), C), an odd border averaged over what is there."""
    h, w = x.shape[1:3]
    rows, columns = (np.where(np.arange(0, n, 2) == n - 1, 1, 2) for n in (h, w))
    y = at_least_float32(jnp.pad(x, ((0, 0), (0, h % 2), (0, w % 2), (0, 0))))
    # No reduction: in a residual block of bfloat16 XLA's fusions for the CPU got one wrong (JAX 0.11 to 0.12.0.1).
    y = y[:, ::2, ::2] + y[:, 1::2, ::2] + y[:, ::2, 1::2] + y[:, 1::2, 1::2]
    return (y * jnp.asarray(1 / np.outer(rows, columns)[None, :, :, None], y.dtype)).astype(x.dtype)


def avg_pool_dilated(x: jax.Array) -> jax.Array:
    """2x2, stride 1, one row and one column of zeros behind, which count."""
    x = jnp.pad(x, ((0, 0), (0, 1), (0, 1), (0, 0)))
    return 0.25 * (x[:, :-1, :-1] + x[:, 1:, :-1] + x[:, :-1, 1:] + x[:, 1:, 1:])


def max_pool(x: jax.Array) -> jax.Array:
    """3x3, stride 2, one pixel of -inf on every side, as torch's ``MaxPool2d(3, 2, 1)``.

    Of equal pixels the first one, row by row, has the gradient, as in torch. On a CPU by columns and then by rows: the
    gradient of XLA's own takes five times as long there.
    """

    def direct(x: jax.Array) -> jax.Array:
        # Flax takes pairs too, but its annotation says str.
        return nnx.max_pool(x, (3, 3), (2, 2), padding=((1, 1), (1, 1)))  # pyright: ignore[reportArgumentType]

    def by_axes(x: jax.Array) -> jax.Array:
        for axis in (2, 1):
            x = functools.reduce(_larger, _threes(x, axis, -jnp.inf))
        return x

    return jax.lax.platform_dependent(x, cpu=by_axes, default=direct)


def _larger(x: jax.Array, y: jax.Array) -> jax.Array:
    """The larger of two, x if they are equal, and a NaN if there is one."""
    return jnp.where((y > x) | jnp.isnan(y), y, x)


def check_pool_type(pool_type: str) -> str:
    """The name itself, as timm spells it.

    Raises:
        ValueError: there is no such pooling.
    """
    if pool_type not in POOL_TYPES:
        raise ValueError(f'unknown global_pool {pool_type!r}; expected one of {", ".join(map(repr, POOL_TYPES))}')
    return pool_type


def pool_multiplier(pool_type: str) -> int:
    """How many times the channels of the feature map the pooled vector has."""
    return 2 if pool_type.endswith('catavgmax') else 1


def global_pool(x: jax.Array, pool_type: str) -> jax.Array:
    """(B, H, W, C) -> (B, C), or (B, 2 C) for 'catavgmax', or x itself for ''. The 'fast' names pool alike."""
    kind = pool_type.removeprefix('fast') or ('avg' if pool_type else '')
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
