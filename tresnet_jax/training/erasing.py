"""Random erasing and Cutout of batches on the device, of normalised pictures.

Papers: https://arxiv.org/abs/1708.04896 (timm: ``timm/data/random_erasing.py``), https://arxiv.org/abs/1708.04552.
"""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp

Box = tuple[jax.Array, jax.Array, jax.Array, jax.Array]
"""First row, row after the last, first column, column after the last: int32, each () or (batch,)."""

MODES = ('const', 'rand', 'pixel')
FILLS = ('zero', 'random')
_TRIES = 10  # timm's
_DRAWS = 2 * _TRIES + 2  # uniform numbers a rectangle: areas, aspects, place


def inside(box: Box, height: int, width: int) -> jax.Array:
    """Which pixels lie in the box: (batch or 1, height, width, 1) bool."""
    top, bottom, left, right = (jnp.reshape(side, (-1, 1, 1, 1)) for side in box)
    rows = jnp.arange(height, dtype=jnp.int32).reshape(1, -1, 1, 1)
    columns = jnp.arange(width, dtype=jnp.int32).reshape(1, 1, -1, 1)
    return (rows >= top) & (rows < bottom) & (columns >= left) & (columns < right)


def erase(images: jax.Array, box: Box, fill: jax.Array) -> jax.Array:
    """Images (batch, height, width, channels) with `fill`, which broadcasts to them, in the box of each."""
    return jnp.where(inside(box, *images.shape[1:3]), fill.astype(images.dtype), images)


def span(centre: jax.Array, edge: int | jax.Array, length: int) -> tuple[jax.Array, jax.Array]:
    """First pixel and the one after the last of `edge` pixels around `centre`, as far as they are in [0, length)."""
    return jnp.clip(centre - edge // 2, 0, length), jnp.clip(centre + (edge + 1) // 2, 0, length)


def below(limit: int | jax.Array, draw: jax.Array) -> jax.Array:
    """A uniform draw in [0, 1) as an int32 in [0, limit)."""
    return jnp.floor(draw * limit if isinstance(limit, int) else draw * limit.astype(draw.dtype)).astype(jnp.int32)


def random_erasing(
    key: jax.Array,
    images: jax.Array,
    *,
    probability: float,
    mode: str = 'const',
    min_area: float = 0.02,
    max_area: float = 1 / 3,
    min_aspect: float = 0.3,
    count: int = 1,
) -> jax.Array:
    """Rectangles of each picture replaced, as by timm's `RandomErasing`, whose distributions these are.

    Args:
        key: of `jax.random`; another one on each device.
        images: (batch, height, width, channels), floating point, normalised.
        probability: that a picture is touched at all.
        mode: 'const' fills with zero, the mean colour; 'rand' with one normally distributed colour a rectangle;
            'pixel' with one a pixel.
        min_area, max_area: range of the share of the picture that its rectangles have together; uniform.
        min_aspect: lowest height / width, whose logarithm is uniform up to that of 1 / min_aspect.
        count: most rectangles a picture; their number is uniform in [1, count]. They may overlap.

    Returns:
        Pictures of the same shape and type.

    Raises:
        ValueError: an argument that cannot work.
    """
    _check(images, 'mode', mode, MODES)
    if not (0 < min_area <= max_area <= 1 and 0 < min_aspect <= 1 and count >= 1 and 0 <= probability <= 1):
        numbers = f'{probability=}, {min_area=}, {max_area=}, {min_aspect=}, {count=}'
        raise ValueError(f'probability, areas and min_aspect must be shares, areas rising, count 1 or more; {numbers}')
    batch, height, width, channels = images.shape
    draw_key, noise_key = jax.random.split(key)
    # All at once, for each call compiles for seconds: chance and number, then what `erasing_box` wants.
    chance, how_many, *draws = jax.random.uniform(draw_key, (2 + count * _DRAWS, batch), jnp.float32)
    number = jnp.where(chance < probability, 1 + below(count, how_many), 0)
    if mode == 'pixel':  # Where rectangles overlap, whose noise it is makes no difference.
        fills = [jax.random.normal(noise_key, images.shape, jnp.float32)] * count
    elif mode == 'rand':
        fills = jax.random.normal(noise_key, (count, batch, 1, 1, channels), jnp.float32)
    else:
        fills = jnp.zeros((count, 1, 1, 1, 1), jnp.float32)
    for index, fill in enumerate(fills):
        draw = jnp.stack(draws[index * _DRAWS : (index + 1) * _DRAWS])
        box = erasing_box(draw, jnp.maximum(number, 1), height, width, (min_area, max_area), min_aspect)
        top, bottom, left, right = (jnp.where(index < number, side, 0) for side in box)
        images = erase(images, (top, bottom, left, right), fill)
    return images


def erasing_box(
    draws: jax.Array, number: jax.Array, height: int, width: int, area: tuple[float, float], min_aspect: float
) -> Box:
    """One rectangle a picture, from uniform draws (22, batch); one of `number` (batch,) has that part of the area.

    The first of ten that is smaller than the picture both ways; if none is, an empty one. timm draws them one after
    another, which comes to the same.
    """
    shares, log_aspects = draws[:_TRIES], math.log(min_aspect) * (1 - 2 * draws[_TRIES : 2 * _TRIES])
    areas = (area[0] + (area[1] - area[0]) * shares) * (height * width) / number[None].astype(jnp.float32)
    aspects = jnp.exp(log_aspects)
    heights, widths = jnp.round(jnp.sqrt(areas * aspects)), jnp.round(jnp.sqrt(areas / aspects))
    fits = (heights < height) & (widths < width)
    first = jnp.argmax(fits, axis=0, keepdims=True)
    rows, columns = (
        jnp.take_along_axis(jnp.where(fits, edges, 0), first, axis=0)[0].astype(jnp.int32)
        for edges in (heights, widths)
    )
    top, left = below(height - rows + 1, draws[-2]), below(width - columns + 1, draws[-1])
    return top, top + rows, left, left + columns


def cutout(
    key: jax.Array,
    images: jax.Array,
    *,
    size: float,
    fill: str = 'zero',
    mean: float | Sequence[float] = 0.0,
    std: float | Sequence[float] = 1.0,
) -> jax.Array:
    """A square of each picture replaced, centred anywhere in the picture and cut off at its borders.

    Args:
        key: of `jax.random`; another one on each device.
        images: (batch, height, width, channels), floating point, normalised.
        size: edge of the square over the picture's edge, in (0, 1], rounded to pixels; 0.5 covers 19 % of a
            picture on average. Where the picture is no square it has the picture's proportions.
        fill: 'zero', the mean colour, as in the paper; or 'random', one colour a picture, uniform in RGB, as in
            MIIL's CutoutPIL (https://github.com/Alibaba-MIIL/ImageNet21K).
        mean, std: that the pictures were normalised with, one number or one a channel; for 'random'.

    Returns:
        Pictures of the same shape and type.

    Raises:
        ValueError: an argument that cannot work.
    """
    _check(images, 'fill', fill, FILLS)
    if not 0 < size <= 1:
        raise ValueError(f'size must be a share in (0, 1] of the edge, got {size!r}')
    batch, height, width, channels = images.shape
    rows, columns, *colour = jax.random.uniform(key, (2 + channels, batch), jnp.float32)
    box = (
        *span(below(height, rows), int(size * height + 0.5), height),
        *span(below(width, columns), int(size * width + 0.5), width),
    )
    if fill == 'zero':
        return erase(images, box, jnp.zeros((1, 1, 1, 1), jnp.float32))
    colour = jnp.stack(colour, axis=-1).reshape(batch, 1, 1, channels)
    shift, scale = (jnp.asarray(value, jnp.float32).reshape(1, 1, 1, -1) for value in (mean, std))
    return erase(images, box, (colour - shift) / scale)


def _check(images: jax.Array, name: str, value: str, allowed: Sequence[str]) -> None:
    if images.ndim != 4 or not jnp.issubdtype(images.dtype, jnp.floating):
        shape = f'{images.dtype} {images.shape}'
        raise ValueError(f'images must be floating point (batch, height, width, channels), got {shape}')
    if value not in allowed:
        raise ValueError(f'{name} must be one of {", ".join(allowed)}, got {value!r}')
