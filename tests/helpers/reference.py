"""The other side of every comparison: timm's models with seeded weights that hide nothing."""

from pathlib import Path

import jax
import numpy as np
import timm
import torch
from timm.models.tresnet import TResNet

import convert
from tresnet_jax.models.base import ImageModel
from tresnet_jax.models.build import build_model, fill
from tresnet_jax.models.initializers import ShapesOnly


def relative_error(a, b) -> float:
    """max|a - b| / max|b|; where b is zero everywhere, a must be too."""
    a, b = np.asarray(a), np.asarray(b)
    assert a.shape == b.shape, f'{a.shape} is not {b.shape}'
    assert np.isfinite(b).all(), 'the reference is not finite'
    largest = np.abs(b).max(initial=0)
    difference = np.abs(a - b).max(initial=0)
    if largest == 0:
        return 0.0 if difference == 0 else float('inf')
    return float(difference / largest)


def timm_model(name: str, **options) -> torch.nn.Module:
    """timm's model; our `test_tresnet` is timm's class with the row of our table."""
    if name == 'test_tresnet':
        features_only = options.pop('features_only', False)
        model = TResNet(layers=[1, 1, 1, 1], width_factor=0.25, **options)
        return timm.models.FeatureListNet(model, (1, 2, 3, 4), flatten_sequential=True) if features_only else model
    return timm.create_model(name, **options)


def reference(name: str, seed: int = 0, **options) -> torch.nn.Module:
    """A float64 timm model in evaluation mode, with statistics as after training and gammas of both signs.

    Statistics are measured on noise and then disturbed, so that activations keep their scale through two hundred
    layers and no statistic is what the batch of a test has.
    """
    torch.manual_seed(seed)
    model = timm_model(name, **options).double()
    randomise(model, seed)
    return model


def randomise(model: torch.nn.Module, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)

    def uniform(like: torch.Tensor, low: float, high: float) -> torch.Tensor:
        return low + (high - low) * torch.rand(like.shape, generator=generator, dtype=like.dtype)

    def signs(like: torch.Tensor) -> torch.Tensor:
        return torch.where(torch.rand(like.shape, generator=generator) < 0.3, -1.0, 1.0).to(like.dtype)

    norms = [m for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    last = {id(getattr(block, 'bn3', None) or getattr(block, 'bn2', None)) for block in model.modules()} | {
        id(getattr(getattr(block, 'conv3', None) or getattr(block, 'conv2', None), 'bn', None))
        for block in model.modules()
    }
    with torch.no_grad():
        for m in norms:
            # Those before a residual sum are smaller, as training leaves them. Were they not, the difference between
            # two roundings would grow from block to block until float32 says nothing.
            low, high = (0.1, 0.3) if id(m) in last else (0.4, 1.2)
            m.weight.copy_(uniform(m.weight, low, high) * signs(m.weight))
            m.bias.copy_(uniform(m.bias, -0.3, 0.3))
            m.momentum = None  # the average of all batches since the reset
            m.reset_running_stats()
        model.train()
        model(torch.randn(4, model_channels(model), 64, 64, generator=generator, dtype=torch.float64))
        for m in norms:
            m.momentum = 0.1
            m.running_mean += uniform(m.running_mean, -0.3, 0.3) * m.running_var.sqrt()
            m.running_var *= uniform(m.running_var, 0.7, 1.4)
    model.eval()


def model_channels(model: torch.nn.Module) -> int:
    first = next(m for m in model.modules() if isinstance(m, torch.nn.Conv2d))
    return first.in_channels // 16 if hasattr(model, 'body') else first.in_channels


def state_of(model: torch.nn.Module) -> convert.Checkpoint:
    """A model's state dict as if it had been read from a file."""
    tensors = {key: value.detach().numpy() for key, value in model.state_dict().items()}
    return convert.Checkpoint(Path('timm'), 'torch', tensors, {})


def ours(model: torch.nn.Module, name: str, **options) -> ImageModel:
    """Our model with the weights of timm's."""
    params, batch_stats, report = convert.to_flax(state_of(model), name)
    shape = {'num_classes': report.num_classes, 'in_chans': report.in_chans, 'global_pool': report.global_pool}
    return fill(build_model(name, rngs=ShapesOnly(), **{**shape, **options}), params, batch_stats)


def nhwc(x: torch.Tensor) -> np.ndarray:
    x = x.detach()
    return (x.permute(0, 2, 3, 1) if x.ndim == 4 else x).numpy()


def call(model: ImageModel, x, method: str = '__call__', **options):
    """A method of a model under jit, in the model's present mode."""
    return jax.jit(lambda m, x: getattr(m, method)(x, **options))(model, x)


def images(batch: int, channels: int, height: int, width: int, seed: int = 1) -> torch.Tensor:
    """Seeded noise, (B, C, H, W) float64."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, channels, height, width, generator=generator, dtype=torch.float64)
