"""The operations of AutoAugment, RandAugment and 3-Augment on one image (``timm/data/auto_augment.py``).

An operation's argument depends on a level: 0 to 10, or higher if the policy's `mmax` allows it. Each operation asks its
generator for the same numbers in the same order as timm asks Python's `random`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageEnhance, ImageFilter, ImageOps


class Operation(NamedTuple):
    """A row of `OPERATIONS`."""

    apply: Callable[..., Image.Image]
    """(image[, argument]) -> image, 'RGB' or 'L'. Geometric ones take the keywords `resample` and `fillcolor` too."""
    argument: Callable[[float, np.random.Generator], Any] | None = None
    """(level, generator) -> argument. None: `apply` takes no argument."""
    geometric: bool = False


def _either_sign(value: float, rng: np.random.Generator) -> float:
    return -value if rng.random() > 0.5 else value


def signed(top: float) -> Callable:
    """Level -> a number between -top and top, with a random sign."""
    return lambda level, rng: _either_sign(level / 10 * top, rng)


def _around_one(level: float, rng: np.random.Generator) -> float:
    """Level -> a factor below or above 1. The factor 1 changes nothing; a higher level is farther from 1."""
    return max(0.1, 1.0 + _either_sign(level / 10 * 0.9, rng))


def _between(low: float, high: float) -> Callable:
    """Level -> a number between low and high."""
    return lambda level, _: max(low, min(high, low + (high - low) * (level / 10)))


def _factor(level: float, _) -> float:
    """Level -> a factor between 0.1 and 1.9."""
    return level / 10 * 1.8 + 0.1


def _bits(level: float) -> int:
    return int(level / 10 * 4)


def _threshold(level: float) -> int:
    return min(256, int(level / 10 * 256))


def _random_radius(level: float, rng: np.random.Generator) -> float:
    """Level -> a random radius: up to 2 pixels at level 10, at least 0.1 except at the lowest levels."""
    return 0.1 + (2 * min(level / 10, 1.0) - 0.1) * rng.random()


def _affine(matrix: Callable[[Image.Image, float], tuple[float, ...]]) -> Callable[..., Image.Image]:
    def apply(image: Image.Image, value: float, **options) -> Image.Image:
        return image.transform(image.size, Image.Transform.AFFINE, matrix(image, value), **options)

    return apply


def _enhance(kind: Callable[[Image.Image], Any]) -> Callable[[Image.Image, float], Image.Image]:
    return lambda image, factor: kind(image).enhance(factor)


def _blur(image: Image.Image, radius: float) -> Image.Image:
    return image.filter(ImageFilter.GaussianBlur(radius))


def _posterize(image: Image.Image, bits: int) -> Image.Image:
    """Keep the highest bits of each pixel. With 0 bits the image is black; `ImageOps.posterize` of Pillow 13 raises."""
    mask = 256 - (256 >> max(0, min(bits, 8)))
    return image.point([level & mask for level in range(256)] * len(image.getbands()))


def _solarize_add(image: Image.Image, add: int) -> Image.Image:
    """Add to the pixels below 128."""
    added = [min(255, level + add) if level < 128 else level for level in range(256)]
    return image.point(added * len(image.getbands()))


_color, _contrast = _enhance(ImageEnhance.Color), _enhance(ImageEnhance.Contrast)
_brightness, _sharpness = _enhance(ImageEnhance.Brightness), _enhance(ImageEnhance.Sharpness)

OPERATIONS = {
    'AutoContrast': Operation(ImageOps.autocontrast),
    'Equalize': Operation(ImageOps.equalize),
    'Invert': Operation(ImageOps.invert),
    'Rotate': Operation(Image.Image.rotate, signed(30.0), geometric=True),  # degrees
    'Posterize': Operation(_posterize, lambda level, _: _bits(level)),  # bits kept; a higher level is milder
    'PosterizeIncreasing': Operation(_posterize, lambda level, _: 4 - _bits(level)),
    'PosterizeOriginal': Operation(_posterize, lambda level, _: 4 + _bits(level)),  # as in the paper
    'Solarize': Operation(ImageOps.solarize, lambda level, _: _threshold(level)),  # a higher level is milder
    'SolarizeIncreasing': Operation(ImageOps.solarize, lambda level, _: 256 - _threshold(level)),
    'SolarizeAdd': Operation(_solarize_add, lambda level, _: min(128, int(level / 10 * 110))),
    'Color': Operation(_color, _factor),
    'ColorIncreasing': Operation(_color, _around_one),
    'Contrast': Operation(_contrast, _factor),
    'ContrastIncreasing': Operation(_contrast, _around_one),
    'Brightness': Operation(_brightness, _factor),
    'BrightnessIncreasing': Operation(_brightness, _around_one),
    'Sharpness': Operation(_sharpness, _factor),
    'SharpnessIncreasing': Operation(_sharpness, _around_one),
    'ShearX': Operation(_affine(lambda _, v: (1, v, 0, 0, 1, 0)), signed(0.3), geometric=True),
    'ShearY': Operation(_affine(lambda _, v: (1, 0, 0, v, 1, 0)), signed(0.3), geometric=True),
    # In pixels, up to 250 as in the paper's code. The policies here use ...Rel instead, shares of the image's edge.
    'TranslateX': Operation(_affine(lambda _, v: (1, 0, v, 0, 1, 0)), signed(250.0), geometric=True),
    'TranslateY': Operation(_affine(lambda _, v: (1, 0, 0, 0, 1, v)), signed(250.0), geometric=True),
    'TranslateXRel': Operation(_affine(lambda p, v: (1, 0, v * p.width, 0, 1, 0)), signed(0.45), geometric=True),
    'TranslateYRel': Operation(_affine(lambda p, v: (1, 0, 0, 0, 1, v * p.height)), signed(0.45), geometric=True),
    'Desaturate': Operation(lambda image, v: _color(image, min(1.0, max(0.0, 1.0 - v))), _between(0.5, 1.0)),
    'GaussianBlur': Operation(_blur, _between(0.1, 2.0)),  # radius in pixels
    'GaussianBlurRand': Operation(_blur, _random_radius),
}
"""Name in timm -> operation."""
