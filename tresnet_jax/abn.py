"""Batch norm with its activation, the pair that TResNet's in-place ABN made one layer."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from tresnet_jax.layers import at_least_float32, param_dtype


class BatchNormAct(nnx.Module):
    """Batch norm (Ioffe and Szegedy, arXiv:1502.03167) followed by nothing, a ReLU or a leaky ReLU.

    torch's numbers, which differ from Flax's ``BatchNorm``: the running variance is the unbiased one, and the
    variance of a batch is computed around its mean instead of as E[x^2] - E[x]^2, which cancels. Takes and gives
    the compute dtype and works in float32 (float64 for float64) in between.

    Args:
        num_features: channels, the last axis of the input.
        slope: of a leaky ReLU for negative values; 0 is a ReLU, None is no activation.
        zero_init: start with scale 0, so that a residual block starts as its shortcut.
        axis_name: the mapped axis over which training statistics are shared; None keeps them a device's own.
        momentum: how much of the running statistics stays at each step, Flax's sense: torch's 0.1 is 0.9 here.

    State: parameters `scale`, `bias`; statistics `mean`, `var`, all (C,) float32.

    Raises:
        ValueError: in training, when there is one value a channel, as in torch.
    """

    def __init__(
        self,
        num_features: int,
        *,
        slope: float | None,
        zero_init: bool = False,
        epsilon: float = 1e-5,
        momentum: float = 0.9,
        dtype: jnp.dtype,
        axis_name: str | None,
    ):
        zeros, ones = (np.full(num_features, value, param_dtype(dtype)) for value in (0, 1))
        self.scale = nnx.Param(jax.device_put(zeros if zero_init else ones))
        self.bias = nnx.Param(jax.device_put(zeros))
        self.mean = nnx.BatchStat(jax.device_put(zeros))
        self.var = nnx.BatchStat(jax.device_put(ones))
        self.slope = slope
        self.epsilon = epsilon
        self.momentum = momentum
        self.axis_name = axis_name
        self.use_running_average = True

    def __call__(self, x: jax.Array) -> jax.Array:
        y = at_least_float32(x)
        mean, var = (self.mean[...], self.var[...]) if self.use_running_average else self._batch_statistics(y)
        axes = tuple(range(x.ndim - 1))
        mean, scale, bias = (
            jnp.expand_dims(a, axes)
            for a in (mean, jax.lax.rsqrt(var + self.epsilon) * self.scale[...], self.bias[...])
        )
        return activate((y - mean) * scale + bias, self.slope).astype(x.dtype)

    def _batch_statistics(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Mean and biased variance of the batch (over all devices when synchronised); updates the running ones."""
        axes = tuple(range(x.ndim - 1))
        n = x.size // x.shape[-1]
        mean = x.mean(axes)
        if self.axis_name is not None:
            n *= jax.lax.axis_size(self.axis_name)
            mean = jax.lax.pmean(mean, self.axis_name)
        if n == 1:
            raise ValueError(f'expected more than 1 value per channel when training, got input of shape {x.shape}')
        var = jnp.square(x - jnp.expand_dims(mean, axes)).mean(axes)
        if self.axis_name is not None:
            var = jax.lax.pmean(var, self.axis_name)

        keep, new = self.momentum, 1.0 - self.momentum
        self.mean[...] = keep * self.mean[...] + new * mean
        self.var[...] = keep * self.var[...] + new * (n / (n - 1)) * var
        return mean, var


def activate(x: jax.Array, slope: float | None) -> jax.Array:
    """Leaky ReLU; at zero the derivative is the slope as in torch, where ``jax.nn.leaky_relu`` has 1."""
    if slope is None:
        return x
    return nnx.relu(x) if slope == 0 else jnp.where(x > 0, x, slope * x)
