"""Select one of several networks in a checkpoint: complete before incomplete, average before raw, equal ones once."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tresnet_jax.checkpoints.find import BUFFER_PREFIX, Network
from tresnet_jax.checkpoints.identify import describe
from tresnet_jax.checkpoints.layout import Tensor
from tresnet_jax.checkpoints.records import children
from tresnet_jax.checkpoints.stored import StoredTensor
from tresnet_jax.errors import ConversionError, listing

# Segments of a location or a prefix that mark averaged weights: state_dict_ema, ema, ema_model, module_ema, ModelEMA.
AVERAGE = re.compile(
    r'(.*[_-])?(?i:ema|swa|avg|averaged?|averaging|polyak|shadow)\d*([._-].*)?|.*(EMA|Ema)([^a-z].*)?', re.S
)
AVERAGER_COUNT = 'n_averaged'  # of torch.optim.swa_utils.AveragedModel, beside the averaged module
STALE = 'average_model_state'  # of Lightning's StochasticWeightAveraging; its statistics of batch norm are old


class SeveralNetworksError(ConversionError):
    """A checkpoint has several networks, and nothing says which one is meant.

    Attributes:
        networks: 'PATH:PREFIX, architecture, parameters' of each.
    """

    def __init__(self, path: Path, networks: Sequence[Network]) -> None:
        super().__init__(f'{path}: {_table("choose one of its networks with --key KEY (key)", networks)}')
        self.networks = tuple(rows(networks))


class Choice(NamedTuple):
    """The network of a checkpoint.

    Attributes:
        network: the selected one.
        averaged: whether its weights are an average.
        networks: all networks, equal ones included.
        has_average: whether one of all is an average.
        notes: what was selected, one line each.
    """

    network: Network
    averaged: bool
    networks: tuple[Network, ...]
    has_average: bool
    notes: tuple[str, ...]


def choose(path: Path, tree: Any, networks: Sequence[Network], *, ema: bool, key: str | None) -> Choice | None:
    """Return the network to convert; None if there are no networks.

    Args:
        path: the file, for messages.
        tree: the tree in which `find` found the networks.
        networks: what `find` returned.
        ema: prefer averaged weights, else raw ones.
        key: 'PATH' or 'PATH:PREFIX' of the network; None: the rules decide.

    Raises:
        SeveralNetworksError: several networks are equally good.
        ConversionError: no network is at `key`.
    """
    if key is not None and not _at(networks, key):
        if networks:
            raise ConversionError(f'{path}: no network at --key {key} (key); {_table("it has", networks)}')
        raise ConversionError(f'{path}: no network at --key {key} (key): it has no TResNet or ResNet-D')
    candidates = list(networks) if key is None else _at(networks, key)
    if not candidates:
        return None
    averages = {id(network): is_average(tree, network) for network in networks}
    fresh = [network for network in candidates if STALE not in network.state.location]
    best = fresh or candidates
    for good in (lambda n: not n.problem, lambda n: n.architecture, lambda n: averages[id(n)] is ema):
        best = [network for network in best if good(network)] or best
    best = _without_equal(best)
    if len(best) > 1:
        raise SeveralNetworksError(path, best)
    averaged = averages[id(best[0])]
    notes = []
    locations = [network.state.location for network in candidates]
    taken = best[0].key if locations.count(best[0].state.location) > 1 else '.'.join(best[0].state.location)
    if taken:
        kinds = {averages[id(network)] for network in candidates}
        kind = (', the average' if averaged else ', the raw weights') if len(kinds) > 1 else ''
        notes.append(f'took {taken!r} of the file{kind}')
    if averaged and not ema:
        notes.append('the file has no raw weights, only their average')
    return Choice(best[0], averaged, tuple(networks), any(averages.values()), tuple(notes))


def rows(networks: Sequence[Network]) -> list[str]:
    """Return 'PATH:PREFIX, architecture, parameters' of each network."""
    return [
        f'{network.key or "(top)"}, {network.architecture or network.problem or describe(network.tensors)}, '
        f'{network.parameters:,} parameters'
        for network in networks
    ]


def _table(title: str, networks: Sequence[Network]) -> str:
    return listing(title, rows(networks), most=20)


def _at(networks: Sequence[Network], key: str) -> list[Network]:
    """Return the networks with this key, else those in the dictionary at it, else those under it as a prefix."""
    key = key.removesuffix('.')
    for same in (
        lambda n: n.key == key,
        lambda n: '.'.join(n.state.location) == key.removesuffix(':'),
        lambda n: n.prefix == f'{key.removeprefix(":")}.',
    ):
        found = [network for network in networks if same(network)]
        if found:
            return found
    return []


def is_average(tree: Any, network: Network) -> bool:
    """Return whether the weights of a network are an average of those in training.

    Four libraries keep the average where others keep the raw weights: mmengine and Lightning's WeightAveraging in
    `state_dict`, mmcv 1 under the plain names, Paddle in .pdparams, which has nothing else.
    """
    location = network.state.location
    if BUFFER_PREFIX + '*' in location:
        return False
    node = tree
    for part in location:
        keys = _keys(node)
        if part in ('state_dict', 'ema_state_dict') and 'ema_state_dict' in keys and _is_mmengine(node):
            return part == 'state_dict'
        if part in ('state_dict', 'current_model_state') and keys & {'current_model_state', 'averaging_state'}:
            return part == 'state_dict'
        node = next((child for name, child in children(node) if name == part), None)
    keys = _keys(node)
    if any(f'{BUFFER_PREFIX}{key.replace(".", "_")}' in keys for key in network.keys.values()):
        return True
    segments = network.prefix.split('.')
    owners = ['.'.join(segments[:count]) for count in range(len(segments))]
    if any(f'{owner}.{AVERAGER_COUNT}'.removeprefix('.') in network.state.tensors for owner in owners):
        return True
    return any(AVERAGE.fullmatch(part) for part in (*location, *segments))


def _keys(node: Any) -> set[str]:
    return {name for name, _ in children(node)}


def _is_mmengine(node: Any) -> bool:
    members = dict(children(node))
    return 'message_hub' in members or 'mmengine_version' in _keys(members.get('meta'))


def _without_equal(networks: list[Network]) -> list[Network]:
    """Return the networks without those whose tensors equal those of an earlier one."""
    kept: list[Network] = []
    for network in networks:
        if not any(_same(network, other) for other in kept):
            kept.append(network)
    return kept


def _same(one: Network, other: Network) -> bool:
    """Compare names, shapes and dtypes, then values, small tensors first, up to the first difference."""
    if one.tensors.keys() != other.tensors.keys() or one.problem or other.problem:
        return False
    pairs = [(tensor, other.tensors[key]) for key, tensor in one.tensors.items()]
    if any((tuple(a.shape), a.dtype) != (tuple(b.shape), b.dtype) for a, b in pairs):
        return False
    pairs = [pair for pair in pairs if not _same_place(*pair)]
    return all(_bytes_equal(a.numpy(), b.numpy()) for a, b in sorted(pairs, key=lambda pair: np.prod(pair[0].shape)))


def _same_place(a: Tensor, b: Tensor) -> bool:
    if not isinstance(a, StoredTensor) or not isinstance(b, StoredTensor):
        return a is b
    return a.storage is b.storage and (a.offset, a.strides) == (b.offset, b.strides)


def _bytes_equal(a: np.ndarray, b: np.ndarray) -> bool:
    return np.array_equal(np.ascontiguousarray(a).view(np.uint8), np.ascontiguousarray(b).view(np.uint8))
