"""Find TResNets and ResNet-Ds in a checkpoint, in any container and with any prefix before their names.

The steps: containers of a file -> state dicts -> names without wrappers -> prefixes, by the distinctive names of the
layouts -> timm's names. `choose.py` selects one of several networks.
"""

import dataclasses
import functools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from tresnet_jax.checkpoints.checkpoint import COUNTER
from tresnet_jax.checkpoints.layout import Layout, Tensor, as_tensor
from tresnet_jax.checkpoints.records import Record, Unreadable, children, walk
from tresnet_jax.checkpoints.stored import StoredTensor
from tresnet_jax.checkpoints.structure import STATISTICS, Shape, architecture_shape, differences, tensors_shape
from tresnet_jax.checkpoints.timm_layouts import TIMM_LAYOUTS
from tresnet_jax.variants import ARCHITECTURES

MOST_NESTED = 12  # containers within containers
# Limits for files made to be slow: networks in a file, those of one layout in a dictionary, and comparisons of
# a name, or of a container, with a network. A checkpoint of 20 networks needs some 100,000.
MOST_IN_ALL, MOST_NETWORKS = 1000, 64
MOST_COMPARISONS = 4_000_000

# Segments that torch.compile, FSDP and activation checkpointing insert into names, at any place.
WRAPPERS = frozenset(('_orig_mod', '_fsdp_wrapped_module', '_checkpoint_wrapped_module'))
# Last segments of tensors that are not weights: thop's numbers of operations, the averager's counter, blur filters.
NOT_WEIGHTS = {
    'total_ops': 'counters of a profiler',
    'total_params': 'counters of a profiler',
    'n_averaged': 'counters of an averager',
    'filt': 'blur filters, which are constants',
}
AVERAGER = NOT_WEIGHTS['n_averaged']
SCALAR_COUNTERS = ('step', 'steps', 'initted', 'updates')  # of averagers, as the last segment
BUFFER_PREFIX = 'ema_'  # of mmcv 1: 'ema_backbone_stem_0_weight' holds the raw weight of 'backbone.stem.0.weight'


class State(NamedTuple):
    """A dictionary of tensors, or the tensors of a pickled module.

    Attributes:
        location: the keys that lead to it from the top of the file.
        tensors: name -> tensor.
        modules: name of a submodule -> its record; empty for a dictionary.
    """

    location: tuple[str, ...]
    tensors: dict[str, Tensor]
    modules: dict[str, Record]


@dataclasses.dataclass(frozen=True, eq=False)
class Network:
    """A network of ours, or one that resembles ours, in a checkpoint.

    Attributes:
        state: the dictionary or module that holds it.
        prefix: what precedes the names of the layout, with a dot at the end, and without wrappers; '' for nothing.
        layout: how the tensors are named.
        tensors: timm's key -> tensor, of the body and of the classifier under timm's name.
        keys: timm's key -> key in the state, for tensors that are only renamed.
        own: the keys in the state of all tensors that are not of another network.
        counters: timm's key of a counter of batch norm -> its value.
        beside: key in the state, without wrappers -> tensor that belongs neither to the body nor to the classifier.
        left_out: 'counters of a profiler', ... -> number of tensors.
        problem: which other network it is, as part of a sentence; None if all its names are known.
    """

    state: State
    prefix: str
    layout: Layout
    tensors: dict[str, Tensor]
    keys: dict[str, str]
    own: tuple[str, ...]
    counters: dict[str, Tensor]
    beside: dict[str, Tensor]
    left_out: dict[str, int]
    problem: str | None = None

    @property
    def key(self) -> str:
        """'PATH', 'PATH:PREFIX' or ':PREFIX': what `--key` takes."""
        path = '.'.join(self.state.location)
        return f'{path}:{self.prefix.removesuffix(".")}' if self.prefix else path

    @functools.cached_property
    def shape(self) -> Shape | None:
        """The numbers in which architectures differ."""
        return None if self.problem else tensors_shape(self.tensors)

    @functools.cached_property
    def architecture(self) -> str | None:
        """The architecture that has exactly these keys and shapes, the classifier aside."""
        shape = self.shape
        if shape is None or any(differences(self.tensors, shape)):
            return None
        return next((name for name in ARCHITECTURES if architecture_shape(name) == shape), None)

    @functools.cached_property
    def parameters(self) -> int:
        """Number of parameters, without statistics."""
        return sum(math.prod(value.shape) for key, value in self.tensors.items() if not key.endswith(STATISTICS))


def find(tree: Any, layouts: Sequence[Layout] = TIMM_LAYOUTS) -> list[Network]:
    """Return all networks of a checkpoint, those with fewer containers around them first.

    Args:
        tree: what `torch_file.load` returns, or a dictionary of arrays or tensors, in any containers.
        layouts: the layouts to look for.

    Raises:
        Unreadable: there are too many, or finding them would take minutes.
    """
    states = list(state_dicts(tree))
    networks: list[Network] = []
    for state in states:
        networks += networks_of(state, layouts)
        if len(networks) > MOST_IN_ALL:
            raise Unreadable(f'holds more than {MOST_IN_ALL} networks')
    return networks or _nested(states, layouts)


def _nested(states: Sequence[State], layouts: Sequence[Layout]) -> list[Network]:
    """Return the networks whose names are nested: {'layer1': {'0': {'conv1': {'weight': ...}}}}."""
    containers = {state.location[:depth] for state in states for depth in range(len(state.location) + 1)}
    joined = networks_of(_joined(states, ()), layouts)
    _check_work(len(containers), len(joined))
    # The dictionary that contains all of a network, but not what is next to it, such as an optimizer.
    owners = [
        max((c for c in containers if network.prefix.startswith(''.join(f'{part}.' for part in c))), key=len)
        for network in joined
    ]
    return [network for c in dict.fromkeys(owners) for network in networks_of(_joined(states, c), layouts)]


def _check_work(names: int, networks: int) -> None:
    """Raise Unreadable if each of these names cannot be compared with each network in seconds."""
    if names * networks > MOST_COMPARISONS:
        raise Unreadable(f'has {networks} networks, or their first layers, among {names} names: too many to tell apart')


def _joined(states: Sequence[State], location: tuple[str, ...]) -> State:
    """Return all tensors within a dictionary, at any depth, as one dictionary."""
    depth = len(location)
    within = [state for state in states if state.location[:depth] == location]
    tensors = {'.'.join((*state.location[depth:], key)): t for state in within for key, t in state.tensors.items()}
    return State(location, tensors, {})


def state_dicts(tree: Any) -> Iterator[State]:
    """Return each dictionary with tensors, and each pickled module as its `state_dict()`, in the order of `walk`.

    A list of pairs (name, tensor) counts as a dictionary.
    """
    within: set[int] = set()  # submodules of modules that were returned
    for location, container in walk(tree):
        if len(location) > MOST_NESTED:
            return
        if isinstance(container, Record) and _is_module(container):
            if id(container) not in within:
                state = State(location, {}, {})
                _add_module(state, '', container, within)
                yield state
            continue
        items = container.mapping if isinstance(container, Record) else container
        if isinstance(items, list | tuple) and all(isinstance(pair, tuple) and len(pair) == 2 for pair in items):
            items = {name: value for name, value in items if isinstance(name, str)}
        if not isinstance(items, dict):
            continue
        tensors = {key: t for key, value in items.items() if isinstance(key, str) and (t := _tensor(value)) is not None}
        if tensors:
            yield from _without_buffers(State(location, tensors, {}))


def _tensor(value: Any) -> Tensor | None:
    """Return a tensor, an array, or the array of a pair (name, array), as Paddle writes nested dictionaries."""
    if isinstance(value, tuple) and len(value) == 2 and isinstance(value[0], str):
        value = value[1]
    if isinstance(value, np.ndarray):
        return as_tensor(value)
    return value if isinstance(value, StoredTensor) else None


def _is_module(record: Record) -> bool:
    return '_modules' in record.attributes or record.class_name.startswith('__torch__.')


def _add_module(state: State, prefix: str, record: Record, within: set[int]) -> None:
    """Add what `state_dict()` of a module returns; a module that is shared is added once."""
    if id(record) in within:
        return
    within.add(id(record))
    state.modules[prefix.removesuffix('.')] = record
    attributes = record.attributes
    if '_modules' in attributes:
        skipped = {name for _, name in children(attributes.get('_non_persistent_buffers_set')) if isinstance(name, str)}
        buffers = {key: value for key, value in _items(attributes.get('_buffers')) if key not in skipped}
        members = {**dict(_items(attributes.get('_parameters'))), **buffers, **dict(_items(attributes['_modules']))}
    else:  # TorchScript
        members = attributes
    for name, value in members.items():
        tensor = _tensor(value)
        if tensor is not None:
            state.tensors[f'{prefix}{name}'] = tensor
        elif isinstance(value, Record) and _is_module(value):
            _add_module(state, f'{prefix}{name}.', value, within)


def _items(value: Any) -> Iterator[tuple[str, Any]]:
    items = value.mapping if isinstance(value, Record) else value
    return ((key, item) for key, item in items.items() if isinstance(key, str)) if isinstance(items, dict) else iter(())


def _without_buffers(state: State) -> Iterator[State]:
    """Return the plain weights and, from checkpoints of mmcv 1, those of its averager's buffers too."""
    names = {BUFFER_PREFIX + key.replace('.', '_'): key for key in state.tensors if '.' in key}
    buffers = {names[key]: value for key, value in state.tensors.items() if key in names}
    plain = {key: value for key, value in state.tensors.items() if key not in names}
    yield state._replace(tensors=plain)
    if buffers:
        yield State((*state.location, BUFFER_PREFIX + '*'), {**plain, **buffers}, {})


def clean(key: str) -> str:
    """'module._orig_mod.layer1._checkpoint_wrapped_module.0.conv1.weight' -> 'module.layer1.0.conv1.weight'."""
    return '.'.join(part for part in key.split('.') if part not in WRAPPERS)


def networks_of(state: State, layouts: Sequence[Layout]) -> list[Network]:
    """Return the networks of one dictionary or module; their order is that of the layouts.

    Raises:
        Unreadable: finding them would take minutes.
    """
    names: dict[str, str] = {}  # without wrappers -> as stored
    for key in state.tensors:
        names[key if clean(key) in names else clean(key)] = key
    found = [(prefix, layout) for layout in layouts for prefix in _prefixes(names, layout)]
    # The body of a TResNet is a layout of its own, and within a whole TResNet it is not another network.
    found = [
        (prefix, layout)
        for prefix, layout in found
        if not any(len(p) < len(prefix) and _is_member(prefix + layout.signature[0], p, other) for p, other in found)
    ]
    if not found:
        return []
    _check_work(len(names), len(found))
    parts = [_Parts() for _ in found]
    for name in names:
        _assign(name, state.tensors[names[name]], found, parts)
    return [_network(state, names, *network, part) for network, part in zip(found, parts, strict=True)]


def _prefixes(names: Mapping[str, Any], layout: Layout) -> list[str]:
    """Return what precedes the names of a layout, once for each network."""
    first, *others = layout.signature
    prefixes = [name.removesuffix(first) for name in names if name == first or name.endswith(f'.{first}')]
    prefixes = [prefix for prefix in prefixes[:MOST_NETWORKS] if all(prefix + other in names for other in others)]
    _check_work(len(names), len(prefixes))
    return [
        prefix
        for prefix in prefixes
        if not any(part in name for part in layout.absent for name in names if name.startswith(prefix))
    ]


@dataclasses.dataclass
class _Parts:
    """The tensors of a network and those beside it, by name without wrappers; `names` has all of these names."""

    names: list[str] = dataclasses.field(default_factory=list)
    body: dict[str, Tensor] = dataclasses.field(default_factory=dict)
    counters: dict[str, Tensor] = dataclasses.field(default_factory=dict)
    beside: dict[str, Tensor] = dataclasses.field(default_factory=dict)
    left_out: dict[str, int] = dataclasses.field(default_factory=dict)


def _assign(name: str, value: Tensor, found: list[tuple[str, Layout]], parts: list[_Parts]) -> None:
    """Give a tensor to the networks that it belongs to, or that it is next to."""
    members = [i for i, (prefix, layout) in enumerate(found) if _is_member(name, prefix, layout)]
    # A tensor under the prefix of one network is not beside another one.
    nearest = members or [i for i, (prefix, _) in enumerate(found) if prefix and name.startswith(prefix)]
    longest = max((len(found[i][0]) for i in nearest), default=0)
    leaf = name.rpartition('.')[2]
    for i in nearest or range(len(found)):
        prefix, part = found[i][0], parts[i]
        if nearest and len(prefix) < longest:
            continue
        part.names.append(name)
        what = counter_of(name, value)
        if what:
            part.left_out[what] = part.left_out.get(what, 0) + 1
        elif leaf == COUNTER:
            part.counters[name] = value
        elif members:
            part.body[name[len(prefix) :]] = value
        else:
            part.beside[name] = value


def counter_of(name: str, value: Tensor) -> str | None:
    """Return what a tensor that is not a weight is: 'counters of a profiler', ...; None for a weight."""
    leaf = name.rpartition('.')[2]
    is_scalar = leaf in SCALAR_COUNTERS and math.prod(value.shape) == 1
    return NOT_WEIGHTS.get(leaf, AVERAGER if is_scalar else None)


def _is_member(name: str, prefix: str, layout: Layout) -> bool:
    return name.startswith(prefix) and layout.member(name[len(prefix) :])


def _network(state: State, names: dict[str, str], prefix: str, layout: Layout, parts: _Parts) -> Network:
    """Rename the tensors of a network to timm's names."""
    problem, tensors = None, parts.body
    try:
        tensors = layout.to_timm(parts.body)
        if len(tensors) < len(parts.body):
            problem = f"{layout.name} names that two tensors share under timm's names; another network"
    except ValueError as error:
        problem = str(error)
    stored = {id(value): prefix + name for name, value in parts.body.items()}
    keys = {key: names[stored[id(value)]] for key, value in tensors.items() if id(value) in stored}
    counters = {}
    for key in keys:
        owner, _, leaf = key.rpartition('.')
        if leaf == 'running_var':
            counter = f'{stored[id(tensors[key])].rpartition(".")[0]}.{COUNTER}'
            if counter in parts.counters:
                counters[f'{owner}.{COUNTER}'] = parts.counters[counter]
    own = tuple(names[name] for name in parts.names)
    return Network(state, prefix, layout, tensors, keys, own, counters, parts.beside, parts.left_out, problem)
