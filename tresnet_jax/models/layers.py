"""Layers of both families.

Feature maps are (B, H, W, C). Every argument that parity with timm depends on is written out at the call.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from tresnet_jax.models.cpu import conv_general_dilated
from tresnet_jax.models.initializers import kaiming_normal, torch_uniform
from tresnet_jax.models.memory import STATISTICS
from tresnet_jax.models.meshes import shard_like


def param_dtype(dtype: jnp.dtype) -> jnp.dtype:
    """Return the dtype of the parameters for a compute dtype: float32, except float64, used in parity tests."""
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
    """Make a square convolution, padded equally on both sides as in torch.

    'SAME' would pad a strided convolution at the end only.
    """
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
    """Make a linear layer whose bias is initialised as torch does."""
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
    """Cast half precision to float32."""
    return x.astype(param_dtype(x.dtype))


def is_half(x: jax.Array) -> bool:
    """Return whether an array has half precision."""
    return x.dtype.itemsize == 2


def space_to_depth(x: jax.Array, block_size: int = 4) -> jax.Array:
    """Move blocks of pixels into the channels: (B, H, W, C) -> (B, H/4, W/4, 16 C).

    The output channel is (dy * 4 + dx) * C + c, the order of timm's ``space_to_depth.py``.
    """
    b, h, w, c = x.shape
    n = block_size
    # One axis at a time: JAX cannot tell how a reshape of several splits an array whose sharding is explicit.
    x = x.reshape(b, h // n, n, w, c).reshape(b, h // n, n, w // n, n, c).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(b, h // n, w // n, n, n * c).reshape(b, h // n, w // n, n * n * c)


class Identity(nnx.Module):
    """Returns its input; keeps the place of a torch module, so that indices and names stay timm's."""

    def __call__(self, x: jax.Array) -> jax.Array:
        return x


class Stack(nnx.List):
    """Layers applied in order, as ``torch.nn.Sequential``; indices are torch's."""

    def __call__(self, x: jax.Array) -> jax.Array:
        for layer in self:
            x = layer(x)
        return x


class SqueezeExcite(nnx.Module):
    """Channel attention: 1x1 convolutions with bias, ReLU, sigmoid (timm's ``SEModule``).

    Hu et al., "Squeeze-and-Excitation Networks", arXiv:1709.01507.
    """

    def __init__(self, channels: int, rd_channels: int, *, dtype, rngs: nnx.Rngs):
        self.fc1 = conv(channels, rd_channels, 1, use_bias=True, dtype=dtype, rngs=rngs)
        self.fc2 = conv(rd_channels, channels, 1, use_bias=True, dtype=dtype, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        # In float32, so that its gradient, a sum over the feature map, is too: equally precise, and faster on a GPU.
        return (at_least_float32(x) * self.gate(x.mean((1, 2), keepdims=True))).astype(x.dtype)

    def gate(self, mean: jax.Array) -> jax.Array:
        """Return the factors for the means of each channel, (B, 1, 1, C); they are at least float32."""
        mean = checkpoint_name(mean, STATISTICS)
        hidden = checkpoint_name(self.fc1(mean), STATISTICS)
        logits = checkpoint_name(self.fc2(nnx.relu(hidden)), STATISTICS)
        return nnx.sigmoid(at_least_float32(logits))


def draw_key(rngs: nnx.Rngs | None, what: str) -> jax.Array:
    """Draw a key from the 'dropout' stream: one for the batch, or one per image if the stream has keys (B,).

    Args:
        rngs: the caller's random streams.
        what: the layer that needs it, for the error message.

    Raises:
        ValueError: `rngs` is None or has no such stream.
    """
    if rngs is None or 'dropout' not in rngs:
        raise ValueError(f"{what} in training mode needs random numbers: pass rngs={{'dropout': key}}")
    stream = rngs.dropout
    if stream.key.shape == ():
        return stream()
    # As the stream does with a single key.
    keys = jax.vmap(jax.random.fold_in)(stream.key[...], shard_like(stream.count[...], stream.key[...]))
    stream.count[...] += 1
    return keys


def drop(x: jax.Array, key: jax.Array, rate: float, shape: Sequence[int]) -> jax.Array:
    """Set x to zero with probability `rate`, drawn with `shape` and broadcast; scale the rest by 1 / (1 - rate).

    Args:
        x: (B, ...).
        key: one for the batch, or (B,), one per image: an image then draws the same numbers in every batch.
        rate: probability of zero.
        shape: (B, ...), broadcast to that of x.

    Raises:
        ValueError: the number of keys is not that of the images.
    """
    if key.shape not in ((), x.shape[:1]):
        raise ValueError(f'expected one random key, or one per image: got {key.shape} keys for {x.shape[0]} images')
    keep = 1.0 - rate
    if keep == 0.0:
        return shard_like(jnp.zeros_like(x), x)
    if key.ndim:
        kept = jax.vmap(lambda key: jax.random.bernoulli(key, keep, tuple(shape[1:])))(key)
    else:
        kept = jax.random.bernoulli(key, keep, tuple(shape))
    return jnp.where(shard_like(kept, x), x / keep, jnp.zeros((), x.dtype))


class DropPath(nnx.Module):
    """Stochastic depth (Huang et al., arXiv:1603.09382): drops a residual branch for whole images."""

    def __init__(self, rate: float):
        self.rate = rate
        self.deterministic = True

    def set_view(self, deterministic: bool | None = None) -> None:
        """Set the mode in a view; ``nnx.view`` calls this."""
        if deterministic is not None:
            self.deterministic = deterministic

    @property
    def is_random(self) -> bool:
        return self.rate > 0 and not self.deterministic

    def __call__(self, x: jax.Array, key: jax.Array | None) -> jax.Array:
        if not self.is_random:
            return x
        assert key is not None, 'the model draws a key for every random block'
        return drop(x, key, self.rate, (x.shape[0], 1, 1, 1))


class Dropout(nnx.Module):
    """Dropout that draws its key from the caller's `rngs`; the module has no random state."""

    def __init__(self, rate: float):
        self.rate = rate
        self.deterministic = True

    def set_view(self, deterministic: bool | None = None) -> None:
        """Set the mode in a view; ``nnx.view`` calls this."""
        if deterministic is not None:
            self.deterministic = deterministic

    def __call__(self, x: jax.Array, rngs: nnx.Rngs | None) -> jax.Array:
        if self.deterministic or self.rate == 0:
            return x
        return drop(x, draw_key(rngs, 'dropout'), self.rate, x.shape)


def stagewise_drop_path_rates(rate: float, layers: Sequence[int]) -> list[float]:
    """Return TResNet's drop path rate of each block, from 0 up to `rate` in the last.

    The values are those of torch's float32 ``linspace``, which counts from the nearer end and rounds once.
    """
    n = sum(layers)
    end, step = float(np.float32(rate)), float(np.float32(rate) / np.float32(max(n - 1, 1)))
    return [float(np.float32(step * i if i < n // 2 else end - step * (n - 1 - i))) for i in range(n)]
