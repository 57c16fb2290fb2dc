"""ResNet-D: He et al., "Bag of Tricks for Image Classification with Convolutional Neural Networks", arXiv:1812.01187.

The reference is ``timm/models/resnet.py`` with ``stem_type='deep'`` and ``avg_down=True``; attribute paths are timm's
keys.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from tresnet_jax.models.base import ImageModel
from tresnet_jax.models.batch_norm import BatchNormAct
from tresnet_jax.models.block import ResidualBlock
from tresnet_jax.models.initializers import torch_uniform
from tresnet_jax.models.layers import Identity, Stack, conv
from tresnet_jax.models.pointwise import conv_norm
from tresnet_jax.models.pooling import AvgPool, max_pool
from tresnet_jax.variants import BASIC, EXPANSION, RESNETD, ResNetDConfig

RELU, LINEAR = 0.0, None  # slopes of `BatchNormAct`


class BasicBlock(ResidualBlock):
    """Two 3x3 convolutions (timm's ``BasicBlock``); the first has the stride and `first_dilation`."""

    def __init__(
        self,
        in_chans: int,
        planes: int,
        *,
        stride: int,
        first_dilation: int,
        dilation: int,
        downsample: Stack | None,
        drop_path_rate: float,
        dtype: jnp.dtype,
        axis_name: str | None,
        rngs: nnx.Rngs,
    ):
        norm = {'dtype': dtype, 'axis_name': axis_name}
        self.conv1 = conv(in_chans, planes, 3, stride=stride, dilation=first_dilation, dtype=dtype, rngs=rngs)
        self.bn1 = BatchNormAct(planes, slope=RELU, **norm)
        self.conv2 = conv(planes, planes, 3, dilation=dilation, dtype=dtype, rngs=rngs)
        self.bn2 = BatchNormAct(planes, slope=LINEAR, zero_init=True, **norm)
        super().__init__(downsample, drop_path_rate)

    def branch(self, x: jax.Array) -> jax.Array:
        x = self.bn1(self.conv1(x))
        return self.bn2(self.conv2(x))


class Bottleneck(ResidualBlock):
    """1x1, 3x3 and 1x1 convolutions (timm's ``Bottleneck``); the 3x3 one has the stride and `first_dilation`."""

    def __init__(
        self,
        in_chans: int,
        planes: int,
        *,
        stride: int,
        first_dilation: int,
        dilation: int,
        downsample: Stack | None,
        drop_path_rate: float,
        dtype: jnp.dtype,
        axis_name: str | None,
        rngs: nnx.Rngs,
    ):
        del dilation  # for 3x3 convolutions after the first, which this block does not have
        norm = {'dtype': dtype, 'axis_name': axis_name}
        self.conv1 = conv(in_chans, planes, 1, dtype=dtype, rngs=rngs)
        self.bn1 = BatchNormAct(planes, slope=RELU, **norm)
        self.conv2 = conv(planes, planes, 3, stride=stride, dilation=first_dilation, dtype=dtype, rngs=rngs)
        self.bn2 = BatchNormAct(planes, slope=RELU, **norm)
        self.conv3 = conv(planes, planes * 4, 1, dtype=dtype, rngs=rngs)
        self.bn3 = BatchNormAct(planes * 4, slope=LINEAR, zero_init=True, **norm)
        super().__init__(downsample, drop_path_rate)

    def branch(self, x: jax.Array) -> jax.Array:
        x = self.bn1(self.conv1(x))
        x = self.bn2(self.conv2(x))
        return conv_norm(self.conv3, self.bn3, x)


class Shortcut(Stack):
    """The projection in a stage's first block: average pooling, a 1x1 convolution, batch norm."""

    def __call__(self, x: jax.Array) -> jax.Array:
        pool, conv, norm = self
        return conv_norm(conv, norm, pool(x))


def stage_strides(output_stride: int) -> list[tuple[int, int]]:
    """Return (stride, dilation) of each stage.

    Stages after the one that reaches the output stride dilate instead of striding.
    """
    plan, reached, dilation = [], 4, 1
    for stride in (1, 2, 2, 2):
        if reached >= output_stride:
            stride, dilation = 1, dilation * stride
        reached *= stride
        plan.append((stride, dilation))
    return plan


class ResNetD(ImageModel):
    """ResNet-D; `ImageModel` describes its inputs and outputs.

    Args:
        config: the architecture's row in the table.
        num_classes: number of classes; 0 for no classifier.
        in_chans: channels of the images.
        global_pool: the pooling before the classifier, one of timm's names.
        output_stride: 32; 16 or 8 dilate the last stages instead of striding.
        drop_rate: dropout before the classifier.
        drop_path_rate: drop path rate of the last block; the rate rises linearly from 0 in the first.
        dtype: the compute dtype.
        axis_name: the mapped axis to synchronise batch norm over. None: no synchronisation.
        rngs: random numbers for the initial weights.
    """

    def __init__(
        self,
        config: ResNetDConfig,
        *,
        num_classes: int = 1000,
        in_chans: int = 3,
        global_pool: str = RESNETD.default_pool,
        output_stride: int = 32,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        dtype: jnp.dtype = jnp.float32,
        axis_name: str | None = None,
        rngs: nnx.Rngs,
    ):
        super().__init__(
            config,
            num_classes=num_classes,
            in_chans=in_chans,
            global_pool=global_pool,
            drop_rate=drop_rate,
            dtype=dtype,
        )
        self.output_stride = output_stride
        norm = {'dtype': dtype, 'axis_name': axis_name}
        common = {**norm, 'rngs': rngs}
        stem = config.stem_width
        self.conv1 = Stack(
            [
                conv(in_chans, stem, 3, stride=2, dtype=dtype, rngs=rngs),
                BatchNormAct(stem, slope=RELU, **norm),
                Identity(),  # torch's ReLU, here part of the batch norm
                conv(stem, stem, 3, dtype=dtype, rngs=rngs),
                BatchNormAct(stem, slope=RELU, **norm),
                Identity(),  # torch's ReLU, here part of the batch norm
                conv(stem, stem * 2, 3, dtype=dtype, rngs=rngs),
            ]
        )
        self.bn1 = BatchNormAct(stem * 2, slope=RELU, **norm)

        width, index, last_index, first_dilation = stem * 2, 0, sum(config.layers) - 1, 1
        for stage, (stage_stride, dilation) in enumerate(stage_strides(output_stride)):
            kind, planes = config.blocks[stage], config.channels[stage]
            out = planes * EXPANSION[kind]
            blocks = []
            for i in range(config.layers[stage]):
                stride = stage_stride if i == 0 else 1
                downsample = None
                if i == 0 and (stride != 1 or width != out):
                    downsample = Shortcut(
                        [
                            Identity() if stride == dilation == 1 else AvgPool(stride),
                            conv(width, out, 1, dtype=dtype, rngs=rngs),
                            BatchNormAct(out, slope=LINEAR, **norm),
                        ]
                    )
                make = BasicBlock if kind == BASIC else Bottleneck
                blocks.append(
                    make(
                        width,
                        planes,
                        stride=stride,
                        first_dilation=first_dilation,
                        dilation=dilation,
                        downsample=downsample,
                        drop_path_rate=drop_path_rate * index / last_index,
                        **common,
                    )
                )
                # As in timm, the first block of a stage has the dilation of the stage before.
                width, index, first_dilation = out, index + 1, dilation
            setattr(self, f'layer{stage + 1}', nnx.List(blocks))

        self.fc: nnx.Module = Identity()
        self.start_classifier(num_classes, rngs)

    def _stem(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        def run(stem: tuple[Stack, BatchNormAct], x: jax.Array) -> tuple[jax.Array, jax.Array]:
            conv1, bn1 = stem
            x = bn1(conv1(x))
            return x, max_pool(x)

        # A tuple, because nnx.tabulate cannot show a module that is made in a call.
        return self.memory.run_block(run, (self.conv1, self.bn1), x)

    def _trunk(self) -> nnx.Module:
        return self

    def _all_feature_info(self) -> list[dict[str, Any]]:
        assert isinstance(self.config, ResNetDConfig)
        info = [{'num_chs': self.config.stem_width * 2, 'reduction': 2, 'module': 'act1'}]
        reduction = 4
        for stage, (stride, _) in enumerate(stage_strides(self.output_stride)):
            reduction *= stride
            channels = self.config.channels[stage] * EXPANSION[self.config.blocks[stage]]
            info.append({'num_chs': channels, 'reduction': reduction, 'module': f'layer{stage + 1}'})
        return info

    def _classifier(self) -> nnx.Module:
        return self.fc

    def _set_classifier(self, fc: nnx.Module) -> None:
        self.fc = fc

    def _classifier_init(self, in_features: int) -> nnx.Initializer:
        return torch_uniform(in_features)
