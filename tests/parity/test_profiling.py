"""Costs against timm's models, counted by torch's hooks on tensors that have shapes and no values."""

import math

import pytest
import torch
from torch import nn

from convert.golden import timm_model
from tresnet_jax.models.build import build_model
from tresnet_jax.models.initializers import ShapesOnly
from tresnet_jax.profiling import profile
from tresnet_jax.variants import ARCHITECTURES


def thop(layer: nn.Module, x: torch.Tensor, y: torch.Tensor) -> int:
    """Return the operations of a layer by the rules of thop 0.0.31 (thop/vision/basic_hooks.py), by exact class.

    Two rules are left out, because timm of January 2021 had its own classes there: the linear layer, and TResNet's
    leaky ReLU, which was inside the in-place norm.
    """
    match type(layer):
        case nn.Conv2d:
            return y.numel() * (
                layer.in_channels // layer.groups * math.prod(layer.kernel_size) + (layer.bias is not None)
            )
        case nn.BatchNorm2d:
            return 2 * x.numel()
        case nn.AvgPool2d:
            return y.numel()
        case nn.AdaptiveAvgPool2d:
            return (math.prod(x.shape[2:]) + 1) * y.numel()
    return 0


def hooked(model: nn.Module, in_chans: int, height: int, width: int) -> dict[str, int]:
    """Return parameters, MACs and outputs of the convolutions and the linear layer, and thop's count."""
    total = {'parameters': sum(p.numel() for p in model.parameters()), 'macs': 0, 'activations': 0, 'card_flops': 0}

    def hook(layer: nn.Module, inputs: tuple[torch.Tensor], y: torch.Tensor) -> None:
        total['card_flops'] += thop(layer, inputs[0], y)
        if isinstance(layer, nn.Conv2d | nn.Linear):
            # Each weight is used once for every position of the output.
            positions = y.numel() // layer.weight.shape[0]
            total['macs'] += layer.weight.numel() * positions
            total['activations'] += y.numel()

    for layer in model.modules():
        if not list(layer.children()):
            layer.register_forward_hook(hook)
    model(torch.zeros(1, in_chans, height, width, device='meta'))
    return total


def counts(ours) -> dict[str, int]:
    return {key: getattr(ours, key) for key in ('parameters', 'macs', 'activations', 'card_flops')}


def timm_shapes(name: str, **options) -> nn.Module:
    with torch.device('meta'):
        return timm_model(name, **options)


BIG = ('tresnet_l', 'tresnet_xl', 'resnet101d', 'resnet152d', 'resnet200d')


@pytest.mark.parametrize(
    'name', [pytest.param(name, marks=pytest.mark.slow if name in BIG else ()) for name in sorted(ARCHITECTURES)]
)
def test_every_architecture(name):
    assert counts(profile(name, 224)) == hooked(timm_shapes(name), 3, 224, 224)


@pytest.mark.parametrize(
    'name, size', [('test_tresnet', (200, 260)), ('resnet18d', (224, 285)), ('test_resnet', (97, 75))]
)
def test_sizes(name, size):
    assert counts(profile(name, size)) == hooked(timm_shapes(name), 3, *size)


@pytest.mark.parametrize(
    'name, options',
    [
        ('test_tresnet', {'num_classes': 7, 'in_chans': 1}),
        ('test_tresnet', {'global_pool': 'avg'}),
        ('test_tresnet', {'global_pool': 'catavgmax', 'num_classes': 0}),
        ('test_resnet', {'num_classes': 7, 'in_chans': 4}),
        ('test_resnet', {'global_pool': 'fast'}),
        ('test_resnet', {'global_pool': 'max'}),
        ('test_resnet', {'global_pool': 'avgmax'}),
        ('test_resnet', {'global_pool': 'catavgmax'}),
        ('test_resnet', {'global_pool': '', 'num_classes': 0}),
        ('test_resnet', {'output_stride': 8}),
        ('test_resnet', {'output_stride': 16}),
    ],
)
def test_options(name, options):
    model = timm_shapes(name, **options)
    shape = {'in_chans': 3, 'num_classes': 1000, **options}
    ours = profile(build_model(name, rngs=ShapesOnly(), **shape), (68, 100))
    assert counts(ours) == hooked(model, shape['in_chans'], 68, 100)
