"""A checkpoint -> Flax's trees, and trees -> timm's tensors; strict both ways."""

import time
from collections.abc import Callable
from typing import Any

import numpy as np
from flax import nnx

from convert.errors import ConversionError, listing
from convert.layouts import COUNTER, TimmState, head_key, identify, stem_key, to_timm
from convert.names import (
    Tree,
    flatten,
    flax_key_to_torch,
    flax_to_torch_layout,
    split_collections,
    torch_to_flax_layout,
)
from convert.read import Checkpoint
from convert.report import Report
from tresnet_jax.factory import build_model
from tresnet_jax.initializers import ShapesOnly
from tresnet_jax.model import ImageModel
from tresnet_jax.variants import ARCHITECTURES, is_tresnet, split_name

Builder = Callable[..., ImageModel]


def to_flax(
    checkpoint: Checkpoint,
    model: str | None = None,
    *,
    num_classes: int | None = None,
    in_chans: int | None = None,
) -> tuple[Tree, Tree, Report]:
    """``params, batch_stats, report`` of a checkpoint, as nested dicts of NumPy arrays.

    float16 and bfloat16 become float32; float32 and float64 stay.

    Args:
        checkpoint: what `read` gave.
        model: the architecture, with or without a tag; found from the shapes when left out.
        num_classes: leave the classifier out if the checkpoint has another number of classes; None keeps it.
        in_chans: adapt the first convolution to so many channels, as timm does; None keeps it.

    Raises:
        ConversionError: an unknown model or layout, or keys or shapes that do not fit: one message lists the
            missing, unexpected and misshapen ones and says which architecture it looks like.
    """
    _, params, batch_stats, report = match(checkpoint, model, num_classes, in_chans, build_model)
    return params, batch_stats, report


def match(
    checkpoint: Checkpoint, model: str | None, num_classes: int | None, in_chans: int | None, build: Builder
) -> tuple[ImageModel, Tree, Tree, Report]:
    """`to_flax`, and the model of shapes, made by `build`, that the trees were held against."""
    start = time.monotonic()
    state = to_timm(checkpoint)
    architecture, tag = _name(checkpoint, state, model)
    tensors, dropped, adapted = dict(state.tensors), [], []

    stem = tensors.get(stem_key(architecture))
    in_file = 3 if stem is None or stem.ndim != 4 else stem.shape[1] // (16 if is_tresnet(architecture) else 1)
    if stem is not None and in_chans is not None and in_chans != in_file:
        tensors[stem_key(architecture)] = adapt_input(stem, in_file, in_chans)
        adapted.append((stem_key(architecture), f'{in_file} input channels to {in_chans}'))
    in_made = in_file if in_chans is None else in_chans

    head = head_key(architecture)
    weight, bias = tensors.get(f'{head}.weight'), tensors.get(f'{head}.bias')
    rows = next((t for t in (weight, bias) if t is not None and t.ndim), None)
    classes_in_file = 0 if rows is None else rows.shape[0]
    keep_head = num_classes is None or num_classes == classes_in_file
    if not keep_head:
        for key in (f'{head}.weight', f'{head}.bias'):
            if tensors.pop(key, None) is not None:
                dropped.append((key, f'{classes_in_file} classes in the file, {num_classes} asked for'))

    classes = classes_in_file if keep_head else 0
    wide = weight is not None and weight.shape[-1:] == (2 * ARCHITECTURES[architecture].num_features,)
    global_pool = 'catavgmax' if classes and wide else None
    shapes = build(architecture, num_classes=classes, in_chans=in_made, global_pool=global_pool, rngs=ShapesOnly())
    leaves = {'.'.join(map(str, path)): tuple(leaf.shape) for path, leaf in nnx.to_flat_state(nnx.state(shapes))}
    flat = {}
    missing, misshapen = [], []
    for key, shape in leaves.items():
        name = flax_key_to_torch(key)
        if name not in tensors:
            missing.append(f'{name} {_torch_shape(key, shape)}')
            continue
        value = torch_to_flax_layout(key, tensors.pop(name))
        if value.shape != shape:
            misshapen.append(f'{name}: {_torch_shape(key, value.shape)} in the file, {_torch_shape(key, shape)} wanted')
        flat[key] = value
    if missing or misshapen or tensors:
        raise ConversionError(_mismatch(checkpoint, state, architecture, missing, misshapen, tensors))

    flat = {key: widen(checkpoint, key, value) for key, value in flat.items()}
    params, batch_stats = split_collections(flat)
    report = Report(
        path=checkpoint.path,
        layout=state.layout,
        architecture=architecture,
        tag=tag,
        num_classes=classes,
        in_chans=in_made,
        global_pool=global_pool,
        tensors=len(flat),
        parameters=sum(v.size for k, v in flat.items() if not k.endswith(('.mean', '.var'))),
        dropped=tuple(dropped),
        adapted=tuple(adapted),
        source_dtypes={name: state.dtypes[name] for name in map(flax_key_to_torch, flat)},
        counters=state.counters,
        seconds=time.monotonic() - start,
    )
    return shapes, params, batch_stats, report


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
        timm key -> contiguous NumPy array of the leaf's dtype, in torch's layout; counters are int64.
    """
    if isinstance(model, nnx.Module):
        _, params, stats = nnx.split(model, nnx.Param, nnx.BatchStat)
        model, batch_stats = nnx.to_pure_dict(params), nnx.to_pure_dict(stats)
    flat = flatten(model) | flatten(batch_stats or {})
    tensors: dict[str, np.ndarray] = {}
    for key, value in flat.items():
        name = flax_key_to_torch(key)
        tensors[name] = np.asarray(flax_to_torch_layout(key, np.asarray(value)), order='C')
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
    """float16 and bfloat16 -> float32; contiguous."""
    if value.dtype.name in ('float16', 'bfloat16'):
        return np.asarray(value, np.float32, order='C')
    if value.dtype.name not in ('float32', 'float64'):
        raise ConversionError(f'{checkpoint.path}: {flax_key_to_torch(key)} has dtype {value.dtype}, not a float')
    return np.asarray(value, order='C')


def _name(checkpoint: Checkpoint, state: TimmState, model: str | None) -> tuple[str, str | None]:
    """The architecture and tag: as asked for, else as our own file says, else as the shapes say."""
    if model is None and state.metadata.get('architecture'):
        model = '.'.join(filter(None, [state.metadata['architecture'], state.metadata.get('tag')]))
    if model is not None:
        try:
            architecture, config = split_name(model)
        except ValueError as error:
            raise ConversionError(f'{checkpoint.path}: {error}') from error
        return architecture, config.tag if config else None
    found, exact = identify(state.tensors)
    if found is None:
        keys = ', '.join(sorted(state.tensors)[:3]) or 'none'
        raise ConversionError(
            f'{checkpoint.path}: neither a TResNet nor a ResNet-D under a known layout (first keys: {keys}); '
            f'name the architecture to see what is missing'
        )
    if not exact:
        raise ConversionError(f'{checkpoint.path}: of no known architecture; nearest is {found}: name one to compare')
    return found, None


def _torch_shape(key: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape under torch's layout of a Flax leaf of this shape."""
    return flax_to_torch_layout(key, np.empty(shape, np.bool_) if 0 in shape else np.broadcast_to(False, shape)).shape


def _mismatch(
    checkpoint: Checkpoint,
    state: TimmState,
    architecture: str,
    missing: list[str],
    misshapen: list[str],
    unexpected: dict[str, Any],
) -> str:
    found, exact = identify(state.tensors)
    hint = ''
    if found is not None and found != architecture:
        hint = f'; {"these shapes are" if exact else "the nearest architecture is"} {found}'
    return '\n'.join(
        filter(
            None,
            [
                f'{checkpoint.path}: does not fit {architecture}{hint}',
                listing('missing from the file', missing),
                listing('unexpected in the file', [f'{k} {v.shape}' for k, v in unexpected.items()]),
                listing('of another shape', misshapen),
            ],
        )
    )
