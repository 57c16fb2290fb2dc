"""Grad-CAM against torch's own gradients of timm's models, and against maps of pytorch-grad-cam."""

from typing import Any

import jax
import numpy as np
import pytest
import torch

import tresnet_jax
from convert.golden import add_timm_ml_decoder
from tests.helpers import tolerances
from tests.helpers.closeness import assert_close
from tests.helpers.images import normal_images
from tests.helpers.models import EMBEDDED_TAGS
from tests.helpers.paths import FILES
from tests.helpers.reference import images, nhwc, ours, reference
from tresnet_jax.explaining import grad_cam, heat_map


def torch_map(model: Any, x: torch.Tensor, classes: list[int]) -> np.ndarray:
    """Return the map of one class for each image, by the definition."""
    features = model.forward_features(x).detach().requires_grad_()
    logits = model.forward_head(features)
    logits[torch.arange(len(x)), classes].sum().backward()
    weights = features.grad.mean((2, 3), keepdim=True)
    return torch.relu((weights * features).sum(1)).detach().numpy()


@pytest.mark.parametrize(
    'name, options',
    [
        ('test_resnet', {}),
        ('test_tresnet', {}),
        ('test_resnet', {'global_pool': 'catavgmax'}),
        pytest.param('resnet18d', {}, marks=pytest.mark.slow),
        pytest.param('tresnet_m', {}, marks=pytest.mark.slow),
    ],
)
def test_maps_are_those_of_torch(name, options, x64, record_error):
    """In float64, on rectangular images; several classes of an image give the maps of each."""
    theirs = reference(name, num_classes=7, **options)
    x = images(3, 3, 76, 108)
    model = ours(theirs, name, dtype='float64')
    classes = np.array([[4, 0], [0, 2], [6, 6]])
    maps = jax.jit(grad_cam)(model, nhwc(x), classes)
    expected = np.stack([torch_map(theirs, x, column.tolist()) for column in classes.T], 1)
    assert maps.shape == expected.shape == (3, 2, 3, 4) and (expected > 0).mean() > 0.05
    record_error(name, 'Grad-CAM, f64', assert_close(maps, expected, tolerances.EVALUATION))


def test_maps_of_an_ml_decoder(x64, record_error):
    """Its gradient differs from pixel to pixel, as that of a pooled map does not."""
    sizes = {'num_of_groups': 3, 'decoder_embedding': 16}
    theirs = reference('test_tresnet', num_classes=7)
    add_timm_ml_decoder(theirs, **sizes)
    theirs.double()
    x = images(2, 3, 76, 108)
    model = ours(theirs, 'test_tresnet', dtype='float64', head='ml_decoder', **sizes)
    maps = jax.jit(grad_cam)(model, nhwc(x), np.array([5, 2]))
    expected = torch_map(theirs, x, [5, 2])
    assert (expected > 0).mean() > 0.05
    record_error('test_tresnet', 'Grad-CAM, f64', assert_close(maps, expected, tolerances.EVALUATION))


@pytest.mark.parametrize('tag', EMBEDDED_TAGS)
def test_heat_maps_are_those_of_pytorch_grad_cam(tag, record_error):
    stored = np.load(FILES / 'grad_cam.npz')
    layers = ('layer2', 'layer4')
    x = normal_images(*stored[f'{tag}.layer4'].shape)

    @jax.jit
    def run(model, x, classes):
        return [grad_cam(model, x, classes, layer=layer) for layer in layers]

    found = run(tresnet_jax.create_model(tag, pretrained=True), x, stored['classes'])
    for layer, maps in zip(layers, found, strict=True):
        expected = stored[f'{tag}.{layer}']
        heat = np.stack([heat_map(cam, *expected.shape[1:]) for cam in maps])
        assert expected.min(axis=(1, 2)).max() == 0 and expected.max(axis=(1, 2)).min() > 0.999
        record_error(tag.partition('.')[0], 'pytorch-grad-cam', assert_close(heat, expected, 1e-5))
