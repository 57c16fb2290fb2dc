"""Our evaluation transform against timm's, bit for bit, on photos and on odd sizes."""

import functools
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import skimage
import timm
from PIL import Image
from timm.data.config import resolve_data_config as timm_resolve
from timm.data.transforms_factory import create_transform as timm_create_transform

from tresnet_jax import variants
from tresnet_jax.data import transforms

PHOTOS = ('astronaut.png', 'coffee.png', 'rocket.jpg', 'camera.png')
# Width, height: single pixels, thin ones, exact crops and resizes, margins whose half rounds either way.
SIZES = (
    (1, 1), (1, 2), (7, 300), (300, 7), (225, 313), (313, 225), (224, 224), (256, 256), (235, 236),
    (448, 451), (33, 31), (28, 28), (160, 169), (257, 303),
)  # fmt: skip
OURS = ('test_resnet.fashion_mnist', 'test_tresnet.fashion_mnist')
TIMMS = tuple(name for name in variants.PRETRAINED if name not in OURS)
SQUARE = {'input_size': (3, 224, 224), 'interpolation': 'bicubic', **variants.IMAGENET, 'crop_pct': 0.9}


def timm_config(name: str, use_test_size: bool) -> dict:
    cfg = timm.get_pretrained_cfg(name)
    assert cfg is not None, f'timm has no tag {name}'
    return timm_resolve(pretrained_cfg=cfg.to_dict(), use_test_size=use_test_size)


@functools.cache
def images() -> dict[str, Image.Image]:
    folder = Path(skimage.__file__).parent / 'data'
    found: dict[str, Image.Image] = {name: Image.open(folder / name) for name in PHOTOS}
    rng = np.random.default_rng(0)
    for width, height in SIZES:
        found[f'{width}x{height}'] = Image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8))
    return found


def timm_transform(image: Image.Image, **config) -> np.ndarray:
    """What timm makes of an image, as (height, width, channels)."""
    transform: Any = timm_create_transform(**config)
    return transform(image.convert('RGB')).numpy().transpose(1, 2, 0)  # timm's dataset converts.


def check(config: dict) -> None:
    """Both transforms give the same bits for every image."""
    transform = transforms.create_transform(**config)
    for name, image in images().items():
        x, expected = transform(image), timm_transform(image, **config)
        assert (x.dtype, x.shape) == (expected.dtype, expected.shape)
        assert np.array_equal(x, expected), f'{name}: differs by up to {np.abs(x - expected).max()}'


@pytest.mark.parametrize('use_test_size', [False, True])
@pytest.mark.parametrize('name', TIMMS)
def test_resolve_data_config(name, use_test_size):
    assert transforms.resolve_data_config(name, use_test_size) == timm_config(name, use_test_size)


def test_resolve_data_config_of_bare_names():
    for name in variants.list_models():
        if name != 'test_tresnet':  # timm has no such architecture.
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
    """Each configuration of the table once; many tags share one."""
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
def test_tags(config):
    check(config)


@pytest.mark.parametrize('interpolation', sorted(transforms.INTERPOLATIONS))
def test_interpolations(interpolation):
    check({**SQUARE, 'interpolation': interpolation})


@pytest.mark.parametrize('crop_pct', [0.875, 1.13])
@pytest.mark.parametrize('size', [(3, 224, 224), (3, 160, 225), (3, 225, 160), (3, 33, 32)])
@pytest.mark.parametrize('crop_mode', transforms.CROP_MODES)
def test_crop_modes(crop_mode, size, crop_pct):
    check({**SQUARE, 'input_size': size, 'crop_mode': crop_mode, 'crop_pct': crop_pct})


def test_defaults_and_kinds_of_size():
    image = images()['coffee.png']
    expected = timm_transform(image)
    for size in (224, (224, 224), [3, 224, 224]):
        assert np.array_equal(transforms.create_transform(size)(image), expected)


def test_modes_are_converted_as_timms_dataset_does():
    transform = transforms.create_transform(64)
    for mode in ('1', 'L', 'LA', 'P', 'RGBA', 'CMYK', 'YCbCr'):
        image = images()['33x31'].convert(mode)
        assert np.array_equal(transform(image), timm_transform(image, input_size=64)), mode


def test_thin_images_keep_one_pixel():
    with warnings.catch_warnings(action='error'):
        x = transforms.create_transform(32, crop_mode='border')(Image.new('RGB', (1, 300), 'white'))
    mean, std = (np.asarray(variants.IMAGENET[k], np.float32) for k in ('mean', 'std'))
    white = (x == (1 - mean) / std).all(-1)
    assert white.any() and set(np.flatnonzero(white.any(0))) == {15}


def test_images_that_would_fill_the_memory_are_refused():
    with pytest.raises(ValueError, match='1 x 40000 pixels would be resized to 256 x 10240000'):
        transforms.create_transform(224)(Image.new('RGB', (1, 40000)))


@pytest.mark.parametrize(
    ('wrong', 'message'),
    [
        ({'crop_mode': 'centre'}, "center, squash, border, got 'centre'"),
        ({'interpolation': 'random'}, "bicubic, box, .* got 'random'"),
        ({'input_size': (1, 224, 224)}, 'input_size'),
        ({'input_size': (224,)}, 'input_size'),
        ({'input_size': (0, 224)}, 'input_size'),
        ({'input_size': 224.0}, 'input_size'),
        ({'input_size': '224'}, 'input_size'),
        ({'crop_pct': 0}, 'crop_pct'),
        ({'crop_pct': 225}, 'crop_pct'),
        ({'mean': (0.5,)}, 'mean and std'),
        ({'std': (1, 0, 1)}, 'std not zero'),
    ],
)
def test_wrong_arguments(wrong, message):
    with pytest.raises(ValueError, match=message):
        transforms.create_transform(**{**SQUARE, **wrong})


def test_unknown_names():
    with pytest.raises(ValueError, match='resnet50d'):
        transforms.resolve_data_config('resnet50x')
