"""Which architecture and which layout a file has; any known layout -> timm's names."""

import dataclasses
import json
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from tresnet_jax.checkpoints.checkpoint import COUNTER, FLAX_FORMAT, Checkpoint
from tresnet_jax.checkpoints.names import flax_key_to_torch, flax_to_torch_layout
from tresnet_jax.data.transforms import create_transform
from tresnet_jax.errors import ConversionError
from tresnet_jax.labels import are_names
from tresnet_jax.variants import (
    ALL_BOTTLENECK,
    ARCHITECTURES,
    BASIC,
    BOTTLENECK,
    RESNETD,
    TRESNET,
    Family,
    family_of,
)

WRAPPING_PREFIXES = ('module.', '_orig_mod.')  # of torch's DistributedDataParallel and torch.compile

# The original TResNet repository and timm before 2023, whose convolution, in-place ABN and blur are nested Sequentials;
# applied in this order, as timm/models/tresnet.py does.
IABN_NAMES = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r'conv(\d+)\.0\.0', r'conv\1.conv'),
        (r'conv(\d+)\.0\.1', r'conv\1.bn'),
        (r'conv(\d+)\.0', r'conv\1.conv'),
        (r'conv(\d+)\.1', r'conv\1.bn'),
        (r'downsample\.(\d+)\.0', r'downsample.\1.conv'),
        (r'downsample\.(\d+)\.1', r'downsample.\1.bn'),
    )
)
FAMILIES = (TRESNET, RESNETD)
IABN_EPSILON = 1e-5  # in-place ABN scales by |gamma| + epsilon, never by gamma
ORIGINAL_V2_SLOPE = 1e-6


@dataclasses.dataclass(frozen=True)
class TimmState:
    """A checkpoint under timm's names, in torch's layouts.

    Attributes:
        layout: 'timm', 'inplace_abn' or 'flax', the layout it came in.
        tensors: timm's keys, counters of batch norm left out.
        dtypes: what each tensor was stored as in the PyTorch checkpoint at the beginning of the chain.
        counters: the `num_batches_tracked` of each batch norm, by its whole key.
        metadata: what our own file says of itself; empty for others.
        abn_slope: of the leaky ReLUs it was trained with, where that is known and not timm's.
        data_config: how it wants its images, the arguments of `create_transform`, where a run said so.
        label_names: one a class, where a run said so.
        notes: what was changed or left out on the way, one line each.
    """

    layout: str
    tensors: dict[str, np.ndarray]
    dtypes: dict[str, str]
    counters: dict[str, int]
    metadata: dict[str, str]
    abn_slope: float | None = None
    notes: tuple[str, ...] = ()
    data_config: dict[str, Any] | None = None
    label_names: tuple[str, ...] | None = None


def to_timm(checkpoint: Checkpoint) -> TimmState:
    """Turn the layout a file has into timm's.

    Raises:
        ConversionError: a file of ours whose keys are not.
    """
    if checkpoint.metadata.get('format') == FLAX_FORMAT:
        return _from_flax(checkpoint)
    notes = []
    if checkpoint.wrapper is not None:
        notes.append(f'took {checkpoint.wrapper!r} of the file')
    tensors, counters = {}, {}
    for key, value in checkpoint.tensors.items():
        name = strip_prefixes(key)
        if name.endswith('.' + COUNTER):
            counters[name] = int(value)
        else:
            tensors[name] = value
    dtypes = {key: value.dtype.name for key, value in tensors.items()}
    # Old keys tell, and are gone afterwards: gammas that were converted once are not converted again.
    if 'body.conv1.0.weight' not in tensors:
        return TimmState('timm', tensors, dtypes, counters, {}, None, tuple(notes))
    tensors, more = from_inplace_abn(tensors)
    dtypes = {key: value.dtype.name for key, value in tensors.items()}
    slope = None
    if checkpoint.wrapper == 'model' and identify(tensors) == ('tresnet_v2_l', True):
        slope = ORIGINAL_V2_SLOPE
        more.append(f'second version of the original repository: leaky ReLUs of slope {slope:g}, kept in the metadata')
    return TimmState('inplace_abn', tensors, dtypes, counters, {}, slope, (*notes, *more))


def strip_prefixes(key: str) -> str:
    """'module._orig_mod.fc.weight' -> 'fc.weight', in either order."""
    while key.startswith(WRAPPING_PREFIXES):
        key = key.partition('.')[2]
    return key


def from_inplace_abn(tensors: Mapping[str, np.ndarray]) -> tuple[dict[str, np.ndarray], list[str]]:
    """The in-place ABN layout -> timm's: names, |gamma| + 1e-5 for gamma, blur filters left out; and notes."""
    renamed, filters, norms, negative = {}, 0, 0, 0
    for key, value in tensors.items():
        if key.endswith('.filt'):  # the blur's weights, which are constants
            filters += 1
            continue
        for pattern, replacement in IABN_NAMES:
            key = pattern.sub(replacement, key)
        if key.endswith('bn.weight'):
            norms, negative = norms + 1, negative + int((value < 0).sum())
            value = np.abs(value).astype(np.promote_types(value.dtype, np.float32))  # 1e-5 is nothing in 16 bits
            value += value.dtype.type(IABN_EPSILON)
        renamed[key] = value
    notes = [f'gamma := |gamma| + {IABN_EPSILON:g} in {norms} batch norms ({negative} gammas were negative)']
    if filters:
        notes.append(f'left out {filters} blur filters, which are constants')
    return renamed, notes


def _from_flax(checkpoint: Checkpoint) -> TimmState:
    tensors = {}
    for key, value in checkpoint.tensors.items():
        collection, _, name = key.partition('.')
        if collection not in ('params', 'batch_stats') or not name:
            raise ConversionError(f'{checkpoint.path}: {key!r} is neither below params nor below batch_stats')
        tensors[flax_key_to_torch(name)] = flax_to_torch_layout(name, value)
    dtypes = {key: value.dtype.name for key, value in tensors.items()} | _json_dict(checkpoint, 'source_dtypes')
    slope = checkpoint.metadata.get('abn_slope')
    try:
        slope = float(slope) if slope else None
    except ValueError as error:
        raise ConversionError(f'{checkpoint.path}: metadata field abn_slope is no number: {slope!r}') from error
    notes = ()
    if checkpoint.container == 'run':
        top1 = checkpoint.training.get('top1')
        kind = 'moving average' if checkpoint.wrapper else 'weights'
        rated = '' if top1 is None else f', top-1 {top1:.2%}'
        notes = (f'took the {kind} of step {checkpoint.training["step"]}{rated}',)
    counters, data_config = _json_dict(checkpoint, COUNTER), _data_config(checkpoint)
    label_names = _label_names(checkpoint)
    return TimmState('flax', tensors, dtypes, counters, checkpoint.metadata, slope, notes, data_config, label_names)


def _data_config(checkpoint: Checkpoint) -> dict[str, Any] | None:
    config = _json_dict(checkpoint, 'data_config')
    if not config:
        return None
    try:
        checked = create_transform(**config)
    except (TypeError, ValueError) as error:
        raise ConversionError(f"{checkpoint.path}: metadata field 'data_config' cannot work: {error}") from error
    names = ('interpolation', 'mean', 'std', 'crop_pct', 'crop_mode')
    return {'input_size': (3, checked.height, checked.width)} | {name: getattr(checked, name) for name in names}


def _label_names(checkpoint: Checkpoint) -> tuple[str, ...] | None:
    names = _json(checkpoint, 'label_names', [])
    if not are_names(names):
        raise ConversionError(f"{checkpoint.path}: metadata field 'label_names' is not a list of names")
    return tuple(names) or None


def _json_dict(checkpoint: Checkpoint, field: str) -> dict:
    value = _json(checkpoint, field, {})
    return value if isinstance(value, dict) else {}


def _json(checkpoint: Checkpoint, field: str, default: Any) -> Any:
    try:
        return json.loads(checkpoint.metadata[field]) if field in checkpoint.metadata else default
    except json.JSONDecodeError as error:
        raise ConversionError(f'{checkpoint.path}: metadata field {field!r} is not JSON: {error}') from error


@dataclasses.dataclass(frozen=True)
class Shape:
    """What tells the architectures apart, read off keys and shapes."""

    family: str
    layers: tuple[int, ...]
    blocks: tuple[str, ...]
    stem: int
    channels: tuple[int, ...]

    def distance(self, other: 'Shape') -> int:
        """How much two differ; 0 is the same architecture."""
        if self.family != other.family:
            return 1000
        differing = sum(a != b for a, b in zip(self.blocks + self.channels, other.blocks + other.channels, strict=True))
        depth = sum(abs(a - b) for a, b in zip(self.layers, other.layers, strict=True))
        return 10 * (self.stem != other.stem) + 5 * differing + depth


def architecture_shape(architecture: str) -> Shape:
    """The shape of a row of the table."""
    config = ARCHITECTURES[architecture]
    return Shape(config.family.name, config.layers, config.blocks, config.stem_channels, config.channels)


def tensors_shape(tensors: Mapping[str, np.ndarray]) -> Shape | None:
    """The shape of a state dict under timm's names; None if it is of neither family."""
    family = next((family for family in FAMILIES if _signature(family) <= tensors.keys()), None)
    if family is None:
        return None
    first, third = (f'conv{number}{family.convolution}.weight' for number in (1, 3))
    layers, blocks, channels = [], [], []
    for stage in '1234':
        start = f'{family.stages}{stage}.'
        indices = {key[len(start) :].partition('.')[0] for key in tensors if key.startswith(start)}
        layers.append(max((int(i) + 1 for i in indices if i.isdigit()), default=0))
        blocks.append(BOTTLENECK if f'{start}0.{third}' in tensors else BASIC)
        narrow = tensors.get(f'{start}0.{first}')
        channels.append(0 if narrow is None else narrow.shape[0])
    stem = tensors[f'{family.first_conv}.weight'].shape[0]
    return Shape(family.name, tuple(layers), tuple(blocks), stem, tuple(channels))


def _signature(family: Family) -> set[str]:
    """Keys that a state dict of the family has."""
    # A deep stem has three convolutions; other ResNets have a plain 'conv1.weight'.
    return {f'{family.first_conv}.weight'} | ({'conv1.6.weight'} if family is RESNETD else set())


# Networks in the wild that carry names of the table, or look like it, and are none of it.
FOREIGN = {
    Shape(
        'tresnet', (3, 8, 34, 5), ALL_BOTTLENECK, 64, (64, 128, 256, 512)
    ): "ML-Decoder's tresnet_xl, another network",
    Shape('tresnet', (3, 4, 6, 3), ALL_BOTTLENECK, 64, (64, 128, 256, 512)): "ML-Decoder's tresnet_s",
}


def identify(tensors: Mapping[str, np.ndarray]) -> tuple[str | None, bool]:
    """The likeliest architecture of a state dict, and whether it is that one exactly; None if of neither family."""
    shape = tensors_shape(tensors)
    if shape is None:
        return None, False
    best = min(ARCHITECTURES, key=lambda name: shape.distance(architecture_shape(name)))
    return best, shape == architecture_shape(best)


def describe(tensors: Mapping[str, np.ndarray]) -> str:
    """What a state dict looks like, for a message."""
    shape = tensors_shape(tensors)
    if shape is None:
        if getattr(tensors.get('conv1.weight'), 'ndim', 0) == 4:
            return (
                "a plain ResNet's stem; ResNet-D has three convolutions there (timm's resnet50.d_in1k is no ResNet-D)"
            )
        return f'neither a TResNet nor a ResNet-D (first keys: {", ".join(sorted(tensors)[:3]) or "none"})'
    if shape in FOREIGN:
        return f'{FOREIGN[shape]} that timm does not have'
    best, exact = identify(tensors)
    if exact:
        return str(best)
    return f'no known architecture; the nearest is {best} (blocks {shape.layers}, stem {shape.stem} wide)'


def foreign_head(tensors: Mapping[str, np.ndarray], architecture: str) -> str | None:
    """What kind of classifier it is, if it is not timm's."""
    if any(key.startswith('head.decoder.') for key in tensors):
        return 'an ML-Decoder head'
    if any(key.startswith('head.fc.embedding_generator.') for key in tensors):
        return "ASL's bottleneck head"
    weight, width = tensors.get(f'{head_key(architecture)}.weight'), ARCHITECTURES[architecture].num_features
    if weight is not None and weight.ndim == 2 and weight.shape[1] not in (width, 2 * width):
        return f'a classifier that takes {weight.shape[1]} features instead of {width}'
    return None


def stem_key(architecture: str) -> str:
    """timm's key of the first convolution's weight."""
    return f'{family_of(architecture).first_conv}.weight'


def head_key(architecture: str) -> str:
    """timm's key of the classifier, without the leaf."""
    return family_of(architecture).classifier
