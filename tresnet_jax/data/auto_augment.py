"""AutoAugment, RandAugment, AugMix and 3-Augment from timm's strings (``timm/data/auto_augment.py``).

Papers: https://arxiv.org/abs/1805.09501, https://arxiv.org/abs/1909.13719, https://arxiv.org/abs/2204.07118. A policy
asks its generator for the same numbers in the same order as timm asks Python's `random`, so the probabilities are
timm's too.
"""

import dataclasses
import math
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from tresnet_jax.data import augmix
from tresnet_jax.data.augment_ops import OPERATIONS, signed
from tresnet_jax.data.augmix import AugMix
from tresnet_jax.data.transforms import draw_interpolation

GEOMETRIC_INTERPOLATIONS = ('random', 'nearest', 'bilinear', 'bicubic')  # those that Pillow can rotate with

# A sub-policy has one or two steps: (operation, probability, magnitude). `POLICIES` names the kind of Posterize.
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

POLICIES = {  # name: (sub-policies, kind of Posterize)
    'original': (_ORIGINAL, 'PosterizeOriginal'),
    'originalr': (_ORIGINAL, 'PosterizeIncreasing'),
    'v0': (_V0, 'Posterize'),
    'v0r': (_V0, 'PosterizeIncreasing'),
    '3a': (_3A, 'Posterize'),
}

_RAND = (  # `inc1` replaces the operations that have an ...Increasing form by it
    'AutoContrast', 'Equalize', 'Invert', 'Rotate', 'Posterize', 'Solarize', 'SolarizeAdd', 'Color', 'Contrast',
    'Brightness', 'Sharpness', 'ShearX', 'ShearY', 'TranslateXRel', 'TranslateYRel',
)  # fmt: skip
RAND_SETS: dict[str, tuple[str, ...] | dict[str, float]] = {  # values of `t`; numbers are weights
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
PARTS = {  # key: (pattern of its value, meaning)
    'm': (_WHOLE, 'magnitude, 10 by default'),
    'n': (_WHOLE, 'operations per image, 2 by default'),
    'p': (r'0(?:\.\d*)?|1(?:\.0*)?', 'probability of each operation, 0.5 by default'),
    'mstd': (_NUMBER, 'standard deviation of the magnitude; for rand, above 100: uniform in [0, m]'),
    'mmax': (r'0*[1-9]\d*', 'highest magnitude, 10 by default'),
    'inc': (r'[01]', '1: all operations grow stronger with the magnitude'),
    't': ('|'.join(RAND_SETS), 'set of operations: ' + ', '.join(RAND_SETS)),
}
POLICY_PARTS = {'mstd': PARTS['mstd']}  # of AutoAugment and 3-Augment
AUGMIX_PARTS = {
    'm': (_WHOLE, 'magnitude, 3 by default'),
    'w': (r'0*[1-9]\d*', 'chains of operations, 3 by default'),
    'd': (_WHOLE, 'operations of a chain, 1 to 3 at random by default'),
    'a': (rf'(?=.*[1-9]){_NUMBER}', 'alpha of the mixtures, 1 by default'),
    'b': (r'[01]', '1: mix by one blend of 8-bit images for each chain, which is faster'),
    'mstd': (_NUMBER, 'standard deviation of the magnitude; by default it is uniform in [0, m]'),
}
RELATIVE = ('TranslateXRel', 'TranslateYRel')


class Step(NamedTuple):
    """One operation of a sub-policy."""

    name: str
    probability: float
    magnitude: float


@dataclasses.dataclass(frozen=True)
class Policy:
    """Draws `layers` sub-policies for an image and applies their steps. Made by `auto_augment_transform`."""

    choices: tuple[tuple[Step, ...], ...]
    layers: int = 1
    weights: tuple[float, ...] | None = None
    """Probabilities of the choices, drawn without replacement. None: equal, with replacement."""
    magnitude_std: float = 0.0
    """Standard deviation of the magnitude; infinite: the magnitude is uniform in [0, magnitude]."""
    magnitude_max: float = 10.0
    interpolation: str = 'random'
    fill: tuple[int, ...] = (128, 128, 128)
    translation: float | None = None
    """Largest share of the image's edge by which the operations RELATIVE move it. None: 0.45."""

    def __call__(self, image: Image.Image, rng: np.random.Generator, layers: int | None = None) -> Image.Image:
        """Return the augmented image, of the same mode ('RGB' or 'L') and size; `layers` replaces the policy's own."""
        layers = self.layers if layers is None else layers
        for choice in rng.choice(len(self.choices), layers, replace=self.weights is None, p=self.weights):
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
        if self.translation is not None and step.name in RELATIVE:
            operation = operation._replace(argument=signed(self.translation))
        arguments = [] if operation.argument is None else [operation.argument(level, rng)]
        if not operation.geometric:
            return operation.apply(image, *arguments)
        resample = draw_interpolation(self.interpolation, rng)
        return operation.apply(image, *arguments, resample=resample, fillcolor=self.fill)


def _steps(row: Sequence[Any], posterize: str) -> tuple[Step, ...]:
    """Return the steps of a row of a policy."""
    triples = zip(row[::3], row[1::3], row[2::3], strict=True)
    return tuple(Step(posterize if name == 'Posterize' else name, p, m) for name, p, m in triples)


def _parse(config: str, parts: list[str], allowed: dict[str, tuple[str, str]]) -> dict[str, str]:
    """Return the values of the parts of a string by key, as text."""
    values: dict[str, str] = {}
    for part in parts:
        found = [key for key, (pattern, _) in allowed.items() if re.fullmatch(f'{key}(?:{pattern})', part)]
        if not found or found[0] in values:
            known = '; '.join(f'{key}: {meaning}' for key, (_, meaning) in allowed.items())
            problem = 'is given twice' if found else 'is unknown or has an impossible value'
            raise ValueError(f'auto_augment {config!r}: {part!r} {problem}. Allowed are {known}')
        values[found[0]] = part.removeprefix(found[0])
    return values


def _rand_augment(values: dict[str, str], config: str, options: dict[str, Any]) -> Policy:
    """Return the policy of the parsed parts of a 'rand' string."""
    increasing = values.get('inc') == '1'
    default = tuple(f'{name}Increasing' if increasing and f'{name}Increasing' in OPERATIONS else name for name in _RAND)
    names = RAND_SETS.get(values.get('t', ''), default)
    weights = None
    if isinstance(names, dict):
        total = sum(names.values())
        weights = tuple(weight / total for weight in names.values())
    layers, std = int(values.get('n', 2)), float(values.get('mstd', 0))
    if weights and layers > len(weights):
        raise ValueError(
            f'auto_augment {config!r}: n must be at most {len(weights)}, because this set is drawn without replacement'
        )
    step = float(values.get('p', 0.5)), int(values.get('m', 10))
    return Policy(
        tuple((Step(name, *step),) for name in names),
        layers,
        weights,
        magnitude_std=math.inf if std > 100 else std,
        magnitude_max=int(values.get('mmax', 10)),
        **options,
    )


def _augmix(values: dict[str, str], options: dict[str, Any]) -> AugMix:
    """Return AugMix for the parsed parts of an 'augmix' string."""
    policy = Policy(
        tuple((Step(name, 1.0, int(values.get('m', 3))),) for name in augmix.OPERATIONS),
        magnitude_std=float(values.get('mstd', math.inf)),
        translation=augmix.TRANSLATION,
        **options,
    )
    return AugMix(
        policy,
        width=int(values.get('w', 3)),
        depth=int(values.get('d', 0)),
        alpha=float(values.get('a', 1)),
        blended=values.get('b') == '1',
    )


def auto_augment_transform(
    config: str, *, interpolation: str = 'random', fill: tuple[int, ...] = (128, 128, 128)
) -> Policy | AugMix:
    """Return the augmentation of one of timm's configuration strings.

    Args:
        config: 'original' (the paper's ImageNet policy), 'originalr', 'v0', 'v0r' or '3a', optionally with the standard
            deviation of the magnitudes ('original-mstd0.5'); or 'rand' with any of `PARTS`, as in
            'rand-m9-mstd0.5-inc1', where a magnitude is at most 10 unless `mmax` allows more; or 'augmix' with any of
            `AUGMIX_PARTS`, as in 'augmix-m5-w4-d2'.
        interpolation: 'nearest', 'bilinear' or 'bicubic'; or 'random', one of the last two for each operation.
        fill: colour of the pixels that geometric operations bring in from outside the image: one value for grey images.

    Raises:
        ValueError: a part of the string, or the interpolation, is unknown. (timm ignores unknown parts, and uses the
            first or the last of parts that are given twice.)
    """
    if interpolation not in GEOMETRIC_INTERPOLATIONS:
        allowed = ', '.join(GEOMETRIC_INTERPOLATIONS)
        raise ValueError(f'interpolation must be one of {allowed} with auto_augment, got {interpolation!r}')
    name, *parts = config.split('-')
    options = {'interpolation': interpolation, 'fill': fill}
    if name in POLICIES:
        values = _parse(config, parts, POLICY_PARTS)
        rows, posterize = POLICIES[name]
        choices = tuple(_steps(row, posterize) for row in rows)
        return Policy(choices, magnitude_std=float(values.get('mstd', 0)), **options)
    if name == 'augmix':
        return _augmix(_parse(config, parts, AUGMIX_PARTS), options)
    if name != 'rand':
        raise ValueError(f'auto_augment {config!r} must start with one of {", ".join(POLICIES)}, rand, augmix')
    return _rand_augment(_parse(config, parts, PARTS), config, options)
