"""timm's evaluation transform and its configurations, and the images that both sides transform."""

import functools
from pathlib import Path
from typing import Any

import numpy as np
import skimage
import timm
from PIL import Image
from timm.data.config import resolve_data_config
from timm.data.transforms_factory import create_transform

from tests.helpers.images import noise_image

PHOTOGRAPHS = ('astronaut.png', 'coffee.png', 'rocket.jpg', 'camera.png')
# Width, height: single pixels, thin ones, exact crops and resizes, margins whose half rounds either way.
SIZES = (
    (1, 1), (1, 2), (7, 300), (300, 7), (225, 313), (313, 225), (224, 224), (256, 256), (235, 236),
    (448, 451), (33, 31), (28, 28), (160, 169), (257, 303),
)  # fmt: skip


def photograph(name: str) -> Image.Image:
    """Return one of scikit-image's photographs in its own mode."""
    with Image.open(Path(skimage.__file__).parent / 'data' / name) as image:
        image.load()
    return image


@functools.cache
def images() -> dict[str, Image.Image]:
    """Return photographs by file name, and noise of every size by 'WIDTHxHEIGHT'."""
    noise = {f'{width}x{height}': noise_image(width, height, seed=i) for i, (width, height) in enumerate(SIZES)}
    return {name: photograph(name) for name in PHOTOGRAPHS} | noise


def timm_config(name: str, use_test_size: bool) -> dict[str, Any]:
    """Return what timm's `resolve_data_config` gives for a tag or an architecture."""
    cfg = timm.get_pretrained_cfg(name)
    assert cfg is not None, f'timm has no tag {name}'
    return resolve_data_config(pretrained_cfg=cfg.to_dict(), use_test_size=use_test_size)


def timm_transform(image: Image.Image, **config: Any) -> np.ndarray:
    """Return what timm's transform makes of an image, (height, width, channels); timm's dataset converts to RGB."""
    transform: Any = create_transform(**config)
    return transform(image.convert('RGB')).numpy().transpose(1, 2, 0)
