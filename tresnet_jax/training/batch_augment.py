"""Augmentation of batches on the device: random erasing, Cutout, mixup and CutMix of normalised images.

- Random erasing: https://arxiv.org/abs/1708.04896, ``timm/data/random_erasing.py``.
- Cutout: https://arxiv.org/abs/1708.04552.
- mixup: https://arxiv.org/abs/1710.09412, and CutMix: https://arxiv.org/abs/1905.04899; ``timm/data/mixup.py``. The
  partner of an image is its neighbour: images 0 and 1 are mixed with each other, 2 and 3, and so on. timm mixes with
  the reversed batch. Neighbours are on the same device, however many there are.

Cutout, random erasing, and mixing per pair or image take one key per image, so that an image is augmented in the same
way in any part of a batch.
"""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp

MODES = ('const', 'rand', 'pixel')  # of random erasing
FILLS = ('zero', 'random')  # of Cutout
MIX_MODES = ('batch', 'pair', 'elem')
_TRIES = 10  # as in timm
_DRAWS = 2 * _TRIES + 2  # uniform numbers per rectangle: areas, aspect ratios, position

Box = tuple[jax.Array, jax.Array, jax.Array, jax.Array]
"""First row, row after the last, first column, column after the last: int32, each () or (batch,)."""


def below(limit: int | jax.Array, draw: jax.Array) -> jax.Array:
    """Turn a uniform draw in [0, 1) into an int32 in [0, limit)."""
    return jnp.floor(draw * limit if isinstance(limit, int) else draw * limit.astype(draw.dtype)).astype(jnp.int32)


def span(centre: jax.Array, edge: int | jax.Array, length: int) -> tuple[jax.Array, jax.Array]:
    """Return the first of `edge` pixels around `centre` and the pixel after the last, clipped to [0, length]."""
    return jnp.clip(centre - edge // 2, 0, length), jnp.clip(centre + (edge + 1) // 2, 0, length)


def inside(box: Box, height: int, width: int) -> jax.Array:
    """Return which pixels are in the box: (batch or 1, height, width, 1) bool."""
    top, bottom, left, right = (jnp.reshape(side, (-1, 1, 1, 1)) for side in box)
    rows = jnp.arange(height, dtype=jnp.int32).reshape(1, -1, 1, 1)
    columns = jnp.arange(width, dtype=jnp.int32).reshape(1, 1, -1, 1)
    return (rows >= top) & (rows < bottom) & (columns >= left) & (columns < right)


def keys_of_images(key: jax.Array, count: int) -> jax.Array:
    """Return one key per image, (count,): `key` itself if it has this shape, else keys derived from it."""
    return key if key.ndim else jax.random.split(key, count)


def erase(images: jax.Array, box: Box, fill: jax.Array) -> jax.Array:
    """Fill the box of each image (batch, height, width, channels) with `fill`, which broadcasts to the images."""
    return jnp.where(inside(box, *images.shape[1:3]), fill.astype(images.dtype), images)


# Random erasing and Cutout.


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
    """Replace rectangles of each image, with the distributions of timm's `RandomErasing`.

    Args:
        key: of `jax.random`, one for the batch or (batch,), one per image.
        images: (batch, height, width, channels), floating point, normalised.
        probability: probability that an image is erased at all.
        mode: 'const' fills with zero, the mean colour; 'rand' with one normally distributed colour per rectangle;
            'pixel' with one per pixel.
        min_area, max_area: range of the area of all rectangles of an image together, as a share; uniform.
        min_aspect: smallest height / width; its logarithm is uniform up to that of 1 / min_aspect.
        count: largest number of rectangles per image; their number is uniform in [1, count]. They may overlap.

    Returns:
        Images of the same shape and dtype.

    Raises:
        ValueError: an argument is out of range.
    """
    _check(images, 'mode', mode, MODES)
    if not (0 < min_area <= max_area <= 1 and 0 < min_aspect <= 1 and count >= 1 and 0 <= probability <= 1):
        numbers = f'{probability=}, {min_area=}, {max_area=}, {min_aspect=}, {count=}'
        raise ValueError(f'probability, areas and min_aspect must be shares, areas rising, count at least 1: {numbers}')
    batch, height, width, channels = images.shape
    draw_keys, noise_keys = jax.vmap(jax.random.split, out_axes=1)(keys_of_images(key, batch))
    # Draw all numbers at once, because each call compiles for seconds: two for the image, `_DRAWS` for each rectangle.
    numbers = jax.vmap(lambda key: jax.random.uniform(key, (2 + count * _DRAWS,), jnp.float32), out_axes=1)
    chance, how_many, *draws = numbers(draw_keys)
    number = jnp.where(chance < probability, 1 + below(count, how_many), 0)
    if mode == 'pixel':  # rectangles may share their noise: the last one to cover a pixel decides its colour
        fills = [jax.vmap(lambda key: jax.random.normal(key, images.shape[1:], jnp.float32))(noise_keys)] * count
    elif mode == 'rand':
        colours = jax.vmap(lambda key: jax.random.normal(key, (count, 1, 1, channels), jnp.float32), out_axes=1)
        fills = colours(noise_keys)
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
    """Return one rectangle per image: the first of ten that is smaller than the image in both directions.

    If none is, the rectangle is empty. timm draws the ten one after another; the distribution is the same.

    Args:
        draws: (22, batch), uniform in [0, 1).
        number: (batch,), the number of rectangles of each image, which share its area.
        height, width: size of the images.
        area: range of the area of all rectangles together, as a share of the image.
        min_aspect: smallest height / width.
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
    """Replace a square of each image. Its centre is anywhere in the image, and it is clipped at the borders.

    Args:
        key: of `jax.random`, one for the batch or (batch,), one per image.
        images: (batch, height, width, channels), floating point, normalised.
        size: edge of the square over the edge of the image, in (0, 1], rounded to pixels; 0.5 covers 19 % of an image
            on average. If the image is not square, the rectangle has its proportions.
        fill: 'zero', the mean colour, as in the paper; or 'random', one colour per image, uniform in RGB, as in MIIL's
            CutoutPIL (https://github.com/Alibaba-MIIL/ImageNet21K).
        mean, std: normalisation of the images, one number or one per channel; for 'random'.

    Returns:
        Images of the same shape and dtype.

    Raises:
        ValueError: an argument is out of range.
    """
    _check(images, 'fill', fill, FILLS)
    if not 0 < size <= 1:
        raise ValueError(f'size must be a share of the edge in (0, 1], got {size!r}')
    batch, height, width, channels = images.shape
    numbers = jax.vmap(lambda key: jax.random.uniform(key, (2 + channels,), jnp.float32), out_axes=1)
    rows, columns, *colour = numbers(keys_of_images(key, batch))
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
    """Raise ValueError if the images or the argument `name` are not as expected."""
    if images.ndim != 4 or not jnp.issubdtype(images.dtype, jnp.floating):
        shape = f'{images.dtype} {images.shape}'
        raise ValueError(f'images must be floating point (batch, height, width, channels), got {shape}')
    if value not in allowed:
        raise ValueError(f'{name} must be one of {", ".join(allowed)}, got {value!r}')


# mixup and CutMix.


def mix(
    key: jax.Array,
    images: jax.Array,
    targets: jax.Array,
    *,
    mixup_alpha: float = 0.0,
    cutmix_alpha: float = 0.0,
    cutmix_minmax: tuple[float, float] | None = None,
    probability: float = 1.0,
    switch_probability: float = 0.5,
    mode: str = 'batch',
    enabled: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Apply mixup, CutMix or neither, drawn at random.

    Args:
        key: of `jax.random`. For 'batch' one key, the same on all devices, which then draw the same method and share;
            for the other modes (batch,), one per image.
        images: (batch, height, width, channels), floating point; `batch` is even if a method is enabled.
        targets: (batch, classes), floating point: probabilities, already smoothed.
        mixup_alpha, cutmix_alpha: an image keeps a share of itself that is distributed as Beta(alpha, alpha); 0
            disables the method. With both 0 and no `cutmix_minmax`, the batch is returned unchanged.
        cutmix_minmax: range of the height and width of CutMix's box, as shares of the image's; they are uniform, and
            the box lies inside the image. It enables CutMix and replaces `cutmix_alpha`.
        probability: probability that the batch, pair or image is mixed at all.
        switch_probability: probability of CutMix if both methods are enabled.
        mode: what draws its own method, share and box: 'batch', 'pair' (of neighbours) or 'elem' (each image).
        enabled: () bool; False: mix nothing. None: mix.

    Returns:
        (images, targets) of the same shapes and dtypes.

    Raises:
        ValueError: an argument is out of range.
    """
    if images.ndim != 4 or targets.ndim != 2 or images.shape[0] != targets.shape[0]:
        shapes = f'{images.shape} and {targets.shape}'
        raise ValueError(f'expected images (batch, height, width, channels) and targets (batch, classes), got {shapes}')
    if not all(jnp.issubdtype(x.dtype, jnp.floating) for x in (images, targets)):
        raise ValueError(f'images and targets must be floating point, got {images.dtype} and {targets.dtype}')
    if min(mixup_alpha, cutmix_alpha) < 0 or not (0 <= probability <= 1 and 0 <= switch_probability <= 1):
        numbers = f'{mixup_alpha=}, {cutmix_alpha=}, {probability=}, {switch_probability=}'
        raise ValueError(f'alphas must not be negative and probabilities must be in [0, 1], got {numbers}')
    if mode not in MIX_MODES:
        raise ValueError(f'mode must be one of {", ".join(MIX_MODES)}, got {mode!r}')
    has_mixup, has_cutmix = mixup_alpha > 0, cutmix_alpha > 0 or cutmix_minmax is not None
    if not has_mixup and not has_cutmix:
        return images, targets
    if images.shape[0] % 2:
        raise ValueError(f'a batch of {images.shape[0]} images cannot be mixed: each needs a neighbour')
    if key.ndim != (mode != 'batch'):
        raise ValueError(f'mode {mode!r} needs {"one key" if mode == "batch" else "a key for each image"}')
    if not has_mixup or not has_cutmix:
        switch_probability = float(has_cutmix)
    if mode == 'pair':
        key = key[jnp.arange(images.shape[0]) // 2 * 2]
    draw_keys, lam_keys = jax.random.split(key) if mode == 'batch' else jax.vmap(jax.random.split, out_axes=1)(key)
    chance, switch, row, column, *edges = _uniform(draw_keys, 4 if cutmix_minmax is None else 6)
    is_cutmix = switch < switch_probability
    alpha = jnp.where(is_cutmix, 1.0 if cutmix_minmax else cutmix_alpha, mixup_alpha)
    is_mixed = chance < probability if enabled is None else (chance < probability) & enabled
    lam = jnp.where(is_mixed, _beta(lam_keys, alpha), 1)
    # Both methods run; the one that was not drawn changes nothing, with a share of 1 or an empty box.
    originals = images, targets
    if has_mixup:
        images, targets = mixup(images, targets, jnp.where(is_cutmix, 1, lam))
    if has_cutmix:
        _, height, width, _ = images.shape
        if cutmix_minmax is None:
            lam = jnp.where(is_cutmix, lam, 1)
            box = cutmix_box(lam, below(height, row), below(width, column), height, width)
        else:
            top, bottom, left, right = _minmax_box(cutmix_minmax, (row, column, *edges), height, width)
            cuts = is_cutmix & is_mixed
            box = (
                jnp.where(cuts, top, 0),
                jnp.where(cuts, bottom, 0),
                jnp.where(cuts, left, 0),
                jnp.where(cuts, right, 0),
            )
        if mode == 'elem' and has_mixup:  # mixup may have changed the partner
            cut_images, cut_targets = cutmix(*originals, box)
            images = jnp.where(_of_images(is_cutmix, images), cut_images, images)
            return images, jnp.where(_of_images(is_cutmix, targets), cut_targets, targets)
        images, targets = cutmix(images, targets, box)
    return images, targets


def _uniform(keys: jax.Array, count: int) -> jax.Array:
    """Return `count` uniform numbers for one key, (count,), or for each key, (count, batch)."""
    draw = lambda key: jax.random.uniform(key, (count,), jnp.float32)  # noqa: E731
    return jax.vmap(draw, out_axes=1)(keys) if keys.ndim else draw(keys)


def _beta(keys: jax.Array, alpha: jax.Array) -> jax.Array:
    """Return a number distributed as Beta(alpha, alpha) for one key, (), or for each key, (batch,)."""
    draw = lambda key, alpha: jax.random.beta(key, alpha, alpha, dtype=jnp.float32)  # noqa: E731
    return jax.vmap(draw)(keys, alpha) if keys.ndim else draw(keys, alpha)


def minmax_edges(length: int, minmax: tuple[float, float]) -> tuple[int, int]:
    """Return the smallest edge of a CutMix box in pixels, and the one after the largest.

    Raises:
        ValueError: there is no edge in between.
    """
    low, high = int(length * minmax[0]), int(length * minmax[1])
    if not 0 <= low < high <= length:
        raise ValueError(
            f'cutmix_minmax must be two shares that leave a range of edges, got {minmax[0]:g} and {minmax[1]:g}, '
            f'which are {low} and {high} of {length} pixels'
        )
    return low, high


def _minmax_box(minmax: tuple[float, float], draws: Sequence[jax.Array], height: int, width: int) -> Box:
    """Return a box inside the image, from four uniform draws: its place (row, column), height and width."""
    row, column, *edges = draws
    (low, high), (left_low, left_high) = minmax_edges(height, minmax), minmax_edges(width, minmax)
    rows, columns = low + below(high - low, edges[0]), left_low + below(left_high - left_low, edges[1])
    top, left = below(height - rows + 1, row), below(width - columns + 1, column)
    return top, top + rows, left, left + columns


def mixup(images: jax.Array, targets: jax.Array, lam: float | jax.Array) -> tuple[jax.Array, jax.Array]:
    """Blend each image and target, with share `lam`, () or (batch,), and its partner, with share 1 - `lam`."""
    return _blend(images, lam), _blend(targets, lam)


def cutmix(images: jax.Array, targets: jax.Array, box: Box) -> tuple[jax.Array, jax.Array]:
    """Replace the box of each image with its partner's pixels, and blend the targets by the share of the area."""
    top, bottom, left, right = box
    _, height, width, _ = images.shape
    lam = 1 - jnp.asarray((bottom - top) * (right - left), _wide(targets)) / (height * width)
    return jnp.where(inside(box, height, width), _partners(images), images), _blend(targets, lam)


def cutmix_box(lam: float | jax.Array, row: jax.Array, column: jax.Array, height: int, width: int) -> Box:
    """Return the box around a pixel that leaves a share `lam` of the image, before it is clipped at the borders."""
    ratio = jnp.sqrt(1 - lam)
    rows, columns = (ratio * height).astype(jnp.int32), (ratio * width).astype(jnp.int32)
    return *span(row, rows, height), *span(column, columns, width)


def _blend(x: jax.Array, lam: float | jax.Array) -> jax.Array:
    """Return lam * x + (1 - lam) * partners of x, computed in `_wide(x)`."""
    wide = _wide(x)
    own, share = x.astype(wide), _of_images(jnp.asarray(lam, wide), x)
    return (share * own + (1 - share) * _partners(own)).astype(x.dtype)


def _of_images(values: jax.Array, x: jax.Array) -> jax.Array:
    """Return one value, or one per image, in a shape that broadcasts to x, (batch, ...)."""
    return values.reshape(-1, *(1,) * (x.ndim - 1)) if values.ndim else values


def _partners(x: jax.Array) -> jax.Array:
    """Exchange the rows 0 and 1, 2 and 3, and so on."""
    return x.reshape(-1, 2, *x.shape[1:])[:, ::-1].reshape(x.shape)


def _wide(x: jax.Array) -> jnp.dtype:
    """Return the dtype of x, but at least float32: in bfloat16 `lam` would be wrong by up to 0.2 %."""
    return x.dtype if x.dtype.itemsize >= 4 else jnp.dtype(jnp.float32)
