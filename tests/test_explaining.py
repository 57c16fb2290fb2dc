"""Grad-CAM: classes and modes; heat maps and overlays."""

import jax
import numpy as np
import pytest
from PIL import Image

import tresnet_jax
from tests.helpers.images import normal_images
from tests.helpers.models import as_trained
from tresnet_jax.explaining import _checked, grad_cam, heat_map, overlay


def test_classes_and_modes():
    """None is the likeliest class; one number is that class of all images; (B,) is one for each.

    A model in training mode gives the same maps. It is not changed: that would be an error under jit.
    """
    model, x = as_trained('test_resnet', drop_rate=0.5).train(), normal_images(2, 64, 96)

    @jax.jit
    def run(x):
        some = [grad_cam(model, x, classes) for classes in (None, 4, np.array([7, 1]))]
        return grad_cam(model, x, np.tile(np.arange(10), (2, 1))), some

    each, some = run(x)
    assert not model.head_drop.deterministic
    logits = jax.jit(lambda model, x: model(x))(model.eval(), x)
    assert each.shape == (2, 10, 2, 3) and (each > 0).mean() > 0.05
    for found, indices in zip(some, (np.asarray(logits.argmax(-1)), [4, 4], [7, 1]), strict=True):
        np.testing.assert_allclose(found, each[np.arange(2), np.asarray(indices)], rtol=1e-5, atol=1e-7)
    alone = jax.jit(grad_cam)(model, x, 4)
    np.testing.assert_allclose(each[:, 4], alone, rtol=1e-4, atol=1e-6)


def test_a_new_model_has_an_empty_map():
    """Its last block adds zero, and the map may be zero everywhere."""
    assert not np.isnan(heat_map(np.zeros((2, 3)), 8, 12)).any()
    assert not heat_map(np.full((2, 3), 7.0), 8, 12).any()


@pytest.mark.parametrize(
    'classes, message',
    [
        (10, 'classes must be from 0 to 9, got 10'),
        ([0, -1], r'classes must be from 0 to 9, got \[0, -1\]'),
        ([1.0, 2.0], 'classes must be whole numbers, got float32'),
        ([1, 2, 3], r'one number, \(2,\) or \(2, K\), got the shape \(3,\)'),
        (np.zeros((2, 1, 1), int), r'got the shape \(2, 1, 1\)'),
    ],
)
def test_wrong_classes(classes, message):
    with pytest.raises(ValueError, match=message):
        _checked(classes, 2, 10)


@pytest.mark.parametrize('options', [{'num_classes': 0}, {'features_only': True}])
def test_a_model_without_a_classifier_is_refused(options):
    model = tresnet_jax.create_model('test_resnet', **options)
    with pytest.raises(ValueError, match='needs a model with a classifier; this one returns features'):
        grad_cam(model, normal_images())


def test_an_unknown_layer_is_refused():
    with pytest.raises(ValueError, match="unknown layer 'stem'; expected one of layer1, layer2, layer3, layer4"):
        grad_cam(tresnet_jax.create_model('test_resnet'), normal_images(), layer='stem')


def test_a_heat_map_covers_the_image():
    """The centres of the pixels of the map lie evenly in the image, whose edges have the values of the map's edges."""
    cam = np.array([[0.0, 2.0], [4.0, 1.0]])
    heat = heat_map(cam, 8, 4)
    assert heat.shape == (8, 4) and (heat.min(), round(float(heat.max()), 6)) == (0, 1)
    assert heat[0, 0] == 0 and heat[-1, 0] == heat.max() and heat[0, -1] == pytest.approx(0.5)
    np.testing.assert_allclose(heat[:, 0], np.interp(np.arange(8), [1.5, 5.5], [0, 1]), atol=1e-6)


def test_an_overlay_shows_image_and_heat():
    image = Image.new('RGB', (4, 2), (200, 200, 200))
    heat = np.zeros((2, 4), np.float32)
    heat[0, 3] = 1
    shown = np.asarray(overlay(image, heat)).astype(int)
    assert shown.shape == (2, 4, 3)
    hot, cold = shown[0, 3], shown[1, 0]
    assert hot[0] > hot[2] + 80 and abs(cold - 200).max() < 60
    np.testing.assert_array_equal(shown, np.asarray(overlay(np.asarray(image), heat)))
    with pytest.raises(ValueError, match=r'the heat map has \(4, 2\) pixels, but the image has \(2, 4\)'):
        overlay(image, heat.T)
