"""Mistakes in ResNet-D: strides, stem, shortcuts, dilation."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
from flax import nnx

from tests.helpers.mutants.layers import average_counting_the_border, max_pool_same, subsample
from tests.helpers.mutants.table import row
from tresnet_jax import variants
from tresnet_jax.models import layers, pooling, resnetd

# Originals that patches call.
all_feature_info = resnetd.ResNetD._all_feature_info


def conv_padded_same(*args: Any, **options: Any) -> nnx.Conv:
    layer = layers.conv(*args, **options)
    if options.get('stride', 1) == 2:
        layer.padding = 'SAME'
    return layer


class StrideInTheFirst(resnetd.Bottleneck):
    """The original ResNet's bottleneck, whose first 1x1 convolution has the stride."""

    def __init__(self, *args: Any, **options: Any):
        super().__init__(*args, **options)
        self.conv1.strides, self.conv2.strides = self.conv2.strides, self.conv1.strides


class StemStrideLast(resnetd.Stack):
    """A stem whose third convolution has the stride."""

    def __init__(self, parts: list[Any]):
        if len(parts) == 7:
            parts[0].strides, parts[6].strides = parts[6].strides, parts[0].strides
        super().__init__(parts)


class PoolAtStrideOne(resnetd.Shortcut):
    """A shortcut with a pool where timm has an Identity."""

    def __init__(self, parts: list[Any]):
        super().__init__([pooling.AvgPool(1) if isinstance(parts[0], layers.Identity) else parts[0], *parts[1:]])


def dilated_from_the_first(make: type) -> Callable[..., Any]:
    """Return a block whose first convolution already has the dilation of its stage."""
    return lambda *args, **options: make(*args, **{**options, 'first_dilation': options['dilation']})


def drop_path_of_the_sum(self: Any, x: jax.Array, key: jax.Array | None) -> jax.Array:
    out = self.bn2(self.conv2(self.bn1(self.conv1(x))))
    out = self.bn3(self.conv3(out)) if hasattr(self, 'conv3') else out
    return nnx.relu(self.drop_path(out + (x if self.downsample is None else self.downsample(x)), key))


def reductions_without_dilation(self: resnetd.ResNetD) -> list[dict[str, Any]]:
    original = all_feature_info(self)
    return [{**info, 'reduction': 2 ** (i + 1)} for i, info in enumerate(original)]


RESNET_BLOCKS = (resnetd.BasicBlock, resnetd.Bottleneck)


MUTANTS = (
    # ResNet-D.
    row('strided convolutions are padded as SAME', 'resnet', (resnetd, 'conv', conv_padded_same)),
    row("the stem's stride is in its third convolution", 'resnet', (resnetd, 'Stack', StemStrideLast)),
    row('the stem is 64 wide from its first convolution', 'keys_and_shapes', (
        variants.ARCHITECTURES, 'resnet18d', dataclasses.replace(variants.ARCHITECTURES['resnet18d'], stem_width=64))),
    row("a network's max pool is padded as SAME", 'resnet', (resnetd, 'max_pool', max_pool_same)),
    row('the first feature map is taken after the max pool', 'resnet',
        (resnetd.ResNetD, '_stem', lambda self, x: (pooling.max_pool(self.bn1(self.conv1(x))),) * 2)),
    row("a bottleneck's stride is in its first convolution", 'resnet', (resnetd, 'Bottleneck', StrideInTheFirst)),
    row('a strided 1x1 shortcut', 'resnet', (pooling, 'avg_pool', subsample)),
    row("a shortcut's pool counts the border", 'resnet', (pooling, 'avg_pool', average_counting_the_border)),
    row('a pool in a shortcut of stride 1', 'bottlenecks', (resnetd, 'Shortcut', PoolAtStrideOne)),
    row("a dilated stage's first block is dilated at once", 'output_stride',
        *((resnetd, made.__name__, dilated_from_the_first(made)) for made in RESNET_BLOCKS)),
    row("a dilated network's reductions are those of its strides", 'reductions',
        (resnetd.ResNetD, '_all_feature_info', reductions_without_dilation)),
)  # fmt: skip
