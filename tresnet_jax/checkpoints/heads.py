"""Find the classifier of a network, wherever a checkpoint keeps it, or describe the head it has instead."""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from tresnet_jax.checkpoints.choose import AVERAGE, AVERAGER_COUNT, Choice
from tresnet_jax.checkpoints.find import counter_of, state_dicts
from tresnet_jax.checkpoints.identify import head_key
from tresnet_jax.checkpoints.layout import Computed, Tensor
from tresnet_jax.checkpoints.ml_decoder import Decoder, find_decoder
from tresnet_jax.checkpoints.records import printable
from tresnet_jax.variants import ARCHITECTURES, family_of

# ASL's bottleneck head, two linear layers with nothing between them: features -> 512 -> classes.
BOTTLENECK_HEAD = re.compile(r'(.*\.)?(embedding_generator\.0|FC)\.(weight|bias)')
LARGEST_FOLDED = 2**28  # elements of their product; 20,000 classes have 2**25
# Modules that training alone calls: losses, with the weights of classes, and metrics, with their counts.
TRAINING_ONLY = re.compile(
    r'criterion|criteria|loss(es)?|\w+_loss|loss_(fn|func|function)|((train|val|valid|test)_)?(acc(uracy)?|f1|metrics?)',
    re.I,
)
ML_DECODER = re.compile(r'(.*\.)?(query_embed|embed_standart|duplicate_pooling(_bias)?)(\..*)?')


class Head(NamedTuple):
    """The classifier of a checkpoint.

    Attributes:
        tensors: timm's key -> tensor of a linear layer or an ML-Decoder, where the checkpoint keeps it elsewhere; empty
            otherwise.
        foreign: the kind of any other head; None for these two or no head.
        notes: what was taken, changed or left out, one line each.
    """

    tensors: dict[str, Tensor]
    foreign: str | None
    notes: tuple[str, ...]


def find_head(tensors: Mapping[str, Tensor], beside: Mapping[str, Tensor], architecture: str) -> Head:
    """Find the classifier among the tensors that are not of the body.

    Args:
        tensors: timm's key -> tensor, of the body and of a classifier under timm's name.
        beside: key in the checkpoint -> tensor that belongs to neither.
        architecture: the architecture of the body.
    """
    training = {key: value for key, value in beside.items() if _is_training_only(key, value)}
    if training:
        rest = {key: value for key, value in beside.items() if key not in training}
        found = _find_head(tensors, rest, architecture)
        if found.tensors:
            return found._replace(notes=(*found.notes, f'left out {parts(training)}'))
    return _find_head(tensors, beside, architecture)


def _is_training_only(key: str, value: Tensor) -> bool:
    """Whether a tensor is one of a module that training alone calls. The matrix of ArcFace may be the classifier."""
    return len(value.shape) < 2 and any(map(TRAINING_ONLY.fullmatch, key.split('.')[:-1]))


def _find_head(tensors: Mapping[str, Tensor], beside: Mapping[str, Tensor], architecture: str) -> Head:
    head, width = head_key(architecture), ARCHITECTURES[architecture].num_features
    if f'{head}.weight' in tensors or f'{head}.bias' in tensors:
        weight = tensors.get(f'{head}.weight')
        classes = weight.shape[0] if weight is not None and len(weight.shape) else 0
        behind = [owner for owner, layer in _layers(beside).items() if _single_linear(layer, classes)]
        if behind:
            return Head({}, f'a further linear layer after its {classes} classes ({shown(behind)})', ())
        return Head({}, None, (f'left out {parts(beside)}',) if beside else ())
    decoder = find_decoder(beside, width)
    if decoder is not None and decoder.problem:
        return Head({}, str(decoder), ())
    if decoder is not None:
        place = family_of(architecture).head
        rest = [key for key in beside if key not in decoder.keys]
        notes = (f'left out {parts(rest)}',) if rest else ()
        return Head({f'{place}.{name}': value for name, value in decoder.tensors.items()}, None, notes)
    folded, rest = _fold_bottleneck(beside, width)
    if folded is not None:
        notes = ["folded ASL's bottleneck head, two linear layers, into one"]
        notes += [f'left out {parts(rest)}'] if rest else []
        return Head(dict(zip((f'{head}.weight', f'{head}.bias'), folded, strict=True)), None, tuple(notes))
    owner = _single_linear(beside, width)
    if owner is not None:
        weight, bias = beside[f'{owner}.weight'], beside[f'{owner}.bias']
        return Head(
            {f'{head}.weight': weight, f'{head}.bias': bias}, None, (f'took {printable(owner, 100)} as the classifier',)
        )
    return Head({}, _describe(beside, width), ())


class Joined(NamedTuple):
    """Classifiers from dictionaries next to that of a network.

    Attributes:
        tensors: name -> tensor; the name does not look like one of the network.
        notes: what was not taken, one line each.
    """

    tensors: dict[str, Tensor]
    notes: tuple[str, ...] = ()


def classifiers_elsewhere(tree: Any, choice: Choice) -> Joined:
    """Return the classifiers that are in dictionaries next to that of a network without one.

    As in `{'backbone': {...}, 'head': {'weight': ..., 'bias': ...}}`. Each dictionary that contains the network is
    searched, the innermost first, up to one that has a classifier. Tensors under one name there, joined by dots or
    nested, are a classifier if they are one linear layer of the right width, ASL's bottleneck or an ML-Decoder.

    Args:
        tree: the checkpoint.
        choice: the selected network, of a known architecture.
    """
    network = choice.network
    architecture, location = str(network.architecture), network.state.location
    head = find_head(network.tensors, network.beside, architecture)
    if head.tensors or head.foreign or f'{head_key(architecture)}.weight' in network.tensors:
        return Joined({})
    taken = {other.state.location for other in choice.networks}
    states = [state for state in state_dicts(tree) if state.location not in taken]
    counts = any(key.rpartition('.')[2] == AVERAGER_COUNT for key in network.state.tensors)
    for depth in range(len(location) - 1, -1, -1):
        candidates: dict[str, dict[str, Tensor]] = {}
        for state in states:
            if state.location[:depth] == location[:depth]:
                for key, value in state.tensors.items():
                    name = '.'.join((*state.location[depth:], key))
                    if counter_of(name, value) is None:
                        candidates.setdefault(name.partition('.')[0], {})[name] = value
        found = {name: part for name, part in candidates.items() if find_head({}, part, architecture).tensors}
        averaged = counts or any(map(AVERAGE.fullmatch, location[depth:]))
        fitting = [name for name in found if bool(AVERAGE.fullmatch(name)) is averaged]
        if found and not fitting:
            kind = 'not an average' if averaged else 'an average'
            return Joined({}, (f'left out the classifier {shown(list(found))}: it is {kind}, unlike the network',))
        if fitting:
            layout = network.layout
            tensors = {name: value for part in fitting for name, value in found[part].items()}
            return Joined({f'beside.{name}' if layout.member(name) else name: value for name, value in tensors.items()})
        width = ARCHITECTURES[architecture].num_features
        others = [name for part in candidates.values() for name, value in part.items() if _takes(name, value, width)]
        if others:
            return Joined({}, (f'left out {parts(others)}, no linear layer with a bias',))
    return Joined({})


def _takes(name: str, value: Tensor, width: int) -> bool:
    return name.endswith('.weight') and len(value.shape) == 2 and value.shape[1] == width


def foreign_classifier(tensors: Mapping[str, Any], architecture: str) -> str | None:
    """Return the kind of a head under timm's name that timm lacks; None for a linear layer, an ML-Decoder or no head.

    Args:
        tensors: timm's key -> anything with a `shape`.
        architecture: the architecture of the body.
    """
    weight, width = tensors.get(f'{head_key(architecture)}.weight'), ARCHITECTURES[architecture].num_features
    if weight is not None and len(weight.shape) == 2 and weight.shape[1] not in (width, 2 * width):
        return f'a classifier that takes {weight.shape[1]} features instead of {width}'
    decoder = decoder_of(tensors, architecture)
    return str(decoder) if decoder is not None and decoder.problem else None


def decoder_of(tensors: Mapping[str, Any], architecture: str) -> Decoder | None:
    """Return the ML-Decoder under timm's name, or None; arguments as `foreign_classifier`."""
    place = f'{family_of(architecture).head}.'
    within = {key: value for key, value in tensors.items() if key.startswith(place)}
    return find_decoder(within, ARCHITECTURES[architecture].num_features)


def classes_of(tensors: Mapping[str, Any], architecture: str) -> int:
    """Return the number of classes of the head under timm's name; 0 without one; arguments as `foreign_classifier`."""
    decoder = decoder_of(tensors, architecture)
    if decoder is not None:
        return decoder.num_classes
    found = (tensors.get(f'{head_key(architecture)}.{leaf}') for leaf in ('weight', 'bias'))
    return next((t.shape[0] for t in found if t is not None and len(t.shape)), 0)


def _layers(beside: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """Return the name of each layer -> its tensors."""
    layers: dict[str, dict[str, Tensor]] = {}
    for key, value in beside.items():
        layers.setdefault(key.rpartition('.')[0], {})[key] = value
    return layers


def _single_linear(beside: Mapping[str, Tensor], width: int) -> str | None:
    """Return the name of the linear layer of this input width if there is nothing else."""
    owners = {key.rpartition('.')[0] for key in beside}
    if len(owners) != 1 or {key.rpartition('.')[2] for key in beside} != {'weight', 'bias'}:
        return None
    owner = owners.pop()
    weight, bias = beside.get(f'{owner}.weight'), beside.get(f'{owner}.bias')
    if weight is None or bias is None or len(weight.shape) != 2 or weight.shape[1] != width:
        return None
    return owner if tuple(bias.shape) == (weight.shape[0],) else None


def _fold_bottleneck(
    beside: Mapping[str, Tensor], width: int
) -> tuple[tuple[Tensor, Tensor] | None, dict[str, Tensor]]:
    """Return weight and bias of the single linear layer that equals ASL's two, and the other tensors."""
    found = {key: match for key in beside if (match := BOTTLENECK_HEAD.fullmatch(key))}
    rest = {key: value for key, value in beside.items() if key not in found}
    leaves = {(match[2].partition('.')[0], match[3]): beside[key] for key, match in found.items()}
    if len(leaves) != 4 or len({match[1] for match in found.values()}) != 1:
        return None, rest
    inner, inner_bias, outer, outer_bias = (
        leaves[owner, leaf] for owner in ('embedding_generator', 'FC') for leaf in ('weight', 'bias')
    )
    if any('embedding_generator' in key for key in rest) or len(inner.shape) != 2 or len(outer.shape) != 2:
        return None, rest
    between, classes = inner.shape[0], outer.shape[0]
    if classes * width > LARGEST_FOLDED:  # the product of two narrow matrices can be huge
        return None, rest
    expected = [(between, width), (between,), (classes, between), (classes,)]
    if [tuple(part.shape) for part in (inner, inner_bias, outer, outer_bias)] != expected:
        return None, rest
    # In float64, rounded once; 16 bits would round the product more than its factors were.
    dtype = np.promote_types(outer.dtype, np.float32)

    def weight() -> np.ndarray:
        return (outer.numpy().astype(np.float64) @ inner.numpy().astype(np.float64)).astype(dtype)

    def bias() -> np.ndarray:
        product = outer.numpy().astype(np.float64) @ inner_bias.numpy().astype(np.float64)
        return (product + outer_bias.numpy().astype(np.float64)).astype(dtype)

    return (Computed((classes, width), dtype, weight), Computed((classes,), dtype, bias)), rest


def _describe(beside: Mapping[str, Tensor], width: int) -> str | None:
    """Return the kind of a head, as part of a message; None if there is nothing."""
    if not beside:
        return None
    if any(map(ML_DECODER.fullmatch, beside)):
        return 'an ML-Decoder head'
    if any(map(BOTTLENECK_HEAD.fullmatch, beside)):
        return f"ASL's bottleneck head with other layers than two linear ones from {width} features"
    layers = _layers(beside)
    if len(layers) > 1 and all(_single_linear(layer, width) for layer in layers.values()):
        return f'several linear layers that take its features ({shown(list(layers))})'
    matrices = [(key, value.shape) for key, value in beside.items() if len(value.shape) == 2]
    if len(matrices) == 1 and len(beside) <= 2 and matrices[0][1][1] != width:
        (name, (_, features)) = matrices[0]
        return f'a classifier ({printable(name, 100)}) that takes {features} features instead of {width}'
    return f'another head than one linear layer: {parts(beside)}'


def parts(names: Iterable[str]) -> str:
    """Return '447 tensors (decoder, transformer, ...)': the number of names and their first segments."""
    names = list(names)
    firsts = list(dict.fromkeys('.'.join(name.split('.')[:-1][:2]) or name for name in names))
    return f'{len(names)} tensor{"s" * (len(names) != 1)} ({shown(firsts)})'


def shown(names: Sequence[str]) -> str:
    """Return the first names, separated by commas, for a message."""
    return ', '.join(printable(name, 100) for name in names[:6]) + (', ...' if len(names) > 6 else '')
