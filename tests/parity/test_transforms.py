"""The evaluation transform against timm's, to the bit, on photographs and odd sizes."""

import warnings
from typing import Any

import numpy as np
import pytest
import timm
from PIL import Image
from timm.data.config import resolve_data_config as timm_resolve
from timm.data.model_config import resolve_input_data_config
from timm.data.transforms_factory import create_transform

import tresnet_jax
from tests.helpers.reference import TIMM_ARCHITECTURES, TIMM_TAGS
from tests.helpers.timm_transforms import images, timm_config, timm_transform
from tresnet_jax import variants
from tresnet_jax.data import transforms

SQUARE = {'input_size': (3, 224, 224), 'interpolation': 'bicubic', **variants.IMAGENET, 'crop_pct': 0.9}


def check(config: dict) -> None:
    """Assert that both transforms give the same bits for every image."""
    transform = transforms.create_transform(**config)
    for name, image in images().items():
        x, expected = transform(image), timm_transform(image, **config)
        assert (x.dtype, x.shape) == (expected.dtype, expected.shape)
        assert np.array_equal(x, expected), f'{name}: differs by up to {np.abs(x - expected).max()}'


@pytest.mark.parametrize('use_test_size', [False, True])
@pytest.mark.parametrize('name', TIMM_TAGS)
def test_resolve_data_config(name, use_test_size):
    assert transforms.resolve_data_config(name, use_test_size) == timm_config(name, use_test_size)


def test_resolve_data_config_of_an_architecture():
    for name in TIMM_ARCHITECTURES:
        assert transforms.resolve_data_config(name) == timm_config(name, use_test_size=False), name


def test_resolve_data_config_of_a_model():
    class Model:
        pretrained_cfg: variants.PretrainedConfig | None = variants.PRETRAINED['resnet50d.a1_in1k']

    model = Model()
    expected = timm_config('resnet50d.a1_in1k', use_test_size=True)
    assert transforms.resolve_data_config(model, use_test_size=True) == expected
    assert transforms.resolve_data_config(model.pretrained_cfg, use_test_size=True) == expected
    model.pretrained_cfg = None
    assert transforms.resolve_data_config(model) == timm_resolve(args={'in_chans': 3})


def distinct_configs() -> list:
    """Return each configuration of the table once; many tags share one."""
    seen: list[dict] = []
    params = []
    for name in variants.PRETRAINED:
        for use_test_size in (False, True):
            config = transforms.resolve_data_config(name, use_test_size)
            if config not in seen:
                seen.append(config)
                params.append(pytest.param(config, id=f'{name}-test' if use_test_size else name))
    return params


@pytest.mark.parametrize('config', distinct_configs())
def test_the_transform_of_every_tag(config):
    check(config)


@pytest.mark.parametrize('interpolation', sorted(transforms.INTERPOLATIONS))
def test_interpolations(interpolation):
    check({**SQUARE, 'interpolation': interpolation})


@pytest.mark.parametrize('size', [(60, 90), (91, 47), (40, 40), (120, 60)])
@pytest.mark.parametrize('crop_mode', transforms.CROP_MODES)
def test_crop_box_is_where_the_crop_comes_from(crop_mode, size):
    """The pixels of the image hold their own position, so that the crop's edges show where they were."""
    height, width = size
    rows, columns = np.mgrid[:height, :width]
    positions = np.stack([255 * columns / width, 255 * rows / height, 0 * rows + 255], -1).astype(np.uint8)
    transform = transforms.create_transform((32, 48), 'bilinear', crop_pct=0.8, crop_mode=crop_mode)
    crop = transform.crop_image(Image.fromarray(positions))
    inside = np.argwhere(crop[..., 2] == 255)  # not padding
    (first, left), (last, right) = inside.min(0), inside.max(0)
    box = transform.crop_box(width, height)
    seen = [crop[first, left, 0], crop[first, left, 1], crop[last, right, 0], crop[last, right, 1]]
    shares = [edge / side for edge, side in zip(box, (width, height) * 2, strict=True)]
    np.testing.assert_allclose(np.array(seen) / 255, shares, atol=0.05)
    assert 0 <= box[0] < box[2] <= width and 0 <= box[1] < box[3] <= height


@pytest.mark.parametrize('crop_pct', [0.875, 1.13])
@pytest.mark.parametrize('size', [(3, 224, 224), (3, 160, 225), (3, 225, 160), (3, 33, 32)])
@pytest.mark.parametrize('crop_mode', transforms.CROP_MODES)
def test_crop_modes(crop_mode, size, crop_pct):
    check({**SQUARE, 'input_size': size, 'crop_mode': crop_mode, 'crop_pct': crop_pct})


def test_defaults_and_forms_of_the_size():
    image = images()['coffee.png']
    expected = timm_transform(image)
    for size in (224, (224, 224), [3, 224, 224]):
        assert np.array_equal(transforms.create_transform(size)(image), expected)


def test_modes_are_converted_as_in_timms_dataset():
    transform = transforms.create_transform(64)
    for mode in ('1', 'L', 'LA', 'P', 'RGBA', 'CMYK', 'YCbCr'):
        image = images()['33x31'].convert(mode)
        assert np.array_equal(transform(image), timm_transform(image, input_size=64)), mode


@pytest.mark.parametrize('crop_mode', transforms.CROP_MODES)
@pytest.mark.parametrize('size', [(1, 224, 224), (1, 160, 225)])
def test_grey_images(size, crop_mode):
    """timm's data set converts them to 'L' for one channel."""
    config: Any = {**SQUARE, 'input_size': size, 'crop_mode': crop_mode, 'mean': (0.4,), 'std': (0.2,)}
    transform = transforms.create_transform(**config)
    theirs: Any = create_transform(**config)
    for name, image in images().items():
        expected = theirs(image.convert('L')).numpy().transpose(1, 2, 0)
        assert np.array_equal(transform(image), expected), name


def test_any_number_of_channels():
    """Each is what a grey image of it would be, with its own mean."""
    config: Any = {**SQUARE, 'crop_mode': 'border', 'interpolation': 'bilinear'}
    mean, std = (0.1, 0.2, 0.3, 0.4, 0.5), (0.5, 0.4, 0.3, 0.2, 0.1)
    image = np.random.default_rng(0).integers(0, 256, (40, 30, 5), np.uint8)
    found = transforms.create_transform(**{**config, 'input_size': (5, 24, 32), 'mean': mean, 'std': std})(image)
    for channel in range(5):
        one = {**config, 'input_size': (1, 24, 32), 'mean': mean[channel : channel + 1], 'std': (std[channel],)}
        theirs: Any = create_transform(**one)
        expected = theirs(Image.fromarray(image[..., channel])).numpy()[0]
        assert np.array_equal(found[..., channel], expected)


@pytest.mark.parametrize('channels', [1, 3, 4])
def test_resolve_data_config_of_other_channels(channels):
    """As timm's scripts resolve it."""
    model = tresnet_jax.create_model('resnet18d', in_chans=channels)
    theirs = timm.create_model('resnet18d', in_chans=channels)
    for use_test_size in (False, True):
        expected = resolve_input_data_config(theirs, use_test_size=use_test_size)
        assert transforms.resolve_data_config(model, use_test_size) == expected


def test_thin_images_keep_one_pixel():
    with warnings.catch_warnings(action='error'):
        x = transforms.create_transform(32, crop_mode='border')(Image.new('RGB', (1, 300), 'white'))
    mean, std = (np.asarray(variants.IMAGENET[k], np.float32) for k in ('mean', 'std'))
    white = (x == (1 - mean) / std).all(-1)
    assert white.any() and set(np.flatnonzero(white.any(0))) == {15}


def test_an_image_that_would_fill_the_memory_is_refused():
    with pytest.raises(ValueError, match='1 x 40000 pixels would be resized to 256 x 10240000'):
        transforms.create_transform(224)(Image.new('RGB', (1, 40000)))


@pytest.mark.parametrize(
    ('wrong', 'message'),
    [
        ({'crop_mode': 'centre'}, "center, squash, border, got 'centre'"),
        ({'interpolation': 'random'}, "bicubic, box, .* got 'random'"),
        ({'input_size': (1, 224, 224)}, 'mean and std must be one number, std not zero'),
        ({'input_size': (0, 224, 224)}, 'input_size'),
        ({'input_size': (224,)}, 'input_size'),
        ({'input_size': (0, 224)}, 'input_size'),
        ({'input_size': 224.0}, 'input_size'),
        ({'input_size': '224'}, 'input_size'),
        ({'crop_pct': 0}, 'crop_pct'),
        ({'crop_pct': 225}, 'crop_pct'),
        ({'mean': (0.5, 0.4)}, 'mean and std must be one or 3 numbers each'),
        ({'std': (1, 0, 1)}, 'std not zero'),
    ],
)
def test_errors_name_the_wrong_argument(wrong, message):
    with pytest.raises(ValueError, match=message):
        transforms.create_transform(**{**SQUARE, **wrong})


def test_an_unknown_name_suggests_the_nearest():
    with pytest.raises(ValueError, match='resnet50d'):
        transforms.resolve_data_config('resnet50x')
