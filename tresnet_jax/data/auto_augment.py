"""AutoAugment, RandAugment and 3-Augment of one image from timm's strings (``timm/data/auto_augment.py``).

Papers: https://arxiv.org/abs/1805.09501, https://arxiv.org/abs/1909.13719, https://arxiv.org/abs/2204.07118. A policy
asks its generator for the same numbers in the same order as timm asks Python's, so that the probabilities too are
timm's.
"""

import dataclasses
import math
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageEnhance, ImageFilter, ImageOps

from tresnet_jax.data.transforms import INTERPOLATIONS

RANDOM_INTERPOLATIONS = (Image.Resampling.BILINEAR, Image.Resampling.BICUBIC)
GEOMETRIC_INTERPOLATIONS = ('random', 'nearest', 'bilinear', 'bicubic')  # those Pillow can rotate with

# (operation, probability, magnitude) once or twice a sub-policy. Which kind of Posterize is told by `POLICIES`.
_ORIGINAL = (
    ('Posterize', 0.4, 8, 'Rotate', 0.6, 9), ('Solarize', 0.6, 5, 'AutoContrast', 0.6, 5),
    ('Equalize', 0.8, 8, 'Equalize', 0.6, 3), ('Posterize', 0.6, 7, 'Posterize', 0.6, 6),
    ('Equalize', 0.4, 7, 'Solarize', 0.2, 4), ('Equalize', 0.4, 4, 'Rotate', 0.8, 8),
    ('Solarize', 0.6, 3, 'Equalize', 0.6, 7), ('Posterize', 0.8, 5, 'Equalize', 1.0, 2),
    ('Rotate', 0.2, 3, 'Solarize', 0.6, 8), ('Equalize', 0.6, 8, 'Posterize', 0.4, 6),
    ('Rotate', 0.8, 8, 'Color', 0.4, 0), ('Rotate', 0.4, 9, 'Equalize', 0.6, 2),
    ('Equalize', 0.0, 7, 'Equalize', 0.8, 8), ('Invert', 0.6, 4, 'Equalize', 1.0, 8),
    ('Color', 0.6, 4, 'Contrast', 1.0, 8), ('Rotate', 0.8, 8, 'Color', 1.0, 2),
    ('Color', 0.8, 8, 'Solarize', 0.8, 7), ('Sharpness', 0.4, 7, 'Invert', 0.6, 8),
    ('ShearX', 0.6, 5, 'Equalize', 1.0, 9), ('Color', 0.4, 0, 'Equalize', 0.6, 3),
    ('Equalize', 0.4, 7, 'Solarize', 0.2, 4), ('Solarize', 0.6, 5, 'AutoContrast', 0.6, 5),
    ('Invert', 0.6, 4, 'Equalize', 1.0, 8), ('Color', 0.6, 4, 'Contrast', 1.0, 8),
    ('Equalize', 0.8, 8, 'Equalize', 0.6, 3),
)  # fmt: skip
_V0 = (
    ('Equalize', 0.8, 1, 'ShearY', 0.8, 4), ('Color', 0.4, 9, 'Equalize', 0.6, 3),
    ('Color', 0.4, 1, 'Rotate', 0.6, 8), ('Solarize', 0.8, 3, 'Equalize', 0.4, 7),
    ('Solarize', 0.4, 2, 'Solarize', 0.6, 2), ('Color', 0.2, 0, 'Equalize', 0.8, 8),
    ('Equalize', 0.4, 8, 'SolarizeAdd', 0.8, 3), ('ShearX', 0.2, 9, 'Rotate', 0.6, 8),
    ('Color', 0.6, 1, 'Equalize', 1.0, 2), ('Invert', 0.4, 9, 'Rotate', 0.6, 0),
    ('Equalize', 1.0, 9, 'ShearY', 0.6, 3), ('Color', 0.4, 7, 'Equalize', 0.6, 0),
    ('Posterize', 0.4, 6, 'AutoContrast', 0.4, 7), ('Solarize', 0.6, 8, 'Color', 0.6, 9),
    ('Solarize', 0.2, 4, 'Rotate', 0.8, 9), ('Rotate', 1.0, 7, 'TranslateYRel', 0.8, 9),
    ('ShearX', 0.0, 0, 'Solarize', 0.8, 4), ('ShearY', 0.8, 0, 'Color', 0.6, 4),
    ('Color', 1.0, 0, 'Rotate', 0.6, 2), ('Equalize', 0.8, 4, 'Equalize', 0.0, 8),
    ('Equalize', 1.0, 4, 'AutoContrast', 0.6, 2), ('ShearY', 0.4, 7, 'SolarizeAdd', 0.6, 7),
    ('Posterize', 0.8, 2, 'Solarize', 0.6, 10), ('Solarize', 0.6, 8, 'Equalize', 0.6, 1),
    ('Color', 0.8, 6, 'Rotate', 0.4, 5),
)  # fmt: skip
_3A = (('Solarize', 1.0, 5), ('Desaturate', 1.0, 10), ('GaussianBlurRand', 1.0, 10))

POLICIES = {  # name: (sub-policies, their kind of Posterize)
    'original': (_ORIGINAL, 'PosterizeOriginal'),
    'originalr': (_ORIGINAL, 'PosterizeIncreasing'),
    'v0': (_V0, 'Posterize'),
    'v0r': (_V0, 'PosterizeIncreasing'),
    '3a': (_3A, 'Posterize'),
}

_RAND = (  # `inc1` takes the ...Increasing of those that have one
    'AutoContrast', 'Equalize', 'Invert', 'Rotate', 'Posterize', 'Solarize', 'SolarizeAdd', 'Color', 'Contrast',
    'Brightness', 'Sharpness', 'ShearX', 'ShearY', 'TranslateXRel', 'TranslateYRel',
)  # fmt: skip
RAND_SETS: dict[str, tuple[str, ...] | dict[str, float]] = {  # for `t`; numbers are weights
    'weights': {
        'Rotate': 3, 'ShearX': 2, 'ShearY': 2, 'TranslateXRel': 1, 'TranslateYRel': 1, 'ColorIncreasing': 0.25,
        'SharpnessIncreasing': 0.25, 'AutoContrast': 0.25, 'SolarizeIncreasing': 0.05, 'SolarizeAdd': 0.05,
        'ContrastIncreasing': 0.05, 'BrightnessIncreasing': 0.05, 'Equalize': 0.05, 'PosterizeIncreasing': 0.05,
        'Invert': 0.05,
    },
    '3a': ('SolarizeIncreasing', 'Desaturate', 'GaussianBlur'),
    '3aw': {
        'SolarizeIncreasing': 6, 'Desaturate': 6, 'GaussianBlur': 6, 'Rotate': 3, 'ShearX': 2, 'ShearY': 2,
        'PosterizeIncreasing': 1, 'AutoContrast': 1, 'ColorIncreasing': 1, 'SharpnessIncreasing': 1,
        'ContrastIncreasing': 1, 'BrightnessIncreasing': 1, 'Equalize': 1, 'Invert': 1,
    },
}  # fmt: skip

_WHOLE, _NUMBER = r'\d+', r'\d+(?:\.\d*)?'
PARTS = {  # letters: (pattern of what follows, meaning)
    'm': (_WHOLE, 'magnitude, 10 unless given'),
    'n': (_WHOLE, 'operations an image, 2 unless given'),
    'p': (r'0(?:\.\d*)?|1(?:\.0*)?', 'probability of each operation, 0.5 unless given'),
    'mstd': (_NUMBER, 'standard deviation of the magnitude; of rand above 100: uniform in [0, m]'),
    'mmax': (r'0*[1-9]\d*', 'highest magnitude, 10 unless given'),
    'inc': (r'[01]', '1 for operations that all grow stronger with the magnitude'),
    't': ('|'.join(RAND_SETS), 'set of operations: ' + ', '.join(RAND_SETS)),
}


class Step(NamedTuple):
    """One operation of a sub-policy."""

    name: str
    probability: float
    magnitude: float


@dataclasses.dataclass(frozen=True)
class Policy:
    """Draws `layers` sub-policies for an image and applies their steps; `auto_augment_transform` makes it."""

    choices: tuple[tuple[Step, ...], ...]
    layers: int = 1
    weights: tuple[float, ...] | None = None  # of the choices, none of which is then drawn twice
    magnitude_std: float = 0.0
    magnitude_max: float = 10.0
    interpolation: str = 'random'
    fill: tuple[int, int, int] = (128, 128, 128)

    def __call__(self, image: Image.Image, rng: np.random.Generator) -> Image.Image:
        """RGB image -> RGB image of the same size."""
        for choice in rng.choice(len(self.choices), self.layers, replace=self.weights is None, p=self.weights):
            for step in self.choices[choice]:
                if step.probability == 1 or rng.random() <= step.probability:
                    image = self._apply(step, image, rng)
        return image

    def _apply(self, step: Step, image: Image.Image, rng: np.random.Generator) -> Image.Image:
        level = step.magnitude
        if math.isinf(self.magnitude_std):
            level = rng.uniform(0, level)
        elif self.magnitude_std:
            level = rng.normal(level, self.magnitude_std)
        level = max(0.0, min(level, self.magnitude_max))
        operation = OPERATIONS[step.name]
        arguments = [] if operation.argument is None else [operation.argument(level, rng)]
        if not operation.geometric:
            return operation.apply(image, *arguments)
        resample = draw_interpolation(self.interpolation, rng)
        return operation.apply(image, *arguments, resample=resample, fillcolor=self.fill)


def draw_interpolation(name: str, rng: np.random.Generator) -> Image.Resampling:
    """Pillow's filter of a name; of 'random' bilinear or bicubic."""
    return RANDOM_INTERPOLATIONS[rng.integers(2)] if name == 'random' else INTERPOLATIONS[name]


def auto_augment_transform(
    config: str, *, interpolation: str = 'random', fill: tuple[int, int, int] = (128, 128, 128)
) -> Policy:
    """The policy of one of timm's configuration strings.

    Args:
        config: 'original' (the paper's ImageNet policy), 'originalr', 'v0', 'v0r' or '3a', and optionally the
            standard deviation of their magnitudes ('original-mstd0.5'); or 'rand' and any of `PARTS`, as in
            'rand-m9-mstd0.5-inc1'. A magnitude is at most 10 unless `mmax` allows more.
        interpolation: 'nearest', 'bilinear', 'bicubic', or for each operation a 'random' one of the last two.
        fill: colour of what comes in from outside of the image.

    Raises:
        ValueError: a part of the string, or the interpolation, is not one of these. (timm skips what it does not
            know, and takes the first or the last of parts that are given twice.)
    """
    if interpolation not in GEOMETRIC_INTERPOLATIONS:
        allowed = ', '.join(GEOMETRIC_INTERPOLATIONS)
        raise ValueError(f'auto_augment works with the interpolations {allowed}, got {interpolation!r}')
    name, *parts = config.split('-')
    how = {'interpolation': interpolation, 'fill': fill}
    if name in POLICIES:
        values = _parse(config, parts, ['mstd'])
        rows, posterize = POLICIES[name]
        choices = tuple(_steps(row, posterize) for row in rows)
        return Policy(choices, magnitude_std=float(values.get('mstd', 0)), **how)
    if name != 'rand':
        raise ValueError(f'auto_augment {config!r} must begin with one of {", ".join(POLICIES)}, rand')
    return _rand_augment(_parse(config, parts, list(PARTS)), config, how)


def _steps(row: Sequence[Any], posterize: str) -> tuple[Step, ...]:
    triples = zip(row[::3], row[1::3], row[2::3], strict=True)
    return tuple(Step(posterize if name == 'Posterize' else name, p, m) for name, p, m in triples)


def _parse(config: str, parts: list[str], allowed: list[str]) -> dict[str, str]:
    values: dict[str, str] = {}
    for part in parts:
        found = [key for key in allowed if re.fullmatch(f'{key}(?:{PARTS[key][0]})', part)]
        if not found or found[0] in values:
            known = '; '.join(f'{key}: {PARTS[key][1]}' for key in allowed)
            problem = 'is given twice' if found else 'is unknown or its value impossible'
            raise ValueError(f'auto_augment {config!r}: {part!r} {problem}. Allowed are {known}')
        values[found[0]] = part.removeprefix(found[0])
    return values


def _rand_augment(values: dict[str, str], config: str, how: dict[str, Any]) -> Policy:
    increasing = values.get('inc') == '1'
    default = tuple(f'{name}Increasing' if increasing and f'{name}Increasing' in OPERATIONS else name for name in _RAND)
    names = RAND_SETS.get(values.get('t', ''), default)
    weights = None
    if isinstance(names, dict):
        total = sum(names.values())
        weights = tuple(weight / total for weight in names.values())
    layers, std = int(values.get('n', 2)), float(values.get('mstd', 0))
    if weights and layers > len(weights):
        raise ValueError(f'auto_augment {config!r}: n can be at most {len(weights)}, as none of its set is drawn twice')
    step = float(values.get('p', 0.5)), int(values.get('m', 10))
    return Policy(
        tuple((Step(name, *step),) for name in names),
        layers,
        weights,
        magnitude_std=math.inf if std > 100 else std,
        magnitude_max=int(values.get('mmax', 10)),
        **how,
    )


class Operation(NamedTuple):
    """A row of `OPERATIONS`."""

    apply: Callable[..., Image.Image]
    """(RGB image[, argument]) -> RGB image; `resample` and `fillcolor` by name where it is geometric."""
    argument: Callable[[float, np.random.Generator], Any] | None = None
    """(level, generator) -> argument; level 10 is the strongest there is unless `mmax` allows more."""
    geometric: bool = False


def _either_sign(value: float, rng: np.random.Generator) -> float:
    return -value if rng.random() > 0.5 else value


def _signed(top: float) -> Callable:
    """Between -top and top."""
    return lambda level, rng: _either_sign(level / 10 * top, rng)


def _around_one(level: float, rng: np.random.Generator) -> float:
    """The factor 1 changes nothing; a higher level goes further from it, to either side."""
    return max(0.1, 1.0 + _either_sign(level / 10 * 0.9, rng))


def _between(low: float, high: float) -> Callable:
    return lambda level, _: max(low, min(high, low + (high - low) * (level / 10)))


def _factor(level: float, _) -> float:
    return level / 10 * 1.8 + 0.1


def _bits(level: float) -> int:
    return int(level / 10 * 4)


def _threshold(level: float) -> int:
    return min(256, int(level / 10 * 256))


def _random_radius(level: float, rng: np.random.Generator) -> float:
    """Up to 2 pixels at level 10, at least 0.1 but for the lowest levels."""
    return 0.1 + (2 * min(level / 10, 1.0) - 0.1) * rng.random()


def _affine(matrix: Callable[[Image.Image, float], tuple[float, ...]]) -> Callable[..., Image.Image]:
    def apply(image: Image.Image, value: float, **how) -> Image.Image:
        return image.transform(image.size, Image.Transform.AFFINE, matrix(image, value), **how)

    return apply


def _enhance(kind: Callable[[Image.Image], Any]) -> Callable[[Image.Image, float], Image.Image]:
    return lambda image, factor: kind(image).enhance(factor)


def _blur(image: Image.Image, radius: float) -> Image.Image:
    return image.filter(ImageFilter.GaussianBlur(radius))


def _posterize(image: Image.Image, bits: int) -> Image.Image:
    # None kept is a black image; `ImageOps.posterize` gave that too, and from Pillow 13 on raises.
    mask = 256 - (256 >> max(0, min(bits, 8)))
    return image.point([level & mask for level in range(256)] * 3)


def _solarize_add(image: Image.Image, add: int) -> Image.Image:
    return image.point([min(255, level + add) if level < 128 else level for level in range(256)] * 3)


_color, _contrast = _enhance(ImageEnhance.Color), _enhance(ImageEnhance.Contrast)
_brightness, _sharpness = _enhance(ImageEnhance.Brightness), _enhance(ImageEnhance.Sharpness)

OPERATIONS = {
    'AutoContrast': Operation(ImageOps.autocontrast),
    'Equalize': Operation(ImageOps.equalize),
    'Invert': Operation(ImageOps.invert),
    'Rotate': Operation(Image.Image.rotate, _signed(30.0), geometric=True),  # degrees
    'Posterize': Operation(_posterize, lambda level, _: _bits(level)),  # bits kept; a higher level is milder
    'PosterizeIncreasing': Operation(_posterize, lambda level, _: 4 - _bits(level)),
    'PosterizeOriginal': Operation(_posterize, lambda level, _: 4 + _bits(level)),  # the paper's
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
    'ShearX': Operation(_affine(lambda _, v: (1, v, 0, 0, 1, 0)), _signed(0.3), geometric=True),
    'ShearY': Operation(_affine(lambda _, v: (1, 0, 0, v, 1, 0)), _signed(0.3), geometric=True),
    # Pixels, up to the 250 of the paper's code; no policy here has them, which take shares of the edge instead.
    'TranslateX': Operation(_affine(lambda _, v: (1, 0, v, 0, 1, 0)), _signed(250.0), geometric=True),
    'TranslateY': Operation(_affine(lambda _, v: (1, 0, 0, 0, 1, v)), _signed(250.0), geometric=True),
    'TranslateXRel': Operation(_affine(lambda p, v: (1, 0, v * p.width, 0, 1, 0)), _signed(0.45), geometric=True),
    'TranslateYRel': Operation(_affine(lambda p, v: (1, 0, 0, 0, 1, v * p.height)), _signed(0.45), geometric=True),
    'Desaturate': Operation(lambda image, v: _color(image, min(1.0, max(0.0, 1.0 - v))), _between(0.5, 1.0)),
    'GaussianBlur': Operation(_blur, _between(0.1, 2.0)),  # radius in pixels
    'GaussianBlurRand': Operation(_blur, _random_radius),
}
