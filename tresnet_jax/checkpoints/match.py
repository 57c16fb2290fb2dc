"""Match a checkpoint with a model, and convert a model back to timm's tensors.

Matching is strict: every leaf of the model is filled, and every tensor of the checkpoint is used or listed as dropped.
"""

import time
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from flax import nnx

from tresnet_jax.checkpoints import metadata
from tresnet_jax.checkpoints.checkpoint import COUNTER, Checkpoint
from tresnet_jax.checkpoints.identify import describe, identify, image_channels, split_weights, stem_key
from tresnet_jax.checkpoints.kept_head import match_head
from tresnet_jax.checkpoints.layouts import TimmState, to_timm
from tresnet_jax.checkpoints.names import (
    FLOATS,
    flatten,
    flax_key_to_torch,
    flax_to_torch_layout,
    split_collections,
    torch_to_flax_layout,
)
from tresnet_jax.checkpoints.records import printable
from tresnet_jax.checkpoints.report import Report
from tresnet_jax.checkpoints.stored import release
from tresnet_jax.errors import ConversionError, listing
from tresnet_jax.models.base import ImageModel, Tree
from tresnet_jax.models.build import ANY_HEAD, HeadOptions, build_model
from tresnet_jax.models.initializers import ShapesOnly
from tresnet_jax.variants import PretrainedConfig, family_of, split_name

COPIED_CHANNELS = 64
PROGRESS_FROM = 50_000_000  # bytes; smaller files convert within a second


class Match(NamedTuple):
    """A checkpoint matched with a model.

    Attributes:
        model: the model whose leaves the checkpoint fills; its values are shapes (`ShapesOnly`).
        params, batch_stats: the checkpoint's values as nested dicts of NumPy arrays.
        report: what was found and changed.
    """

    model: ImageModel
    params: Tree
    batch_stats: Tree
    report: Report


def to_flax(
    checkpoint: Checkpoint,
    model: str | None = None,
    *,
    num_classes: int | None = None,
    in_chans: int | None = None,
    abn_slope: float | None = None,
) -> tuple[Tree, Tree, Report]:
    """Convert a checkpoint into ``params, batch_stats, report``; the trees are nested dicts of NumPy arrays.

    float16 and bfloat16 become float32; float32 and float64 stay.

    Args:
        checkpoint: the result of `read`.
        model: architecture, with or without a tag. None: find it from the shapes.
        num_classes: drop the classifier if the checkpoint has another number of classes or a head that is not timm's.
            0: always drop it. None: keep it.
        in_chans: adapt the first convolution to this number of channels, as timm does. None: keep it.
        abn_slope: slope of the leaky ReLUs that the checkpoint was trained with, for the report. None: use the slope
            that the checkpoint states.

    Raises:
        ConversionError: the model or layout is unknown, or keys or shapes do not fit. One message lists the missing,
            unexpected and misshapen keys and names the architecture that the checkpoint looks like. Or the metadata of
            a file of ours contradict its tensors.

    Example:
        >>> import convert
        >>> from tresnet_jax.factory import embedded_path
        >>> from tresnet_jax.variants import PRETRAINED
        >>> checkpoint = convert.read(embedded_path(PRETRAINED['test_resnet.fashion_mnist']))
        >>> params, batch_stats, report = convert.to_flax(checkpoint)
        >>> report.architecture, report.num_classes
        ('test_resnet', 10)
        >>> params['conv1'][0]['kernel'].shape  # height, width, in, out
        (3, 3, 3, 16)
        >>> batch_stats['bn1']['mean'].shape
        (32,)
    """
    matched = match(checkpoint, model, num_classes=num_classes, in_chans=in_chans, abn_slope=abn_slope)
    return matched.params, matched.batch_stats, matched.report


def match(
    checkpoint: Checkpoint,
    model: str | None = None,
    *,
    num_classes: int | None = None,
    in_chans: int | None = None,
    abn_slope: float | None = None,
    head: HeadOptions = ANY_HEAD,
    build: Callable[..., ImageModel] = build_model,
    consume: bool = False,
    progress: bool = False,
) -> Match:
    """Do what `to_flax` does, and return the matched model too.

    Args:
        checkpoint, model, num_classes, in_chans, abn_slope: see `to_flax`.
        head: drop the head of the checkpoint if it is another one.
        build: function with the arguments of `build_model` that makes the model.
        consume: free each tensor of the checkpoint once it is converted, so that memory never holds both sides whole.
        progress: show a progress bar for large files, on a terminal only.

    Raises:
        ConversionError: see `to_flax`.
    """
    start = time.monotonic()
    state = to_timm(checkpoint)
    size = sum(value.nbytes for value in checkpoint.tensors.values())
    if consume:
        checkpoint.tensors.clear()
    architecture, config = _name(checkpoint, state, model)
    tensors = state.tensors

    stored_channels = image_channels(tensors, architecture)
    channels, adapted = _adapt_stem(tensors, architecture, in_chans)
    kept = match_head(checkpoint, state, architecture, config, num_classes, head)
    slope = state.abn_slope if abn_slope is None else abn_slope
    if slope is not None and family_of(architecture).default_slope is None:
        raise ConversionError(f'{checkpoint.path}: {architecture} has ReLUs; --abn-slope (abn_slope) is for TResNet')
    pool = kept.global_pool or (None if kept.options else state.global_pool)
    stride = state.output_stride if state.output_stride in family_of(architecture).output_strides else None
    shapes = build(
        architecture,
        num_classes=kept.num_classes,
        in_chans=channels,
        global_pool=pool,
        output_stride=stride or 32,
        abn_slope=slope,
        rngs=ShapesOnly(),
        **kept.options,
    )
    leaves = {'.'.join(map(str, path)): tuple(leaf.shape) for path, leaf in nnx.to_flat_state(nnx.state(shapes))}
    names = {flax_key_to_torch(key): key for key in leaves}
    _check_fit(checkpoint, state, architecture, {name: _torch_shape(key, leaves[key]) for name, key in names.items()})
    metadata.check_against_tensors(checkpoint, architecture, kept.in_file[1], stored_channels or channels)

    import tqdm  # here, so that importing the library stays light

    flat, warnings = {}, []
    hidden = None if progress and size >= PROGRESS_FROM else True  # None: hidden unless standard error is a terminal
    for name, key in tqdm.tqdm(names.items(), desc=checkpoint.path.name, unit='tensor', disable=hidden):
        value = tensors.pop(name) if consume else tensors[name]
        flat[key] = _widen(checkpoint, name, torch_to_flax_layout(key, value))
        if consume:
            release(value)
        if not _is_finite(flat[key]):
            warnings.append(f'{name} has values that are not finite')
    params, batch_stats = split_collections(flat)
    report = Report(
        path=checkpoint.path,
        layout=state.layout,
        architecture=architecture,
        tag=config.tag if config else None,
        num_classes=kept.num_classes,
        head_options=kept.options,
        head_in_file=kept.in_file,
        in_chans=shapes.in_chans,
        global_pool=pool,
        output_stride=stride,
        abn_slope=slope,
        data_config=state.data_config,
        label_names=state.label_names if kept.num_classes else None,  # those of a dropped classifier name nothing
        task=state.task,
        tensors=len(flat),
        parameters=sum(v.size for k, v in flat.items() if not k.endswith(('.mean', '.var'))),
        notes=state.notes,
        dropped=kept.dropped,
        adapted=adapted,
        warnings=tuple(warnings),
        source_dtypes={name: state.dtypes[name] for name in names},
        counters=state.counters,
        seconds=time.monotonic() - start,
    )
    return Match(shapes, params, batch_stats, report)


def _name(checkpoint: Checkpoint, state: TimmState, model: str | None) -> tuple[str, PretrainedConfig | None]:
    """Return the architecture and the row of its tag: from `model`, else from our metadata, else from the shapes."""
    if model is None and state.metadata.get('architecture'):
        model = '.'.join(filter(None, [state.metadata['architecture'], state.metadata.get('tag')]))
    if model is not None:
        try:
            return split_name(model)
        except ValueError as error:
            raise ConversionError(f'{checkpoint.path}: {printable(error, 600)}') from error
    found, exact = identify(state.tensors)
    if found is None or not exact:
        hint = '; --model NAME lists what is missing' if found else ''
        raise ConversionError(f'{checkpoint.path}: looks like {describe(state.tensors)}{hint}')
    return found, None


def _adapt_stem(
    tensors: dict[str, np.ndarray], architecture: str, in_chans: int | None
) -> tuple[int, tuple[tuple[str, str], ...]]:
    """Adapt the first convolution in `tensors` to `in_chans`.

    Returns:
        The channels of the images, and (key, how) of what was adapted.
    """
    key, in_file = stem_key(architecture), image_channels(tensors, architecture)
    if in_file is None:  # missing or misshapen, as `_check_fit` will report
        return in_chans or 3, ()
    if in_chans is None or in_chans == in_file:
        return in_file, ()
    tensors[key] = adapt_input(tensors[key], in_file, in_chans)
    return in_chans, ((key, f'{in_file} input channels to {in_chans}'),)


def _check_fit(checkpoint: Checkpoint, state: TimmState, architecture: str, shapes: dict[str, tuple[int, ...]]) -> None:
    """Raise ConversionError with all missing, unexpected and misshapen keys; `shapes` is timm key -> torch shape."""
    tensors = state.tensors
    missing = [f'{name} {shape}' for name, shape in shapes.items() if name not in tensors]
    unexpected = [f'{printable(name)} {value.shape}' for name, value in tensors.items() if name not in shapes]
    misshapen = [
        f'{name}: {tensors[name].shape} in the file, expected {shape}'
        for name, shape in shapes.items()
        if name in tensors and tensors[name].shape != shape
    ]
    if missing or unexpected or misshapen:
        looks = describe(tensors)
        same = looks == architecture or looks.startswith(f'{architecture} with differences')
        # Keys beside the network are not errors by themselves; but one of them may be a missing key, renamed.
        unexpected += [f'{printable(name)} {shape}' for name, shape in state.beside.items() if not state.head]
        lists = (
            listing('missing from the file', missing),
            listing('unexpected in the file', unexpected),
            listing('of another shape', misshapen),
        )
        split = split_weights([*tensors, *state.beside])
        head = f'{family_of(architecture).head}.'
        is_head = all(line.startswith(head) for line in (*missing, *unexpected, *misshapen))
        remedy = (
            f'It looks like {split}'
            if split
            else '--drop-head (num_classes=0) converts the body alone'
            if is_head
            else ''
        )
        raise ConversionError(
            '\n'.join(
                [
                    f'{checkpoint.path}: does not fit {architecture}{"" if same else f"; it looks like {looks}"}',
                    *filter(None, (*lists, remedy)),
                ]
            )
        )


def _torch_shape(key: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the shape in torch's layout of a Flax leaf of this shape."""
    return flax_to_torch_layout(key, np.empty(shape, np.bool_) if 0 in shape else np.broadcast_to(False, shape)).shape


def _widen(checkpoint: Checkpoint, name: str, value: np.ndarray) -> np.ndarray:
    """Return a contiguous copy in float32 or float64. A copy, because JAX would share memory that torch trains in."""
    if value.dtype.name not in FLOATS:
        raise ConversionError(f'{checkpoint.path}: {name} has dtype {value.dtype}; expected {", ".join(FLOATS)}')
    copy = np.empty(value.shape, np.promote_types(value.dtype, np.float32))
    if value.ndim < 2:
        copy[...] = value
    # In parts that fit in the cache: the last axis of a kernel is the first in the file.
    for start in range(0, value.shape[-1] if value.ndim > 1 else 0, COPIED_CHANNELS):
        part = (..., slice(start, start + COPIED_CHANNELS))
        copy[part] = value[part]
    return copy


def _is_finite(value: np.ndarray) -> bool:
    """Return whether all values are finite. Computing their sum is faster than checking each, but it may overflow."""
    with np.errstate(all='ignore'):
        return bool(np.isfinite(value.sum()) or np.isfinite(value).all())


def adapt_input(weight: np.ndarray, in_file: int, in_chans: int) -> np.ndarray:
    """Adapt a first convolution (out, in, kh, kw) to another number of channels, as timm's ``adapt_input_conv`` does.

    One channel gets the sum; any other number repeats the file's channels, scaled by in_file / in_chans. In a
    space-to-depth stem each of the 16 sub-positions is adapted like this; timm adapts such a stem to one channel only.
    """
    out, wide, *kernel = weight.shape
    grouped = weight.astype(np.promote_types(weight.dtype, np.float32)).reshape(out, wide // in_file, in_file, *kernel)
    if in_chans == 1:
        adapted = grouped.sum(axis=2, keepdims=True)
    else:
        repeated = np.concatenate([grouped] * -(-in_chans // in_file), axis=2)[:, :, :in_chans]
        adapted = repeated * repeated.dtype.type(in_file / in_chans)
    return adapted.reshape(out, -1, *kernel).astype(weight.dtype)


def to_torch(
    model: nnx.Module | Tree, batch_stats: Tree | None = None, *, num_batches_tracked: int | dict[str, int] = 0
) -> dict[str, np.ndarray]:
    """Convert a model, or trees of its structure (parameters, gradients, averages), into timm's state dict.

    With the statistics, the result loads into timm with ``strict=True``.

    Args:
        model: a model, or the tree of its parameters.
        batch_stats: the tree of running statistics if `model` is a tree.
        num_batches_tracked: torch's counter of each batch norm: one value for all, or a dict by timm key.

    Returns:
        timm key -> contiguous NumPy array in torch's layout, with the leaf's dtype and its own memory; counters are
        int64.

    Raises:
        ConversionError: the model is a result of `fold_batchnorm`, which timm does not have.

    Example:
        >>> import convert, tresnet_jax
        >>> model = tresnet_jax.create_model('test_resnet.fashion_mnist', pretrained=True)
        >>> state_dict = convert.to_torch(model)
        >>> state_dict['fc.weight'].shape, state_dict['bn1.num_batches_tracked'].dtype
        ((10, 96), dtype('int64'))
    """
    if isinstance(model, nnx.Module):
        if getattr(model, 'folded', False):
            raise ConversionError('batch norm is folded into this model; convert the model before fold_batchnorm')
        _, params, stats = nnx.split(model, nnx.Param, nnx.BatchStat)
        model, batch_stats = nnx.to_pure_dict(params), nnx.to_pure_dict(stats)
    flat = flatten(model) | flatten(batch_stats or {})
    tensors: dict[str, np.ndarray] = {}
    for key, value in flat.items():
        name = flax_key_to_torch(key)
        tensors[name] = np.array(flax_to_torch_layout(key, np.asarray(value)), order='C')
        if name.endswith('.running_var'):
            counter = name.removesuffix('running_var') + COUNTER
            count = num_batches_tracked
            tensors[counter] = np.array(count.get(counter, 0) if isinstance(count, dict) else count, np.int64)
    return dict(sorted(tensors.items()))
