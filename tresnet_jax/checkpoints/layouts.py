"""Convert any known layout (naming of tensors) into timm's."""

import dataclasses
from typing import Any

import numpy as np

from tresnet_jax.checkpoints import metadata
from tresnet_jax.checkpoints.checkpoint import COUNTER, FLAX_FORMAT, METRICS, Checkpoint
from tresnet_jax.checkpoints.choose import choose
from tresnet_jax.checkpoints.find import Network, State, clean, networks_of
from tresnet_jax.checkpoints.heads import Head, classes_of, find_head
from tresnet_jax.checkpoints.identify import identify
from tresnet_jax.checkpoints.layout import as_tensor
from tresnet_jax.checkpoints.names import flax_key_to_torch, flax_to_torch_layout
from tresnet_jax.checkpoints.records import printable
from tresnet_jax.checkpoints.timm_layouts import IABN_EPSILON, INPLACE_ABN, TIMM_LAYOUTS
from tresnet_jax.errors import ConversionError
from tresnet_jax.variants import CLASSIFICATION

ORIGINAL_V2_SLOPE = 1e-6


@dataclasses.dataclass(frozen=True)
class TimmState:
    """A checkpoint under timm's names, in torch's layouts.

    Attributes:
        layout: the name of the checkpoint's own layout: 'timm', 'inplace_abn', ...; 'flax' for files of ours.
        tensors: timm key -> array, without the counters of batch norm.
        dtypes: timm key -> dtype of the tensor in the PyTorch checkpoint at the start of the chain of conversions.
        counters: timm key -> `num_batches_tracked` of a batch norm.
        metadata: the metadata of our own file; empty for others.
        abn_slope: slope of the leaky ReLUs that the weights were trained with; None: timm's, or unknown.
        global_pool, output_stride: options with which they were trained; None: timm's, or unknown.
        notes: what was changed or left out, one line each.
        data_config: how images are prepared, as arguments of `create_transform`; None if unknown.
        label_names: one per class; None if unknown.
        task: what the outputs are, one of `variants.TASKS`; that of one class per image if it is unknown.
        beside: key -> shape of each tensor of the checkpoint that is neither in `tensors` nor a counter.
        head: the kind of a head in `beside` that is neither one linear layer nor an ML-Decoder; None otherwise.
    """

    layout: str
    tensors: dict[str, np.ndarray]
    dtypes: dict[str, str]
    counters: dict[str, int]
    metadata: dict[str, str]
    abn_slope: float | None = None
    global_pool: str | None = None
    output_stride: int | None = None
    notes: tuple[str, ...] = ()
    data_config: dict[str, Any] | None = None
    label_names: tuple[str, ...] | None = None
    task: str = CLASSIFICATION
    beside: dict[str, tuple[int, ...]] = dataclasses.field(default_factory=dict)
    head: str | None = None


def to_timm(checkpoint: Checkpoint) -> TimmState:
    """Convert the tensors of a checkpoint to timm's names and layouts, and find its classifier.

    Raises:
        ConversionError: a counter is not a number, several networks are in the checkpoint, or a file of ours has
            unknown keys or wrong metadata.
    """
    if checkpoint.metadata.get('format') == FLAX_FORMAT:
        return _from_flax(checkpoint)
    network, notes = _network_of(checkpoint)
    if network is None:
        return _unknown(checkpoint)
    notes = [*notes, *(f'left out {what} ({count})' for what, count in sorted(network.left_out.items()))]
    slope = checkpoint.stated.abn_slope
    if network.layout is INPLACE_ABN:
        notes += _gamma_notes(network)
        if checkpoint.wrapper == 'model' and network.architecture == 'tresnet_v2_l':
            slope = ORIGINAL_V2_SLOPE
            notes.append(
                f'second version of the original repository: leaky ReLUs of slope {slope:g}, kept in the metadata'
            )
    architecture, _ = identify(network.tensors)
    head = find_head(network.tensors, network.beside, architecture) if architecture else Head({}, None, ())
    tensors = {**network.tensors, **head.tensors}
    arrays = {key: value.numpy() for key, value in tensors.items()}
    classes = classes_of(arrays, architecture) if architecture else 0
    names = [names for names in checkpoint.stated.label_names if len(names) == classes]
    if len(names) > 1:
        firsts = ' or '.join(printable(repr(part[0]), 40) for part in names[:3])
        notes.append(f'took the first of {len(names)} lists of class names, which begin with {firsts}')
    return TimmState(
        layout=network.layout.name,
        tensors=arrays,
        dtypes={key: value.dtype.name for key, value in arrays.items()},
        counters={key: _counter(checkpoint, key, value.numpy()) for key, value in network.counters.items()},
        metadata={},
        abn_slope=slope,
        global_pool=checkpoint.stated.global_pool,
        output_stride=checkpoint.stated.output_stride,
        notes=(*notes, *head.notes),
        data_config=checkpoint.stated.data_config,
        label_names=next(iter(names), None),
        task=checkpoint.stated.task,
        beside={} if head.tensors else {key: tuple(value.shape) for key, value in network.beside.items()},
        head=head.foreign,
    )


def _network_of(checkpoint: Checkpoint) -> tuple[Network | None, tuple[str, ...]]:
    """Return the network of a checkpoint and the notes about it: the one that `read` chose, if `read` made it."""
    tensors = {key: as_tensor(value) for key, value in checkpoint.tensors.items()}
    state = State((checkpoint.wrapper,) if checkpoint.wrapper else (), tensors, {})
    if checkpoint.layout is not None:
        networks = networks_of(state, (checkpoint.layout,))
        return next(network for network in networks if network.prefix == checkpoint.prefix), checkpoint.notes
    choice = choose(checkpoint.path, {}, networks_of(state, TIMM_LAYOUTS), ema=True, key=None)
    if choice is None:
        return None, ()
    if choice.network.problem:
        raise ConversionError(f'{checkpoint.path}: holds {choice.network.problem}')
    return choice.network, choice.notes


def _unknown(checkpoint: Checkpoint) -> TimmState:
    """Return tensors without a layout under their own names, so that messages can list them."""
    counters, tensors = {}, {}
    for key, value in checkpoint.tensors.items():
        name = clean(key).removeprefix('module.')
        if name.endswith(f'.{COUNTER}'):
            counters[name] = _counter(checkpoint, key, value)
        else:
            tensors[name] = value
    dtypes = {key: value.dtype.name for key, value in tensors.items()}
    notes = (f'took {checkpoint.wrapper!r} of the file',) if checkpoint.wrapper else ()
    return TimmState('timm', tensors, dtypes, counters, {}, notes=notes)


def _counter(checkpoint: Checkpoint, key: str, value: np.ndarray) -> int:
    try:
        count = int(value.item())
        if -(2**63) <= count < 2**63:
            return count
    except (TypeError, ValueError, OverflowError):  # several elements, not a number, infinite
        pass
    raise ConversionError(
        f'{checkpoint.path}: {printable(key)} counts batches; expected one integer, got {value.dtype} of shape '
        f'{value.shape}'
    )


def _gamma_notes(network: Network) -> list[str]:
    """Return what happened to the gammas of in-place ABN."""
    gammas = [
        value
        for key, value in network.state.tensors.items()
        if len(value.shape) == 1 and key.endswith('.weight') and clean(key).startswith(f'{network.prefix}body.')
    ]
    negative = sum(int((gamma.numpy() < 0).sum()) for gamma in gammas)
    notes = [f'gamma := |gamma| + {IABN_EPSILON:g} in {len(gammas)} batch norms ({negative} gammas were negative)']
    if not negative:
        notes.append('no gamma was negative: if they were |gamma| + 1e-5 already, they are 1e-5 too large now')
    return notes


def _from_flax(checkpoint: Checkpoint) -> TimmState:
    tensors = {}
    for key, value in checkpoint.tensors.items():
        collection, _, name = key.partition('.')
        if collection not in ('params', 'batch_stats') or not name:
            raise ConversionError(
                f"{checkpoint.path}: unexpected key '{printable(key)}'; keys begin with params. or batch_stats."
            )
        tensors[flax_key_to_torch(name)] = flax_to_torch_layout(name, value)
    return TimmState(
        layout='flax',
        tensors=tensors,
        dtypes={key: value.dtype.name for key, value in tensors.items()} | metadata.source_dtypes(checkpoint),
        counters=metadata.counters(checkpoint),
        metadata=checkpoint.metadata,
        abn_slope=metadata.abn_slope(checkpoint),
        global_pool=metadata.global_pool(checkpoint),
        output_stride=metadata.output_stride(checkpoint),
        notes=(_run_note(checkpoint),) if checkpoint.container == 'run' else (),
        data_config=metadata.data_config(checkpoint),
        label_names=metadata.label_names(checkpoint),
        task=metadata.task(checkpoint),
    )


def _run_note(checkpoint: Checkpoint) -> str:
    kind = 'moving average' if checkpoint.wrapper else 'weights'
    found = checkpoint.training
    rating = ''.join(f', {title} {found[name]:.2%}' for name, title in METRICS.items() if name in found)
    return f'took the {kind} of step {found["step"]}{rating}'
