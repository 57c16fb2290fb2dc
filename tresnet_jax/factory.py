"""`create_model`: a model by its name, with weights from a file, this package, a folder, the hub, or drawn."""

import importlib.resources
import warnings
from pathlib import Path
from typing import Any

import jax.numpy as jnp
from flax import nnx

from tresnet_jax.checkpoints.match import match
from tresnet_jax.checkpoints.read import read
from tresnet_jax.checkpoints.report import Report
from tresnet_jax.errors import HubError
from tresnet_jax.hub.client import WEIGHTS, find, split_source
from tresnet_jax.hub.config import SavedConfig, read_config
from tresnet_jax.models.base import ImageModel
from tresnet_jax.models.build import build_model, fill
from tresnet_jax.models.initializers import ShapesOnly
from tresnet_jax.variants import PretrainedConfig, pretrained_config, split_name


def create_model(
    name: str,
    *,
    pretrained: bool = False,
    checkpoint: str | Path | None = None,
    num_classes: int | None = None,
    in_chans: int | None = None,
    global_pool: str | None = None,
    output_stride: int = 32,
    drop_rate: float = 0.0,
    drop_path_rate: float = 0.0,
    abn_slope: float | None = None,
    dtype: Any = jnp.float32,
    axis_name: str | None = None,
    abn_memory: str = 'plain',
    remat: bool = False,
    features_only: bool = False,
    out_indices: tuple[int, ...] | int | None = None,
    rngs: nnx.Rngs | None = None,
) -> ImageModel:
    """A TResNet or ResNet-D in evaluation mode.

    Args:
        name: an architecture ('resnet50d'), with a tag ('resnet50d.a1_in1k'), or one of timm's older names; or
            'hf-hub:org/name' or 'local-dir:FOLDER', whose ``config.json`` says what it is.
        pretrained: take the weights of the tag, which come from the Hugging Face hub, or those of the source.
        checkpoint: take the weights of this file: timm's, or one that ``python -m convert`` wrote; or of the folder of
            a training run, from its best checkpoint. The model then expects images as they were in that run.
        num_classes: None is the checkpoint's number, without one the tag's, and 1000 for a bare name. Another number
            than the checkpoint's leaves its classifier out and starts a new one; 0 is no classifier.
        in_chans: channels of the images; None is the checkpoint's, or 3. Another number than the checkpoint's
            adapts the first convolution as timm does.
        global_pool: 'avg', 'max', 'avgmax', 'catavgmax', any of these behind 'fast', or '' for none; None is timm's.
        output_stride: 32, or 16 or 8 to dilate the last stages instead of striding; ResNet-D alone.
        drop_rate: dropout before the classifier.
        drop_path_rate: stochastic depth of the last block; earlier blocks have less, linearly.
        abn_slope: of TResNet's leaky ReLUs; None is the checkpoint's, or timm's 1e-3. The original second version was
            trained with 1e-6.
        dtype: of the computation: float32, bfloat16, float16, or float64 under ``jax_enable_x64``. Parameters are
            float32 but for float64.
        axis_name: the mapped axis over which batch norm in training mode is synchronised.
        abn_memory: what training keeps for the backward pass (`memory.py`, and ``docs/gpu_report.md`` has figures):
            'plain' what JAX does by itself, the only mode with forward-mode derivatives (jvp); 'inplace' the output of
            each batch norm with a leaky ReLU instead of its input, for TResNet alone; 'lean' that, and the last
            convolution of each block and shortcut is computed again; 'recompute' the input of each batch norm, from
            which its output is computed again. Running statistics and outputs are the same in all; gradients are up
            to rounding, but see ``inplace_abn.py`` for scales near zero under 'inplace' and 'lean'.
        remat: keep the input of each block alone and compute all else in it again: least memory, and a third more
            computation. `abn_memory` then decides within a block.
        features_only: a backbone: a call gives the feature maps of `out_indices`, and layers behind them are gone.
        out_indices: which maps; None is timm's: (1, 2, 3, 4) of a TResNet, all five of a ResNet-D; n is the last n.
        rngs: for weights that are drawn; ``nnx.Rngs(0)`` if None.

    Raises:
        ValueError: an unknown name or option.
        HubError: (a ValueError) the hub or a folder does not give what it was asked for.
        convert.ConversionError: (a ValueError) the checkpoint cannot be read or does not fit.
    """
    saved = read_config(name) if split_source(name) else None
    architecture, tagged = (saved.architecture, saved) if saved else split_name(name)
    if out_indices is not None and not features_only:
        raise ValueError('out_indices is for features_only=True')
    path = _weights_path(tagged or pretrained_config(architecture), pretrained, checkpoint)
    if saved:  # what is asked for here goes before what the model was saved with
        global_pool = saved.global_pool if global_pool is None else global_pool
        output_stride = saved.output_stride if output_stride == 32 else output_stride
    options = {
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
    if rngs is None:  # seeding compiles, and a checkpoint that is taken whole leaves nothing to draw
        rngs = nnx.Rngs(0) if path is None or num_classes is not None else ShapesOnly()
    if path is None:
        classes = num_classes if num_classes is not None else tagged.num_classes if tagged else 1000
        channels = in_chans if in_chans is not None else tagged.input_size[0] if tagged else 3
        model = build_model(architecture, num_classes=classes, in_chans=channels, rngs=rngs, **options)
    else:
        model, report = _load(path, architecture if saved else name, num_classes, in_chans, rngs, options)
        if saved and checkpoint is None:
            _check_saved(saved, model, path, num_classes, in_chans)
        if report.data_config is not None:  # of a run: what it was trained with goes before what its tag was
            images = {**report.data_config, 'label_names': report.label_names}
            tagged = PretrainedConfig(architecture, '', num_classes=model.num_classes, license='', **images)
    model.pretrained_cfg = tagged or pretrained_config(architecture)
    if features_only:
        indices = model.config.family.feature_indices if out_indices is None else out_indices
        model.out_indices = tuple(model.prune_intermediate_layers(indices))
    return model


def _weights_path(config: PretrainedConfig, pretrained: bool, checkpoint: str | Path | None) -> Path | None:
    """The file to load, if any.

    Raises:
        HubError: pretrained weights that are not to be had.
    """
    if checkpoint is not None or not pretrained:
        return None if checkpoint is None else Path(checkpoint)
    if config.embedded:
        return embedded_path(config)
    return find(config.source if isinstance(config, SavedConfig) else f'hf-hub:{config.hf_hub_id}', WEIGHTS)


def _check_saved(
    saved: SavedConfig, model: ImageModel, path: Path, num_classes: int | None, in_chans: int | None
) -> None:
    """Raises HubError where the weights have other classes or channels than their config.json says."""
    for what, asked, found, said in (
        ('classes', num_classes, model.num_classes, saved.num_classes),
        ('channels', in_chans, model.in_chans, saved.input_size[0]),
    ):
        if asked is None and found != said:
            raise HubError(f'{path}: has {found} {what}, but its config.json says {said}')


def embedded_path(config: PretrainedConfig, suffix: str = 'safetensors') -> Path:
    """The checkpoint of a tag whose weights come with this package, or timm's stored outputs ('golden.safetensors')."""
    return Path(str(importlib.resources.files('tresnet_jax') / 'embedded' / f'{config.name}.{suffix}'))


def _load(
    path: Path, name: str, num_classes: int | None, in_chans: int | None, rngs: nnx.Rngs, options: dict[str, Any]
) -> tuple[ImageModel, Report]:
    """The model, and what the converter found.

    Shapes first, then the file's values: nothing is compiled, and only a new classifier is drawn.
    """

    def build(architecture: str, **found: Any) -> ImageModel:
        asked = {key: value for key, value in options.items() if value is not None}
        return build_model(architecture, **{**found, **asked})

    model, params, batch_stats, report = match(
        read(path), name, num_classes, in_chans, options['abn_slope'], build, consume=True
    )
    for warning in report.warnings:
        warnings.warn(f'{path}: {warning}', stacklevel=3)
    model = fill(model, params, batch_stats)
    if num_classes is not None and num_classes != report.num_classes:
        model.start_classifier(num_classes, rngs)
    return model, report
