"""Mistakes in the preparation of images and in the table of tags."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from PIL import Image

from tests.helpers.mutants.table import Patch, row
from tresnet_jax import list_pretrained, variants
from tresnet_jax.checkpoints import timm_layouts
from tresnet_jax.data import transforms

# Originals that patches call.
scale = timm_layouts.scale
resized = transforms.EvalTransform._resized


Resize = Callable[[Image.Image, tuple[int, int], Image.Resampling], np.ndarray]


def transform_with(
    resize: Resize | None = None,
    normalise: Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray] = lambda x, mean, std: (
        (x / np.float32(255) - mean) / std
    ),
    crop_first: bool = False,
) -> Patch:
    """Return a patch of `EvalTransform.__call__` with one step changed."""

    def call(self: transforms.EvalTransform, image: Image.Image) -> np.ndarray:
        image = image.convert('RGB')
        size, filter_ = self._resized(*image.size), transforms.INTERPOLATIONS[self.interpolation]
        if crop_first:
            # The part of the image that the crop shows, in whole pixels.
            across = min(image.width, round(image.width * self.width / size[0]))
            down = min(image.height, round(image.height * self.height / size[1]))
            x0, y0 = (image.width - across) // 2, (image.height - down) // 2
            part = image.crop((x0, y0, x0 + across, y0 + down))
            x = np.asarray(part.resize((self.width, self.height), filter_), np.float32)
        elif resize is not None:
            x = np.asarray(self._crop(Image.fromarray(resize(image, size, filter_)), (0, 0, 0)), np.float32)
        else:
            x = np.asarray(self._crop(image.resize(size, filter_), (0, 0, 0)), np.float32)
        return normalise(x, np.asarray(self.mean, np.float32), np.asarray(self.std, np.float32))

    return (transforms.EvalTransform, '__call__', call)


def resize_without_antialiasing(image: Image.Image, size: tuple[int, int], resampling: Image.Resampling) -> np.ndarray:
    """Resize as torch and OpenCV resize tensors: the filter does not widen when the image shrinks."""
    x, y = image.width / size[0], image.height / size[1]
    return np.asarray(image.transform(size, Image.Transform.AFFINE, (x, 0, 0, 0, y, 0), resampling))


def resize_in_jax(image: Image.Image, size: tuple[int, int], resampling: Image.Resampling) -> np.ndarray:
    """Resize with antialiasing and rounding, but JAX's filters instead of Pillow's fixed-point ones."""
    kind = 'cubic' if resampling == Image.Resampling.BICUBIC else 'linear'
    x = jax.image.resize(np.asarray(image, np.float32), (size[1], size[0], 3), kind, antialias=True)
    return np.clip(np.rint(x), 0, 255).astype(np.uint8)


def resize_in_float(image: Image.Image, size: tuple[int, int], resampling: Image.Resampling) -> np.ndarray:
    """Resize with Pillow's filters, without rounding between the two passes."""
    bands = [np.asarray(band.convert('F').resize(size, resampling)) for band in image.split()]
    return np.clip(np.rint(np.stack(bands, -1)), 0, 255).astype(np.uint8)


def resized_with(
    scale: Callable[[float], int] = math.floor,
    long: Callable[[float], int] = int,
    ratio: Callable[[float], int] = round,
) -> Patch:
    """Return a patch of `EvalTransform._resized` that rounds differently in mode 'center'.

    Args:
        scale: rounds the size that the crop is taken from.
        long: rounds the long edge of a square crop's image.
        ratio: rounds both edges of a rectangular crop's image.
    """

    def rounded(self: transforms.EvalTransform, width: int, height: int) -> tuple[int, int]:
        if self.crop_mode != 'center':
            return resized(self, width, height)
        to_height, to_width = scale(self.height / self.crop_pct), scale(self.width / self.crop_pct)
        if to_height == to_width:
            edge = long(to_width * max(width, height) / min(width, height))
            return (to_width, edge) if width <= height else (edge, to_width)
        factor = min(height / to_height, width / to_width)
        return ratio(width / factor), ratio(height / factor)

    return (transforms.EvalTransform, '_resized', rounded)


def squashed_without_a_crop(self: transforms.EvalTransform, width: int, height: int) -> tuple[int, int]:
    """Resize to the crop's size itself, as the original repository does."""
    return (self.width, self.height) if self.crop_mode == 'squash' else resized(self, width, height)


def border(smaller: Callable[[float], int] = math.floor, larger: Callable[[float], int] = round) -> Patch:
    """Return a patch of `_offset` that rounds half a pixel differently, for a smaller or a larger image."""
    return (
        transforms,
        '_offset',
        lambda size, target: smaller((target - size) / 2) if size < target else -larger((size - target) / 2),
    )


def rows_with(pattern: str, **fields: Any) -> tuple[Patch, ...]:
    """Return patches of the matching tags with changed fields."""
    rows = {name: variants.PRETRAINED[name] for name in list_pretrained(pattern)}
    changed = {name: dataclasses.replace(tag, **fields) for name, tag in rows.items()}
    return tuple((variants.PRETRAINED, name, tag) for name, tag in changed.items() if tag != rows[name])


def normalise_grey_levels(x: np.ndarray, mean: np.ndarray, std: np.ndarray) -> np.ndarray:
    """Normalise in grey levels, which differs by rounding."""
    return (x - mean * np.float32(255)) / (std * np.float32(255))


MUTANTS = (
    # Transforms.
    row('the crop rounds half up', 'pixels', border(larger=lambda x: math.floor(x + 0.5))),
    row('the crop is floored', 'pixels', border(larger=math.floor)),
    row('the border around a small image is rounded up', 'pixels', border(smaller=math.ceil)),
    row('the scale is rounded', 'pixels', resized_with(scale=round)),
    row('the scale is rounded up', 'pixels', resized_with(scale=math.ceil)),
    row('the long edge is rounded', 'pixels', resized_with(long=round)),
    row('the edges of a rectangle are truncated', 'pixels', resized_with(ratio=int)),
    row('a squashed image is not cropped', 'pixels',
        (transforms.EvalTransform, '_resized', squashed_without_a_crop)),
    row('the crop comes before the resize', 'pixels', transform_with(crop_first=True)),
    row('no antialiasing', 'pixels', transform_with(resize=resize_without_antialiasing)),
    row("JAX's resize", 'pixels', transform_with(resize=resize_in_jax)),
    row('no rounding between the passes of the resize', 'pixels', transform_with(resize=resize_in_float)),
    row('bilinear for bicubic', 'pixels', (transforms.INTERPOLATIONS, 'bicubic', Image.Resampling.BILINEAR)),
    row('bicubic for bilinear', 'pixels', (transforms.INTERPOLATIONS, 'bilinear', Image.Resampling.BICUBIC)),
    row('mean and std times 255', 'pixels', transform_with(normalise=normalise_grey_levels)),
    row('no division by 255', 'pixels', transform_with(normalise=lambda x, mean, std: (x - mean) / std)),
    row('times 1 / 255', 'pixels',
        transform_with(normalise=lambda x, mean, std: (x * np.float32(1 / 255) - mean) / std)),
    row("TResNets with ImageNet's mean and std", 'data_configs', *rows_with('tresnet*', **variants.IMAGENET)),
    row('TResNets with bicubic', 'data_configs', *rows_with('tresnet*', interpolation='bicubic')),
    row('ResNets with bilinear', 'data_configs', *rows_with('resnet50d*', interpolation='bilinear')),
    row("the model cards' crop of 0.94", 'data_configs', *rows_with('resnet*.ra2_in1k', crop_pct=0.94)),
    row('the training size instead of the test size', 'data_configs',
        *rows_with('resnet101d*', test_input_size=None)),
    row('the last tag is the default', 'default_tags',
        (variants, 'PRETRAINED', dict(reversed(variants.PRETRAINED.items())))),
)  # fmt: skip
