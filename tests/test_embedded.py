"""What the package carries: sizes, licence, images, and timm's outputs without timm."""

import importlib.resources
from pathlib import Path

import jax
import numpy as np
import pytest
import safetensors
from PIL import Image

import tresnet_jax
from convert.verify import compare_with_stored
from tresnet_jax.labels import class_names
from tresnet_jax.variants import PRETRAINED

EMBEDDED = Path(str(importlib.resources.files('tresnet_jax') / 'embedded'))
NAMES = ('test_resnet.fashion_mnist', 'test_tresnet.fashion_mnist')


@pytest.mark.parametrize('name', NAMES)
def test_outputs_are_those_timm_gave(name):
    """Every stage within ten times torch's own float32 noise, on the images that come along."""
    model = tresnet_jax.create_model(name, pretrained=True)
    comparisons = compare_with_stored(model, EMBEDDED / f'{name}.golden.safetensors')
    assert [row.name for row in comparisons] == [*(f'features.{i}' for i in range(5)), 'logits']
    for row in comparisons:
        assert row.error <= 10 * row.noise, row
        assert 0 < row.noise < 1e-5


@pytest.mark.parametrize('name', NAMES)
def test_the_comparison_can_fail(name):
    """A stem slope of 1e-3, or one gamma changed in the last stage, is seen where it is."""
    model = tresnet_jax.create_model(name, pretrained=True)
    last = model.body.layer4[0].conv3.bn if 'tresnet' in name else model.layer4[0].bn2
    last.scale[...] = last.scale[...] * 1.001
    errors = {row.name: row.error for row in compare_with_stored(model, EMBEDDED / f'{name}.golden.safetensors')}
    assert errors['features.3'] < 1e-5 < errors['features.4']


@pytest.mark.parametrize('name', NAMES)
def test_images_go_through_the_transform_to_the_stored_inputs(name):
    """So the whole way from a PNG file is timm's."""
    with safetensors.safe_open(EMBEDDED / f'{name}.golden.safetensors', 'np') as file:
        images = file.get_tensor('images')
    transform = tresnet_jax.create_transform(**tresnet_jax.resolve_data_config(name))
    paths = sorted((EMBEDDED / 'pictures').glob('*.png'))
    assert len(paths) == 10
    got = np.stack([transform(Image.open(path)) for path in paths])
    np.testing.assert_array_equal(got, images.transpose(0, 2, 3, 1))


@pytest.mark.parametrize('name', NAMES)
def test_accuracy_on_the_embedded_test_images(name):
    """Within three standard errors of the accuracy on all 10,000 that the table gives."""
    with np.load(EMBEDDED / 'fashion_mnist_subset.npz', allow_pickle=False) as data:
        images, labels = data['x_test'], data['y_test']
        assert data['x_train'].shape == (2000, 28, 28) and np.bincount(data['y_train']).tolist() == [200] * 10
    assert images.shape == (500, 28, 28) and np.bincount(labels).tolist() == [50] * 10
    transform = tresnet_jax.create_transform(**tresnet_jax.resolve_data_config(name))
    model = tresnet_jax.create_model(name, pretrained=True)
    images = np.stack([transform(Image.fromarray(p)) for p in images])
    logits = jax.jit(lambda m, x: m(x))(model, images)
    top1 = 100 * float((np.asarray(logits).argmax(1) == labels).mean())
    published = PRETRAINED[name].accuracies[0].top1
    standard_error = (published * (100 - published) / 500) ** 0.5
    assert abs(top1 - published) <= 3 * standard_error, f'{top1} against {published}'


def test_sizes():
    """What a user downloads with the package stays small."""
    for name in NAMES:
        assert (EMBEDDED / f'{name}.safetensors').stat().st_size <= 2e6
    assert (EMBEDDED / 'fashion_mnist_subset.npz').stat().st_size <= 1.5e6
    assert 'MIT' in (EMBEDDED / 'FASHION_MNIST_LICENSE').read_text(encoding='utf-8')


def test_class_names():
    assert class_names('test_resnet.fashion_mnist')[9] == 'Ankle boot'
