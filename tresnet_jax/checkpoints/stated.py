"""What a training script stores besides its tensors: the network, names of the classes, how images are prepared."""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeGuard

import numpy as np

from tresnet_jax.checkpoints.records import Record, walk
from tresnet_jax.checkpoints.stored import StoredTensor
from tresnet_jax.data.transforms import (
    INTERPOLATIONS,
    EvalTransform,
    create_transform,
    for_channels,
    resolve_data_config,
)
from tresnet_jax.errors import reason
from tresnet_jax.variants import TASKS, pretrained_config, split_name

MOST_CLASSES = 1_000_000
LARGEST_EDGE = 99_999  # pixels of an image
MOST_CHANNELS = 65_536  # of an image
SMALLEST_CROP_PCT = 0.01  # an image is resized to the crop's edge over crop_pct
MOST_NESTED = 3  # containers around the names; timm has them at the top, OpenMMLab in meta.dataset_meta
# idx_to_class, id2label, label2id, class_to_idx, idx2class, ...; class_names, classnames, label_names, ...
NAMES = re.compile(
    r'(idx|index|int|id|i)_?(2|to)_?(class|label|name|category)|(class|label|name|category)_?(2|to)_?(idx|index|int|id|i)|'
    r'(class|label|target|category)_?names?|classes_?|categories|names|vocab',
    re.I,
)
TORCHVISION_SIZES = ('val_crop_size', 'val_resize_size')
ARGUMENTS = ('args', 'hyper_parameters', 'config')
NETWORK = ('arch', 'model', 'model_name')  # timm's keys, at the top and in its arguments, and a usual one of Lightning
# Arguments that timm's script always has -> those of timm's create_model; its `model_kwargs` have the latter's names.
SCRIPT_OPTIONS = {'gp': 'global_pool', 'bn_eps': 'bn_eps'}


def class_name_lists(tree: Any) -> tuple[tuple[str, ...], ...]:
    """Return all lists of class names in a checkpoint, in the order of the classes' indices.

    A list can be stored as one, or as a dictionary from index to name or from name to index.
    """
    found: dict[tuple[str, ...], None] = {}
    for path, container in walk(tree):
        if len(path) > MOST_NESTED:
            break
        for key, value in _members(container).items():
            names = listed_names(value) if isinstance(key, str) and NAMES.fullmatch(key) else None
            if names:
                found.setdefault(names)
    return tuple(found)


def _members(container: Any) -> dict[Any, Any]:
    if isinstance(container, Record):
        return {**container.attributes, **(container.mapping or {})}
    return container if isinstance(container, dict) else {}


def listed_names(value: Any, count: int | None = None) -> tuple[str, ...] | None:
    """Return names from a list or array, {0: name}, {'0': name} or {name: 0}; None for anything else.

    None too for the names that transformers invents, LABEL_0 and so on.

    Args:
        value: of a checkpoint or a JSON document.
        count: number of classes. If a dictionary has the last of them, its gaps get their index as their name; timm
            allows gaps. None: unknown, and there must be no gaps.
    """
    if isinstance(value, StoredTensor):
        value = _texts(value.numpy()) if value.dtype.kind == 'U' and len(value.shape) == 1 else None
    elif isinstance(value, Record) and value.class_name == 'numpy.ndarray':  # of objects, as in scikit-learn's encoders
        value = value.state[-1] if type(value.state) is tuple and value.state else None
    elif isinstance(value, Record):
        value = value.mapping
    if isinstance(value, dict) and value:
        by_index = {_index(key): name for key, name in value.items()}
        if None in by_index:
            by_index = {_index(index): name for name, index in value.items()}
        if count is not None and len(by_index) < count <= MOST_CLASSES and count - 1 in by_index:
            by_index = {index: str(index) for index in range(count)} | by_index
        value = [by_index.get(index) for index in range(max(len(value), len(by_index)))]
    if not isinstance(value, list | tuple) or not value or not all(isinstance(name, str) for name in value):
        return None
    return None if all(name == f'LABEL_{index}' for index, name in enumerate(value)) else tuple(value)


def _texts(array: np.ndarray) -> list[str] | None:
    try:
        return array.tolist()
    except (ValueError, SystemError):  # NumPy's and Python's errors for numbers that are not characters
        return None


def _index(value: Any) -> int | None:
    if type(value) is int:
        return value
    return int(value) if isinstance(value, str) and value.isdecimal() and len(value) < 8 else None


def data_config(tree: Any, architecture: str) -> dict[str, Any] | None:
    """Return how a training script prepared the images it evaluated, as arguments of `create_transform`.

    timm's script stores its arguments, of which None or '' means the value of the model's tag. The
    reference scripts of torchvision store two sizes and the interpolation.

    Args:
        tree: the checkpoint.
        architecture: the architecture, for the values that the arguments leave open.

    Returns:
        The arguments; None if the checkpoint states nothing, or nothing usable, about images.
    """
    for arguments in _arguments(tree):
        stated = _timm(arguments)
        stated = _torchvision(arguments) if stated is None else stated
        if stated is None:
            continue
        config = {**resolve_data_config(_row(arguments.get('model'), architecture)), **stated}
        config = for_channels(config, _channels(arguments))
        try:
            transform_of(config)
        except ValueError:
            continue
        return config
    return None


def transform_of(config: Mapping[str, Any]) -> EvalTransform:
    """Return the transform of arguments that a file states.

    Args:
        config: arguments of `create_transform`.

    Raises:
        ValueError: an argument is unknown, of another type or out of range, or would need enormous images.
    """
    try:
        size = config.get('input_size')
        if isinstance(size, list | tuple) and len(size) == 3 and not is_channels(size[0]):
            raise ValueError(f'input_size must have 1 to {MOST_CHANNELS} channels')
        transform = create_transform(**config)
    except TypeError as error:
        raise ValueError(reason(error)) from None
    if not all(map(is_number, (*transform.mean, *transform.std, transform.crop_pct))):
        raise ValueError('mean, std and crop_pct must be finite numbers')
    if max(transform.height, transform.width) > LARGEST_EDGE or transform.crop_pct < SMALLEST_CROP_PCT:
        raise ValueError(f'an edge must be at most {LARGEST_EDGE}, and crop_pct at least {SMALLEST_CROP_PCT}')
    return transform


def network_names(tree: Any) -> tuple[str, ...]:
    """Return the names of the network that a training script states, such as 'resnet50d.ra2_in1k'."""
    holders = (_members(tree), *_arguments(tree))
    found = (holder.get(key) for holder in holders for key in NETWORK)
    return tuple(dict.fromkeys(name for name in found if isinstance(name, str)))


def network_options(tree: Any) -> dict[str, Any] | None:
    """Return the arguments of `create_model` that timm's script used; None if the checkpoint does not state them.

    Arguments that are None are left out. The values are unchecked.
    """
    for arguments in _arguments(tree):
        if SCRIPT_OPTIONS.keys() <= arguments.keys():
            options = {name: arguments[key] for key, name in SCRIPT_OPTIONS.items()}
            options |= _members(arguments.get('model_kwargs'))
            return {key: value for key, value in options.items() if isinstance(key, str) and value is not None}
    return None


def task(tree: Any) -> str | None:
    """Return what the outputs are by the arguments of timm's script, one of `TASKS`; None if they do not state it."""
    found = [arguments.get('task') for arguments in _arguments(tree)]
    return next((text for text in found if isinstance(text, str) and text in TASKS), None)


def _arguments(tree: Any) -> Iterator[dict[Any, Any]]:
    top = _members(tree)
    for key in ARGUMENTS:
        members = _members(top.get(key))
        if members:
            yield members


def _row(model: Any, architecture: str) -> Any:
    """Return the row that supplies the values left open: that of the model's name if it is the same architecture."""
    try:
        if isinstance(model, str) and split_name(model)[0] == architecture:
            return pretrained_config(model)
    except ValueError:
        pass
    return pretrained_config(architecture)


def _timm(arguments: dict[Any, Any]) -> dict[str, Any] | None:
    if 'img_size' not in arguments and 'input_size' not in arguments and 'crop_pct' not in arguments:
        return None
    stated: dict[str, Any] = {}
    size, edge = arguments.get('input_size'), arguments.get('img_size')
    if is_size(size):
        stated['input_size'] = tuple(size)
    elif is_edge(edge):
        stated['input_size'] = (3, edge, edge)
    if is_number(arguments.get('crop_pct')):
        stated['crop_pct'] = arguments['crop_pct']
    for key in ('mean', 'std'):
        values = arguments.get(key)
        if is_numbers(values) and len(values) in (1, _channels(arguments)):
            stated[key] = tuple(values)
    if interpolation := _interpolation(arguments):
        stated['interpolation'] = interpolation
    if arguments.get('crop_mode'):
        stated['crop_mode'] = arguments['crop_mode']
    return stated


def _channels(arguments: dict[Any, Any]) -> int:
    """Return the number of channels that timm's arguments give; 3 if none."""
    size, channels = arguments.get('input_size'), arguments.get('in_chans')
    if is_size(size):
        return size[0]
    return channels if is_channels(channels) else 3


def is_size(value: Any) -> TypeGuard[Sequence[int]]:
    """Return whether a value is (channels, height, width)."""
    return (
        isinstance(value, list | tuple) and len(value) == 3 and is_channels(value[0]) and all(map(is_edge, value[1:]))
    )


def is_numbers(value: Any) -> TypeGuard[Sequence[float]]:
    """Return whether a value is a list or a tuple of finite numbers."""
    return isinstance(value, list | tuple) and len(value) > 0 and all(map(is_number, value))


def _torchvision(arguments: dict[Any, Any]) -> dict[str, Any] | None:
    crop, resized = (value if is_edge(value := arguments.get(key)) else 0 for key in TORCHVISION_SIZES)
    if not crop or not resized:
        return None
    return {
        'input_size': (3, crop, crop),
        'crop_pct': crop / resized,
        'interpolation': _interpolation(arguments) or 'bilinear',
        'mean': (0.485, 0.456, 0.406),
        'std': (0.229, 0.224, 0.225),
    }


def _interpolation(arguments: dict[Any, Any]) -> str | None:
    value = arguments.get('interpolation')
    return value if isinstance(value, str) and value in INTERPOLATIONS else None


def is_edge(value: Any) -> bool:
    """Return whether a value can be the height or the width of images in pixels."""
    return type(value) is int and 0 < value <= LARGEST_EDGE


def is_channels(value: Any) -> TypeGuard[int]:
    """Return whether a value can be the number of channels of images."""
    return type(value) is int and 0 < value <= MOST_CHANNELS


def is_number(value: Any) -> bool:
    """Return whether a value is a finite number. Integers beyond 64 bits do not count: a float may not hold them."""
    return abs(value) < 2**63 if type(value) is int else type(value) is float and math.isfinite(value)
