"""A checkpoint -> Flax's trees, and trees -> timm's tensors; strict both ways."""

import time
from collections.abc import Callable

import numpy as np
from flax import nnx

from tresnet_jax.checkpoints.checkpoint import COUNTER, Checkpoint
from tresnet_jax.checkpoints.layouts import TimmState, describe, foreign_head, head_key, identify, stem_key, to_timm
from tresnet_jax.checkpoints.names import (
    flatten,
    flax_key_to_torch,
    flax_to_torch_layout,
    split_collections,
    torch_to_flax_layout,
)
from tresnet_jax.checkpoints.report import Report
from tresnet_jax.errors import ConversionError, listing
from tresnet_jax.models.base import ImageModel, Tree
from tresnet_jax.models.build import build_model
from tresnet_jax.models.initializers import ShapesOnly
from tresnet_jax.variants import ARCHITECTURES, PretrainedConfig, family_of, split_name

Builder = Callable[..., ImageModel]
PROGRESS_FROM = 50_000_000  # bytes


def to_flax(
    checkpoint: Checkpoint,
    model: str | None = None,
    *,
    num_classes: int | None = None,
    in_chans: int | None = None,
    abn_slope: float | None = None,
) -> tuple[Tree, Tree, Report]:
    """``params, batch_stats, report`` of a checkpoint, as nested dicts of NumPy arrays.

    float16 and bfloat16 become float32; float32 and float64 stay.

    Args:
        checkpoint: what `read` gave.
        model: the architecture, with or without a tag; found from the shapes when left out.
        num_classes: leave the classifier out if the checkpoint has another number of classes, or a head that is not
            timm's; 0 leaves it out in any case; None keeps it.
        in_chans: adapt the first convolution to so many channels, as timm does; None keeps it.
        abn_slope: of the leaky ReLUs it was trained with, for the report; None is what the checkpoint says.

    Raises:
        ConversionError: an unknown model or layout, or keys or shapes that do not fit: one message lists the
            missing, unexpected and misshapen ones and says which architecture it looks like.
    """
    _, params, batch_stats, report = match(checkpoint, model, num_classes, in_chans, abn_slope, build_model)
    return params, batch_stats, report


def match(
    checkpoint: Checkpoint,
    model: str | None,
    num_classes: int | None,
    in_chans: int | None,
    abn_slope: float | None,
    build: Builder,
    *,
    consume: bool = False,
    progress: bool = False,
) -> tuple[ImageModel, Tree, Tree, Report]:
    """`to_flax`, and the model of shapes, made by `build`, that the trees were held against.

    With `consume` the checkpoint's own tensors are given up one by one, so that memory never holds both sides whole.
    """
    start = time.monotonic()
    state = to_timm(checkpoint)
    size = sum(value.nbytes for value in checkpoint.tensors.values())
    if consume:
        checkpoint.tensors.clear()
    architecture, config = _name(checkpoint, state, model)
    tensors = state.tensors
    dropped, adapted = [], []

    stem = tensors.get(stem_key(architecture))
    in_file = 3 if stem is None or stem.ndim != 4 else family_of(architecture).in_chans(stem.shape[1])
    if stem is not None and in_chans is not None and in_chans != in_file:
        tensors[stem_key(architecture)] = adapt_input(stem, in_file, in_chans)
        adapted.append((stem_key(architecture), f'{in_file} input channels to {in_chans}'))

    classes, global_pool = _head(checkpoint, tensors, architecture, config, num_classes, dropped)
    slope = state.abn_slope if abn_slope is None else abn_slope
    if slope is not None and family_of(architecture).default_slope is None:
        raise ConversionError(f'{checkpoint.path}: {architecture} has ReLUs, --abn-slope (abn_slope) is for TResNet')
    shapes = build(
        architecture,
        num_classes=classes,
        in_chans=in_file if in_chans is None else in_chans,
        global_pool=global_pool,
        abn_slope=slope,
        rngs=ShapesOnly(),
    )
    leaves = {'.'.join(map(str, path)): tuple(leaf.shape) for path, leaf in nnx.to_flat_state(nnx.state(shapes))}
    names = {flax_key_to_torch(key): (key, shape) for key, shape in leaves.items()}
    missing = [f'{name} {_torch_shape(*leaf)}' for name, leaf in names.items() if name not in tensors]
    unexpected = [f'{name} {value.shape}' for name, value in tensors.items() if name not in names]
    misshapen = [
        f'{name}: {tensors[name].shape} in the file, {_torch_shape(*leaf)} wanted'
        for name, leaf in names.items()
        if name in tensors and tensors[name].shape != _torch_shape(*leaf)
    ]
    if missing or unexpected or misshapen:
        looks = '' if identify(tensors) == (architecture, True) else f'; it looks like {describe(tensors)}'
        lists = (
            listing('missing from the file', missing),
            listing('unexpected in the file', unexpected),
            listing('of another shape', misshapen),
        )
        raise ConversionError(
            '\n'.join([f'{checkpoint.path}: does not fit {architecture}{looks}', *filter(None, lists)])
        )

    import tqdm  # here, so that importing the library stays light

    flat, warnings = {}, []
    silent = not progress or size < PROGRESS_FROM
    for name, (key, _) in tqdm.tqdm(names.items(), desc=checkpoint.path.name, unit='tensor', disable=silent):
        value = tensors.pop(name) if consume else tensors[name]
        flat[key] = widen(checkpoint, key, torch_to_flax_layout(key, value))
        if not np.isfinite(flat[key]).all():
            warnings.append(f'{name} has values that are not finite')
    params, batch_stats = split_collections(flat)
    report = Report(
        path=checkpoint.path,
        layout=state.layout,
        architecture=architecture,
        tag=config.tag if config else None,
        num_classes=classes,
        in_chans=shapes.in_chans,
        global_pool=global_pool,
        abn_slope=slope,
        data_config=state.data_config,
        label_names=state.label_names,
        tensors=len(flat),
        parameters=sum(v.size for k, v in flat.items() if not k.endswith(('.mean', '.var'))),
        notes=state.notes,
        dropped=tuple(dropped),
        adapted=tuple(adapted),
        warnings=tuple(warnings),
        source_dtypes={name: state.dtypes[name] for name in names},
        counters=state.counters,
        seconds=time.monotonic() - start,
    )
    return shapes, params, batch_stats, report


def _head(
    checkpoint: Checkpoint,
    tensors: dict[str, np.ndarray],
    architecture: str,
    config: PretrainedConfig | None,
    num_classes: int | None,
    dropped: list[tuple[str, str]],
) -> tuple[int, str | None]:
    """The number of classes the trees will have, and the pooling that the classifier's width asks for.

    Takes the classifier out of `tensors`, and into `dropped`, where it is not wanted.

    Raises:
        ConversionError: a head that is not timm's, or another number of classes than the tag has, and nobody said
            what to do with it.
    """
    head = head_key(architecture)
    weight, bias = tensors.get(f'{head}.weight'), tensors.get(f'{head}.bias')
    rows = next((t for t in (weight, bias) if t is not None and t.ndim), None)
    classes = 0 if rows is None else rows.shape[0]
    foreign = foreign_head(tensors, architecture)
    fits = identify(tensors) == (architecture, True)  # another body is the greater error, and is told first
    if num_classes is None and fits and foreign:
        raise ConversionError(
            f'{checkpoint.path}: has {foreign}, which {architecture} of timm has not; --drop-head '
            f'(num_classes=0) converts the body alone'
        )
    if num_classes is None and fits and classes and config is not None and config.num_classes != classes:
        raise ConversionError(
            f'{checkpoint.path}: has {classes} classes where {config.name} has {config.num_classes}; name '
            f'{architecture} alone or --num-classes {classes} (num_classes={classes}) to keep its classifier, '
            f'--drop-head (num_classes=0) to leave it out'
        )
    if num_classes is not None and (foreign or num_classes != classes):
        why = foreign or f'{classes} classes in the file, {num_classes} asked for'
        prefix = head.partition('.')[0] + '.'
        for key in [key for key in tensors if key.startswith(prefix)]:
            del tensors[key]
            dropped.append((key, why))
        return 0, None
    wide = weight is not None and weight.shape[-1:] == (2 * ARCHITECTURES[architecture].num_features,)
    return classes, 'catavgmax' if classes and wide else None


def to_torch(
    model: nnx.Module | Tree, batch_stats: Tree | None = None, *, num_batches_tracked: int | dict[str, int] = 0
) -> dict[str, np.ndarray]:
    """timm's state dict of a model, or of trees of its shapes: parameters, statistics, gradients, averages.

    Loads into timm with ``strict=True`` when the statistics are given.

    Args:
        model: a model, or the tree of its parameters.
        batch_stats: the tree of running statistics, when `model` is a tree.
        num_batches_tracked: torch's counter of each batch norm: one for all, or by its key.

    Returns:
        timm key -> contiguous NumPy array of the leaf's dtype, in torch's layout, its own memory; counters are int64.

    Raises:
        ConversionError: a model of `fold_batchnorm`, which timm has not.
    """
    if isinstance(model, nnx.Module):
        if getattr(model, 'folded', False):
            raise ConversionError('batch norm is folded into this model, timm has it apart: convert the model before')
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


def adapt_input(weight: np.ndarray, in_file: int, in_chans: int) -> np.ndarray:
    """A first convolution (out, in, kh, kw) for another number of channels, as timm's ``adapt_input_conv``.

    One channel gets the sum; others repeat the channels there are, scaled by in_file / in_chans. In a space-to-depth
    stem each of the 16 sub-positions is adapted like that, where timm gives up but for one channel.
    """
    out, wide, *kernel = weight.shape
    grouped = weight.astype(np.promote_types(weight.dtype, np.float32)).reshape(out, wide // in_file, in_file, *kernel)
    if in_chans == 1:
        adapted = grouped.sum(axis=2, keepdims=True)
    else:
        repeated = np.concatenate([grouped] * -(-in_chans // in_file), axis=2)[:, :, :in_chans]
        adapted = repeated * repeated.dtype.type(in_file / in_chans)
    return adapted.reshape(out, -1, *kernel).astype(weight.dtype)


def widen(checkpoint: Checkpoint, key: str, value: np.ndarray) -> np.ndarray:
    """float16 and bfloat16 -> float32; contiguous, and a copy: JAX would go on using memory that torch trains in."""
    if value.dtype.name in ('float16', 'bfloat16'):
        return np.array(value, np.float32, order='C')
    if value.dtype.name not in ('float32', 'float64'):
        raise ConversionError(f'{checkpoint.path}: {flax_key_to_torch(key)} has dtype {value.dtype}, not a float')
    return np.array(value, order='C')


def _name(checkpoint: Checkpoint, state: TimmState, model: str | None) -> tuple[str, PretrainedConfig | None]:
    """The architecture and the row of its tag: as asked for, else as our own file says, else as the shapes say."""
    if model is None and state.metadata.get('architecture'):
        model = '.'.join(filter(None, [state.metadata['architecture'], state.metadata.get('tag')]))
    if model is not None:
        try:
            return split_name(model)
        except ValueError as error:
            raise ConversionError(f'{checkpoint.path}: {error}') from error
    found, exact = identify(state.tensors)
    if found is None or not exact:
        raise ConversionError(
            f'{checkpoint.path}: looks like {describe(state.tensors)}; --model NAME lists what is missing'
        )
    return found, None


def _torch_shape(key: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape under torch's layout of a Flax leaf of this shape."""
    return flax_to_torch_layout(key, np.empty(shape, np.bool_) if 0 in shape else np.broadcast_to(False, shape)).shape
