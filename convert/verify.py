"""Compare a converted model with timm or with its stored outputs, and find the first layer that differs."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import safetensors
from flax import nnx

from tresnet_jax.checkpoints.checkpoint import Checkpoint
from tresnet_jax.checkpoints.find import clean
from tresnet_jax.checkpoints.layouts import to_timm
from tresnet_jax.checkpoints.report import Report
from tresnet_jax.errors import ConversionError, reason
from tresnet_jax.models.base import ImageModel
from tresnet_jax.models.batch_norm import BatchNormAct
from tresnet_jax.models.hooks import add_forward_hook
from tresnet_jax.plotting import new_figure, save_figure

from .comparison import Comparison, relative_error
from .golden import add_timm_ml_decoder, set_timm_slope, timm_model, timm_outputs

Outputs = dict[str, np.ndarray]  # name -> array in torch's layout


def compare_with_stored(model: ImageModel, path: str | Path) -> list[Comparison]:
    """Run a model on stored images and compare each stage's output with timm's stored one.

    Args:
        model: a model in evaluation mode.
        path: a file of `write_golden`.

    Raises:
        ConversionError: `write_golden` did not write the file, or its tensors do not fit the model.
    """
    try:
        with safetensors.safe_open(path, framework='np') as file:
            stored, noise = file.get_tensors(), json.loads((file.metadata() or {})['float32_noise'])
        images = stored.pop('images')
        noise = {name: float(noise[name]) for name in stored}
    except KeyError as error:
        raise ConversionError(f'{path}: not a file of stored outputs: {error} is missing') from error
    except (OSError, TypeError, ValueError, safetensors.SafetensorError) as error:
        raise ConversionError(f'{path}: not a file of stored outputs: {reason(error)}') from error

    ours = our_outputs(model, images)
    if ours.keys() != stored.keys():
        raise ConversionError(f'{path}: has {", ".join(sorted(stored))}; the model has {", ".join(sorted(ours))}')
    for name, theirs in stored.items():
        if theirs.shape != ours[name].shape:
            raise ConversionError(f'{path}: {name} has shape {theirs.shape}; the model has {ours[name].shape}')
    return [Comparison(name, relative_error(ours[name], stored[name]), noise[name]) for name in sorted(stored)]


def our_outputs(model: ImageModel, images: np.ndarray) -> Outputs:
    """Return `features.0` (the stem) to `features.4` and `logits` of our model; all arrays are in torch's layout."""

    @jax.jit
    def run(model: ImageModel, x: jax.Array) -> dict[str, jax.Array]:
        last, maps = model.forward_intermediates(x)
        return {f'features.{i}': m for i, m in enumerate(maps)} | {'logits': model.forward_head(last)}

    return {name: _to_nchw(value) for name, value in run(model, images.transpose(0, 2, 3, 1)).items()}


def _to_nchw(value: jax.Array) -> np.ndarray:
    array = np.asarray(value)
    return array.transpose(0, 3, 1, 2) if array.ndim == 4 else array


def compare_with_timm(model: ImageModel, state: Mapping[str, np.ndarray], seed: int = 0) -> list[Comparison]:
    """Run our model and timm's on the same seeded image and compare each stage's output.

    Args:
        model: our model, in evaluation mode and float32.
        state: timm's tensors, from `reference_state`.
        seed: seed of the image, which is standard normal and has the size that the tag was trained at.

    Raises:
        ConversionError: torch or timm is not installed, or timm cannot load the tensors.
    """
    return _compare(model, state, seed, our_outputs, timm_outputs)


def first_difference(model: ImageModel, state: Mapping[str, np.ndarray], seed: int = 0) -> Comparison | None:
    """Return the first layer, in timm's order of execution, whose output differs by more than float32's noise."""
    layers = _compare(model, state, seed, _our_layers, _timm_layers)
    return next((layer for layer in layers if not layer.agrees), None)


def reference_state(checkpoint: Checkpoint, report: Report) -> dict[str, np.ndarray]:
    """Return the tensors of the source under timm's names.

    timm's own code changes the names of in-place ABN, so that an error in our code shows; our code changes other names.
    """
    state = to_timm(checkpoint).tensors
    if report.layout == 'inplace_abn':
        import torch
        from timm.models.tresnet import checkpoint_filter_fn

        names = {clean(key): key for key in checkpoint.tensors}
        body = f'{checkpoint.prefix}body.'
        original = {
            name.removeprefix(checkpoint.prefix): checkpoint.tensors[key]
            for name, key in names.items()
            if name.startswith(body) and not name.endswith('.filt')
        }
        tensors = {key: torch.from_numpy(np.array(value, np.float32)) for key, value in original.items()}
        state |= {key: value.numpy() for key, value in checkpoint_filter_fn(tensors, None).items()}
    return {key: np.asarray(value, np.float32) for key, value in state.items() if key not in dict(report.dropped)}


def _compare(
    model: ImageModel,
    state: Mapping[str, np.ndarray],
    seed: int,
    run_ours: Callable[[ImageModel, np.ndarray], Outputs],
    run_timm: Callable[[Any, np.ndarray], Outputs],
) -> list[Comparison]:
    options = {'num_classes': model.num_classes, 'in_chans': model.in_chans, 'global_pool': model.global_pool}
    if model.output_stride != 32:  # timm's TResNet does not have this argument
        options['output_stride'] = model.output_stride
    decoder = model.ml_decoder
    if decoder is not None:
        del options['global_pool']
    theirs = timm_model(model.architecture, **options)
    if decoder is not None:
        add_timm_ml_decoder(theirs, decoder.num_of_groups, decoder.decoder_embedding)
    import torch

    try:
        theirs.load_state_dict({key: torch.from_numpy(np.array(value)) for key, value in state.items()}, strict=True)
    except (RuntimeError, TypeError) as error:
        raise ConversionError(f'timm cannot load this checkpoint: {reason(error)}') from error
    if model.abn_slope != model.config.family.default_slope:
        set_timm_slope(theirs, model.abn_slope)
    height, width = model.pretrained_cfg.input_size[1:] if model.pretrained_cfg else (224, 224)
    images = np.random.default_rng(seed).standard_normal((1, model.in_chans, height, width)).astype(np.float32)
    ours, single = run_ours(model, images), run_timm(theirs.float(), images)
    double = run_timm(theirs.double(), images)
    for name in double.keys() & _activated(model):  # timm's ReLU is a layer of its own, ours is part of batch norm
        single[name], double[name] = np.maximum(single[name], 0), np.maximum(double[name], 0)
    return [
        Comparison(name, relative_error(ours[name], double[name]), relative_error(single[name], double[name]))
        for name in double
    ]


def _activated(model: ImageModel) -> set[str]:
    """Return timm's names of our batch norms that include a ReLU."""
    named = {'.'.join(map(str, path)): module for path, module in nnx.iter_modules(model)}
    return {name for name, module in named.items() if isinstance(module, BatchNormAct) and module.slope == 0}


def _timm_layers(model: Any, images: np.ndarray) -> Outputs:
    """Return the output of every convolution, batch norm and linear layer of timm's model, in order of execution."""
    import torch

    outputs: Outputs = {}

    def keep(name: str) -> Callable[..., None]:
        def hook(module: Any, args: Any, output: Any) -> None:
            if output.ndim != 3:  # those in an ML-Decoder have other axes than ours
                outputs[name] = output.detach().clone().numpy()  # a copy: the next activation works in place

        return hook

    kinds = (torch.nn.Conv2d, torch.nn.BatchNorm2d, torch.nn.Linear)
    handles = [m.register_forward_hook(keep(name)) for name, m in model.named_modules() if isinstance(m, kinds)]
    with torch.no_grad():
        model(torch.from_numpy(images).to(next(model.parameters()).dtype))
    for handle in handles:
        handle.remove()
    return outputs


def _our_layers(model: ImageModel, images: np.ndarray) -> Outputs:
    """Return the same outputs of our model, under timm's names; batch norms include their activation."""
    graphdef, state = nnx.split(model)

    @jax.jit
    def run(state: nnx.State, x: jax.Array) -> dict[str, jax.Array]:
        outputs: dict[str, jax.Array] = {}
        copy = nnx.merge(graphdef, state)
        add_forward_hook(copy, lambda path, layer, x, y: outputs.update({'.'.join(map(str, path)): y}))
        copy(x)
        return outputs

    return {name: _to_nchw(value) for name, value in run(state, images.transpose(0, 2, 3, 1)).items()}


def plot_errors(comparisons: Sequence[Comparison], title: str, path: Path) -> None:
    """Write a bar chart as PNG: our error and torch's float32 noise for each tensor, on a logarithmic axis.

    Raises:
        MissingExtraError: Matplotlib is not installed.
        ConversionError: the file cannot be written.
    """
    figure = new_figure(1.5 + len(comparisons), 4)
    axes = figure.subplots()
    places, floor = np.arange(len(comparisons)), 1e-9  # a logarithmic axis cannot show zero
    axes.bar(places - 0.2, [max(c.error, floor) for c in comparisons], 0.4, label='Flax against timm in float64')
    axes.bar(places + 0.2, [max(c.noise, floor) for c in comparisons], 0.4, label='torch float32 against float64')
    axes.set_yscale('log')
    axes.set_xticks(places, [c.name for c in comparisons])
    axes.set_ylabel('largest relative error')
    axes.set_title(title)
    axes.legend()
    save_figure(figure, path)
