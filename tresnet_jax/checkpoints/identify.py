"""Identify the architecture of a state dict under timm's names, from its keys and shapes."""

import dataclasses
from collections.abc import Mapping

import numpy as np

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

FAMILIES = (TRESNET, RESNETD)


@dataclasses.dataclass(frozen=True)
class Shape:
    """The properties that distinguish architectures.

    Attributes:
        family: name of the family.
        layers: number of blocks of each stage.
        blocks: kind of the blocks of each stage, BASIC or BOTTLENECK.
        stem: output channels of the first convolution.
        channels: output channels of the first convolution of each stage.
    """

    family: str
    layers: tuple[int, ...]
    blocks: tuple[str, ...]
    stem: int
    channels: tuple[int, ...]

    def distance(self, other: 'Shape') -> int:
        """Return how much two shapes differ; 0 for the same architecture."""
        if self.family != other.family:
            return 1000
        differing = sum(a != b for a, b in zip(self.blocks + self.channels, other.blocks + other.channels, strict=True))
        depth = sum(abs(a - b) for a, b in zip(self.layers, other.layers, strict=True))
        return 10 * (self.stem != other.stem) + 5 * differing + depth


# Published networks that share a name or the keys with our architectures but are not among them.
FOREIGN = {
    Shape(
        'tresnet', (3, 8, 34, 5), ALL_BOTTLENECK, 64, (64, 128, 256, 512)
    ): "ML-Decoder's tresnet_xl, another network",
    Shape('tresnet', (3, 4, 6, 3), ALL_BOTTLENECK, 64, (64, 128, 256, 512)): "ML-Decoder's tresnet_s",
}


def architecture_shape(architecture: str) -> Shape:
    """Return the shape of an architecture of the table."""
    config = ARCHITECTURES[architecture]
    return Shape(config.family.name, config.layers, config.blocks, config.stem_channels, config.channels)


def tensors_shape(tensors: Mapping[str, np.ndarray]) -> Shape | None:
    """Return the shape of a state dict under timm's names, or None if it belongs to neither family."""
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
        channels.append(_out_channels(tensors.get(f'{start}0.{first}')))
    stem = _out_channels(tensors[f'{family.first_conv}.weight'])
    return Shape(family.name, tuple(layers), tuple(blocks), stem, tuple(channels))


def _signature(family: Family) -> set[str]:
    """Return keys that every state dict of the family has."""
    # A deep stem has three convolutions; other ResNets have a plain 'conv1.weight'.
    return {f'{family.first_conv}.weight'} | ({'conv1.6.weight'} if family is RESNETD else set())


def _out_channels(weight: np.ndarray | None) -> int:
    return weight.shape[0] if weight is not None and weight.ndim else 0


def identify(tensors: Mapping[str, np.ndarray]) -> tuple[str | None, bool]:
    """Return the likeliest architecture and whether it matches exactly; the architecture is None in neither family."""
    shape = tensors_shape(tensors)
    if shape is None:
        return None, False
    best = min(ARCHITECTURES, key=lambda name: shape.distance(architecture_shape(name)))
    return best, shape == architecture_shape(best)


def describe(tensors: Mapping[str, np.ndarray]) -> str:
    """Return what a state dict looks like, as part of a message."""
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
    """Return the kind of a classifier that is not timm's; None for timm's or no classifier."""
    if any(key.startswith('head.decoder.') for key in tensors):
        return 'an ML-Decoder head'
    if any(key.startswith('head.fc.embedding_generator.') for key in tensors):
        return "ASL's bottleneck head"
    weight, width = tensors.get(f'{head_key(architecture)}.weight'), ARCHITECTURES[architecture].num_features
    if weight is not None and weight.ndim == 2 and weight.shape[1] not in (width, 2 * width):
        return f'a classifier that takes {weight.shape[1]} features instead of {width}'
    return None


def image_channels(tensors: Mapping[str, np.ndarray], architecture: str) -> int | None:
    """Return the channels of the images; None if the first convolution is missing or has an impossible shape."""
    stem, family = tensors.get(stem_key(architecture)), family_of(architecture)
    if stem is None or stem.ndim != 4 or stem.shape[1] == 0 or stem.shape[1] % family.stem_block**2:
        return None
    return family.in_chans(stem.shape[1])


def stem_key(architecture: str) -> str:
    """Return timm's key of the first convolution's weight."""
    return f'{family_of(architecture).first_conv}.weight'


def head_key(architecture: str) -> str:
    """Return timm's key of the classifier, without the leaf."""
    return family_of(architecture).classifier
