"""The layers both families are made of. Feature maps are (B, H, W, C); every number parity rests on is written out."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from tresnet_jax.convolution import conv_general_dilated
from tresnet_jax.initializers import kaiming_normal, torch_uniform
from tresnet_jax.memory import STATISTICS

POOL_TYPES = ('', 'avg', 'max', 'avgmax', 'catavgmax', 'fast', 'fastavg', 'fastmax', 'fastavgmax', 'fastcatavgmax')


def param_dtype(dtype: jnp.dtype) -> jnp.dtype:
    """Parameters are float32 whatever the compute dtype, but for float64, which is for proofs."""
    return jnp.dtype(jnp.float64) if jnp.dtype(dtype) == jnp.float64 else jnp.dtype(jnp.float32)


def conv(
    in_chans: int,
    out_chans: int,
    kernel_size: int,
    *,
    stride: int = 1,
    dilation: int = 1,
    use_bias: bool = False,
    dtype: jnp.dtype,
    rngs: nnx.Rngs,
) -> nnx.Conv:
    """A square convolution, padded on both sides alike as torch pads ('SAME' would pad strided ones on one side)."""
    pad = dilation * (kernel_size - 1) // 2
    return nnx.Conv(
        in_chans,
        out_chans,
        (kernel_size, kernel_size),
        strides=stride,
        padding=((pad, pad), (pad, pad)),
        kernel_dilation=dilation,
        use_bias=use_bias,
        dtype=dtype,
        param_dtype=param_dtype(dtype),
        kernel_init=kaiming_normal(out_chans * kernel_size**2),
        bias_init=torch_uniform(in_chans * kernel_size**2),
        conv_general_dilated=conv_general_dilated,
        rngs=rngs,
    )


def linear(in_features: int, out_features: int, kernel_init: nnx.Initializer, dtype, rngs: nnx.Rngs) -> nnx.Linear:
    """A linear layer whose bias starts as torch's."""
    return nnx.Linear(
        in_features,
        out_features,
        use_bias=True,
        dtype=dtype,
        param_dtype=param_dtype(dtype),
        kernel_init=kernel_init,
        bias_init=torch_uniform(in_features),
        rngs=rngs,
    )


def at_least_float32(x: jax.Array) -> jax.Array:
    return x.astype(param_dtype(x.dtype))


def space_to_depth(x: jax.Array, block_size: int = 4) -> jax.Array:
    """(B, H, W, C) -> (B, H/4, W/4, 16 C): channel (dy * 4 + dx) * C + c, timm's order (``space_to_depth.py``)."""
    b, h, w, c = x.shape
    n = block_size
    x = x.reshape(b, h // n, n, w // n, n, c).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(b, h // n, w // n, n * n * c)


def blur_pool(x: jax.Array) -> jax.Array:
    """Binomial 3x3 filter, reflected borders, stride 2: (B, H, W, C) -> (B, ceil(H/2), ceil(W/2), C).

    Zhang, arXiv:1904.11486; timm's ``BlurPool2d``. Shifted slices instead of a depthwise convolution: fewer bytes
    moved on a GPU, and much faster on a CPU. The weights are powers of two, so nothing is lost.
    """

    def filtered(x: jax.Array, axis: int) -> jax.Array:
        n = x.shape[axis]
        at, odd = (jax.lax.slice_in_dim(x, start, n, 2, axis) for start in (0, 1))
        # Zeros where the border is, then what is reflected there: nothing is written to memory, as jnp.pad would.
        before, after = (_pad_one_axis(odd, axis, *width) for width in ((1, n % 2 - 1), (0, n % 2)))
        position = jax.lax.broadcasted_iota(jnp.int32, at.shape, axis)
        reflected = jnp.where(position == 0, after, before)
        if n % 2:
            after = jnp.where(position == n // 2, before, after)
        return reflected * 0.25 + at * 0.5 + after * 0.25

    return filtered(filtered(at_least_float32(x), 1), 2).astype(x.dtype)


def _pad_one_axis(x: jax.Array, axis: int, low: int, high: int) -> jax.Array:
    """Zeros in front and behind along one axis; a negative number takes away."""
    return jax.lax.pad(x, jnp.zeros((), x.dtype), [(low, high, 0) if i == axis else (0, 0, 0) for i in range(x.ndim)])


class BlurPool(nnx.Module):
    def __call__(self, x: jax.Array) -> jax.Array:
        return blur_pool(x)


class Identity(nnx.Module):
    def __call__(self, x: jax.Array) -> jax.Array:
        return x


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
    """3x3, stride 2, one pixel of -inf on every side, as torch's ``MaxPool2d(3, 2, 1)``."""
    # Flax takes pairs too, but its annotation says str.
    return nnx.max_pool(x, (3, 3), (2, 2), padding=((1, 1), (1, 1)))  # pyright: ignore[reportArgumentType]


class SqueezeExcite(nnx.Module):
    """Channel attention (Hu et al., arXiv:1709.01507): 1x1 convolutions with bias, ReLU, sigmoid (``SEModule``)."""

    def __init__(self, channels: int, rd_channels: int, *, dtype, rngs: nnx.Rngs):
        self.fc1 = conv(channels, rd_channels, 1, use_bias=True, dtype=dtype, rngs=rngs)
        self.fc2 = conv(rd_channels, channels, 1, use_bias=True, dtype=dtype, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        mean = checkpoint_name(x.mean((1, 2), keepdims=True), STATISTICS)
        hidden = checkpoint_name(self.fc1(mean), STATISTICS)
        logits = checkpoint_name(self.fc2(nnx.relu(hidden)), STATISTICS)
        # The product in float32, so that its gradient, a sum over the map, is one: as precise, and faster on a GPU.
        return (at_least_float32(x) * nnx.sigmoid(at_least_float32(logits))).astype(x.dtype)


def draw_key(rngs: nnx.Rngs | None, what: str) -> jax.Array:
    """A key of the 'dropout' stream.

    Raises:
        ValueError: there is none.
    """
    if rngs is None or 'dropout' not in rngs:
        raise ValueError(f"{what} in training mode needs random numbers: pass rngs={{'dropout': key}}")
    return rngs.dropout()


def drop(x: jax.Array, key: jax.Array, rate: float, shape: Sequence[int]) -> jax.Array:
    """Zero x where a Bernoulli draw of `shape` says so, and scale the rest by 1 / (1 - rate)."""
    keep = 1.0 - rate
    if keep == 0.0:
        return jnp.zeros_like(x)
    return jnp.where(jax.random.bernoulli(key, keep, tuple(shape)), x / keep, jnp.zeros((), x.dtype))


class DropPath(nnx.Module):
    """Stochastic depth (Huang et al., arXiv:1603.09382): drops a residual branch, a whole picture at a time."""

    def __init__(self, rate: float):
        self.rate = rate
        self.deterministic = True

    @property
    def is_random(self) -> bool:
        return self.rate > 0 and not self.deterministic

    def __call__(self, x: jax.Array, key: jax.Array | None) -> jax.Array:
        if not self.is_random:
            return x
        assert key is not None, 'the model draws a key for every random block'
        return drop(x, key, self.rate, (x.shape[0], 1, 1, 1))


class Dropout(nnx.Module):
    """Dropout whose key is drawn from the caller's `rngs`, so that the module itself holds no random state."""

    def __init__(self, rate: float):
        self.rate = rate
        self.deterministic = True

    def __call__(self, x: jax.Array, rngs: nnx.Rngs | None) -> jax.Array:
        if self.deterministic or self.rate == 0:
            return x
        return drop(x, draw_key(rngs, 'dropout'), self.rate, x.shape)


def stagewise_drop_path_rates(rate: float, layers: Sequence[int]) -> list[float]:
    """TResNet's rates, one a block: torch's float32 ``linspace``, which counts from the nearer end and rounds once."""
    n = sum(layers)
    end, step = float(np.float32(rate)), float(np.float32(rate) / np.float32(max(n - 1, 1)))
    return [float(np.float32(step * i if i < n // 2 else end - step * (n - 1 - i))) for i in range(n)]


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
