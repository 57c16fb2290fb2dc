"""What TResNet and ResNet-D share: the forward passes, the classifier head, features, and the functional form."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from tresnet_jax.models.batch_norm import BatchNormAct
from tresnet_jax.models.features import FeatureInfo, take_indices
from tresnet_jax.models.initializers import torch_uniform
from tresnet_jax.models.layers import Dropout, DropPath, Identity, draw_key, linear
from tresnet_jax.models.memory import PLAIN, memory_mode
from tresnet_jax.models.pooling import check_pool_type, global_pool, pool_multiplier
from tresnet_jax.variants import ArchitectureConfig, PretrainedConfig

Tree = dict[Any, Any]


PARTS = ('stem', 'layer1', 'layer2', 'layer3', 'layer4', 'head')


def part_attributes(part: str) -> tuple[str, ...]:
    """The attributes of the trunk that a part other than the head is made of."""
    return ('conv1', 'bn1') if part == 'stem' else (part,)


class ResidualBlock(nnx.Module):
    """A branch, a shortcut, and the ReLU of their sum.

    Args:
        downsample: the projection of a stage's first block; without one the shortcut is the input.
        drop_path_rate: how often the branch is dropped in training.
    """

    def __init__(self, downsample: nnx.Module | None, drop_path_rate: float):
        self.downsample = downsample
        self.drop_path = DropPath(drop_path_rate)
        self.memory = PLAIN

    def branch(self, x: jax.Array) -> jax.Array:
        raise NotImplementedError

    def shortcut(self, x: jax.Array) -> jax.Array:
        if self.downsample is None:
            return x
        return self.memory.run_shortcut(lambda downsample, x: downsample(x), self.downsample, x)

    def __call__(self, x: jax.Array, key: jax.Array | None) -> jax.Array:
        """(B, H, W, C) -> (B, h, w, channels); `key` for a block that drops its branch at random."""
        out, shortcut = self.memory.run_block(lambda block, x: (block.branch(x), block.shortcut(x)), self, x)
        return self.memory.relu_of_sum(self.drop_path(out, key), shortcut)


class ImageModel(nnx.Module):
    """A convolutional network with a stem, four stages and a classifier.

    Images are (B, H, W, in_chans), normalised; feature maps (B, h, w, channels); logits (B, num_classes). All in
    and out in the compute dtype. Made in evaluation mode; `train()` and `eval()` switch, and return the model.
    In training mode a call updates the running statistics of batch norm, and needs `rngs` (``nnx.Rngs(dropout=key)``)
    where drop_rate or drop_path_rate is positive.

    Attributes:
        num_classes, in_chans: as asked for.
        num_features: channels of the last feature map.
        abn_slope: slope of the leaky ReLUs in the blocks; None for ReLUs.
        output_stride: pixels of the image per step of the last feature map.
        global_pool: the name of the pooling before the classifier.
        architecture: the name of its row in the table.
        pretrained_cfg: the row of its tag, or of the architecture's default tag.
        out_indices: the feature maps a backbone returns; None for a classifier.
        folded: batch norm is folded into the convolutions (`fold_batchnorm`), for evaluation alone.
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
        self.architecture: str = ''
        self.pretrained_cfg: PretrainedConfig | None = None
        self.out_indices: tuple[int, ...] | None = None
        self.folded = False

    # What a family defines.

    def _check_input(self, height: int, width: int) -> None:
        """Raises ValueError for a size the family cannot take."""

    def _stem(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Image -> the first feature map, and what the first stage takes."""
        raise NotImplementedError

    def _trunk(self) -> nnx.Module:
        """The module whose attributes layer1 to layer4 are the stages."""
        raise NotImplementedError

    def _all_feature_info(self) -> list[dict[str, Any]]:
        raise NotImplementedError

    def get_classifier(self) -> nnx.Module:
        """The last linear layer, or an Identity where there are no classes."""
        raise NotImplementedError

    def _set_classifier(self, fc: nnx.Module) -> None:
        raise NotImplementedError

    def _classifier_init(self, in_features: int) -> nnx.Initializer:
        """How the classifier of a new model starts."""
        raise NotImplementedError

    # What both share.

    def _stages(self) -> list[Sequence[ResidualBlock]]:
        """The blocks of the stages that are there, in order."""
        stages = [getattr(self._trunk(), f'layer{i}') for i in (1, 2, 3, 4)]
        return [stage for stage in stages if len(stage)]

    def __call__(self, x: jax.Array, *, rngs: nnx.Rngs | None = None) -> Any:
        """Logits; (B, features) without classes; the list of feature maps for a backbone."""
        if self.out_indices is not None:
            return self.forward_intermediates(x, self.out_indices, intermediates_only=True, rngs=rngs)
        return self.forward_head(self.forward_features(x, rngs=rngs), rngs=rngs)

    def forward_features(self, x: jax.Array, *, rngs: nnx.Rngs | None = None) -> jax.Array:
        """The last feature map."""
        *_, last = self._feature_maps(x, rngs)
        return last

    def forward_intermediates(
        self,
        x: jax.Array,
        indices: int | Sequence[int] | None = None,
        *,
        stop_early: bool = False,
        intermediates_only: bool = False,
        rngs: nnx.Rngs | None = None,
    ) -> Any:
        """The last feature map and a list of chosen ones, in the order of the network, as timm's.

        Args:
            x: (B, H, W, in_chans).
            indices: which of `feature_info`: None all, n the last n, a sequence those (negative from the end).
            stop_early: do not compute what lies behind the last chosen one; it is then also the "last" one.
            intermediates_only: return the list alone.

        Raises:
            ValueError: an index out of range.
        """
        chosen = take_indices(len(self._stages()) + 1, indices)
        maps: list[jax.Array] = []
        last = x
        for index, last in enumerate(self._feature_maps(x, rngs)):
            if index in chosen:
                maps.append(last)
            if index == max(chosen) and (stop_early or intermediates_only):
                break
        return maps if intermediates_only else (last, maps)

    def forward_head(self, x: jax.Array, pre_logits: bool = False, *, rngs: nnx.Rngs | None = None) -> jax.Array:
        """A feature map -> logits, or the pooled vector behind dropout when `pre_logits`."""
        x = self.head_drop(global_pool(x, self.global_pool), rngs)
        return x if pre_logits else self.get_classifier()(x)

    def _feature_maps(self, x: jax.Array, rngs: nnx.Rngs | None) -> Iterator[jax.Array]:
        """The stem's and each stage's output, each computed when it is asked for."""
        if x.ndim != 4 or x.shape[-1] != self.in_chans:
            raise ValueError(f'expected images of shape (B, H, W, {self.in_chans}), got {tuple(x.shape)}')
        self._check_input(x.shape[1], x.shape[2])
        first, x = self._stem(x.astype(self.dtype))
        yield first
        for stage in self._stages():
            for block in stage:
                x = block(x, draw_key(rngs, 'drop path') if block.drop_path.is_random else None)
            yield x

    @property
    def feature_info(self) -> FeatureInfo:
        """Channels, reduction and timm's name of each feature map; a backbone's are those it returns."""
        return FeatureInfo(self._all_feature_info()[: len(self._stages()) + 1], self.out_indices)

    def reset_classifier(
        self, num_classes: int, global_pool: str | None = None, *, rngs: nnx.Rngs | None = None
    ) -> 'ImageModel':
        """Put a new classifier in place, started as torch starts one. Returns the model (timm returns None).

        Args:
            num_classes: of the new one; 0 takes it away.
            global_pool: the new pooling; None keeps the present one.
            rngs: for its weights; ``nnx.Rngs(0)`` if None.
        """
        self.global_pool = self.global_pool if global_pool is None else check_pool_type(global_pool)
        self._put_classifier(num_classes, torch_uniform, rngs or nnx.Rngs(0))
        return self

    def start_classifier(self, num_classes: int, rngs: nnx.Rngs) -> None:
        """Put a new classifier in place, started as that of a new model of the family."""
        self._put_classifier(num_classes, self._classifier_init, rngs)

    def _put_classifier(self, num_classes: int, init: Callable[[int], nnx.Initializer], rngs: nnx.Rngs) -> None:
        fc: nnx.Module = Identity()
        if num_classes > 0:
            if not self.global_pool:
                # timm builds such a model and fails when it is called.
                raise ValueError("global_pool='' keeps the feature map, which has no classifier: set num_classes=0")
            width = self.num_features * pool_multiplier(self.global_pool)
            fc = linear(width, num_classes, init(width), self.dtype, rngs)
        self._set_classifier(fc)
        self.num_classes = num_classes

    def prune_intermediate_layers(self, indices: int | Sequence[int] = 1) -> list[int]:
        """Remove the head and the stages that the chosen feature maps do not need; returns the chosen indices."""
        chosen = take_indices(len(self._stages()) + 1, indices)
        self.num_features = self._all_feature_info()[max(chosen)]['num_chs']
        for i in range(max(chosen) + 1, 5):
            setattr(self._trunk(), f'layer{i}', nnx.List([]))
        self.reset_classifier(0, '')
        return chosen

    def part(self, name: str) -> list[nnx.Module]:
        """The modules of 'stem', 'layer1' to 'layer4' or 'head'; 'backbone' is all but the head.

        Raises:
            ValueError: there is no such part.
        """
        if name == 'backbone':
            return [module for part in PARTS[:-1] for module in self.part(part)]
        if name not in PARTS:
            raise ValueError(f'unknown part {name!r}; expected one of backbone, {", ".join(PARTS)}')
        if name == 'head':
            return [self.get_classifier()]
        trunk = self._trunk()
        return [getattr(trunk, attribute) for attribute in part_attributes(name) if hasattr(trunk, attribute)]

    def set_memory(self, abn_memory: str = 'plain', remat: bool = False) -> 'ImageModel':
        """Choose what training keeps for the backward pass, as `create_model` describes. Returns the model.

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
        for block in [block for stage in self._stages() for block in stage]:
            block.memory = memory
        self.memory = memory
        return self

    def train(self, **attributes: Any) -> 'ImageModel':
        """Training mode; returns the model, as torch does.

        Raises:
            ValueError: batch norm is folded into the convolutions.
        """
        if self.folded:
            raise ValueError('a model of fold_batchnorm has no batch norm to train: train the model it was made from')
        super().train(**attributes)
        return self

    def eval(self, **attributes: Any) -> 'ImageModel':
        """Evaluation mode; returns the model, as torch does."""
        super().eval(**attributes)
        return self


def functional(model: ImageModel, frozen: Sequence[str] = ()) -> tuple[Callable[..., Any], Tree, Tree]:
    """The pure form of a model: ``apply, params, batch_stats``.

    Both trees are nested dicts of arrays whose paths are timm's names but for the leaves. `apply` holds the
    structure alone, and goes through jit, grad, vmap, pmap and the rest::

        logits = apply(params, batch_stats, x)
        logits, batch_stats = apply(params, batch_stats, x, train=True, rngs={'dropout': key})
        features = apply(params, batch_stats, x, method='forward_features')

    `rngs` may be left out where nothing is random. Parts named in `frozen` ('backbone', 'stem', 'layer1', ...) stay in
    evaluation mode when training: their batch norm uses and keeps its running statistics.

    Raises:
        ValueError: an unknown part.
    """
    for name in frozen:
        model.part(name)
    graphdef, params, stats = nnx.split(model, nnx.Param, nnx.BatchStat)

    def apply(
        params: Tree,
        batch_stats: Tree,
        x: jax.Array,
        *args: Any,
        train: bool = False,
        rngs: Mapping[str, jax.Array] | None = None,
        method: str = '__call__',
        **kwargs: Any,
    ) -> Any:
        m = nnx.merge(graphdef, params, batch_stats)
        m = m.train() if train else m.eval()
        for module in [module for name in frozen for module in m.part(name)]:
            module.eval()
        out = getattr(m, method)(x, *args, rngs=None if rngs is None else nnx.Rngs(**rngs), **kwargs)
        return (out, nnx.to_pure_dict(nnx.state(m, nnx.BatchStat))) if train else out

    return apply, nnx.to_pure_dict(params), nnx.to_pure_dict(stats)
