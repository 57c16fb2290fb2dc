"""The package's files: weights against timm's stored outputs, images, class names, sizes, licence."""

import jax
import numpy as np
import pytest
import safetensors
from PIL import Image

import tresnet_jax
from convert.verify import compare_with_stored
from tests.helpers.models import EMBEDDED_TAGS
from tests.helpers.paths import EMBEDDED
from tresnet_jax import factory
from tresnet_jax.errors import ConversionError
from tresnet_jax.labels import class_names
from tresnet_jax.variants import PRETRAINED


@pytest.mark.parametrize('name', EMBEDDED_TAGS)
def test_every_stage_agrees_with_timm(name):
    """The error on the embedded images is at most ten times torch's own in float32."""
    model = tresnet_jax.create_model(name, pretrained=True)
    comparisons = compare_with_stored(model, EMBEDDED / f'{name}.golden.safetensors')
    assert [row.name for row in comparisons] == [*(f'features.{i}' for i in range(5)), 'logits']
    for row in comparisons:
        assert row.error <= 10 * row.noise, row
        assert 0 < row.noise < 1e-5


@pytest.mark.parametrize('name', EMBEDDED_TAGS)
def test_a_changed_gamma_shows_in_its_stage(name):
    """The gamma is in the last stage."""
    model = tresnet_jax.create_model(name, pretrained=True)
    last = model.body.layer4[0].conv3.bn if 'tresnet' in name else model.layer4[0].bn2
    last.scale[...] = last.scale[...] * 1.001
    errors = {row.name: row.error for row in compare_with_stored(model, EMBEDDED / f'{name}.golden.safetensors')}
    assert errors['features.3'] < 1e-5 < errors['features.4']


@pytest.mark.parametrize('name', EMBEDDED_TAGS)
def test_the_transform_gives_the_stored_inputs(name):
    """The inputs stored with timm's outputs come from timm's transform of the same PNG files."""
    with safetensors.safe_open(EMBEDDED / f'{name}.golden.safetensors', 'np') as file:
        images = file.get_tensor('images')
    transform = tresnet_jax.create_transform(**tresnet_jax.resolve_data_config(name))
    paths = sorted((EMBEDDED / 'pictures').glob('*.png'))
    assert len(paths) == 10
    got = np.stack([transform(Image.open(path)) for path in paths])
    np.testing.assert_array_equal(got, images.transpose(0, 2, 3, 1))


@pytest.mark.parametrize('name', EMBEDDED_TAGS)
def test_accuracy_on_the_embedded_test_images(name):
    """It is within three standard errors of the table's accuracy on all 10,000 images."""
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


def test_the_package_stays_small_and_has_the_licence():
    for name in EMBEDDED_TAGS:
        assert (EMBEDDED / f'{name}.safetensors').stat().st_size <= 2e6
    assert (EMBEDDED / 'fashion_mnist_subset.npz').stat().st_size <= 1.5e6
    assert 'MIT' in (EMBEDDED / 'FASHION_MNIST_LICENSE').read_text(encoding='utf-8')


@pytest.mark.parametrize('name', EMBEDDED_TAGS)
def test_damaged_embedded_weights_are_refused(name, tmp_path, monkeypatch):
    """One flipped bit in the last tensor: the file can be read, and is not the one that was published."""
    content = bytearray((EMBEDDED / f'{name}.safetensors').read_bytes())
    content[-1] ^= 1
    damaged = tmp_path / 'weights.safetensors'
    monkeypatch.setattr(factory, 'embedded_path', lambda config: damaged)
    with pytest.raises(ConversionError, match='weights.safetensors: cannot be read: .*; run: pip install'):
        tresnet_jax.create_model(name, pretrained=True)
    damaged.write_bytes(content)
    with pytest.raises(ConversionError, match=f'has the SHA-256 [0-9a-f]+; the weights of {name} have .*; run: pip'):
        tresnet_jax.create_model(name, pretrained=True)
    content[-1] ^= 1
    damaged.write_bytes(content)
    tresnet_jax.create_model(name, pretrained=True)


def test_the_class_names_of_an_embedded_model():
    assert class_names('test_resnet.fashion_mnist')[9] == 'Ankle boot'
