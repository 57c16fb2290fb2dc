"""Read a file, files with an index, or a training run, and find the network in it. No code in a file is ever run."""

import itertools
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import ml_dtypes  # noqa: F401  teaches NumPy the name 'bfloat16', which safetensors needs
import numpy as np
import safetensors

from tresnet_jax.checkpoints import config_file, other_files, shards, torch_file, twins
from tresnet_jax.checkpoints.archive import ALWAYS_ALLOWED, MOST_EXPANDED
from tresnet_jax.checkpoints.checkpoint import FLAX_FORMAT, Checkpoint, Stated
from tresnet_jax.checkpoints.choose import Choice, choose, rows
from tresnet_jax.checkpoints.find import State, find, state_dicts
from tresnet_jax.checkpoints.heads import classifiers_elsewhere
from tresnet_jax.checkpoints.layout import Layout, Tensor
from tresnet_jax.checkpoints.records import Record, Unreadable, children, described, printable
from tresnet_jax.checkpoints.run import CHECKPOINTS, is_run, read_run
from tresnet_jax.checkpoints.stated import class_name_lists, data_config, is_number, task
from tresnet_jax.checkpoints.timm_layouts import TIMM_LAYOUTS
from tresnet_jax.errors import ConversionError, reason
from tresnet_jax.files import check_regular
from tresnet_jax.formats import CHECKPOINT
from tresnet_jax.variants import CLASSIFICATION

MOST_TENSORS = 100_000  # of a safetensors file; a ResNet-200-D has 1,232, and each takes a kilobyte of memory
TRAINING_KEYS = ('epoch', 'metric', 'arch')
# Where a file without a network of ours has the tensors to describe, in this order.
USUAL_KEYS = (('state_dict_ema',), ('model_ema',), ('state_dict',), ('model',), ())


def read(
    path: str | Path,
    *,
    ema: bool = True,
    step: int | Literal['best', 'latest'] | None = None,
    key: str | None = None,
    layouts: Sequence[Layout] = TIMM_LAYOUTS,
) -> Checkpoint:
    """Read the network in a checkpoint: a file, files with an index, or the folder of a training run.

    `convert.read` is this function with the layouts of other libraries, and describes the other arguments.

    Args:
        path, ema, step, key: see `convert.read`.
        layouts: the layouts to look for.

    Raises:
        ConversionError: see `convert.read`.
    """
    path = Path(path)
    if not os.path.exists(path):  # False for a name that is too long, where `exists` of a path raises OSError
        raise ConversionError(f'{path}: no such file')
    if is_run(path):
        if key is not None:
            raise ConversionError(f'{path}: --key (key) is for files with several networks, and this is a training run')
        return read_run(path, ema=ema, step='best' if step is None else step)
    source = path
    if path.is_dir():
        source = shards.file_of_folder(path)
        if source is None:
            below = [f'{CHECKPOINTS}/{name}' for name in shards.checkpoint_files(path / CHECKPOINTS)]
            found = shards.checkpoint_files(path) or below
            files = ', '.join(printable(name, 60) for name in found[:5])
            usual = (
                f'not a file; give one of its files ({files})'
                if files
                else 'not a file; give the checkpoint itself, or the folder of a training run that has saved one '
                f'(it has neither {CHECKPOINTS}/ nor {shards.FOLDER_FILES[0]})'
            )
            raise ConversionError(f'{path}: {other_files.of_folder(path) or usual}')
    if step is not None:
        raise ConversionError(f'{path}: --step (step) is for the folder of a training run, and this is a file')
    content = _read_index(source) if shards.is_index(source) else _read_file(source)
    if content.metadata.get('format') == FLAX_FORMAT:
        if key is not None:
            raise ConversionError(f'{path}: --key (key) is for files with several networks, and this file has one')
        CHECKPOINT.check(path, content.metadata)
        return Checkpoint(path, content.container, content.tree, content.metadata)
    try:
        networks = find(content.tree, layouts)
    except Unreadable as error:
        raise ConversionError(f'{path}: {error}') from None
    choice = choose(path, content.tree, networks, ema=ema, key=key)
    if choice is None or choice.network.architecture is None:
        line = other_files.of_structure(content.tree)
        if line:
            raise ConversionError(f'{path}: {line}')
    if choice is not None:
        return _with_network(path, source, content, choice)
    state = _largest_state(path, content.tree)
    return Checkpoint(path, content.container, _arrays(state.tensors), content.metadata, _joined(state.location))


class _Content(NamedTuple):
    """What a file holds: the container, the tree of its values, the metadata of a safetensors file, and its bytes."""

    container: str
    tree: Any
    metadata: dict[str, str]
    size: int


def _read_file(path: Path) -> _Content:
    shards.check_not_a_shard(path)
    check_regular(path)
    try:
        with path.open('rb') as file:
            line = other_files.of_bytes(file.read(1024), path.name)
    except OSError as error:
        raise ConversionError(f'{path}: cannot be read: {reason(error)}') from error
    return _read_safetensors(path) if line == other_files.SAFETENSORS else _read_torch(path)


def _read_torch(path: Path) -> _Content:
    return _Content('torch', torch_file.load(path), {}, path.stat().st_size)


def _read_safetensors(path: Path) -> _Content:
    try:
        with safetensors.safe_open(path, framework='np') as file:
            if (count := len(file.keys())) > MOST_TENSORS:
                raise ConversionError(f'{path}: has {count:,} tensors; expected at most {MOST_TENSORS:,}')
            return _Content('safetensors', file.get_tensors(), dict(file.metadata() or {}), path.stat().st_size)
    except ConversionError:
        raise
    except AttributeError as error:  # of safetensors, which looks for the dtype in NumPy
        raise ConversionError(
            f'{path}: has tensors of a dtype that NumPy lacks ({reason(error)}); save them in float32'
        ) from error
    # ValueError: more dimensions than NumPy's arrays have.
    except (safetensors.SafetensorError, TypeError, ValueError, MemoryError, OSError) as error:
        raise ConversionError(f'{path}: cannot be read as safetensors: {reason(error)}; fetch it again') from error


def _read_index(path: Path) -> _Content:
    """Read all files of an index as one dictionary of tensors."""
    tree: dict[str, Any] = {}
    container, size = 'safetensors', 0
    for file, keys in shards.read_index(path).items():
        is_safetensors = file.suffix == '.safetensors'
        content = _read_safetensors(file) if is_safetensors else _read_torch(file)
        container, size = content.container, size + content.size
        tensors = content.tree if isinstance(content.tree, dict) else {}
        missing = [key for key in keys if key not in tensors]
        if missing:
            raise ConversionError(f'{path}: {file.name} lacks {printable(missing[0], 80)}; fetch both files again')
        tree |= {key: tensors[key] for key in keys}
    return _Content(container, tree, {}, size)


def _with_network(path: Path, source: Path, content: _Content, choice: Choice) -> Checkpoint:
    network, tree = choice.network, content.tree
    if network.problem:
        raise ConversionError(f'{path}: holds {network.problem}')
    needed = sum(math.prod(tensor.shape) * tensor.dtype.itemsize for tensor in network.tensors.values())
    if needed > max(ALWAYS_ALLOWED, MOST_EXPANDED * content.size):
        raise ConversionError(
            f'{path}: the tensors of its network repeat elements, or are compressed: {needed:,} bytes in a file of '
            f'{content.size:,}; save it again, without compression'
        )
    stated, notes = Stated(class_name_lists(tree)), choice.notes
    if path.suffix == '.pdema':
        notes += ('PaddleClas stores the raw weights in .pdema files, and the average in .pdparams',)
    if network.architecture is not None:
        function = twins.check_function(source, network, tree)
        stated = _stated(tree, network.architecture, function)
        notes += function.notes
    tensors = {key: network.state.tensors[key] for key in network.own}
    if network.architecture is not None:
        joined = classifiers_elsewhere(tree, choice)
        tensors |= joined.tensors
        notes += joined.notes
    return Checkpoint(
        path,
        content.container,
        _arrays(tensors),
        content.metadata,
        _joined(network.state.location),
        choice.has_average,
        _training(dict(children(tree))),
        network.layout,
        network.prefix,
        tuple(rows(choice.networks)),
        notes,
        stated,
    )


def _training(top: dict[str, Any]) -> dict[str, str | int | float]:
    """Return the values of a training script that can be shown in a line."""
    values = {key: top[key] for key in TRAINING_KEYS if key in top}
    values = {key: printable(value, 80) if isinstance(value, str) else value for key, value in values.items()}
    return {key: value for key, value in values.items() if isinstance(value, str | float) or is_number(value)}


def _stated(tree: Any, architecture: str, function: twins.Function) -> Stated:
    """Return what a checkpoint states besides its tensors: in the file, or else in the config.json next to it."""
    names, images, saved = class_name_lists(tree), data_config(tree, architecture), function.saved
    if saved is not None:
        names += (saved.label_names,) if saved.label_names else ()
        images = images or config_file.images(saved)
    outputs = task(tree) or (saved.task if saved else CLASSIFICATION)
    found = function.abn_slope, function.global_pool, function.output_stride, function.settled_by
    return Stated(names, images, *found, outputs)


def _largest_state(path: Path, tree: Any) -> State:
    """Return the dictionary to describe in a checkpoint without a network of ours."""
    states = {state.location: state for state in state_dicts(tree)}
    if not states and isinstance(tree, dict) and not tree:  # an empty safetensors file
        return State((), {}, {})
    if not states:
        found = ', '.join(map(_shown, itertools.islice(children(tree), 5))) or described(tree)
        raise ConversionError(f'{path}: loads, but holds no state dict of tensors (it has {found})')
    usual = next((states[location] for location in USUAL_KEYS if location in states), None)
    return usual or max(states.values(), key=lambda state: len(state.tensors))


def _shown(member: tuple[str, Any]) -> str:
    name, value = member
    kind = f': {printable(value.class_name, 60)}' if isinstance(value, Record) else ''
    return f'{printable(name, 40)}{kind}'


def _arrays(tensors: dict[str, Tensor]) -> dict[str, np.ndarray]:
    """Return views of a mapped file where the tensors are stored as they are."""
    return {key: value.numpy() for key, value in tensors.items()}


def _joined(location: tuple[str, ...]) -> str | None:
    return '.'.join(location) or None
