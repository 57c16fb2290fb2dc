"""A 1x1 convolution and its batch norm as one affine map, for training in half precision.

The statistics of a 1x1 convolution follow from those of its input x, which has fewer channels: with the mean m and the
covariance S of x over the batch, and the kernel W_c of channel c, they are

    mean = m . W_c,    variance = W_c . S W_c.

So batch norm is known before the convolution, and folded into its kernel and bias. The output of the convolution alone
is not needed in either pass, and is never written; the backward pass goes through m and S. At the end of a residual
block, the call of the convolution on a GPU then adds the shortcut and applies the ReLU as well: the block moves 11 maps
of the size of its output instead of 18.

In float32 this variance would be less exact, because it cancels where W_c . S W_c is small compared with |W_c|^2 |S|.
In half precision the rounding of W matters more.
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from tresnet_jax.models.batch_norm import BatchNormAct, over_devices
from tresnet_jax.models.cpu import conv_general_dilated
from tresnet_jax.models.layers import at_least_float32, is_half, param_dtype
from tresnet_jax.models.memory import STATISTICS
from tresnet_jax.models.meshes import whole

# For products of small float32 matrices. The default precision on a GPU is TF32, with 10 bits of mantissa.
exact_matmul = functools.partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)


def conv_norm(conv: Any, norm: Any, x: jax.Array) -> jax.Array:
    """Evaluate ``norm(conv(x))``; where this moves fewer bytes, as one affine map.

    Args:
        conv: a convolution.
        norm: its batch norm.
        x: (B, H, W, C), in the compute dtype.
    """
    if not _folds(conv, norm, x):
        return norm(conv(x))
    n = norm.values_per_channel(x)
    args = (x, conv.kernel[0, 0], norm.scale[...], norm.bias[...], norm.epsilon, norm.axis_name)
    y, mean, var = pointwise_batch_norm(*args)
    norm.update(mean, var, n)
    return y


def _folds(conv: Any, norm: Any, x: jax.Array) -> bool:
    # A hook wraps one layer, and needs the input and output of that layer alone.
    if type(conv) is not nnx.Conv or type(norm) is not BatchNormAct or norm.use_running_average:
        return False
    pointwise = conv.kernel_size == (1, 1) and conv.in_features < conv.out_features and norm.slope is None
    # With fewer pixels, the products of kernel and covariance take longer than moving the bytes that they save.
    return pointwise and is_half(x) and math.prod(x.shape[:-1]) >= conv.in_features**2 / 16


def pointwise_batch_norm(
    x: jax.Array, kernel: jax.Array, scale: jax.Array, bias: jax.Array, epsilon: float, axis_name: str | None
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Apply a 1x1 convolution and its batch norm to a training batch.

    Args:
        x: (B, H, W, K), in the compute dtype.
        kernel: (K, C), in the dtype of the parameters.
        scale, bias: (C,), the same dtype.
        epsilon: added to the variance.
        axis_name: the mapped axis to share statistics over; None: no sharing.

    Returns:
        (B, H, W, C), in the dtype of x; and mean and biased variance of the convolution, (C,), without a gradient.
    """
    axes = tuple(range(x.ndim - 1))
    local = at_least_float32(x).mean(axes)
    mean = over_devices(local, axis_name)
    covariance = _second_moment(x) / math.prod(x.shape[:-1]) - jnp.outer(local, local)
    if axis_name is not None:
        covariance += jnp.outer(local - mean, local - mean)
    covariance = checkpoint_name(covariance, STATISTICS)
    var = over_devices((kernel * exact_matmul(covariance, kernel)).sum(0), axis_name)
    var = jnp.maximum(var, 0)  # rounding can make it negative
    folded = kernel * (jax.lax.rsqrt(var + epsilon) * scale)[None]
    # The offset is that of the rounded kernel, so that the rounding does not shift the mean of the output.
    half, constant = jnp.finfo(x.dtype), jax.lax.stop_gradient(folded)
    folded += jax.lax.reduce_precision(constant, half.nexp, half.nmant) - constant
    y = _affine(x, folded, bias - exact_matmul(mean, folded))
    return y, jax.lax.stop_gradient(exact_matmul(mean, kernel)), jax.lax.stop_gradient(var)


@jax.custom_jvp
def _second_moment(x: jax.Array) -> jax.Array:
    """Return the sum of x x^T over all pixels, (K, K), in the dtype of the parameters."""
    return _outer(x, x)


@_second_moment.defjvp
def _(primals: tuple[jax.Array], tangents: tuple[jax.Array]) -> tuple[jax.Array, jax.Array]:
    (x,), (tangent,) = primals, tangents
    product = _outer(x, tangent)
    return _second_moment(x), product + product.T  # one product over the pixels, in the backward pass too


def _outer(x: jax.Array, y: jax.Array) -> jax.Array:
    axes = tuple(range(x.ndim - 1))
    dtype = param_dtype(x.dtype)
    return jax.lax.dot_general(x, y, ((axes, axes), ((), ())), preferred_element_type=dtype, out_sharding=whole(x, 2))


@jax.custom_jvp
def _affine(x: jax.Array, kernel: jax.Array, offset: jax.Array) -> jax.Array:
    """Return x times a kernel (K, C) plus an offset (C,), which are rounded to the dtype of x."""
    return _convolve(x, kernel) + _per_channel(offset, x).astype(x.dtype)


@_affine.defjvp
def _(primals: tuple[jax.Array, ...], tangents: tuple[jax.Array, ...]) -> tuple[jax.Array, jax.Array]:
    (x, kernel, offset), (dx, dkernel, doffset) = primals, tangents
    # In the dtype of the parameters, which their gradients then have too: many digits cancel in that of the scale.
    change = jax.lax.dot_general(x, dkernel, (((x.ndim - 1,), (0,)), ((), ())), preferred_element_type=dkernel.dtype)
    change += _per_channel(doffset, x)
    return _affine(x, kernel, offset), _convolve(dx, kernel) + change.astype(x.dtype)


def _convolve(x: jax.Array, kernel: jax.Array) -> jax.Array:
    kernel = kernel.astype(x.dtype)[None, None]
    numbers = ('NHWC', 'HWIO', 'NHWC')
    return conv_general_dilated(x, kernel, (1, 1), 'VALID', rhs_dilation=(1, 1), dimension_numbers=numbers)


def _per_channel(values: jax.Array, x: jax.Array) -> jax.Array:
    return jnp.expand_dims(values, tuple(range(x.ndim - 1)))
