"""The base class of TResNet and ResNet-D: forward passes, head, parts and modes of a model."""

import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from tresnet_jax.models.batch_norm import BatchNormAct
from tresnet_jax.models.block import ResidualBlock
from tresnet_jax.models.features import FeatureInfo, take_indices
from tresnet_jax.models.initializers import torch_uniform
from tresnet_jax.models.layers import Dropout, Identity, draw_key, linear
from tresnet_jax.models.memory import PLAIN, memory_mode
from tresnet_jax.models.ml_decoder import MLDecoder
from tresnet_jax.models.pooling import check_pool_type, global_pool, pool_multiplier
from tresnet_jax.variants import ArchitectureConfig, PretrainedConfig

Tree = dict[Any, Any]  # a nested dict of arrays

# Parts of a model: for freezing, learning rates by layer, and profiles.
PARTS: tuple[str, ...] = ('stem', 'layer1', 'layer2', 'layer3', 'layer4', 'head')


def part_attributes(part: str) -> tuple[str, ...]:
    """Return the attributes of the trunk that make up a part other than the head."""
    return ('conv1', 'bn1') if part == 'stem' else (part,)


def part_of(path: Sequence[Any]) -> str:
    """Return the part of a parameter or a layer, by its path in a model, such as ('body', 'layer1', 0, 'conv1')."""
    first = path[1] if path[0] == 'body' else path[0]  # TResNet's trunk
    return next((part for part in PARTS[:-1] if first in part_attributes(part)), 'head')


class ImageModel(nnx.Module):
    """A convolutional network with a stem, four stages and a classifier.

    Images are (B, H, W, in_chans), normalised; feature maps are (B, h, w, channels); logits are (B, num_classes).
    Images are cast to the compute dtype, and outputs have it.

    A new model is in evaluation mode; `train()` and `eval()` switch and return the model. In training mode a call
    updates the running statistics of batch norm, and needs `rngs` (``nnx.Rngs(dropout=key)``) if drop_rate or
    drop_path_rate is positive.

    Attributes:
        config: the architecture's row in the table of variants.
        num_classes: number of classes; 0 without a classifier.
        in_chans: channels of the images.
        num_features: channels of the last feature map.
        abn_slope: slope of the leaky ReLUs in the blocks; None for ReLUs.
        output_stride: pixels of the image per pixel of the last feature map, along one edge.
        global_pool: name of the pooling before the classifier.
        dtype: the compute dtype.
        memory: the memory mode, which `set_memory` sets.
        abn_memory: the name of the memory mode.
        architecture: name of the architecture; '' for a model that is not in the table.
        pretrained_cfg: the row of its tag, or of the architecture's default tag.
        out_indices: indices of the feature maps that a backbone returns; None for a classifier.
        folded: whether batch norm is folded into the convolutions (`fold_batchnorm`); such a model cannot be trained.
    """

    def __init__(
        self,
        config: ArchitectureConfig,
        *,
        num_classes: int,
        in_chans: int,
        global_pool: str,
        drop_rate: float,
        dtype: jnp.dtype,
    ):
        self.config = config
        self.num_features = config.num_features
        self.num_classes = num_classes
        self.in_chans = in_chans
        self.abn_slope: float | None = None
        self.output_stride = 32
        self.global_pool = check_pool_type(global_pool)
        self.head_drop = Dropout(drop_rate)
        self.dtype = jnp.dtype(dtype)
        self.memory = PLAIN
        self.abn_memory = 'plain'
        self.architecture: str = ''
        self.pretrained_cfg: PretrainedConfig | None = None
        self.out_indices: tuple[int, ...] | None = None
        self.folded = False

    # Defined by each family.

    def _check_input(self, height: int, width: int) -> None:
        """Raise ValueError for an image size that the family does not support."""

    def _stem(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Return the first feature map and the input of the first stage."""
        raise NotImplementedError

    def _trunk(self) -> nnx.Module:
        """Return the module whose attributes layer1 to layer4 are the stages."""
        raise NotImplementedError

    def _all_feature_info(self) -> list[dict[str, Any]]:
        """Return the dicts of `FeatureInfo` for the stem and all four stages."""
        raise NotImplementedError

    def _classifier(self) -> nnx.Module:
        raise NotImplementedError

    def _set_classifier(self, fc: nnx.Module) -> None:
        raise NotImplementedError

    def _classifier_init(self, in_features: int) -> nnx.Initializer:
        """Return the initialiser of a new model's classifier."""
        raise NotImplementedError

    # Forward passes.

    def __call__(self, x: jax.Array, *, rngs: nnx.Rngs | None = None) -> Any:
        """Return logits; (B, features) without classes; the list of feature maps for a backbone."""
        if self.out_indices is not None:
            return self.forward_intermediates(x, self.out_indices, intermediates_only=True, rngs=rngs)
        return self.forward_head(self.forward_features(x, rngs=rngs), rngs=rngs)

    def forward_features(self, x: jax.Array, *, rngs: nnx.Rngs | None = None) -> jax.Array:
        """Return the last feature map."""
        *_, last = self._feature_maps(x, rngs)
        return last

    def forward_intermediates(
        self,
        x: jax.Array,
        indices: int | Sequence[int] | None = None,
        *,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = 'NHWC',
        intermediates_only: bool = False,
        rngs: nnx.Rngs | None = None,
    ) -> Any:
        """Return the last feature map and the list of chosen maps, in network order, as timm does.

        Args:
            x: images, (B, H, W, in_chans).
            indices: which maps of `feature_info`: n for the last n, a sequence of indices (negative ones count from
                the end), or None for all.
            norm: accepted as in timm, without effect: these networks have no norm after a stage.
            stop_early: compute nothing after the last chosen map, which is then returned as the last one.
            output_fmt: order of the axes of the maps in the list, 'NHWC' or 'NCHW'.
            intermediates_only: return only the list.
            rngs: random streams; needed in training mode with random layers.

        Raises:
            ValueError: an index is out of range, or the format is unknown.
        """
        del norm
        if output_fmt not in ('NHWC', 'NCHW'):
            raise ValueError(f"output_fmt must be 'NHWC' or 'NCHW', got {output_fmt!r}")
        chosen = take_indices(len(self._stages()) + 1, indices)
        maps: list[jax.Array] = []
        last = x
        for index, last in enumerate(self._feature_maps(x, rngs)):
            if index in chosen:
                maps.append(last if output_fmt == 'NHWC' else last.transpose(0, 3, 1, 2))
            if index == max(chosen) and (stop_early or intermediates_only):
                break
        return maps if intermediates_only else (last, maps)

    def forward_head(self, x: jax.Array, pre_logits: bool = False, *, rngs: nnx.Rngs | None = None) -> jax.Array:
        """Return the logits of a feature map; with `pre_logits`, the input of the classifier.

        The input is the pooled vector after dropout or, for an ML-Decoder, the feature map itself.
        """
        x = self.head_drop(global_pool(x, self.global_pool), rngs=rngs)
        if pre_logits:
            return x
        classifier = self._classifier()
        return classifier(x, rngs=rngs) if isinstance(classifier, MLDecoder) else classifier(x)

    def _feature_maps(self, x: jax.Array, rngs: nnx.Rngs | None) -> Iterator[jax.Array]:
        """Yield the outputs of the stem and of each stage; each is computed when it is requested."""
        if x.ndim != 4 or x.shape[-1] != self.in_chans:
            raise ValueError(f'expected images of shape (B, H, W, {self.in_chans}), got {tuple(x.shape)}')
        if not jnp.issubdtype(x.dtype, jnp.floating):
            raise ValueError(f'expected normalised images, as create_transform returns them, got {x.dtype} values')
        self._check_input(x.shape[1], x.shape[2])
        first, x = self._stem(x.astype(self.dtype))
        yield first
        for stage in self._stages():
            for block in stage:
                x = block(x, draw_key(rngs, 'drop path') if block.drop_path.is_random else None)
            yield x

    def _stages(self) -> list[Sequence[ResidualBlock]]:
        """Return the blocks of each stage that has not been pruned, in order."""
        stages = [getattr(self._trunk(), f'layer{i}') for i in (1, 2, 3, 4)]
        return [stage for stage in stages if len(stage)]

    @property
    def feature_info(self) -> FeatureInfo:
        """Channels, reduction and timm's name of each feature map; for a backbone, of those it returns.

        `channels(4)` and the like also describe the maps of stages that were removed, as in timm.
        """
        kept = tuple(range(len(self._stages()) + 1))
        return FeatureInfo(self._all_feature_info(), kept if self.out_indices is None else self.out_indices)

    @property
    def default_cfg(self) -> PretrainedConfig | None:
        """timm's older name for `pretrained_cfg`."""
        return self.pretrained_cfg

    # The head and the trunk.

    @property
    def head_hidden_size(self) -> int:
        """Number of features that the classifier takes."""
        return self.num_features * pool_multiplier(self.global_pool)

    @property
    def ml_decoder(self) -> MLDecoder | None:
        """The ML-Decoder head; None for a model with another head or without classes."""
        classifier = self._classifier()
        return classifier if isinstance(classifier, MLDecoder) else None

    @property
    def head_options(self) -> dict[str, Any]:
        """The arguments of `create_model` that describe an ML-Decoder head; empty for any other model."""
        head = self.ml_decoder
        if head is None:
            return {}
        return {
            'head': 'ml_decoder',
            'num_of_groups': head.num_of_groups,
            'decoder_embedding': head.decoder_embedding,
        }

    def get_classifier(self, name_only: bool = False) -> Any:
        """Return the last linear layer, an Identity if there are no classes, or the ML-Decoder.

        Args:
            name_only: return its name: 'fc'; in TResNet 'head.fc' for a linear layer and 'head' for an ML-Decoder.
        """
        if not name_only:
            return self._classifier()
        family = self.config.family
        return family.classifier if self.ml_decoder is None else family.head

    def group_matcher(self, coarse: bool = False) -> dict[str, str]:
        """Return timm's regular expressions that group parameters by name into the stem and the blocks.

        Args:
            coarse: group by stage instead of by block.
        """
        family = self.config.family
        stage = rf'^{re.escape(family.stages)}(\d+)'
        return {'stem': family.stem_pattern, 'blocks': stage if coarse else rf'{stage}\.(\d+)'}

    def reset_classifier(
        self, num_classes: int, global_pool: str | None = None, *, rngs: nnx.Rngs | None = None
    ) -> 'ImageModel':
        """Replace the head with a new linear layer, initialised as torch does. Return the model (timm returns None).

        An ML-Decoder is replaced by a linear layer too, as in timm's ResNet.

        Args:
            num_classes: classes of the new classifier; 0 removes it.
            global_pool: the new pooling. None: keep the present one; the family's default after an ML-Decoder.
            rngs: random numbers for the weights. None: ``nnx.Rngs(0)``.

        Raises:
            ValueError: an unknown pooling, or classes without a pooling.
        """
        if global_pool is not None:
            self.global_pool = check_pool_type(global_pool)
        elif self.ml_decoder is not None:
            self.global_pool = self.config.family.default_pool
        self._replace_classifier(num_classes, torch_uniform, rngs or nnx.Rngs(0))
        return self

    def start_classifier(self, num_classes: int, rngs: nnx.Rngs) -> None:
        """Replace the head with a new one of the same kind, initialised as in a new model of the family."""
        old = self.ml_decoder
        if old is None:
            self._replace_classifier(num_classes, self._classifier_init, rngs)
        else:
            self.start_ml_decoder(num_classes, rngs, old.num_of_groups, old.decoder_embedding)

    def start_ml_decoder(
        self, num_classes: int, rngs: nnx.Rngs, num_of_groups: int | None, decoder_embedding: int | None
    ) -> None:
        """Replace the pooling and the head with a new `MLDecoder`, without dropout before it.

        Raises:
            ValueError: as `MLDecoder`.
        """
        head = MLDecoder(
            num_classes,
            num_of_groups,
            decoder_embedding,
            num_features=self.num_features,
            dtype=self.dtype,
            rngs=rngs,
        )
        if not self.head_drop.deterministic:
            head.train()
        self._set_classifier(head)
        self.num_classes = num_classes
        self.global_pool = ''
        self.head_drop.rate = 0.0

    def _replace_classifier(self, num_classes: int, init: Callable[[int], nnx.Initializer], rngs: nnx.Rngs) -> None:
        fc: nnx.Module = Identity()
        if num_classes > 0:
            if not self.global_pool:
                # timm builds such a model, and it fails when it is called.
                raise ValueError("global_pool='' keeps the feature map, which has no classifier: set num_classes=0")
            width = self.num_features * pool_multiplier(self.global_pool)
            fc = linear(width, num_classes, init(width), self.dtype, rngs)
        self._set_classifier(fc)
        self.num_classes = num_classes

    def prune_intermediate_layers(
        self, indices: int | Sequence[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Remove the head and the stages that the chosen feature maps do not need. Return the chosen indices.

        Args:
            indices: the feature maps to keep, as in `forward_intermediates`.
            prune_norm: accepted as in timm, without effect: these networks have no norm after the last stage.
            prune_head: remove the head even if the last stage is kept. Without the last stage it is always removed.

        Raises:
            ValueError: an index is out of range.
        """
        del prune_norm
        chosen = take_indices(len(self._stages()) + 1, indices)
        self.num_features = self._all_feature_info()[max(chosen)]['num_chs']
        for i in range(max(chosen) + 1, 5):
            setattr(self._trunk(), f'layer{i}', nnx.List([]))
        if prune_head or max(chosen) < 4:
            self.reset_classifier(0, '')
        return chosen

    # Training.

    def part(self, name: str) -> list[nnx.Module]:
        """Return the modules of a part: 'stem', 'layer1' to 'layer4', 'head', or 'backbone' for all but the head.

        Raises:
            ValueError: the name is unknown.
        """
        if name == 'backbone':
            return [module for part in PARTS[:-1] for module in self.part(part)]
        if name not in PARTS:
            raise ValueError(f'unknown part {name!r}; expected one of backbone, {", ".join(PARTS)}')
        if name == 'head':
            return [self._classifier()]
        trunk = self._trunk()
        return [getattr(trunk, attribute) for attribute in part_attributes(name) if hasattr(trunk, attribute)]

    def set_memory(self, abn_memory: str = 'plain', remat: bool = False) -> 'ImageModel':
        """Set what training keeps for the backward pass; `create_model` describes the modes. Return the model.

        Raises:
            ValueError: an unknown mode, or one that inverts activations for a model with ReLUs.
        """
        memory = memory_mode(abn_memory, remat)
        norms = [module for _, module in nnx.iter_modules(self) if isinstance(module, BatchNormAct)]
        if memory.invert and any(norm.slope == 0 for norm in norms):
            raise ValueError(
                f'abn_memory {abn_memory!r} inverts the activations, and a ReLU has no inverse: '
                "use 'recompute', or remat=True, or both"
            )
        for norm in norms:
            norm.invert = memory.invert
        self.abn_memory = abn_memory
        for block in [block for stage in self._stages() for block in stage]:
            block.memory = memory
        self.memory = memory
        return self

    def set_grad_checkpointing(self, enable: bool = True) -> 'ImageModel':
        """Recompute each block in the backward pass, or stop doing so: timm's name for `remat` of `set_memory`."""
        return self.set_memory(self.abn_memory, remat=enable)

    def train(self, **attributes: Any) -> 'ImageModel':
        """Switch to training mode. Return the model, as torch does.

        Raises:
            ValueError: batch norm is folded into the convolutions.
        """
        if self.folded:
            raise ValueError('a model of fold_batchnorm has no batch norm to train: train the model it was made from')
        super().train(**attributes)
        return self

    def eval(self, **attributes: Any) -> 'ImageModel':
        """Switch to evaluation mode. Return the model, as torch does."""
        super().eval(**attributes)
        return self
