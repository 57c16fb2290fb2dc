"""The training transform of one image, on the host with Pillow (``timm/data/transforms_factory.py``).

The rest of the augmentation (normalising, Cutout, random erasing, mixup, CutMix) runs on the devices, on whole batches.
"""

import copy
import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageEnhance

from tresnet_jax.data.augmix import AugMix
from tresnet_jax.data.auto_augment import Policy, auto_augment_transform
from tresnet_jax.data.images import MODES, finish_decoding, pixels_of, planes
from tresnet_jax.data.transforms import (
    INTERPOLATIONS,
    channels_of,
    draw_interpolation,
    height_width,
    per_channel,
)
from tresnet_jax.variants import IMAGENET

CROPS = ('resized', 'rkrc', 'rkrr', 'pad', 'none')
_SCALES = (0.08, 1.0), (3 / 4, 4 / 3)  # defaults of scale and ratio
_KEEPING_SCALES = (0.8, 1.0), (0.9, 1 / 0.9)  # of rkrc and rkrr, as in timm
PADDINGS = ('reflect', 'constant')

Box = tuple[int, int, int, int]  # left, top, width, height in pixels

_JITTERS = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)


def random_resized_box(
    width: int, height: int, scale: tuple[float, float], ratio: tuple[float, float], rng: np.random.Generator
) -> Box:
    """Draw the box that timm's `RandomResizedCropAndInterpolation` cuts from an image of `width` x `height` pixels.

    The box's share of the area is uniform in `scale`; the logarithm of its width / height is uniform between those of
    `ratio`. If ten such boxes do not fit, the result is `middle_box`. Unlike timm's, the box is never empty.
    """
    for _ in range(10):
        area = rng.uniform(*scale) * (width * height)
        aspect = math.exp(rng.uniform(math.log(ratio[0]), math.log(ratio[1])))
        box_width, box_height = max(round(math.sqrt(area * aspect)), 1), max(round(math.sqrt(area / aspect)), 1)
        if box_width <= width and box_height <= height:
            top, left = int(rng.integers(height - box_height + 1)), int(rng.integers(width - box_width + 1))
            return left, top, box_width, box_height
    return middle_box(width, height, ratio)


def middle_box(width: int, height: int, ratio: tuple[float, float]) -> Box:
    """Return the largest box in the middle of an image whose width / height is in the range `ratio`."""
    box_width, box_height = width, height
    if width / height < ratio[0]:
        box_height = max(round(width / ratio[0]), 1)
    elif width / height > ratio[1]:
        box_width = max(round(height * ratio[1]), 1)
    return (width - box_width) // 2, (height - box_height) // 2, box_width, box_height


def keeping_size(
    width: int,
    height: int,
    size: tuple[int, int],
    scale: tuple[float, float],
    ratio: tuple[float, float],
    rng: np.random.Generator,
) -> tuple[int, int]:
    """Draw the size (width, height) to which timm's ``ResizeKeepRatio`` resizes an image in training.

    The image covers `size` (width, height) in its proportions. With probability 1/2 each, the area of what is visible
    then becomes a share in `scale`, and height and width change against each other by a factor in `ratio`.
    """
    fit = min(height / size[1], width / size[0])
    high = wide = 1.0
    if rng.random() < 0.5:
        high = wide = 1 / math.sqrt(rng.uniform(*scale))
    if rng.random() < 0.5:
        aspect = math.sqrt(math.exp(rng.uniform(math.log(ratio[0]), math.log(ratio[1]))))
        high, wide = high / aspect, wide * aspect
    return max(round(width * wide / fit), 1), max(round(height * high / fit), 1)


def reflected_crop(image: Image.Image, left: int, top: int, size: tuple[int, int]) -> Image.Image:
    """Return the box at (left, top) of `size` (width, height); outside the image it is filled by reflection."""
    before = max(-top, 0), max(-left, 0)
    after = max(top + size[1] - image.height, 0), max(left + size[0] - image.width, 0)
    if any(before) or any(after):
        borders = (before[0], after[0]), (before[1], after[1])
        image = _padded(image, borders, 'reflect')
    left, top = max(left, 0), max(top, 0)
    return image.crop((left, top, left + size[0], top + size[1]))


def _padded(image: Image.Image, borders: tuple[tuple[int, int], tuple[int, int]], mode: Any) -> Image.Image:
    """Add borders, (top, bottom) and (left, right), as `np.pad` fills them."""
    pixels = np.asarray(image)
    return Image.fromarray(np.pad(pixels, (*borders, (0, 0))[: pixels.ndim], mode))


def _middle(length: int, wanted: int) -> int:
    """Return where `wanted` pixels in the middle of `length` pixels begin, as in timm; negative if they are more."""
    return -((wanted - length) // 2) if wanted > length else round((length - wanted) / 2)


def _anywhere(length: int, wanted: int, rng: np.random.Generator) -> int:
    """Draw where `wanted` pixels of `length` pixels begin; negative if they are more."""
    offset = int(rng.integers(abs(length - wanted) + 1))
    return offset if length > wanted else -offset


def resized_crop(
    image: Image.Image, box: Box, size: tuple[int, int], resample: Image.Resampling, mode: str = 'RGB'
) -> Image.Image:
    """Return the box of an image, in `mode`, resized to `size` (width, height); the bits are timm's."""
    left, top, width, height = box
    # Crop first: with `resize(box=...)` the filter would use pixels outside the box.
    return finish_decoding(image, mode).crop((left, top, left + width, top + height)).resize(size, resample)


def draft_crop(
    image: Image.Image, box: Box, size: tuple[int, int], resample: Image.Resampling, mode: str = 'RGB'
) -> Image.Image:
    """Like `resized_crop`, but decode a JPEG that is not decoded yet at 1/2, 1/4 or 1/8 of its size if possible.

    The box keeps at least `size` pixels in both directions. The decoder shrinks with a filter of its own, so the bits
    differ from those of `resized_crop`.
    """
    left, top, width, height = box
    # Pillow keeps the whole image at least this large. It does not change decoded images and other formats.
    needed = math.ceil(image.width * size[0] / width), math.ceil(image.height * size[1] / height)
    full_width = image.width
    drafted = image.draft(None, needed)
    shrink = drafted[1][2] / full_width if drafted else 1
    if shrink == 1:
        return resized_crop(image, box, size, resample, mode)
    edges = (left * shrink, top * shrink, (left + width) * shrink, (top + height) * shrink)
    return finish_decoding(image, mode).resize(size, resample, box=edges)


def pad_crop(image: Image.Image, padding: int, mode: str, left: int, top: int) -> Image.Image:
    """Add a border of `padding` pixels, 'reflect' or (black) 'constant'; crop to the old size at (left, top)."""
    padded = _padded(image, ((padding, padding), (padding, padding)), mode)
    return padded.crop((left, top, left + image.width, top + image.height))


@dataclasses.dataclass(frozen=True)
class TrainTransform:
    """Crop, resize, flip, augment: image -> (height, width, channels) uint8. Made by `create_train_transform`."""

    height: int
    width: int
    crop: str
    scale: tuple[float, float]
    ratio: tuple[float, float]
    padding: int
    padding_mode: str
    interpolation: str
    hflip: float
    vflip: float
    color_jitter: tuple[float, float, float]
    auto_augment: Policy | AugMix | None
    draft: bool
    channels: int = 3

    def __call__(self, image: Image.Image | np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Return the augmented pixels; the same image and the same generator state give the same pixels.

        With `draft`, a JPEG that is not decoded yet is decoded in place, perhaps at a smaller size. Open it again for
        each call.

        Args:
            image: a PIL image; with another number of channels than 1 and 3 an array, (H, W, channels) uint8.
            rng: the source of all random numbers.

        Raises:
            ImageError: the image cannot be decoded.
            ValueError: an image of another kind.
        """
        if self.channels not in MODES:
            parts = planes(image, self.channels)
            # All channels draw the same numbers.
            generators = [*(copy.deepcopy(rng) for _ in parts[1:]), rng]
            return pixels_of([self._augmented(*drawn) for drawn in zip(parts, generators, strict=True)])
        if not isinstance(image, Image.Image):
            raise ValueError(f'expected a PIL image, got {type(image).__name__}')
        return pixels_of([self._augmented(image, rng)])

    def _augmented(self, image: Image.Image, rng: np.random.Generator) -> Image.Image:
        size = self.width, self.height
        if self.crop == 'resized':
            box = random_resized_box(*image.size, self.scale, self.ratio, rng)
        elif self.crop == 'none':
            box = middle_box(*image.size, (self.width / self.height, self.width / self.height))
        else:
            box = (0, 0, *image.size)
        keeps_ratio = self.crop in ('rkrc', 'rkrr')
        resized = keeping_size(*image.size, size, self.scale, self.ratio, rng) if keeps_ratio else size
        resample = draw_interpolation(self.interpolation, rng)
        crop = draft_crop if self.draft else resized_crop
        image = crop(image, box, resized, resample, MODES.get(self.channels, 'L'))
        if self.crop == 'rkrc':
            image = reflected_crop(image, _middle(image.width, size[0]), _middle(image.height, size[1]), size)
        elif self.crop == 'rkrr':
            top = _anywhere(image.height, size[1], rng)
            image = reflected_crop(image, _anywhere(image.width, size[0], rng), top, size)
        if self.crop == 'pad':
            top, left = rng.integers(2 * self.padding + 1, size=2).tolist()
            image = pad_crop(image, self.padding, self.padding_mode, left, top)
        if rng.random() < self.hflip:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        if rng.random() < self.vflip:
            image = image.transpose(Image.Transpose.FLIP_TOP_BOTTOM)
        if self.auto_augment is not None:
            image = self.auto_augment(image, rng)
        if any(self.color_jitter):
            image = self._jitter(image, rng)
        return image

    def _jitter(self, image: Image.Image, rng: np.random.Generator) -> Image.Image:
        """Apply torchvision's ColorJitter without hue: each factor is uniform around 1, the order is random."""
        for index in rng.permutation(3):
            strength = self.color_jitter[index]
            if strength:
                factor = rng.uniform(max(0.0, 1.0 - strength), 1.0 + strength)
                image = _JITTERS[index](image).enhance(factor)
        return image


def create_train_transform(
    input_size: int | Sequence[int] = 224,
    *,
    crop: str = 'resized',
    scale: Sequence[float] | None = None,
    ratio: Sequence[float] | None = None,
    padding: int = 4,
    padding_mode: str = 'reflect',
    interpolation: str = 'random',
    hflip: float = 0.5,
    vflip: float = 0.0,
    color_jitter: float | Sequence[float] | None = 0.4,
    force_color_jitter: bool = False,
    auto_augment: str | None = None,
    mean: Sequence[float] = IMAGENET['mean'],
    draft: bool = False,
) -> TrainTransform:
    """Return the host's part of ``timm.data.create_transform(..., is_training=True)``, with timm's names and defaults.

    Args:
        input_size: pixels of a square's edge, (height, width), or (channels, height, width); 3 channels by default.
        crop: 'resized' (timm's ``rrc``): a random part of the image. 'rkrc', 'rkrr' (timm's ``train_crop_mode``): the
            image keeps its proportions or nearly, and its middle or a random part is cut out; see `keeping_size`.
            'pad', for small images: the whole image is resized to `input_size`, gets a border, and is cropped to the
            size at random. 'none': always the middle.
        scale: for 'resized', range of the part's share of the area, by default (0.08, 1); for 'rkrc' and 'rkrr' of what
            is visible, by default (0.8, 1).
        ratio: for 'resized', range of the part's width / height, by default (3/4, 4/3); for 'rkrc' and 'rkrr' of the
            change of the proportions, by default (0.9, 1/0.9).
        padding: for 'pad', pixels of border on each side.
        padding_mode: for 'pad', 'reflect' or (black) 'constant'.
        interpolation: Pillow's filter as in `create_transform`, or 'random': bilinear or bicubic, drawn for each image.
        hflip, vflip: probabilities of a horizontal and a vertical flip.
        color_jitter: the largest difference of the brightness, contrast and saturation factors from 1; one number or
            three. As in timm it is not applied together with an `auto_augment` other than 3-Augment, unless
            `force_color_jitter` is set. It does nothing to the saturation of grey images.
        force_color_jitter: apply `color_jitter` together with any `auto_augment`.
        auto_augment: as in `auto_augment_transform`, which uses the same `interpolation`. Like the jitter, it is for
            images of 1 or 3 channels.
        mean: one value in [0, 1] for each channel or for all: the colour with which `auto_augment` fills.
        draft: decode JPEGs that are not decoded yet at the smallest size that the crop allows; this is faster and
            changes the bits (`draft_crop`).

    Returns:
        A callable (image, numpy generator) -> (height, width, channels) uint8; it can be pickled. Images are as for
        `create_transform`.

    Raises:
        ValueError: an argument is out of range.
    """
    height, width = height_width(input_size, 'input_size', channels=True)
    channels = channels_of(input_size)
    scales = _KEEPING_SCALES if crop in ('rkrc', 'rkrr') else _SCALES
    scale, ratio = scale or scales[0], ratio or scales[1]
    jitter = [*color_jitter] if isinstance(color_jitter, Sequence) else [color_jitter or 0.0] * 3
    allowed = ('random', *INTERPOLATIONS)
    for name, value, good, expected in (
        ('crop', crop, crop in CROPS, f'one of {", ".join(CROPS)}'),
        ('scale', scale, len(scale) == 2 and 0 < scale[0] <= scale[1] <= 1, 'two increasing numbers in (0, 1]'),
        ('ratio', ratio, len(ratio) == 2 and 0 < ratio[0] <= ratio[1], 'two positive, increasing numbers'),
        ('padding', padding, padding >= 0, 'zero or more pixels'),
        ('padding_mode', padding_mode, padding_mode in PADDINGS, f'one of {", ".join(PADDINGS)}'),
        ('interpolation', interpolation, interpolation in allowed, f'one of {", ".join(allowed)}'),
        ('hflip', hflip, 0 <= hflip <= 1, 'a probability'),
        ('vflip', vflip, 0 <= vflip <= 1, 'a probability'),
        ('color_jitter', color_jitter, len(jitter) == 3 and min(jitter) >= 0,
         'one number or three (brightness, contrast, saturation), none negative'),
        ('mean', mean, len(mean) in (1, channels), 'one number' if channels == 1 else f'one or {channels} numbers'),
    ):  # fmt: skip
        if not good:
            raise ValueError(f'{name} must be {expected}, got {value!r}')
    policy = None
    if auto_augment:
        fill = tuple(min(255, round(255 * value)) for value in per_channel(mean, channels))
        policy = auto_augment_transform(auto_augment, interpolation=interpolation, fill=fill)
        if not force_color_jitter and '3a' not in auto_augment:
            jitter = [0.0, 0.0, 0.0]
    if channels not in MODES and (policy or any(jitter)):
        name, value = ('auto_augment', auto_augment) if policy else ('color_jitter', color_jitter)
        raise ValueError(
            f'{name} must be {"none" if policy else 0} for images of {channels} channels, got {value!r}; '
            'it is for 1 channel (grey) or 3 (RGB)'
        )
    return TrainTransform(
        height=height,
        width=width,
        crop=crop,
        scale=(scale[0], scale[1]),
        ratio=(ratio[0], ratio[1]),
        padding=padding,
        padding_mode=padding_mode,
        interpolation=interpolation,
        hflip=hflip,
        vflip=vflip,
        color_jitter=(jitter[0], jitter[1], jitter[2]),
        auto_augment=policy,
        draft=draft,
        channels=channels,
    )
