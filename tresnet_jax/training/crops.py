"""Crops of a picture for training (timm: ``timm/data/transforms.py``)."""

import math

import numpy as np
from PIL import Image

from tresnet_jax.pictures import PictureError, to_rgb
from tresnet_jax.training.decoding import reason

Box = tuple[int, int, int, int]  # left, top, width, height in pixels

PADDINGS = ('reflect', 'constant')


def random_resized_box(
    width: int, height: int, scale: tuple[float, float], ratio: tuple[float, float], rng: np.random.Generator
) -> Box:
    """The box that timm's `RandomResizedCropAndInterpolation` cuts from a picture of `width` x `height` pixels.

    Its share of the area is uniform in `scale`, the logarithm of width / height uniform in that of `ratio`. If ten
    such boxes do not fit, the middle of the picture, as much as `ratio` allows. Unlike timm's it is never empty.
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
    """As much of the middle of a picture as has a width / height in the range `ratio`."""
    box_width, box_height = width, height
    if width / height < ratio[0]:
        box_height = max(round(width / ratio[0]), 1)
    elif width / height > ratio[1]:
        box_width = max(round(height * ratio[1]), 1)
    return (width - box_width) // 2, (height - box_height) // 2, box_width, box_height


def resized_crop(picture: Image.Image, box: Box, size: tuple[int, int], resample: Image.Resampling) -> Image.Image:
    """The box of the picture, in RGB, resized to `size` (width, height): timm's bits."""
    left, top, width, height = box
    # Cut before it is resized: with `resize(box=...)` the filter would see pixels outside of the box.
    return _decoded(picture).crop((left, top, left + width, top + height)).resize(size, resample)


def draft_crop(picture: Image.Image, box: Box, size: tuple[int, int], resample: Image.Resampling) -> Image.Image:
    """`resized_crop` from a JPEG that, where it is not decoded yet, is decoded 2, 4 or 8 times smaller.

    So much smaller that the box still has at least `size` pixels either way. The decoder's way of shrinking is not
    `resample`'s, so the bits differ from those of `resized_crop`.
    """
    left, top, width, height = box
    # Pillow keeps the whole picture at least as large as this; other formats and decoded pictures it leaves alone.
    needed = math.ceil(picture.width * size[0] / width), math.ceil(picture.height * size[1] / height)
    full_width = picture.width
    drafted = picture.draft(None, needed)
    shrink = drafted[1][2] / full_width if drafted else 1
    if shrink == 1:
        return resized_crop(picture, box, size, resample)
    edges = (left * shrink, top * shrink, (left + width) * shrink, (top + height) * shrink)
    return _decoded(picture).resize(size, resample, box=edges)


def pad_crop(picture: Image.Image, padding: int, mode: str, left: int, top: int) -> Image.Image:
    """The picture with `padding` pixels of 'reflect' or black 'constant' border, cut to its size from (left, top)."""
    borders = ((padding, padding), (padding, padding), (0, 0))
    pixels = np.pad(np.asarray(picture), borders, mode)  # pyright: ignore[reportCallIssue, reportArgumentType]
    return Image.fromarray(pixels[top : top + picture.height, left : left + picture.width])


def _decoded(picture: Image.Image) -> Image.Image:
    try:
        picture.load()
    except Exception as error:  # A damaged file can raise nearly anything out of Pillow's decoders.
        raise PictureError(reason(error)) from error
    return picture if picture.mode == 'RGB' else to_rgb(picture)
