"""The metadata of our own files and runs, read and checked; `write.save_flax` and `run.save_description` write it."""

import json
import math
import reprlib
from collections.abc import Callable
from typing import Any

from tresnet_jax.checkpoints.checkpoint import COUNTER, Checkpoint
from tresnet_jax.checkpoints.names import FLOATS
from tresnet_jax.checkpoints.stated import transform_of
from tresnet_jax.errors import ConversionError, reason
from tresnet_jax.files import LARGEST_JSON
from tresnet_jax.labels import are_names
from tresnet_jax.models.pooling import POOL_TYPES
from tresnet_jax.variants import CLASSIFICATION, RESNETD, TASKS


def source_dtypes(checkpoint: Checkpoint) -> dict[str, str]:
    """Return timm key -> dtype of the tensor in the PyTorch checkpoint; empty if unknown.

    Raises:
        ConversionError: the field is not an object of dtype names.
    """
    return _entries(checkpoint, 'source_dtypes', lambda dtype: dtype in FLOATS, f'one of {", ".join(FLOATS)}')


def counters(checkpoint: Checkpoint) -> dict[str, int]:
    """Return timm key -> `num_batches_tracked`; empty if unknown.

    Raises:
        ConversionError: the field is not an object of integers that fit torch's int64.
    """
    return _entries(checkpoint, COUNTER, lambda n: type(n) is int and -(2**63) <= n < 2**63, 'an integer of 64 bits')


def abn_slope(checkpoint: Checkpoint) -> float | None:
    """Return the slope of the leaky ReLUs; None: timm's.

    Raises:
        ConversionError: the field is not a finite number.
    """
    text = checkpoint.metadata.get('abn_slope')
    if not text:
        return None
    try:
        slope = float(text)
    except ValueError:
        slope = math.nan
    if not math.isfinite(slope):
        raise _error(checkpoint, 'abn_slope', f'must be a finite number, got {reprlib.repr(text)}')
    return slope


def global_pool(checkpoint: Checkpoint) -> str | None:
    """Return the pooling before the classifier; None: timm's.

    Raises:
        ConversionError: the field is not the name of a pooling.
    """
    pool = checkpoint.metadata.get('global_pool') or None
    if pool is not None and pool not in POOL_TYPES:
        raise _error(checkpoint, 'global_pool', f'must be one of {", ".join(POOL_TYPES[1:])}, got {reprlib.repr(pool)}')
    return pool


def output_stride(checkpoint: Checkpoint) -> int | None:
    """Return pixels of the image per pixel of the last feature map; None: 32.

    Raises:
        ConversionError: the field is not an output stride.
    """
    text = checkpoint.metadata.get('output_stride')
    if text and text not in map(str, RESNETD.output_strides):
        raise _error(checkpoint, 'output_stride', f'must be 8, 16 or 32, got {reprlib.repr(text)}')
    return int(text) if text else None


def data_config(checkpoint: Checkpoint) -> dict[str, Any] | None:
    """Return how images are prepared, as arguments of `create_transform`; None if unknown.

    Raises:
        ConversionError: the field is not an object of valid arguments.
    """
    config = _object(checkpoint, 'data_config')
    if not config:
        return None
    try:
        return transform_of(config).data_config
    except ValueError as error:
        raise _error(checkpoint, 'data_config', f'cannot work: {reason(error)}') from error


def label_names(checkpoint: Checkpoint) -> tuple[str, ...] | None:
    """Return the name of each class; None if unknown.

    Raises:
        ConversionError: the field is not a list of names.
    """
    names = _json(checkpoint, 'label_names', [])
    if not are_names(names):
        raise _error(checkpoint, 'label_names', 'is not a list of names')
    return tuple(names) or None


def task(checkpoint: Checkpoint) -> str:
    """Return what the outputs are, one of `variants.TASKS`; files without the field have one class per image.

    Raises:
        ConversionError: the field is none of them.
    """
    found = checkpoint.metadata.get('task') or CLASSIFICATION
    if found not in TASKS:
        raise _error(checkpoint, 'task', f'must be one of {", ".join(TASKS)}, got {reprlib.repr(found)}')
    return found


def check_against_tensors(checkpoint: Checkpoint, architecture: str, num_classes: int, in_chans: int) -> None:
    """Compare what the metadata state with the tensors, for the fields that both show.

    Args:
        checkpoint: the checkpoint.
        architecture, num_classes, in_chans: those of its tensors.

    Raises:
        ConversionError: they contradict each other.
    """
    found = {'architecture': architecture, 'num_classes': num_classes, 'in_chans': in_chans}
    for field, value in found.items():
        text = checkpoint.metadata.get(field)
        if text and text != str(value):
            raise _error(checkpoint, field, f'is {reprlib.repr(text)}, but the tensors show {value}')
    names = label_names(checkpoint)
    if names and num_classes and len(names) != num_classes:
        raise _error(checkpoint, 'label_names', f'has {len(names)} names, but the tensors have {num_classes} classes')


def _entries(checkpoint: Checkpoint, field: str, valid: Callable[[Any], bool], expected: str) -> dict[str, Any]:
    entries = _object(checkpoint, field)
    for key, value in entries.items():
        if not valid(value):
            raise _error(checkpoint, field, f'has {reprlib.repr(value)} for {key[:200]!r}; expected {expected}')
    return entries


def _object(checkpoint: Checkpoint, field: str) -> dict[str, Any]:
    value = _json(checkpoint, field, {})
    if not isinstance(value, dict):
        raise _error(checkpoint, field, f'must be a JSON object, got {reprlib.repr(value)}')
    return value


def _json(checkpoint: Checkpoint, field: str, default: Any) -> Any:
    """Return the value of a field, or `default` if it is missing or empty."""
    text = checkpoint.metadata.get(field)
    if text and len(text) > LARGEST_JSON:
        raise _error(checkpoint, field, f'has {len(text):,} characters; expected at most {LARGEST_JSON:,}')
    try:
        return json.loads(text) if text else default
    except (ValueError, RecursionError) as error:
        raise _error(checkpoint, field, f'is not JSON: {reason(error)}') from error


def _error(checkpoint: Checkpoint, field: str, problem: str) -> ConversionError:
    return ConversionError(f'{checkpoint.path}: metadata field {field!r} {problem}')
