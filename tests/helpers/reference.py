"""timm's models with seeded weights, ours with the same weights, and the outputs of both."""

from pathlib import Path
from typing import Any

import jax
import numpy as np
import torch

import convert
from convert.golden import timm_model
from tresnet_jax.models.base import ImageModel
from tresnet_jax.models.build import build_model, fill
from tresnet_jax.models.initializers import ShapesOnly
from tresnet_jax.variants import ARCHITECTURES, PRETRAINED

TIMM_ARCHITECTURES = sorted(name for name in ARCHITECTURES if name != 'test_tresnet')
TIMM_TAGS = sorted(name for name, row in PRETRAINED.items() if not row.embedded)


def reference(name: str, seed: int = 0, **options: Any) -> torch.nn.Module:
    """Return a float64 timm model in evaluation mode, with weights as after training and gammas of both signs."""
    torch.manual_seed(seed)
    model = timm_model(name, **options).double()
    randomise(model, seed)
    return model


def randomise(model: torch.nn.Module, seed: int) -> None:
    """Draw gammas, betas and statistics of a float64 model, in place.

    Statistics are measured on noise and then disturbed. Activations so keep their scale through two hundred layers,
    and no statistic equals that of a test's batch.
    """
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
            # The gammas before a residual sum are smaller, as after training. Otherwise the difference between two
            # roundings grows from block to block until float32 tells nothing.
            low, high = (0.1, 0.3) if id(m) in last else (0.4, 1.2)
            m.weight.copy_(uniform(m.weight, low, high) * signs(m.weight))
            m.bias.copy_(uniform(m.bias, -0.3, 0.3))
            m.momentum = None  # the average of all batches since the reset
            m.reset_running_stats()
        model.train()
        model(torch.randn(4, input_channels(model), 64, 64, generator=generator, dtype=torch.float64))
        for m in norms:
            m.momentum = 0.1
            mean, var = statistics(m)
            mean += uniform(mean, -0.3, 0.3) * var.sqrt()
            var *= uniform(var, 0.7, 1.4)
    model.eval()


def statistics(norm: torch.nn.BatchNorm2d) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the running mean and variance themselves."""
    assert norm.running_mean is not None and norm.running_var is not None
    return norm.running_mean, norm.running_var


def input_channels(model: torch.nn.Module) -> int:
    """Return the number of channels of a model's images."""
    first = next(m for m in model.modules() if isinstance(m, torch.nn.Conv2d))
    return first.in_channels // 16 if hasattr(model, 'body') else first.in_channels


def state_of(model: torch.nn.Module) -> convert.Checkpoint:
    """Return a model's state dict as if it had been read from a file; the arrays share its memory."""
    tensors = {key: value.detach().numpy() for key, value in model.state_dict().items()}
    return convert.Checkpoint(Path('timm'), 'torch', tensors, {})


def ours(model: torch.nn.Module, name: str, **options: Any) -> ImageModel:
    """Return our model with the weights of timm's."""
    params, batch_stats, report = convert.to_flax(state_of(model), name)
    shape = {'num_classes': report.num_classes, 'in_chans': report.in_chans, 'global_pool': report.global_pool}
    return fill(build_model(name, rngs=ShapesOnly(), **{**shape, **options}), params, batch_stats)


def images(batch: int, channels: int, height: int, width: int, seed: int = 1) -> torch.Tensor:
    """Return standard normal images, (batch, channels, height, width), float64."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, channels, height, width, generator=generator, dtype=torch.float64)


def nhwc(x: torch.Tensor) -> Any:
    """Return a tensor as a NumPy array, with the channels of images and feature maps last."""
    x = x.detach()
    return (x.permute(0, 2, 3, 1) if x.ndim == 4 else x).numpy()


def call(model: Any, x: Any, method: str = '__call__', **options: Any) -> Any:
    """Call a method of an NNX module under jit, in the module's present mode."""
    return jax.jit(lambda m, x: getattr(m, method)(x, **options))(model, x)


def timm_outputs(model: Any, x: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return `features.0` (the stem) to `features.4` and `logits` of a timm model, with gradients if it trains."""
    last, maps = model.forward_intermediates(x)
    return {f'features.{i}': m for i, m in enumerate(maps)} | {'logits': model.forward_head(last)}


def our_outputs(apply: Any, params: Any, batch_stats: Any, x: Any, **mode: Any) -> tuple[dict[str, jax.Array], Any]:
    """Return the same outputs of a functional model, and the statistics: new ones in training mode."""
    out = apply(params, batch_stats, x, method='forward_intermediates', **mode)
    (last, maps), stats = out if mode else (out, batch_stats)
    logits = apply(params, batch_stats, last, method='forward_head')
    return {f'features.{i}': m for i, m in enumerate(maps)} | {'logits': logits}, stats


def to_numpy(outputs: dict[str, torch.Tensor]) -> dict[str, np.ndarray]:
    """Return the outputs of a timm model as arrays with the channels last."""
    return {key: nhwc(value) for key, value in outputs.items()}
