"""Mistakes in TResNet: slopes, stem, blocks, squeeze-excite, shortcuts."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from tests.helpers.mutants.layers import (
    average_counting_the_border,
    blur_bordered_by,
    blur_from_the_second_pixel,
    s2d_channels_first,
    s2d_columns_first,
    subsample,
)
from tests.helpers.mutants.table import Patch, like, row, with_options
from tresnet_jax import variants
from tresnet_jax.models import base as model
from tresnet_jax.models import batch_norm as abn
from tresnet_jax.models import build, layers, memory, pooling, resnetd, tresnet

# Originals that patches call.
conv_norm_act = tresnet.ConvNormAct


def blur_before_the_activation(self: tresnet.ConvNormAct, x: jax.Array) -> jax.Array:
    """conv -> blur -> norm -> activation. Blur and norm commute, blur and activation do not."""
    x = self.conv(x)
    return self.bn(x if self.aa is None else self.aa(x))


def stride_instead_of_blur(self: tresnet.ConvNormAct, x: jax.Array) -> jax.Array:
    x = self.bn(self.conv(x))
    return x if self.aa is None else subsample(x)


def block(order: str) -> Callable[[Any, jax.Array, jax.Array | None], jax.Array]:
    """Return a TResNet block with its parts in another order.

    Args:
        order: the numbers of the convolutions, [b]lur, [s]e, [d]rop path. timm's are '1b2sd' and '12bs3d'.
    """

    def call(self: Any, x: jax.Array, key: jax.Array | None) -> jax.Array:
        shortcut = x if self.downsample is None else self.downsample(x)
        strided = any(layer.aa is not None for layer in (self.conv1, self.conv2))
        for part in order:
            if part == 'b':
                x = pooling.blur_pool(x) if strided else x
            elif part == 's':
                x = x if self.se is None else self.se(x)
            elif part == 'd':
                x = self.drop_path(x, key)
            else:
                layer = getattr(self, f'conv{part}')
                x = layer.bn(layer.conv(x))
        return nnx.relu(x + shortcut)

    return call


def se_with(width: Callable[[int, int], int]) -> Patch:
    """Return a patch of squeeze-excite with the inner width `width(channels, rd_channels)`."""
    original = layers.SqueezeExcite
    return (
        tresnet,
        'SqueezeExcite',
        lambda channels, rd, **options: original(channels, width(channels, rd), **options),
    )


def stem_of_one_pixel(in_chans: int, out_chans: int, kernel_size: int, **options: Any) -> tresnet.ConvNormAct:
    """Use a 1x1 convolution after space-to-depth, as in the paper's figure."""
    return conv_norm_act(in_chans, out_chans, 1 if in_chans == 48 else kernel_size, **options)


def multiples_of_32(self: model.ImageModel, height: int, width: int) -> None:
    if height % 32 or width % 32:
        raise ValueError


def pooled_at_stride_one(self: tresnet.Shortcut, x: jax.Array) -> jax.Array:
    if len(self) == 1:
        x = pooling.avg_pool_dilated(x)
    for layer in self:
        x = layer(x)
    return x


def activated_shortcut(self: tresnet.Shortcut, x: jax.Array) -> jax.Array:
    for layer in self:
        x = layer(x)
    return nnx.relu(x)


def v2_without_rounding(self: variants.TResNetConfig) -> int:
    return int(64 * self.width_factor)


def rounded_to_eight(self: variants.TResNetConfig) -> int:
    return int(64 * self.width_factor) // 8 * 8


def with_slope(slope: float) -> tuple[Any, str, Any]:
    """Return a patch that builds TResNets with another default slope."""
    return build.CLASSES, 'tresnet', with_options(tresnet.TResNet, abn_slope=slope)


MUTANTS = (
    # TResNet: slopes and activations.
    row('the stem has the slope of the blocks', 'tresnet',
        (tresnet, 'TRESNET', dataclasses.replace(tresnet.TRESNET, stem_slope=1e-3))),
    row('the blocks have the slope of the stem', 'tresnet', with_slope(1e-2)),
    row('plain ReLUs everywhere', 'tresnet', with_slope(0.0)),
    row('second version: the slope of the original', 'tresnet_v2', with_slope(1e-6)),
    row('the stem keeps its slope when another is asked for', 'another_slope',
        (tresnet, 'Body', with_options(tresnet.Body, stem_slope=1e-2))),
    row('a block ends with a leaky ReLU', 'tresnet',
        # Patches the method, because JAX keeps the trace of the function that it calls.
        (memory.Memory, 'relu_of_sum', lambda self, x, shortcut: abn.activate(x + shortcut, 1e-3))),
    row('the leaky ReLU has slope 1 at zero', 'activation_at_zero',
        (abn, 'activate', lambda x, slope: x if slope is None else jnp.where(x >= 0, x, slope * x))),
    row('the ReLU has slope 1/2 at zero', 'activation_at_zero',
        (abn, 'slope_at', lambda x, slope: (1 + slope) / 2 + (1 - slope) / 2 * jnp.sign(x))),
    # TResNet: stem, blur.
    row('space-to-depth as PixelUnshuffle', 'space_to_depth', (layers, 'space_to_depth', s2d_channels_first)),
    row('space-to-depth with columns before rows', 'space_to_depth', (layers, 'space_to_depth', s2d_columns_first)),
    row('the stem calls PixelUnshuffle', 'tresnet', (tresnet, 'space_to_depth', s2d_channels_first)),
    row('a stem of 1x1', 'keys_and_shapes', (tresnet, 'ConvNormAct', stem_of_one_pixel)),
    row('sizes are not checked', 'sizes_taken', (tresnet.TResNet, '_check_input', lambda self, height, width: None)),
    row('sizes must be multiples of 32', 'sizes_taken',
        (tresnet.TResNet, '_check_input', multiples_of_32)),
    row("a ResNet's sizes are multiples of 32", 'sizes_taken', (resnetd.ResNetD, '_check_input', multiples_of_32)),
    row('the border of the blur is zero', 'blur_pool', blur_bordered_by('constant')),
    row("the blur's border repeats the edge", 'blur_pool', blur_bordered_by('edge')),
    row("the blur's border repeats the edge before mirroring", 'blur_pool', blur_bordered_by('symmetric')),
    row('the blur begins at the second pixel', 'blur_pool', (pooling, 'blur_pool', blur_from_the_second_pixel)),
    row('a 2x2 box instead of the blur', 'blur_pool', (pooling, 'blur_pool', pooling.avg_pool)),
    row('a strided convolution instead of the blur', 'tresnet',
        (tresnet.ConvNormAct, '__call__', stride_instead_of_blur)),
    row('the blur comes before the activation', 'tresnet',
        (tresnet.ConvNormAct, '__call__', blur_before_the_activation)),
    row('basic block: the blur comes after conv2', 'tresnet', (tresnet.BasicBlock, '__call__', block('12bsd'))),
    row('bottleneck: the blur comes after conv1', 'tresnet', (tresnet.Bottleneck, '__call__', block('1b2s3d'))),
    # TResNet: squeeze-excite.
    row('basic block: squeeze-excite before conv2', 'tresnet', (tresnet.BasicBlock, '__call__', block('1bs2d'))),
    row('bottleneck: squeeze-excite before conv2', 'tresnet', (tresnet.Bottleneck, '__call__', block('1s2b3d'))),
    row('bottleneck: squeeze-excite before the blur', 'tresnet', (tresnet.Bottleneck, '__call__', block('12sb3d'))),
    row('bottleneck: squeeze-excite after conv3', 'keys_and_shapes', se_with(lambda channels, rd: rd * 4)),
    row('squeeze-excite narrower than 64', 'keys_and_shapes', se_with(lambda channels, rd: channels // 4)),
    row('squeeze-excite by a 16th', 'keys_and_shapes', se_with(lambda channels, rd: max(channels // 16, 64))),
    row("bottleneck: squeeze-excite by the block's planes / 4", 'keys_and_shapes',
        se_with(lambda channels, rd: max(channels // 4, 64))),
    row('squeeze-excite rounded to a multiple of 8', 'keys_and_shapes', se_with(lambda channels, rd: -(-rd // 8) * 8)),
    row('squeeze-excite in the last stage too', 'keys_and_shapes',
        (tresnet, 'Bottleneck', with_options(tresnet.Bottleneck, use_se=True))),
    row('no squeeze-excite in bottlenecks', 'keys_and_shapes',
        (tresnet, 'Bottleneck', with_options(tresnet.Bottleneck, use_se=False))),
    row('squeeze-excite with a hard sigmoid', 'squeeze_excite', (layers, 'nnx', like(nnx, sigmoid=nnx.hard_sigmoid))),
    row('squeeze-excite without its ReLU', 'squeeze_excite', (layers, 'nnx', like(nnx, relu=lambda x: x))),
    row('squeeze-excite without biases', 'keys_and_shapes',
        (layers, 'conv', lambda *args, use_bias=False, **options: tresnet.conv(*args, **options))),
    row('squeeze-excite of the maximum', 'squeeze_excite', (layers.SqueezeExcite, '__call__', lambda self, x: (
        x * nnx.sigmoid(self.fc2(nnx.relu(self.fc1(x.max((1, 2), keepdims=True)))))))),
    # TResNet: widths, shortcuts.
    row('width 1.3 rounded to a multiple of 8', 'keys_and_shapes',
        (variants.TResNetConfig, 'planes', property(rounded_to_eight))),
    row('second version: width not rounded', 'tresnet_v2',
        (variants.TResNetConfig, 'planes', property(v2_without_rounding))),
    row('second version: a pool in the shortcut of layer1', 'tresnet_v2',
        (tresnet.Shortcut, '__call__', pooled_at_stride_one)),
    row('an activation after the shortcut', 'tresnet', (tresnet.Shortcut, '__call__', activated_shortcut)),
    row("a TResNet's strided 1x1 shortcut", 'tresnet', (pooling, 'avg_pool', subsample)),
    row("a TResNet's pool counts the border", 'tresnet', (pooling, 'avg_pool', average_counting_the_border)),
)  # fmt: skip
