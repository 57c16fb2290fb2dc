"""Convert any known layout (naming of tensors) into timm's."""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from tresnet_jax.checkpoints import metadata
from tresnet_jax.checkpoints.checkpoint import COUNTER, FLAX_FORMAT, Checkpoint
from tresnet_jax.checkpoints.identify import identify
from tresnet_jax.checkpoints.names import flax_key_to_torch, flax_to_torch_layout
from tresnet_jax.errors import ConversionError

WRAPPING_PREFIXES = ('module.', '_orig_mod.')  # added by torch's DistributedDataParallel and torch.compile

# The original TResNet repository and timm before 2023 nest convolution, in-place ABN and blur in Sequentials. The
# patterns are applied in this order, as in timm/models/tresnet.py.
IABN_NAMES = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r'conv(\d+)\.0\.0', r'conv\1.conv'),
        (r'conv(\d+)\.0\.1', r'conv\1.bn'),
        (r'conv(\d+)\.0', r'conv\1.conv'),
        (r'conv(\d+)\.1', r'conv\1.bn'),
        (r'downsample\.(\d+)\.0', r'downsample.\1.conv'),
        (r'downsample\.(\d+)\.1', r'downsample.\1.bn'),
    )
)
IABN_EPSILON = 1e-5  # in-place ABN scales by |gamma| + epsilon, never by gamma
ORIGINAL_V2_SLOPE = 1e-6


@dataclasses.dataclass(frozen=True)
class TimmState:
    """A checkpoint under timm's names, in torch's layouts.

    Attributes:
        layout: the checkpoint's own layout: 'timm', 'inplace_abn' or 'flax'.
        tensors: timm key -> array, without the counters of batch norm.
        dtypes: timm key -> dtype of the tensor in the PyTorch checkpoint at the start of the chain of conversions.
        counters: timm key -> `num_batches_tracked` of a batch norm.
        metadata: the metadata of our own file; empty for others.
        abn_slope: slope of the leaky ReLUs that the weights were trained with; None: timm's, or unknown.
        notes: what was changed or left out, one line each.
        data_config: how images are prepared, as arguments of `create_transform`; None if unknown.
        label_names: one per class; None if unknown.
    """

    layout: str
    tensors: dict[str, np.ndarray]
    dtypes: dict[str, str]
    counters: dict[str, int]
    metadata: dict[str, str]
    abn_slope: float | None = None
    notes: tuple[str, ...] = ()
    data_config: dict[str, Any] | None = None
    label_names: tuple[str, ...] | None = None


def to_timm(checkpoint: Checkpoint) -> TimmState:
    """Recognise the layout of a checkpoint and convert it to timm's.

    Raises:
        ConversionError: a counter is not a number, or a file of ours has unknown keys or wrong metadata.
    """
    if checkpoint.metadata.get('format') == FLAX_FORMAT:
        return _from_flax(checkpoint)
    notes = []
    if checkpoint.wrapper is not None:
        notes.append(f'took {checkpoint.wrapper!r} of the file')
    tensors, counters = {}, {}
    for key, value in checkpoint.tensors.items():
        name = strip_prefixes(key)
        if name.endswith('.' + COUNTER):
            counters[name] = _counter(checkpoint, key, value)
        else:
            tensors[name] = value
    dtypes = {key: value.dtype.name for key, value in tensors.items()}
    # Old keys mark an unconverted file and are renamed here, so gammas are never converted twice.
    if 'body.conv1.0.weight' not in tensors:
        return TimmState('timm', tensors, dtypes, counters, {}, None, tuple(notes))
    tensors, more = from_inplace_abn(tensors)
    dtypes = {key: value.dtype.name for key, value in tensors.items()}
    slope = None
    if checkpoint.wrapper == 'model' and identify(tensors) == ('tresnet_v2_l', True):
        slope = ORIGINAL_V2_SLOPE
        more.append(f'second version of the original repository: leaky ReLUs of slope {slope:g}, kept in the metadata')
    return TimmState('inplace_abn', tensors, dtypes, counters, {}, slope, (*notes, *more))


def strip_prefixes(key: str) -> str:
    """'module._orig_mod.fc.weight' -> 'fc.weight', in either order."""
    while key.startswith(WRAPPING_PREFIXES):
        key = key.partition('.')[2]
    return key


def _counter(checkpoint: Checkpoint, key: str, value: np.ndarray) -> int:
    try:
        count = int(value.item())
        if -(2**63) <= count < 2**63:
            return count
    except (TypeError, ValueError, OverflowError):  # several elements, not a number, infinite
        pass
    raise ConversionError(
        f'{checkpoint.path}: {key} counts batches; expected one integer, got {value.dtype} of shape {value.shape}'
    )


def from_inplace_abn(tensors: Mapping[str, np.ndarray]) -> tuple[dict[str, np.ndarray], list[str]]:
    """Convert the in-place ABN layout to timm's: new names, |gamma| + 1e-5 for gamma, no blur filters.

    Returns:
        The tensors, and a note for each kind of change.
    """
    renamed, filters, norms, negative = {}, 0, 0, 0
    for key, value in tensors.items():
        if key.endswith('.filt'):  # the blur's weights, which are constants
            filters += 1
            continue
        for pattern, replacement in IABN_NAMES:
            key = pattern.sub(replacement, key)
        if key.endswith('bn.weight'):
            norms, negative = norms + 1, negative + int((value < 0).sum())
            value = np.abs(value).astype(np.promote_types(value.dtype, np.float32))  # 16 bits would round 1e-5 away
            value += value.dtype.type(IABN_EPSILON)
        renamed[key] = value
    notes = [f'gamma := |gamma| + {IABN_EPSILON:g} in {norms} batch norms ({negative} gammas were negative)']
    if filters:
        notes.append(f'left out {filters} blur filters, which are constants')
    return renamed, notes


def _from_flax(checkpoint: Checkpoint) -> TimmState:
    tensors = {}
    for key, value in checkpoint.tensors.items():
        collection, _, name = key.partition('.')
        if collection not in ('params', 'batch_stats') or not name:
            raise ConversionError(f'{checkpoint.path}: unexpected key {key!r}; keys begin with params. or batch_stats.')
        tensors[flax_key_to_torch(name)] = flax_to_torch_layout(name, value)
    return TimmState(
        layout='flax',
        tensors=tensors,
        dtypes={key: value.dtype.name for key, value in tensors.items()} | metadata.source_dtypes(checkpoint),
        counters=metadata.counters(checkpoint),
        metadata=checkpoint.metadata,
        abn_slope=metadata.abn_slope(checkpoint),
        notes=(_run_note(checkpoint),) if checkpoint.container == 'run' else (),
        data_config=metadata.data_config(checkpoint),
        label_names=metadata.label_names(checkpoint),
    )


def _run_note(checkpoint: Checkpoint) -> str:
    top1 = checkpoint.training.get('top1')
    kind = 'moving average' if checkpoint.wrapper else 'weights'
    accuracy = '' if top1 is None else f', top-1 {top1:.2%}'
    return f'took the {kind} of step {checkpoint.training["step"]}{accuracy}'
