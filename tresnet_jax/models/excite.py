"""Batch norm, its activation and squeeze-excite as one layer, for training in half precision.

Each of the three needs sums over the feature map, in the forward and in the backward pass. As separate layers, each
reads the map again. With c, the map minus a constant; f, the slope of the activation at each pixel; and a factor and an
offset per channel, the layers compute

    z = factor c + offset,    y = gate f z = f (p c + q),    p = gate factor,    q = gate offset,

These need only sums over the pixels of each image: of c and c^2 for the statistics, of f and f c for squeeze-excite,
and of f dL/dy and f c dL/dy for the backward pass. Each pair takes one pass. Without an activation, f = 1, the second
pair follows from the first.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from tresnet_jax.models.batch_norm import BatchNormAct, batch_shift, centre, over_devices, slope_at
from tresnet_jax.models.layers import SqueezeExcite, is_half
from tresnet_jax.models.memory import CONVOLUTION, STATISTICS


def conv_excite(layer: Any, excite: Any, x: jax.Array) -> jax.Array:
    """Evaluate ``excite(layer(x))``; where this moves fewer bytes, batch norm and `excite` are one layer.

    Args:
        layer: a convolution `conv`, its batch norm `bn`, and a blur `aa` or None.
        excite: squeeze-excite; None for a block without it.
        x: (B, H, W, C), in the compute dtype.
    """
    if excite is None:
        return layer(x)
    norm = layer.bn
    # A hook wraps one layer, and needs the input and output of that layer alone.
    joined = layer.aa is None and type(norm) is BatchNormAct and type(excite) is SqueezeExcite
    if joined and is_half(x) and not norm.use_running_average and not norm.invert:
        return norm_excite(norm, excite, layer.conv(x))
    return excite(layer(x))


def norm_excite(norm: BatchNormAct, excite: SqueezeExcite, x: jax.Array) -> jax.Array:
    """Compute ``excite(norm(x))`` for a training batch, and update the running statistics."""
    n = norm.values_per_channel(x)
    x = checkpoint_name(x, CONVOLUTION)
    shift = batch_shift(x, norm.axis_name)
    c = centre(x, shift)

    def of_images(values: jax.Array) -> jax.Array:
        return values.mean((1, 2), keepdims=True)

    first, second = of_images(c), of_images(jnp.square(c))
    mean, square = over_devices((first.mean((0, 1, 2)), second.mean((0, 1, 2))), norm.axis_name)
    var = square - jnp.square(mean)
    factor = jax.lax.rsqrt(var + norm.epsilon) * norm.scale[...]
    factor, offset = (jnp.expand_dims(a, (0, 1, 2)) for a in (factor, norm.bias[...] - mean * factor))
    if norm.slope is None:
        gate = excite.gate((factor * checkpoint_name(first, STATISTICS) + offset).astype(x.dtype))
        y = c * (gate * factor) + gate * offset
    else:
        f = jax.lax.stop_gradient(slope_at(c * factor + offset, norm.slope))
        of_f, of_fc = checkpoint_name((of_images(f), of_images(f * c)), STATISTICS)
        gate = excite.gate((factor * of_fc + offset * of_f).astype(x.dtype))
        y = f * (c * (gate * factor) + gate * offset)
    norm.update(jax.lax.stop_gradient(shift + mean), jax.lax.stop_gradient(var), n)
    return y.astype(x.dtype)
