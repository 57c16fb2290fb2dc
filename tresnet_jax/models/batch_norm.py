"""Batch norm with its activation, and in-place activated batch norm, which trains in less memory.

`BatchNormAct` is the layer. It trains with one of two functions that return the same values: `batch_norm_act`, which
JAX differentiates, and `inplace_abn`, whose backward pass needs the output instead of the input.

In a network, the next convolution keeps the output y of a batch norm for its backward pass, and the batch norm keeps
its input x for its own. Where the activation is invertible, y determines x, so x need not be kept. This is in-place
activated batch norm (Rota Bulò, Porzi and Kontschieder, arXiv:1712.02616), which TResNet was built on. For each
channel, with the batch's mean m and variance v, r = 1 / sqrt(v + epsilon), and a leaky ReLU f of slope s,

    n = r (x - m),    z = scale n + bias,    y = f(z).

z has the sign of y, so

    z = y or y / s,    n = (z - bias) / scale.

With g = f'(z) dL/dy and means <> over the batch,

    dL/dbias = sum g,    dL/dscale = sum g n,    dL/dx = scale r (g - <g> - n <g n>).

Only the division by the scale loses digits, where |scale| is small compared with |z|: dL/dscale and the last term of
dL/dx have a relative error of about the rounding error of y times |z / scale|. A |scale| below 1e-5, the floor in the
paper's code, is replaced by 1e-5: all gradients stay finite, dL/dscale is too small by a factor of |scale| / 1e-5, and
dL/dx, which has the scale as a factor, keeps its accuracy. The forward pass is that of `batch_norm_act`.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from tresnet_jax.models.cpu import computed_once
from tresnet_jax.models.layers import at_least_float32, param_dtype
from tresnet_jax.models.memory import CONVOLUTION, STATISTICS
from tresnet_jax.models.meshes import vary_alike

SCALE_FLOOR = 1e-5


class BatchStatistics(NamedTuple):
    """Statistics of a training batch over all devices, (C,) each, and the batch they were computed from.

    Attributes:
        shift: a number near the mean.
        mean: the mean minus `shift`.
        var: the biased variance.
        centred: x - `shift`, with the shape of x.
    """

    shift: jax.Array
    mean: jax.Array
    var: jax.Array
    centred: jax.Array


class NormalizedBatch(NamedTuple):
    """A batch after batch norm and activation, with what `inplace_abn` needs to invert them.

    Attributes:
        y: the output, with the shape and dtype of the input.
        mean, var: mean and biased variance of the batch, (C,), without a gradient.
        offset, scaled_mean: (C,): z - `offset` - `scaled_mean` is scale * n, with the rounding of the forward pass.
    """

    y: jax.Array
    mean: jax.Array
    var: jax.Array
    offset: jax.Array
    scaled_mean: jax.Array


class Residuals(NamedTuple):
    """What `inplace_abn` keeps for its backward pass: the output y, or the input x where there is no activation."""

    x_or_y: jax.Array
    mean: jax.Array
    var: jax.Array
    scale: jax.Array
    offset: jax.Array
    scaled_mean: jax.Array


def activate(x: jax.Array, slope: float | None) -> jax.Array:
    """Apply a leaky ReLU; a slope of 0 is a ReLU, None no activation.

    The derivative at zero is the slope, as in torch; that of ``jax.nn.leaky_relu`` is 1.
    """
    return x if slope is None else _leaky_relu(x, slope)


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def _leaky_relu(x: jax.Array, slope: float) -> jax.Array:
    return nnx.relu(x) if slope == 0 else jnp.where(x > 0, x, slope * x)


@_leaky_relu.defjvp
def _(slope: float, primals: tuple[jax.Array], tangents: tuple[jax.Array]) -> tuple[jax.Array, jax.Array]:
    return _leaky_relu(*primals, slope), tangents[0] * slope_at(*primals, slope)


def slope_at(x: jax.Array, slope: float) -> jax.Array:
    """Return the derivative of `activate`, 1 or the slope.

    It is a product with the sign, because XLA for GPUs writes the result of a comparison to memory in the forward pass.
    """
    if not 0 <= slope <= 1:
        return jnp.where(x > 0, jnp.ones_like(x), jnp.full_like(x, slope))
    return jnp.maximum(jnp.sign(x), slope)


def over_devices(means: Any, axis_name: str | None) -> Any:
    """Average means over the devices of an axis, and name the result for ``jax.checkpoint``."""
    return checkpoint_name(means if axis_name is None else jax.lax.pmean(means, axis_name), STATISTICS)


def _centre(x: jax.Array, shift: jax.Array) -> jax.Array:
    return at_least_float32(x) - jnp.expand_dims(shift, tuple(range(x.ndim - 1)))


@jax.custom_jvp
def centre(x: jax.Array, shift: jax.Array) -> jax.Array:
    """Return x minus a constant (C,), at least in float32.

    XLA for a CPU does not fuse a sum over a feature map with its operand, so the result is written to memory anyway.
    `computed_once` makes later operations read it; otherwise XLA would compute them from x and keep x for the backward
    pass as well.
    """
    return computed_once(_centre, x, shift)


@centre.defjvp
def _(primals: tuple[jax.Array, jax.Array], tangents: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
    return centre(*primals), at_least_float32(tangents[0])


def batch_shift(x: jax.Array, axis_name: str | None) -> jax.Array:
    """Return the mean of the images' middle pixels, (C,), without a gradient."""
    middle = x[:, *(size // 2 for size in x.shape[1:-1])]
    return over_devices(jax.lax.stop_gradient(at_least_float32(middle).mean(0)), axis_name)


def batch_statistics(x: jax.Array, axis_name: str | None) -> BatchStatistics:
    """Compute mean and variance of a training batch (..., C) in one pass, without cancellation.

    The variance is mean((x - k)^2) - mean(x - k)^2 (Chan, Golub and LeVeque, 1983). The shift k is the mean of the
    images' middle pixels, which bounds the error: (mean - k)^2 is at most H W times the variance.
    """
    axes = tuple(range(x.ndim - 1))
    shift = batch_shift(x, axis_name)
    centred = centre(x, shift)
    mean, square = over_devices((centred.mean(axes), jnp.square(centred).mean(axes)), axis_name)
    return BatchStatistics(shift, mean, square - jnp.square(mean), centred)


def _batch_norm_act(
    x: jax.Array, scale: jax.Array, bias: jax.Array, slope: float | None, epsilon: float, axis_name: str | None
) -> NormalizedBatch:
    axes = tuple(range(x.ndim - 1))
    shift, mean, var, centred = batch_statistics(x, axis_name)
    factor = jax.lax.rsqrt(var + epsilon) * scale
    scaled_mean = mean * factor
    offset = bias - scaled_mean
    y = activate(centred * jnp.expand_dims(factor, axes) + jnp.expand_dims(offset, axes), slope)
    mean, var = map(jax.lax.stop_gradient, (shift + mean, var))
    return NormalizedBatch(y.astype(x.dtype), mean, var, offset, scaled_mean)


def batch_norm_act(
    x: jax.Array, scale: jax.Array, bias: jax.Array, slope: float | None, epsilon: float, axis_name: str | None
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Apply batch norm and its activation to a training batch.

    Args:
        x: (..., C), in the compute dtype.
        scale, bias: (C,), at least float32; their dtype is the one of the computation.
        slope: slope of a leaky ReLU for negative values; 0 is a ReLU, None no activation.
        epsilon: added to the variance.
        axis_name: the mapped axis to share statistics over; None: no sharing.

    Returns:
        y, with the shape and dtype of x; and the batch's mean and biased variance (C,), without a gradient.
    """
    y, mean, var, _, _ = _batch_norm_act(x, scale, bias, slope, epsilon, axis_name)
    return y, mean, var


def inplace_abn(
    x: jax.Array, scale: jax.Array, bias: jax.Array, slope: float | None, epsilon: float, axis_name: str | None
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Compute `batch_norm_act` with a backward pass that needs y instead of x.

    Without an activation (slope None) it needs x, and does not divide by the scale. The slope must not be 0, because a
    ReLU has no inverse. There is no forward-mode derivative.
    """
    # Pyright cannot see what a custom_vjp function returns.
    return _inplace_abn(*vary_alike(x, scale, bias), slope, epsilon, axis_name)  # pyright: ignore


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4, 5))
def _inplace_abn(
    x: jax.Array, scale: jax.Array, bias: jax.Array, slope: float | None, epsilon: float, axis_name: str | None
) -> tuple[jax.Array, jax.Array, jax.Array]:
    return batch_norm_act(x, scale, bias, slope, epsilon, axis_name)


def _inplace_abn_fwd(
    x: jax.Array, scale: jax.Array, bias: jax.Array, slope: float | None, epsilon: float, axis_name: str | None
) -> tuple[tuple[jax.Array, jax.Array, jax.Array], Residuals]:
    y, mean, var, offset, scaled_mean = _batch_norm_act(x, scale, bias, slope, epsilon, axis_name)
    return (y, mean, var), Residuals(x if slope is None else y, mean, var, scale, offset, scaled_mean)


def _inplace_abn_bwd(
    slope: float | None, epsilon: float, axis_name: str | None, residuals: Residuals, gradients: tuple[jax.Array, ...]
) -> tuple[jax.Array, jax.Array, jax.Array]:
    x_or_y, mean, var, scale, offset, scaled_mean = residuals
    axes = tuple(range(x_or_y.ndim - 1))
    expand = functools.partial(jnp.expand_dims, axis=axes)
    inverse_std = jax.lax.rsqrt(var + epsilon)
    g = at_least_float32(gradients[0])
    if slope is None:
        normalised = (at_least_float32(x_or_y) - expand(mean)) * expand(inverse_std)
    else:
        # Without the barrier XLA may skip the rounding of y to bfloat16, compute y from x again, and keep x.
        y = at_least_float32(jax.lax.optimization_barrier(x_or_y))
        positive = y > 0
        z = jnp.where(positive, y, y * (1 / slope))
        g = jnp.where(positive, g, g * slope)
        floor = jnp.where(scale < 0, -SCALE_FLOOR, SCALE_FLOOR).astype(scale.dtype)
        # Subtracting the bias, which is the sum of the two up to rounding, would shift the whole channel by that
        # rounding error times 1 / scale.
        scaled = z - expand(offset) - expand(scaled_mean)
        normalised = scaled * expand(1 / jnp.where(jnp.abs(scale) < SCALE_FLOOR, floor, scale))

    sum_g, sum_gn = g.sum(axes), (g * normalised).sum(axes)
    count = g.size // g.shape[-1]
    mean_g, mean_gn = over_devices((sum_g / count, sum_gn / count), axis_name)
    gradient = expand(scale * inverse_std) * (g - expand(mean_g) - normalised * expand(mean_gn))
    return gradient.astype(x_or_y.dtype), sum_gn, sum_g


_inplace_abn.defvjp(_inplace_abn_fwd, _inplace_abn_bwd)


class BatchNormAct(nnx.Module):
    """Batch norm (Ioffe and Szegedy, arXiv:1502.03167) followed by a leaky ReLU, a ReLU or nothing.

    The numbers are torch's, which differ from those of Flax's ``BatchNorm``: the running variance is the unbiased one,
    and the variance of a batch does not cancel as E[x^2] - E[x]^2 does. Input and output have the compute dtype;
    the computation is in float32 (float64 for float64).

    Args:
        num_features: channels, the last axis of the input.
        slope: slope of a leaky ReLU for negative values; 0 is a ReLU, None no activation.
        zero_init: start with scale 0, so that a residual block starts as its shortcut.
        epsilon: added to the variance.
        momentum: share of the running statistics that stays at each step, as in Flax: torch's 0.1 is 0.9 here.
        dtype: the compute dtype.
        axis_name: the mapped axis to share training statistics over; None: each device has its own.

    Attributes:
        scale, bias: parameters, (C,), float32 (float64 for float64).
        mean, var: running statistics, (C,), the same dtype.
        invert: train with `inplace_abn`; ``ImageModel.set_memory`` sets it.

    Raises:
        ValueError: in training mode, an input with one value per channel, as in torch.
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
        # One call, because a network has hundreds of these arrays.
        scale, bias, mean, var = jax.device_put((zeros if zero_init else ones, zeros, zeros, ones))
        self.scale, self.bias = nnx.Param(scale), nnx.Param(bias)
        self.mean, self.var = nnx.BatchStat(mean), nnx.BatchStat(var)
        self.slope = slope
        self.epsilon = epsilon
        self.momentum = momentum
        self.axis_name = axis_name
        self.invert = False
        self.use_running_average = True

    def set_view(self, use_running_average: bool | None = None) -> None:
        """Set the mode in a view; ``nnx.view`` calls this."""
        if use_running_average is not None:
            self.use_running_average = use_running_average

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
        n = self.values_per_channel(x)
        x = checkpoint_name(x, CONVOLUTION)
        args = (x, self.scale[...], self.bias[...], self.slope, self.epsilon, self.axis_name)
        y, mean, var = inplace_abn(*args) if self.invert else batch_norm_act(*args)
        self.update(mean, var, n)
        return y

    def values_per_channel(self, x: jax.Array) -> int:
        """Return the number of values per channel of a training batch, over all devices that share statistics.

        Raises:
            ValueError: there is only one.
        """
        n = x.size // x.shape[-1] * (1 if self.axis_name is None else jax.lax.axis_size(self.axis_name))
        if n == 1:
            raise ValueError(f'expected more than 1 value per channel when training, got input of shape {x.shape}')
        return n

    def update(self, mean: jax.Array, var: jax.Array, n: int) -> None:
        """Move the running statistics towards those of a batch with n values per channel."""
        keep, new = self.momentum, 1.0 - self.momentum
        self.mean[...] = keep * self.mean[...] + new * mean
        self.var[...] = keep * self.var[...] + new * (n / (n - 1)) * var
