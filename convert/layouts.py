"""Which architecture and which layout a file has; any known layout -> timm's names."""

import dataclasses
import json
from collections.abc import Mapping

import numpy as np

from convert.errors import ConversionError
from convert.names import flax_key_to_torch, flax_to_torch_layout
from convert.read import Checkpoint
from tresnet_jax.variants import ARCHITECTURES, BASIC, BOTTLENECK, ResNetDConfig, TResNetConfig, is_tresnet

FLAX_FORMAT = 'tresnet_jax'  # the 'format' in the metadata of our own files
COUNTER = 'num_batches_tracked'


@dataclasses.dataclass(frozen=True)
class TimmState:
    """A checkpoint under timm's names, in torch's layouts.

    Attributes:
        layout: 'timm' or 'flax', the layout it came in.
        tensors: timm's keys, counters of batch norm left out.
        dtypes: what each tensor was stored as in the PyTorch checkpoint at the beginning of the chain.
        counters: the `num_batches_tracked` of each batch norm, by its whole key.
        metadata: what our own file says of itself; empty for others.
    """

    layout: str
    tensors: dict[str, np.ndarray]
    dtypes: dict[str, str]
    counters: dict[str, int]
    metadata: dict[str, str]


def to_timm(checkpoint: Checkpoint) -> TimmState:
    """Turn the layout a file has into timm's.

    Raises:
        ConversionError: a file of ours whose keys are not.
    """
    if checkpoint.metadata.get('format') == FLAX_FORMAT:
        tensors = {}
        for key, value in checkpoint.tensors.items():
            collection, _, name = key.partition('.')
            if collection not in ('params', 'batch_stats') or not name:
                raise ConversionError(f'{checkpoint.path}: {key!r} is neither below params nor below batch_stats')
            tensors[flax_key_to_torch(name)] = flax_to_torch_layout(name, value)
        dtypes = {key: value.dtype.name for key, value in tensors.items()}
        dtypes |= _json_dict(checkpoint, 'source_dtypes')
        return TimmState('flax', tensors, dtypes, _json_dict(checkpoint, COUNTER), checkpoint.metadata)
    tensors, counters = {}, {}
    for key, value in checkpoint.tensors.items():
        if key.endswith('.' + COUNTER):
            counters[key] = int(value)
        else:
            tensors[key] = value
    return TimmState('timm', tensors, {key: value.dtype.name for key, value in tensors.items()}, counters, {})


def _json_dict(checkpoint: Checkpoint, field: str) -> dict:
    try:
        value = json.loads(checkpoint.metadata.get(field, '{}'))
    except json.JSONDecodeError as error:
        raise ConversionError(f'{checkpoint.path}: metadata field {field!r} is not JSON: {error}') from error
    return value if isinstance(value, dict) else {}


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
    if isinstance(config, TResNetConfig):
        return Shape('tresnet', config.layers, config.blocks, config.planes, config.channels)
    assert isinstance(config, ResNetDConfig)
    return Shape('resnetd', config.layers, config.blocks, config.stem_width, config.channels)


def tensors_shape(tensors: Mapping[str, np.ndarray]) -> Shape | None:
    """The shape of a state dict under timm's names; None if it is of neither family."""
    if 'body.conv1.conv.weight' in tensors:
        family, stem, prefix, first = 'tresnet', 'body.conv1.conv.weight', 'body.layer', 'conv1.conv.weight'
        third = 'conv3.conv.weight'
    elif 'conv1.0.weight' in tensors and 'conv1.6.weight' in tensors:
        family, stem, prefix, first, third = 'resnetd', 'conv1.0.weight', 'layer', 'conv1.weight', 'conv3.weight'
    else:
        return None
    layers, blocks, channels = [], [], []
    for stage in '1234':
        start = f'{prefix}{stage}.'
        indices = {key[len(start) :].partition('.')[0] for key in tensors if key.startswith(start)}
        layers.append(max((int(i) + 1 for i in indices if i.isdigit()), default=0))
        blocks.append(BOTTLENECK if f'{start}0.{third}' in tensors else BASIC)
        narrow = tensors.get(f'{start}0.{first}')
        channels.append(0 if narrow is None else narrow.shape[0])
    return Shape(family, tuple(layers), tuple(blocks), tensors[stem].shape[0], tuple(channels))


def identify(tensors: Mapping[str, np.ndarray]) -> tuple[str | None, bool]:
    """The likeliest architecture of a state dict, and whether it is that one exactly; None if of neither family."""
    shape = tensors_shape(tensors)
    if shape is None:
        return None, False
    best = min(ARCHITECTURES, key=lambda name: shape.distance(architecture_shape(name)))
    return best, shape == architecture_shape(best)


def stem_key(architecture: str) -> str:
    """timm's key of the first convolution's weight."""
    return 'body.conv1.conv.weight' if is_tresnet(architecture) else 'conv1.0.weight'


def head_key(architecture: str) -> str:
    """timm's key of the classifier, without the leaf."""
    return 'head.fc' if is_tresnet(architecture) else 'fc'
