"""Select one of several networks in a checkpoint: complete before incomplete, average before raw, equal ones once."""

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tresnet_jax.checkpoints.find import BUFFER_PREFIX, Network
from tresnet_jax.checkpoints.identify import describe
from tresnet_jax.checkpoints.layout import Tensor
from tresnet_jax.checkpoints.records import children, printable
from tresnet_jax.checkpoints.stored import StoredTensor
from tresnet_jax.errors import ConversionError, listing

# Segments of a location or a prefix that mark averaged weights: state_dict_ema, ema, ema_model, module_ema, ModelEMA.
AVERAGE = re.compile(
    r'(.*[_-])?(?i:ema|swa|avg|averaged?|averaging|polyak|shadow)\d*([._-].*)?|.*(EMA|Ema)([^a-z].*)?', re.S
)
TOP = '(top)'  # the key of a network at the top of a file, without a prefix
AVERAGER_COUNT = 'n_averaged'  # of torch.optim.swa_utils.AveragedModel, beside the averaged module
MOST_COMPARED = 64  # networks that are compared with each other; a limit for files made to be slow
LONGEST_KEY = 500  # characters
STALE = 'average_model_state'  # of Lightning's StochasticWeightAveraging; its statistics of batch norm are old


class SeveralNetworksError(ConversionError):
    """A checkpoint has several networks, and nothing says which one is meant.

    Attributes:
        networks: 'KEY, architecture, parameters' of each.
    """

    def __init__(self, path: Path, networks: Sequence[str]) -> None:
        super().__init__(f'{path}: {listing("choose one of its networks with --key KEY (key)", networks, most=20)}')
        self.networks = tuple(networks)


class Choice(NamedTuple):
    """The network of a checkpoint.

    Attributes:
        network: the selected one.
        averaged: whether its weights are an average.
        networks: all networks, equal ones included.
        has_average: whether any of them is an average.
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
        key: one of `unique_keys`, or the path or the prefix in it alone; None: the rules decide.

    Raises:
        SeveralNetworksError: several networks are equally good.
        ConversionError: no network is at `key`.
    """
    candidates = list(networks) if key is None else _at(networks, key)
    if key is not None and not candidates:
        known = f'; {listing("it has", rows(networks), most=20)}' if networks else ': it has no TResNet or ResNet-D'
        raise ConversionError(f'{path}: no network at --key {key} (key){known}')
    if not candidates:
        return None
    averages = {id(network): is_average(tree, network) for network in networks}
    fresh = [network for network in candidates if STALE not in network.state.location]
    best = fresh or candidates
    for good in (lambda n: not n.problem, lambda n: n.architecture, lambda n: averages[id(n)] is ema):
        best = [network for network in best if good(network)] or best
    best = _without_equal(best)
    if len(best) > 1:
        listed = set(best)
        raise SeveralNetworksError(path, [row for row, n in zip(rows(networks), networks, strict=True) if n in listed])
    averaged = averages[id(best[0])]
    notes = []
    locations = [network.state.location for network in networks]
    location = best[0].state.location
    taken = printable('.'.join(location), LONGEST_KEY)
    if locations.count(location) > 1:
        taken = unique_keys(networks)[list(networks).index(best[0])]
    if taken:
        kinds = {averages[id(network)] for network in candidates}
        kind = (', the average' if averaged else ', the raw weights') if len(kinds) > 1 else ''
        notes.append(f'took {taken!r} of the file{kind}')
    if averaged and not ema:
        notes.append('the file has no raw weights, only their average')
    return Choice(best[0], averaged, tuple(networks), any(averages.values()), tuple(notes))


def rows(networks: Sequence[Network]) -> list[str]:
    """Return 'KEY, architecture, parameters' of each network."""
    return [
        f'{key}, {network.architecture or network.problem or describe(network.tensors)}, '
        f'{network.parameters:,} parameters'
        for key, network in zip(unique_keys(networks), networks, strict=True)
    ]


def unique_keys(networks: Sequence[Network]) -> list[str]:
    """Return what `--key` takes for each network: PATH:PREFIX, with @ARCHITECTURE or @NUMBER if several share it.

    That happens if two families, or two layouts, are side by side in one dictionary.
    """
    plain = [printable(network.key, LONGEST_KEY) for network in networks]
    named = [f'{key}@{network.architecture}' for key, network in zip(plain, networks, strict=True)]
    plain_counts, named_counts, numbers = Counter(plain), Counter(named), Counter[str]()
    keys = []
    for key, name, network in zip(plain, named, networks, strict=True):
        numbers[key] += 1
        if plain_counts[key] == 1:
            keys.append(key or TOP)
        elif network.architecture and named_counts[name] == 1:
            keys.append(name)
        else:
            keys.append(f'{key}@{numbers[key]}')
    return keys


def _at(networks: Sequence[Network], key: str) -> list[Network]:
    """Return the network with this key, else those with this path and prefix, this path, or this prefix."""
    exact = [network for network, name in zip(networks, unique_keys(networks), strict=True) if name == key]
    key = '' if key == TOP else key.removesuffix('.')
    for same in (
        lambda n: n.key == key,
        lambda n: '.'.join(n.state.location) == key.removesuffix(':'),
        lambda n: n.prefix == f'{key.removeprefix(":")}.',
    ):
        found = exact or [network for network in networks if same(network)]
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
        if len(kept) >= MOST_COMPARED or not any(_same(network, other) for other in kept):
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
