"""Batch norm with its activation, the pair that TResNet's in-place ABN made one layer."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from tresnet_jax.inplace_abn import activate, batch_norm_act, inplace_abn
from tresnet_jax.layers import at_least_float32, param_dtype
from tresnet_jax.memory import CONVOLUTION


class BatchNormAct(nnx.Module):
    """Batch norm (Ioffe and Szegedy, arXiv:1502.03167) followed by nothing, a ReLU or a leaky ReLU.

    torch's numbers, which differ from Flax's ``BatchNorm``: the running variance is the unbiased one, and the
    variance of a batch does not cancel as E[x^2] - E[x]^2 does. Takes and gives the compute dtype and works in
    float32 (float64 for float64) in between.

    Args:
        num_features: channels, the last axis of the input.
        slope: of a leaky ReLU for negative values; 0 is a ReLU, None is no activation.
        zero_init: start with scale 0, so that a residual block starts as its shortcut.
        axis_name: the mapped axis over which training statistics are shared; None keeps them a device's own.
        momentum: how much of the running statistics stays at each step, Flax's sense: torch's 0.1 is 0.9 here.

    State: parameters `scale`, `bias`; statistics `mean`, `var`, all (C,) float32. ``invert`` (False at first) is set by
    ``ImageModel.set_memory``: keep the output for the backward pass instead of the input (`inplace_abn`).

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
        self.invert = False
        self.use_running_average = True

    def __call__(self, x: jax.Array) -> jax.Array:
        return self._evaluate(x) if self.use_running_average else self._train(x)

    def _evaluate(self, x: jax.Array) -> jax.Array:
        axes = tuple(range(x.ndim - 1))
        mean, scale, bias = (
            jnp.expand_dims(a, axes)
            for a in (self.mean[...], jax.lax.rsqrt(self.var[...] + self.epsilon) * self.scale[...], self.bias[...])
        )
        return activate((at_least_float32(x) - mean) * scale + bias, self.slope).astype(x.dtype)

    def _train(self, x: jax.Array) -> jax.Array:
        n = x.size // x.shape[-1] * (1 if self.axis_name is None else jax.lax.axis_size(self.axis_name))
        if n == 1:
            raise ValueError(f'expected more than 1 value per channel when training, got input of shape {x.shape}')
        x = checkpoint_name(x, CONVOLUTION)
        args = (x, self.scale[...], self.bias[...], self.slope, self.epsilon, self.axis_name)
        # custom_vjp hides what the function returns.
        y, mean, var = inplace_abn(*args) if self.invert else batch_norm_act(*args)  # pyright: ignore
        self._update(mean, var, n)
        return y

    def _update(self, mean: jax.Array, var: jax.Array, n: int) -> None:
        """Moves the running statistics towards those of a batch of n values a channel."""
        keep, new = self.momentum, 1.0 - self.momentum
        self.mean[...] = keep * self.mean[...] + new * mean
        self.var[...] = keep * self.var[...] + new * (n / (n - 1)) * var
