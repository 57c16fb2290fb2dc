"""The names and shapes of all tensors of a network, from the few numbers in which architectures differ.

The tests compare them with the models themselves. Computing them here takes a millisecond and builds no model.
"""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from tresnet_jax.checkpoints.ml_decoder import DECODER_NAMES
from tresnet_jax.variants import ARCHITECTURES, BASIC, BOTTLENECK, EXPANSION, RESNETD, TRESNET, Family

FAMILIES = (TRESNET, RESNETD)
STATISTICS = ('running_mean', 'running_var')


@dataclasses.dataclass(frozen=True)
class Shape:
    """The properties that distinguish architectures.

    Attributes:
        family: name of the family.
        layers: number of blocks of each stage; 0 for a stage that is missing.
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
            return 10**9  # more than any number of blocks
        differing = sum(a != b for a, b in zip(self.blocks + self.channels, other.blocks + other.channels, strict=True))
        depth = sum(abs(a - b) for a, b in zip(self.layers, other.layers, strict=True))
        return 10 * (self.stem != other.stem) + 5 * differing + depth

    def first_stages(self, count: int) -> 'Shape':
        """Return the shape without the stages after the first `count`."""
        return dataclasses.replace(
            self, layers=self.layers[:count], blocks=self.blocks[:count], channels=self.channels[:count]
        )


def architecture_shape(architecture: str) -> Shape:
    """Return the shape of an architecture of the table."""
    config = ARCHITECTURES[architecture]
    return Shape(config.family.name, config.layers, config.blocks, config.stem_channels, config.channels)


def tensors_shape(tensors: Mapping[str, Any]) -> Shape | None:
    """Return the shape of a state dict under timm's names, or None if it belongs to neither family.

    Args:
        tensors: timm's key -> anything with a `shape`.
    """
    family = next((family for family in FAMILIES if _signature(family) <= tensors.keys()), None)
    if family is None:
        return None
    first, third = (f'conv{number}{family.convolution}.weight' for number in (1, 3))
    layers, blocks, channels = [], [], []
    for stage in '1234':
        start = f'{family.stages}{stage}.'
        indices = {key[len(start) :].partition('.')[0] for key in tensors if key.startswith(start)}
        layers.append(max((int(i) + 1 for i in indices if i.isdecimal() and len(i) < 5), default=0))
        blocks.append(BOTTLENECK if f'{start}0.{third}' in tensors else BASIC)
        channels.append(_out_channels(tensors.get(f'{start}0.{first}')))
    stem = _out_channels(tensors[f'{family.first_conv}.weight'])
    return Shape(family.name, tuple(layers), tuple(blocks), stem, tuple(channels))


def _signature(family: Family) -> set[str]:
    """Return keys that every state dict of the family has."""
    # A deep stem has three convolutions; other ResNets have a plain 'conv1.weight'.
    return {f'{family.first_conv}.weight'} | ({'conv1.6.weight'} if family is RESNETD else set())


def _out_channels(weight: Any) -> int:
    return weight.shape[0] if weight is not None and len(weight.shape) else 0


def expected_shapes(shape: Shape) -> dict[str, tuple[int, ...]]:
    """Return timm's key -> shape of each tensor but the head and the counters; images have three channels."""
    return dict(_tresnet(shape) if shape.family == TRESNET.name else _resnetd(shape))


def _norm(name: str, channels: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    for leaf in ('weight', 'bias', *STATISTICS):
        yield f'{name}.{leaf}', (channels,)


def _tresnet(shape: Shape) -> Iterator[tuple[str, tuple[int, ...]]]:
    def layer(name: str, channels: int, out: int, kernel: int) -> Iterator[tuple[str, tuple[int, ...]]]:
        yield f'{name}.conv.weight', (out, channels, kernel, kernel)
        yield from _norm(f'{name}.bn', out)

    yield from layer('body.conv1', 3 * TRESNET.stem_block**2, shape.stem, 3)
    width = shape.stem
    for stage, (depth, kind, planes) in enumerate(zip(shape.layers, shape.blocks, shape.channels, strict=True)):
        out = planes * EXPANSION[kind]
        for index in range(depth):
            block = f'{TRESNET.stages}{stage + 1}.{index}'
            if kind == BASIC:
                yield from layer(f'{block}.conv1', width, planes, 3)
                yield from layer(f'{block}.conv2', planes, planes, 3)
            else:
                yield from layer(f'{block}.conv1', width, planes, 1)
                yield from layer(f'{block}.conv2', planes, planes, 3)
                yield from layer(f'{block}.conv3', planes, out, 1)
            if stage < 3:  # the last stage has no squeeze-excite
                reduced = max(planes // 4 if kind == BASIC else planes * 4 // 8, 64)
                for name, to, of in (('fc1', reduced, planes), ('fc2', planes, reduced)):
                    yield f'{block}.se.{name}.weight', (to, of, 1, 1)
                    yield f'{block}.se.{name}.bias', (to,)
            if index == 0 and (stage > 0 or width != out):
                pool = int(stage > 0)  # an average pool precedes the projection
                yield from layer(f'{block}.downsample.{pool}', width, out, 1)
            width = out


def _resnetd(shape: Shape) -> Iterator[tuple[str, tuple[int, ...]]]:
    stem, width = shape.stem, 2 * shape.stem
    for number, (channels, out) in enumerate(((3, stem), (stem, stem), (stem, width))):
        yield f'conv1.{3 * number}.weight', (out, channels, 3, 3)
        yield from _norm('bn1' if number == 2 else f'conv1.{3 * number + 1}', out)
    for stage, (depth, kind, planes) in enumerate(zip(shape.layers, shape.blocks, shape.channels, strict=True)):
        out = planes * EXPANSION[kind]
        for index in range(depth):
            block = f'{RESNETD.stages}{stage + 1}.{index}'
            kernels = (3, 3) if kind == BASIC else (1, 3, 1)
            for number, kernel in enumerate(kernels, 1):
                channels, to = width if number == 1 else planes, out if number == len(kernels) else planes
                yield f'{block}.conv{number}.weight', (to, channels, kernel, kernel)
                yield from _norm(f'{block}.bn{number}', to)
            if index == 0 and (stage > 0 or width != out):
                yield f'{block}.downsample.1.weight', (out, width, 1, 1)
                yield from _norm(f'{block}.downsample.2', out)
            width = out


class Differences(NamedTuple):
    """How a state dict differs from an architecture, the head and the channels of the images aside; sorted keys.

    Attributes:
        missing, unexpected: keys that only the architecture, or only the state dict, has.
        misshapen: keys of another shape.
    """

    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    misshapen: tuple[str, ...]


def differences(tensors: Mapping[str, Any], shape: Shape) -> Differences:
    """Compare the whole set of keys and shapes of a state dict under timm's names with those of an architecture.

    Args:
        tensors: timm's key -> anything with a `shape`.
        shape: the shape of the architecture.
    """
    expected = expected_shapes(shape)
    family = next(family for family in FAMILIES if family.name == shape.family)
    head = {f'{family.classifier}.weight', f'{family.classifier}.bias'}
    head |= {f'{family.head}.{name}' for name in DECODER_NAMES}
    stem = f'{family.first_conv}.weight'

    def fits(key: str) -> bool:
        found = tuple(tensors[key].shape)
        if key == stem:  # any number of channels of the images
            ok = len(found) == 4 and found[1] > 0 and found[1] % family.stem_block**2 == 0
            return ok and (found[0], *found[2:]) == (expected[key][0], *expected[key][2:])
        return found == expected[key]

    return Differences(
        missing=tuple(sorted(expected.keys() - tensors.keys())),
        unexpected=tuple(sorted(tensors.keys() - expected.keys() - head)),
        misshapen=tuple(sorted(key for key in expected.keys() & tensors.keys() if not fits(key))),
    )
