"""Batch norm and its activation on a training batch, with two derivatives: JAX's own, and one from the output alone.

A map that goes through a convolution, batch norm and an activation is otherwise kept twice for the backward pass: the
batch norm's input x for its own gradient, its output y for the next convolution's. Where the activation can be
inverted the output says what the input was, and x need not be kept: in-place activated batch norm (Rota Bulò, Porzi
and Kontschieder, arXiv:1712.02616), which TResNet was built on. For each channel, with the batch's mean m and variance
v, r = 1 / sqrt(v + epsilon), and the activation f of slope s,

    n = r (x - m),    z = scale n + bias,    y = f(z),

so that from y, whose sign is z's,

    z = y or y / s,    n = (z - bias) / scale.

With g = f'(z) dL/dy and means <> over the batch,

    dL/dbias = sum g,    dL/dscale = sum g n,    dL/dx = scale r (g - <g> - n <g n>).

All of it is exact but for the division by the scale, which loses digits where |scale| is small beside |z|: dL/dscale
and the last term of dL/dx have a relative error of about the rounding of y times |z / scale|. Below 1e-5, the floor of
the paper's code, |scale| counts as 1e-5: all gradients stay finite, dL/dscale is too small by |scale| / 1e-5, and
dL/dx, which has the scale as a factor, is as good as before. Forward, nothing differs from the plain batch norm.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from tresnet_jax.models.cpu import computed_once
from tresnet_jax.models.layers import at_least_float32, param_dtype
from tresnet_jax.models.memory import CONVOLUTION, STATISTICS

SCALE_FLOOR = 1e-5


def activate(x: jax.Array, slope: float | None) -> jax.Array:
    """Leaky ReLU; at zero the derivative is the slope as in torch, where ``jax.nn.leaky_relu`` has 1."""
    if slope is None:
        return x
    return nnx.relu(x) if slope == 0 else jnp.where(x > 0, x, slope * x)


def batch_norm_act(
    x: jax.Array, scale: jax.Array, bias: jax.Array, slope: float | None, epsilon: float, axis_name: str | None
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Batch norm of a training batch and its activation.

    Args:
        x: (..., C), in the compute dtype.
        scale, bias: (C,), at least float32, the dtype that is worked in.
        slope: of a leaky ReLU for negative values; 0 is a ReLU, None is no activation.
        axis_name: the mapped axis over which the statistics are shared, or None.

    Returns:
        y like x; mean and biased variance (C,), through which no gradient flows.
    """
    y, mean, var, _ = _batch_norm_act(x, scale, bias, slope, epsilon, axis_name)
    return y, mean, var


def _batch_norm_act(
    x: jax.Array, scale: jax.Array, bias: jax.Array, slope: float | None, epsilon: float, axis_name: str | None
) -> tuple[jax.Array, jax.Array, jax.Array, tuple[jax.Array, jax.Array]]:
    """`batch_norm_act`, and the two numbers (C,) to take from z for scale * n, as they were rounded on the way."""
    axes = tuple(range(x.ndim - 1))
    shift, mean, var, centred = batch_statistics(x, axis_name)
    factor = jax.lax.rsqrt(var + epsilon) * scale
    scaled_mean = mean * factor
    offset = bias - scaled_mean
    y = activate(centred * jnp.expand_dims(factor, axes) + jnp.expand_dims(offset, axes), slope)
    mean, var = map(jax.lax.stop_gradient, (shift + mean, var))
    return y.astype(x.dtype), mean, var, (offset, scaled_mean)


def batch_statistics(x: jax.Array, axis_name: str | None) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """A number k near the mean, the mean less k, and the biased variance: (C,) each, over all devices; and x - k.

    One pass over x is enough for both, and nothing cancels: mean((x - k)^2) - mean(x - k)^2 (Chan, Golub and LeVeque,
    1983). k is the mean of the middle pixels, which bounds the error: (mean - k)^2 is at most H W times the variance.
    """
    axes = tuple(range(x.ndim - 1))
    middle = x[:, *(size // 2 for size in x.shape[1:-1])]
    shift = _over_devices(jax.lax.stop_gradient(at_least_float32(middle).mean(0)), axis_name)
    centred = centre(x, shift)
    mean, square = _over_devices((centred.mean(axes), jnp.square(centred).mean(axes)), axis_name)
    return shift, mean, square - jnp.square(mean), centred


def _centre(x: jax.Array, shift: jax.Array) -> jax.Array:
    return at_least_float32(x) - jnp.expand_dims(shift, tuple(range(x.ndim - 1)))


@jax.custom_jvp
def centre(x: jax.Array, shift: jax.Array) -> jax.Array:
    """x less a constant (C,), at least float32.

    Once: on a CPU sums over a map are not fused with what they add up, so this is written anyway; but what else can be
    computed from x would be, and x kept for the backward pass beside it.
    """
    return computed_once(_centre, x, shift)


@centre.defjvp
def _(primals: tuple[jax.Array, jax.Array], tangents: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
    return centre(*primals), at_least_float32(tangents[0])


def _over_devices(means: Any, axis_name: str | None) -> Any:
    """Means over the devices too, under a name by which they are kept."""
    return checkpoint_name(means if axis_name is None else jax.lax.pmean(means, axis_name), STATISTICS)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4, 5))
def inplace_abn(
    x: jax.Array, scale: jax.Array, bias: jax.Array, slope: float | None, epsilon: float, axis_name: str | None
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """`batch_norm_act` whose backward pass needs y instead of x; without an activation x, and no scale divides.

    Not for a slope of 0: a ReLU cannot be inverted.
    """
    return batch_norm_act(x, scale, bias, slope, epsilon, axis_name)


Kept = tuple[jax.Array, jax.Array, jax.Array, jax.Array, tuple[jax.Array, jax.Array]]


def _forward(
    x: jax.Array, scale: jax.Array, bias: jax.Array, slope: float | None, epsilon: float, axis_name: str | None
) -> tuple[tuple[jax.Array, jax.Array, jax.Array], Kept]:
    y, mean, var, offsets = _batch_norm_act(x, scale, bias, slope, epsilon, axis_name)
    return (y, mean, var), (x if slope is None else y, mean, var, scale, offsets)


def _backward(
    slope: float | None, epsilon: float, axis_name: str | None, kept: Kept, gradients: tuple[jax.Array, ...]
) -> tuple[jax.Array, jax.Array, jax.Array]:
    x_or_y, mean, var, scale, (offset, scaled_mean) = kept
    axes = tuple(range(x_or_y.ndim - 1))
    wide = functools.partial(jnp.expand_dims, axis=axes)
    inverse_std = jax.lax.rsqrt(var + epsilon)
    g = at_least_float32(gradients[0])
    if slope is None:
        normalised = (at_least_float32(x_or_y) - wide(mean)) * wide(inverse_std)
    else:
        # XLA may skip the rounding of y to bfloat16, and then computes y from x again and keeps x: the barrier.
        y = at_least_float32(jax.lax.optimization_barrier(x_or_y))
        positive = y > 0
        z = jnp.where(positive, y, y * (1 / slope))
        g = jnp.where(positive, g, g * slope)
        floor = jnp.where(scale < 0, -SCALE_FLOOR, SCALE_FLOOR).astype(scale.dtype)
        # One by one: their sum is the bias but for rounding, of which 1 / scale would make a shift of the channel.
        scaled = z - wide(offset) - wide(scaled_mean)
        normalised = scaled * wide(1 / jnp.where(jnp.abs(scale) < SCALE_FLOOR, floor, scale))

    sum_g, sum_gn = g.sum(axes), (g * normalised).sum(axes)
    count = g.size // g.shape[-1]
    mean_g, mean_gn = _over_devices((sum_g / count, sum_gn / count), axis_name)
    gradient = wide(scale * inverse_std) * (g - wide(mean_g) - normalised * wide(mean_gn))
    return gradient.astype(x_or_y.dtype), sum_gn, sum_g


inplace_abn.defvjp(_forward, _backward)


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
