"""Seeded images: arrays as models take them, pixels, PIL images, encoded bytes, and folders of classes."""

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image


def normal_images(
    batch: int = 2, height: int = 32, width: int = 32, channels: int = 3, *, dtype: str = 'float32', seed: int = 1
) -> np.ndarray:
    """Return standard normal values of shape (batch, height, width, channels), as a transform gives them."""
    return np.random.default_rng(seed).standard_normal((batch, height, width, channels)).astype(dtype)


def pixels(height: int, width: int, *, seed: int = 0) -> np.ndarray:
    """Return uniform noise of shape (height, width, 3), uint8."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def noise_image(width: int, height: int, *, mode: str = 'RGB', seed: int = 0) -> Image.Image:
    """Return an image of uniform noise, converted to `mode`."""
    return Image.fromarray(pixels(height, width, seed=seed)).convert(mode)


def grey_image(level: int, width: int = 6, height: int = 5, *, mode: str = 'RGB') -> Image.Image:
    """Return an image of one grey level, converted to `mode`."""
    return Image.new('RGB', (width, height), (level, level, level)).convert(mode)


def wave_image(width: int, height: int) -> Image.Image:
    """Return waves of several hundred pixels, which survive JPEG decoding at an eighth of the size."""
    x, y = np.meshgrid(np.arange(width) / 97, np.arange(height) / 131)
    channels = [120 + 100 * np.sin(x + channel) * np.cos(y - channel) for channel in range(3)]
    return Image.fromarray(np.stack(channels, -1).astype(np.uint8))


def encode(image: Image.Image, format: str = 'PNG', **options: Any) -> bytes:
    """Return the bytes of an image file; the options are those of `PIL.Image.Image.save`."""
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def write_classes(folder: Path, counts: Mapping[str, int], *, seed: int = 0) -> list[Image.Image]:
    """Write PNG files of noise into one folder for each class and return the images.

    The files are numbered through all classes, 00.png, 01.png, and so on. Image i has seed `seed + i` and a size of
    its own.
    """
    images: list[Image.Image] = []
    for name, count in counts.items():
        (folder / name).mkdir(parents=True)
        for number in range(len(images), len(images) + count):
            images.append(noise_image(50 - number % 20, 30 + number % 20, seed=seed + number))
            (folder / name / f'{number:02}.png').write_bytes(encode(images[-1]))
    return images
