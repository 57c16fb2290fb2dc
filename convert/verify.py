"""Holding a model against outputs that timm gave: the proof that needs no torch."""

import dataclasses
import json
from pathlib import Path

import jax
import numpy as np
import safetensors

from convert.errors import ConversionError
from tresnet_jax.model import ImageModel


@dataclasses.dataclass(frozen=True)
class Comparison:
    """One tensor of ours beside timm's.

    Attributes:
        name: 'features.0' (the stem) to 'features.4', or 'logits'.
        error: max|ours - timm's| / max|timm's|.
        noise: the same of torch's own float32 against its float64.
    """

    name: str
    error: float
    noise: float


def relative_error(a: np.ndarray, b: np.ndarray) -> float:
    """max|a - b| / max|b|; where b is zero everywhere, 0 if a is too, else infinity."""
    difference, largest = float(np.abs(a - b).max(initial=0)), float(np.abs(b).max(initial=0))
    if largest == 0:
        return 0.0 if difference == 0 else float('inf')
    return difference / largest


def compare_with_stored(model: ImageModel, path: str | Path) -> list[Comparison]:
    """Run a model on stored pictures and compare each stage's output with timm's stored one.

    Args:
        model: in evaluation mode.
        path: a safetensors file of timm's tensors `images` (N, C, H, W), `features.0` ... and `logits`, float32, with
            `float32_noise` in its metadata.

    Raises:
        ConversionError: the file is not such a file.
    """
    try:
        with safetensors.safe_open(path, framework='np') as file:
            stored, noise = file.get_tensors(), json.loads((file.metadata() or {})['float32_noise'])
            images = stored.pop('images')
    except (OSError, KeyError, ValueError, safetensors.SafetensorError) as error:
        raise ConversionError(f'{path}: not a file of stored outputs: {error}') from error

    @jax.jit
    def outputs(model: ImageModel, x: jax.Array) -> dict[str, jax.Array]:
        last, maps = model.forward_intermediates(x)
        return {f'features.{i}': m for i, m in enumerate(maps)} | {'logits': model.forward_head(last)}

    ours = outputs(model, images.transpose(0, 2, 3, 1))
    if ours.keys() != stored.keys():
        raise ConversionError(f'{path}: has {", ".join(sorted(stored))}; the model gives {", ".join(sorted(ours))}')
    comparisons = []
    for name, theirs in sorted(stored.items()):
        theirs = theirs.transpose(0, 2, 3, 1) if theirs.ndim == 4 else theirs
        if theirs.shape != ours[name].shape:
            raise ConversionError(f'{path}: {name} has shape {theirs.shape}, the model gives {ours[name].shape}')
        comparisons.append(Comparison(name, relative_error(np.asarray(ours[name]), theirs), noise[name]))
    return comparisons
