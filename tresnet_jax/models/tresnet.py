"""TResNet: Ridnik et al., "TResNet: High Performance GPU-Dedicated Architecture", arXiv:2003.13630.

The reference is ``timm/models/tresnet.py``; attribute paths are timm's keys.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from tresnet_jax.models.base import ImageModel
from tresnet_jax.models.batch_norm import BatchNormAct
from tresnet_jax.models.block import ResidualBlock
from tresnet_jax.models.excite import conv_excite
from tresnet_jax.models.initializers import normal
from tresnet_jax.models.layers import Identity, SqueezeExcite, Stack, conv, space_to_depth, stagewise_drop_path_rates
from tresnet_jax.models.ml_decoder import MLDecoder
from tresnet_jax.models.pointwise import conv_norm
from tresnet_jax.models.pooling import AvgPool, BlurPool
from tresnet_jax.variants import BASIC, EXPANSION, TRESNET, TResNetConfig


class ConvNormAct(nnx.Module):
    """Convolution, batch norm, leaky ReLU, and with a stride of 2 a blur.

    This is timm's ``ConvNormAct`` with ``aa_layer``: the convolution has stride 1, and the blur has the stride.
    """

    def __init__(
        self,
        in_chans: int,
        out_chans: int,
        kernel_size: int,
        *,
        stride: int = 1,
        slope: float | None,
        zero_init: bool = False,
        dtype: jnp.dtype,
        axis_name: str | None,
        rngs: nnx.Rngs,
    ):
        self.conv = conv(in_chans, out_chans, kernel_size, dtype=dtype, rngs=rngs)
        self.bn = BatchNormAct(out_chans, slope=slope, zero_init=zero_init, dtype=dtype, axis_name=axis_name)
        self.aa = BlurPool() if stride == 2 else None

    def __call__(self, x: jax.Array) -> jax.Array:
        x = conv_norm(self.conv, self.bn, x)
        return x if self.aa is None else self.aa(x)


class Shortcut(Stack):
    """The projection in a stage's first block: average pooling if the stride is 2, a 1x1 convolution, batch norm."""

    def __init__(self, in_chans: int, out_chans: int, stride: int, **common: Any):
        pool = [AvgPool(2)] if stride == 2 else []
        super().__init__([*pool, ConvNormAct(in_chans, out_chans, 1, slope=None, **common)])


class BasicBlock(ResidualBlock):
    """Two 3x3 convolutions, then squeeze-excite (timm's ``BasicBlock``)."""

    def __init__(
        self,
        in_chans: int,
        planes: int,
        *,
        stride: int,
        downsample: Shortcut | None,
        use_se: bool,
        slope: float | None,
        drop_path_rate: float,
        dtype: jnp.dtype,
        axis_name: str | None,
        rngs: nnx.Rngs,
    ):
        common = {'dtype': dtype, 'axis_name': axis_name, 'rngs': rngs}
        self.conv1 = ConvNormAct(in_chans, planes, 3, stride=stride, slope=slope, **common)
        self.conv2 = ConvNormAct(planes, planes, 3, slope=None, zero_init=True, **common)
        # timm's reduction: by 4, to 64 channels at least.
        self.se = SqueezeExcite(planes, max(planes // 4, 64), dtype=dtype, rngs=rngs) if use_se else None
        super().__init__(downsample, drop_path_rate)

    def branch(self, x: jax.Array) -> jax.Array:
        return self.memory.run_end(BasicBlock.branch_end, self, self.conv1(x))

    def branch_end(self, x: jax.Array) -> jax.Array:
        return conv_excite(self.conv2, self.se, x)


class Bottleneck(ResidualBlock):
    """1x1 and 3x3 convolutions, squeeze-excite, then a 1x1 convolution (timm's ``Bottleneck``)."""

    def __init__(
        self,
        in_chans: int,
        planes: int,
        *,
        stride: int,
        downsample: Shortcut | None,
        use_se: bool,
        slope: float | None,
        drop_path_rate: float,
        dtype: jnp.dtype,
        axis_name: str | None,
        rngs: nnx.Rngs,
    ):
        common = {'dtype': dtype, 'axis_name': axis_name, 'rngs': rngs}
        self.conv1 = ConvNormAct(in_chans, planes, 1, slope=slope, **common)
        self.conv2 = ConvNormAct(planes, planes, 3, stride=stride, slope=slope, **common)
        # timm reduces the channels of the block's output, 4 * planes, by 8, although the map here has only `planes`.
        self.se = SqueezeExcite(planes, max(planes * 4 // 8, 64), dtype=dtype, rngs=rngs) if use_se else None
        self.conv3 = ConvNormAct(planes, planes * 4, 1, slope=None, zero_init=True, **common)
        super().__init__(downsample, drop_path_rate)

    def branch(self, x: jax.Array) -> jax.Array:
        x = self.conv1(x)
        if self.memory.end is None:
            return self.conv3(conv_excite(self.conv2, self.se, x))
        return self.memory.run_end(Bottleneck.branch_end, self, self.conv2(x))

    def branch_end(self, x: jax.Array) -> jax.Array:
        return self.conv3(x if self.se is None else self.se(x))


class Body(nnx.Module):
    """The stem, after space-to-depth, and four stages; the last stage has no squeeze-excite."""

    def __init__(
        self,
        config: TResNetConfig,
        *,
        in_chans: int,
        slope: float | None,
        stem_slope: float | None,
        drop_path_rate: float,
        dtype: jnp.dtype,
        axis_name: str | None,
        rngs: nnx.Rngs,
    ):
        common = {'dtype': dtype, 'axis_name': axis_name, 'rngs': rngs}
        self.conv1 = ConvNormAct(in_chans * TRESNET.stem_block**2, config.planes, 3, slope=stem_slope, **common)
        rates = iter(stagewise_drop_path_rates(drop_path_rate, config.layers))
        width = config.planes
        for stage, (depth, kind) in enumerate(zip(config.layers, config.blocks, strict=True)):
            planes = config.channels[stage]
            blocks = []
            for i in range(depth):
                stride = 2 if i == 0 and stage > 0 else 1
                out = planes * EXPANSION[kind]
                downsample = Shortcut(width, out, stride, **common) if stride == 2 or width != out else None
                make = BasicBlock if kind == BASIC else Bottleneck
                blocks.append(
                    make(
                        width,
                        planes,
                        stride=stride,
                        downsample=downsample,
                        use_se=stage < 3,
                        slope=slope,
                        drop_path_rate=next(rates),
                        **common,
                    )
                )
                width = out
            setattr(self, f'layer{stage + 1}', nnx.List(blocks))


class TResNet(ImageModel):
    """TResNet; `ImageModel` describes its inputs and outputs.

    Args:
        config: the architecture's row in the table.
        num_classes: number of classes; 0 for no classifier.
        in_chans: channels of the images.
        global_pool: the pooling before the classifier, one of timm's names.
        drop_rate: dropout before the classifier.
        drop_path_rate: drop path rate of the last block; the rate rises linearly from 0 in the first.
        abn_slope: slope of the leaky ReLUs in the blocks. With 1e-3, the slope of timm and of the first version, the
            stem's slope is 1e-2; any other slope (the original second version has 1e-6) is the stem's too.
        dtype: the compute dtype.
        axis_name: the mapped axis to synchronise batch norm over. None: no synchronisation.
        rngs: random numbers for the initial weights.
    """

    def __init__(
        self,
        config: TResNetConfig,
        *,
        num_classes: int = 1000,
        in_chans: int = 3,
        global_pool: str = TRESNET.default_pool,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        abn_slope: float | None = TRESNET.default_slope,
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
        self.abn_slope = abn_slope
        self.body = Body(
            config,
            in_chans=in_chans,
            slope=abn_slope,
            stem_slope=TRESNET.stem_slope if abn_slope == TRESNET.default_slope else abn_slope,
            drop_path_rate=drop_path_rate,
            dtype=dtype,
            axis_name=axis_name,
            rngs=rngs,
        )
        self.head = nnx.Dict(fc=Identity())
        self.start_classifier(num_classes, rngs)

    def _check_input(self, height: int, width: int) -> None:
        family = self.config.family
        if height % family.input_multiple or width % family.input_multiple or min(height, width) < family.min_input:
            raise ValueError(
                f'TResNet takes images whose height and width are multiples of {family.input_multiple} and at least '
                f'{family.min_input} pixels, got {height}x{width}'
            )

    def _stem(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        x = self.memory.run_block(lambda conv1, x: conv1(space_to_depth(x)), self.body.conv1, x)
        return x, x

    def _trunk(self) -> nnx.Module:
        return self.body

    def _all_feature_info(self) -> list[dict[str, Any]]:
        assert isinstance(self.config, TResNetConfig)
        # The stem's reduction is 4, because space-to-depth comes first; timm reports 2.
        info = [{'num_chs': self.config.planes, 'reduction': 4, 'module': 'body.conv1'}]
        for stage, kind in enumerate(self.config.blocks):
            channels = self.config.channels[stage] * EXPANSION[kind]
            info.append({'num_chs': channels, 'reduction': 4 * 2**stage, 'module': f'body.layer{stage + 1}'})
        return info

    def _classifier(self) -> nnx.Module:
        return self.head if isinstance(self.head, MLDecoder) else self.head.fc

    def _set_classifier(self, fc: nnx.Module) -> None:
        # timm's ML-Decoder replaces the whole head.
        self.head = fc if isinstance(fc, MLDecoder) else nnx.Dict(fc=fc)

    def _classifier_init(self, in_features: int) -> nnx.Initializer:
        del in_features
        return normal(0.01)  # timm's
