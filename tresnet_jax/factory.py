"""`create_model`: build a model by name; weights come from a file, this package, a folder or the hub, or are drawn."""

import dataclasses
import importlib.resources
import reprlib
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
from flax import nnx

from tresnet_jax.checkpoints.checkpoint import FLAX_FORMAT
from tresnet_jax.checkpoints.choose import SeveralNetworksError
from tresnet_jax.checkpoints.config_file import SavedConfig
from tresnet_jax.checkpoints.match import match
from tresnet_jax.checkpoints.read import read
from tresnet_jax.checkpoints.report import Report
from tresnet_jax.checkpoints.shards import file_of_folder
from tresnet_jax.checkpoints.stated import is_numbers, is_size, transform_of
from tresnet_jax.data.transforms import resolve_data_config
from tresnet_jax.errors import ConversionError, HubError, reason
from tresnet_jax.files import sha256
from tresnet_jax.hub.client import find_weights, split_source
from tresnet_jax.hub.config import read_config
from tresnet_jax.models.base import ImageModel
from tresnet_jax.models.build import HeadOptions, build_model, check_head, fill
from tresnet_jax.models.initializers import ShapesOnly
from tresnet_jax.variants import CLASSIFICATION, PRETRAINED, TASKS, PretrainedConfig, pretrained_config, split_name

LINEAR_OPTIONS = {'global_pool', 'drop_rate'}  # those that an ML-Decoder does not have
REINSTALL = 'run: pip install --force-reinstall --no-deps tresnet_jax'


def create_model(
    name: str,
    *,
    pretrained: bool = False,
    checkpoint: str | Path | None = None,
    num_classes: int | None = None,
    in_chans: int | None = None,
    global_pool: str | None = None,
    output_stride: int | None = None,
    drop_rate: float | None = None,
    drop_path_rate: float | None = None,
    abn_slope: float | None = None,
    dtype: Any = jnp.float32,
    axis_name: str | None = None,
    abn_memory: str = 'plain',
    remat: bool = False,
    head: str | None = None,
    num_of_groups: int | None = None,
    decoder_embedding: int | None = None,
    features_only: bool = False,
    out_indices: tuple[int, ...] | int | None = None,
    pretrained_cfg_overlay: Mapping[str, Any] | None = None,
    cache_dir: str | Path | None = None,
    rngs: nnx.Rngs | None = None,
) -> ImageModel:
    """Build a TResNet or ResNet-D in evaluation mode.

    Args:
        name: an architecture ('resnet50d'), an architecture with a tag ('resnet50d.a1_in1k'), or one of timm's older
            names; or 'hf-hub:org/name' or 'local-dir:FOLDER', whose ``config.json`` describes the model.
        pretrained: load the weights of the tag from the Hugging Face hub, or those of the named repository or folder.
        checkpoint: load the weights of this file (timm's in any container, or written by ``python -m convert``), of
            the index or folder of several files, or of the best checkpoint in the folder of a training run. If it
            states its tag, how its images were prepared, or the names of its classes, `pretrained_cfg` has them.
        num_classes: number of classes. None: the checkpoint's number, else the tag's, else 1000. A number that differs
            from the checkpoint's drops its classifier and draws a new one; 0: no classifier.
        in_chans: channels of the images. None: the checkpoint's number, else 3. A number that differs from the
            checkpoint's adapts the first convolution as timm does.
        global_pool: 'avg', 'max', 'avgmax' or 'catavgmax', each also with the prefix 'fast', or '' for none. None:
            the checkpoint's, else timm's default.
        output_stride: 32; for ResNet-D also 16 or 8, which dilate the last stages instead of striding. None: the
            checkpoint's, else 32.
        drop_rate: rate of the dropout before the classifier. None: that of the named repository or folder, else 0.
        drop_path_rate: rate of stochastic depth in the last block; it rises linearly from 0 in the first block. None:
            as for `drop_rate`.
        abn_slope: slope of TResNet's leaky ReLUs. None: the checkpoint's, else timm's 1e-3. The original second
            version was trained with 1e-6.
        dtype: dtype of the computation: float32, bfloat16, float16, or float64 under ``jax_enable_x64``. Parameters
            are float32, or float64 with a computation in float64.
        axis_name: mapped axis over which batch norm synchronises its statistics in training mode.
        abn_memory: what training keeps for the backward pass (see `memory.py`; ``docs/gpu_report.md`` has figures).
            'plain': what JAX keeps by default; the only mode with forward-mode derivatives (jvp). 'inplace': the output
            of each batch norm with a leaky ReLU instead of its input; TResNet only. 'lean': as 'inplace', and the last
            convolution of each block and shortcut is recomputed. 'recompute': the input of each batch norm, whose
            output is recomputed. Outputs and running statistics are the same in all modes, in half precision up to
            rounding, and so are gradients, except for scales near zero under 'inplace' and 'lean' (see
            ``batch_norm.py``).
        remat: keep only the input of each block and recompute the rest: least memory, and a third more computation.
            `abn_memory` then applies within a block.
        head: 'linear', or 'ml_decoder' for the ML-Decoder head (Ridnik et al., arXiv:2111.12933), which replaces the
            pooling, the dropout and the classifier. None: the checkpoint's, else 'linear'. A head that differs from
            the checkpoint's is drawn.
        num_of_groups: queries of the ML-Decoder, each for a group of classes; at most one for each class. None: the
            checkpoint's, 100 for a head that is drawn.
        decoder_embedding: width of the ML-Decoder, a multiple of 8. None: the checkpoint's, 768 for a head that is
            drawn.
        features_only: build a backbone: a call returns the feature maps of `out_indices`; later layers are removed.
        out_indices: indices of the feature maps, or n for the last n. None: timm's default, (1, 2, 3, 4) for TResNet
            and all five for ResNet-D.
        pretrained_cfg_overlay: fields of `pretrained_cfg` to replace, such as mean, std, input_size or num_classes,
            also where a checkpoint states them. Numbers of classes and channels must be those of the weights.
        cache_dir: folder of downloaded files. None: the Hugging Face cache.
        rngs: random numbers for drawn weights. None: ``nnx.Rngs(0)``.

    Raises:
        ValueError: a name or an option is unknown.
        HubError: (a ValueError) the hub or the folder lacks the model, or the hub cannot be reached.
        convert.ConversionError: (a ValueError) the checkpoint cannot be read or does not fit.

    Example:
        >>> import jax
        >>> import tresnet_jax
        >>> images = jax.ShapeDtypeStruct((8, 32, 32, 3), 'float32')
        >>> model = tresnet_jax.create_model('test_resnet.fashion_mnist', pretrained=True)
        >>> jax.eval_shape(model, images).shape
        (8, 10)
        >>> backbone = tresnet_jax.create_model('test_tresnet.fashion_mnist', pretrained=True, features_only=True)
        >>> [x.shape for x in jax.eval_shape(backbone, images)]
        [(8, 8, 8, 16), (8, 4, 4, 32), (8, 2, 2, 256), (8, 1, 1, 512)]
    """
    saved = read_config(name, cache_dir) if split_source(name) else None
    architecture, tagged = (saved.architecture, saved) if saved else split_name(name)
    # The overlay has priority over the row here, and over what a checkpoint states at the end.
    overlay, default = pretrained_cfg_overlay or {}, tagged or pretrained_config(architecture)
    wanted = _overlaid(default, overlay)
    saved = wanted if isinstance(wanted, SavedConfig) else None
    if saved and saved.features_only and num_classes is None and not features_only:
        features_only, out_indices = True, saved.out_indices if out_indices is None else out_indices
    if out_indices is not None and not features_only:
        raise ValueError('out_indices is for features_only=True')
    if head is not None and features_only:
        raise ValueError('features_only=True builds a backbone, which has no head')
    check_head(head, num_of_groups, decoder_embedding, global_pool, drop_rate)
    requested = HeadOptions(head, num_of_groups, decoder_embedding)
    path = _weights_path(wanted, pretrained, checkpoint, cache_dir)
    options: dict[str, Any] = {
        'global_pool': global_pool,
        'output_stride': output_stride,
        'drop_rate': drop_rate,
        'drop_path_rate': drop_path_rate,
        'abn_slope': abn_slope,
        'dtype': dtype,
        'axis_name': axis_name,
        'abn_memory': abn_memory,
        'remat': remat,
    }
    options = {key: value for key, value in options.items() if value is not None}
    defaults = _saved_options(saved, head) if saved else {}  # arguments have priority over the saved configuration
    if rngs is None:  # seeding compiles a program; a complete checkpoint leaves nothing to draw
        draws = path is None or num_classes is not None or head is not None
        rngs = nnx.Rngs(0) if draws else ShapesOnly()
    if path is None:
        classes = wanted.num_classes if tagged or 'num_classes' in overlay else 1000
        classes = classes if num_classes is None else num_classes
        channels = wanted.input_size[0] if tagged or 'input_size' in overlay else 3
        channels = channels if in_chans is None else in_chans
        if saved and head is None:
            requested = HeadOptions(saved.head, saved.num_of_groups, saved.decoder_embedding)
        options = defaults | options | requested._asdict()
        model = build_model(architecture, num_classes=classes, in_chans=channels, rngs=rngs, **options)
    else:
        # A backbone has no classifier, so whatever head the file has is dropped.
        classes = 0 if features_only and num_classes is None else num_classes
        # The number of classes that goes with a tag is not checked if the overlay has another.
        load_as = architecture if saved or 'num_classes' in overlay else name
        model, report = _load(path, load_as, classes, in_chans, requested, rngs, options, defaults)
        _check_overlay(overlay, model, path, classes, in_chans)
        if saved and checkpoint is None:
            _check_saved(saved, model, path, classes, in_chans, head)
        own = saved is not None and checkpoint is None
        # The row of a tag describes its weights, whatever lies beside them in the cache.
        if saved or checkpoint is not None:
            # A file of ours can name the tag of its weights, whose images are not those of the default tag.
            row = tagged or PRETRAINED.get(report.name) or default
            tagged = _stated_config(row, own, model, report)
    model.pretrained_cfg = _overlaid(tagged or default, overlay)
    if features_only:
        indices = model.config.family.feature_indices if out_indices is None else out_indices
        model.out_indices = tuple(model.prune_intermediate_layers(indices))
    return model


def _saved_options(saved: SavedConfig, head: str | None) -> dict[str, Any]:
    """Return the options of a model that its config.json states, without those of a head that another one replaces."""
    names = {'output_stride', 'drop_path_rate'} | (LINEAR_OPTIONS if head != 'ml_decoder' else set())
    return {name: value for name in names if (value := getattr(saved, name)) is not None}


def _overlaid(config: PretrainedConfig, overlay: Mapping[str, Any]) -> PretrainedConfig:
    """Return a row with some fields replaced; the row itself if there are none.

    Raises:
        ValueError: a field is unknown, or identifies the weights; or a value is of another kind.
    """
    if not overlay:
        return config
    fields = {field.name for field in dataclasses.fields(PretrainedConfig)} - {
        'architecture',
        'tag',
        'embedded',
        'sha256',
    }
    unknown = sorted(overlay.keys() - fields)
    if unknown:
        raise ValueError(
            f'pretrained_cfg_overlay cannot replace {", ".join(unknown)}; it can replace {", ".join(sorted(fields))}'
        )
    checks: dict[str, tuple[Callable[[Any], bool], str]] = {
        'input_size': (is_size, '(channels, height, width)'),
        'test_input_size': (lambda value: value is None or is_size(value), '(channels, height, width) or None'),
        'mean': (is_numbers, 'a list of numbers'),
        'std': (is_numbers, 'a list of numbers'),
        'num_classes': (lambda value: type(value) is int and value >= 0, 'a whole number'),
        'task': (lambda value: value in TASKS, f'one of {", ".join(TASKS)}'),
    }
    for key in sorted(overlay.keys() & checks.keys()):
        is_valid, expected = checks[key]
        if not is_valid(overlay[key]):
            raise ValueError(f'pretrained_cfg_overlay: {key} must be {expected}, got {reprlib.repr(overlay[key])}')
    row = dataclasses.replace(
        config, **{key: tuple(value) if isinstance(value, list) else value for key, value in overlay.items()}
    )
    try:
        transform_of(resolve_data_config(row))
        transform_of(resolve_data_config(row, use_test_size=True))
    except (TypeError, ValueError) as error:
        raise ValueError(f'pretrained_cfg_overlay: {reason(error)}') from None
    return row


def _check_overlay(
    overlay: Mapping[str, Any], model: ImageModel, path: Path, num_classes: int | None, in_chans: int | None
) -> None:
    """Raise ConversionError if overlay and weights differ in classes or channels, unless these are requested."""
    size = overlay.get('input_size')
    for argument, requested, found, stated in (
        ('num_classes', num_classes, model.num_classes, overlay.get('num_classes')),
        ('in_chans', in_chans, model.in_chans, None if size is None else size[0]),
    ):
        if requested is None and stated not in (None, found):
            raise ConversionError(
                f'{path}: has {argument} {found}, but pretrained_cfg_overlay says {stated}; to change the model, give '
                f'{argument}={stated}'
            )


def _weights_path(
    config: PretrainedConfig, pretrained: bool, checkpoint: str | Path | None, cache_dir: str | Path | None
) -> Path | None:
    """Return the file to load, or None to draw the weights.

    Raises:
        HubError: the pretrained weights are unavailable.
        ConversionError: embedded weights are damaged.
    """
    if checkpoint is not None or not pretrained:
        return None if checkpoint is None else Path(checkpoint)
    if config.embedded:
        return _checked_embedded(config)
    if isinstance(config, SavedConfig) and config.source.startswith('local-dir:'):
        file = file_of_folder(Path(config.source.removeprefix('local-dir:')))
        if file is not None:
            return file
    source = config.source if isinstance(config, SavedConfig) else f'hf-hub:{config.hf_hub_id}'
    return find_weights(source, cache_dir)


def _stated_config(config: PretrainedConfig, own: bool, model: ImageModel, report: Report) -> PretrainedConfig:
    """Return the row of a tag, updated with what the checkpoint itself states about its images and classes.

    Args:
        config: the row.
        own: whether the row is the config.json of the weights, which then takes precedence.
        model, report: the model and how it was loaded.
    """
    saved = config if own and isinstance(config, SavedConfig) else None
    if saved and not saved.states_classes:
        config = dataclasses.replace(config, num_classes=model.num_classes)
    if report.data_config is not None and not (saved and saved.states_images):
        images = {**report.data_config, 'label_names': report.label_names, 'task': report.task}
        return PretrainedConfig(config.architecture, '', num_classes=model.num_classes, license='', **images)
    if report.label_names is not None and config.label_names is None:
        config = dataclasses.replace(config, num_classes=model.num_classes, label_names=report.label_names)
    return config if report.task == CLASSIFICATION else dataclasses.replace(config, task=report.task)


def _check_saved(
    saved: SavedConfig,
    model: ImageModel,
    path: Path,
    num_classes: int | None,
    in_chans: int | None,
    head: str | None,
) -> None:
    """Raise HubError if the head or the numbers of classes or channels differ from config.json, unless requested."""
    classes = saved.num_classes if saved.states_classes else model.num_classes
    for what, requested, found, stated in (
        ('classes', num_classes, model.num_classes, classes),
        ('channels', in_chans, model.in_chans, saved.input_size[0]),
    ):
        if requested is None and found != stated:
            raise HubError(f'{path}: has {found} {what}, but its config.json says {stated}')
    kind = 'linear' if model.ml_decoder is None else 'ml_decoder'
    if head is None and model.num_classes and saved.head not in (None, kind):
        raise HubError(f'{path}: has the head {kind!r}, but its config.json says {saved.head!r}')


def _checked_embedded(config: PretrainedConfig) -> Path:
    """Return the path of an embedded tag's checkpoint.

    Raises:
        ConversionError: the file is missing, or its SHA-256 is not the one in the table.
    """
    path = embedded_path(config)
    try:
        found = sha256(path)
    except OSError as error:
        raise ConversionError(f'{path}: cannot be read: {reason(error)}; {REINSTALL}') from error
    if found != config.sha256:
        raise ConversionError(
            f'{path}: has the SHA-256 {found}; the weights of {config.name} have {config.sha256}; {REINSTALL}'
        )
    return path


def embedded_path(config: PretrainedConfig, suffix: str = 'safetensors') -> Path:
    """Return the path of an embedded tag's checkpoint, or of timm's stored outputs ('golden.safetensors')."""
    return Path(str(importlib.resources.files('tresnet_jax') / 'embedded' / f'{config.name}.{suffix}'))


def _load(
    path: Path,
    name: str,
    num_classes: int | None,
    in_chans: int | None,
    head: HeadOptions,
    rngs: nnx.Rngs,
    options: dict[str, Any],
    defaults: dict[str, Any],
) -> tuple[ImageModel, Report]:
    """Return the model with the weights of a file, and the converter's report.

    The model is built from shapes, then filled: nothing is compiled, and only a new classifier is drawn.

    Args:
        path, name, num_classes, in_chans, head, rngs: as for `create_model`.
        options: what the caller asked for.
        defaults: what a config.json states, for options that neither the caller nor the file gives.
    """

    def build(architecture: str, **found: Any) -> ImageModel:
        # Our own files and runs state pooling and stride, other files only those that are not timm's.
        stated = {'global_pool': checkpoint.stated.global_pool, 'output_stride': checkpoint.stated.output_stride}
        skipped = {key for key, value in stated.items() if is_ours or value is not None}
        skipped |= LINEAR_OPTIONS if 'head' in found else set()
        unstated = {key: value for key, value in defaults.items() if key not in skipped}
        return build_model(architecture, **{**found, **unstated, **options})

    try:
        checkpoint = read(path)
    except SeveralNetworksError as error:
        command = f'python -m convert {path} TARGET.safetensors --key KEY'
        raise ConversionError(f'{error}\nFirst convert the one that is meant: {command}') from None
    is_ours = checkpoint.metadata.get('format') == FLAX_FORMAT
    try:
        matched = match(
            checkpoint,
            name,
            num_classes=num_classes,
            in_chans=in_chans,
            abn_slope=options.get('abn_slope'),
            head=head,
            build=build,
            consume=True,
        )
    except ConversionError as error:
        if checkpoint.layout is not None or is_ours:
            raise
        command = f'python -m convert {path} TARGET.safetensors'
        raise ConversionError(f'{error}\nIf another library named the tensors, first run: {command}') from error
    for warning in matched.report.warnings:
        warnings.warn(f'{path}: {warning}', stacklevel=3)
    model = fill(matched.model, matched.params, matched.batch_stats)
    kind, classes = matched.report.head_in_file
    kind, classes = head.head or kind, classes if num_classes is None else num_classes
    if head.head and not classes and num_classes is None:
        raise ValueError(f'{path}: has no classes for head={head.head!r}: give their number (num_classes)')
    if classes != matched.report.num_classes and check_head(
        kind, *head[1:], options.get('global_pool'), options.get('drop_rate')
    ):
        model.start_ml_decoder(classes, rngs, *head[1:])
    elif classes != matched.report.num_classes:
        model.start_classifier(classes, rngs)
    report, stated = matched.report, checkpoint.metadata
    if is_ours and report.tag is None and stated.get('architecture') == report.architecture:
        report = dataclasses.replace(report, tag=stated.get('tag') or None)
    return model, report
