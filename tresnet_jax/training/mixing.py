"""mixup and CutMix of batches on the device, as timm's `Mixup` in mode 'batch' (``timm/data/mixup.py``).

Papers: https://arxiv.org/abs/1710.09412, https://arxiv.org/abs/1905.04899. Each picture's partner is the one at the
same place of the reversed batch; on several devices, of the device's part of the batch.
"""

import jax
import jax.numpy as jnp

from tresnet_jax.training.erasing import Box, below, inside, span


def mix(
    key: jax.Array,
    images: jax.Array,
    targets: jax.Array,
    *,
    mixup_alpha: float = 0.0,
    cutmix_alpha: float = 0.0,
    probability: float = 1.0,
    switch_probability: float = 0.5,
) -> tuple[jax.Array, jax.Array]:
    """mixup, CutMix or nothing, drawn anew for each batch.

    Args:
        key: of `jax.random`.
        images: (batch, height, width, channels), floating point.
        targets: (batch, classes), floating point: probabilities, smoothed already if they are to be.
        mixup_alpha, cutmix_alpha: the share of the picture itself is Beta(alpha, alpha); 0 turns one off. With
            both off the batch comes back as it is.
        probability: that the batch is mixed at all.
        switch_probability: that it is CutMix where both are on.

    Returns:
        (images, targets) of the same shapes and types.

    Raises:
        ValueError: an argument that cannot work.
    """
    if images.ndim != 4 or targets.ndim != 2 or images.shape[0] != targets.shape[0]:
        shapes = f'{images.shape} and {targets.shape}'
        raise ValueError(f'expected images (batch, height, width, channels) and targets (batch, classes), got {shapes}')
    if not all(jnp.issubdtype(x.dtype, jnp.floating) for x in (images, targets)):
        raise ValueError(f'images and targets must be floating point, got {images.dtype} and {targets.dtype}')
    if min(mixup_alpha, cutmix_alpha) < 0 or not (0 <= probability <= 1 and 0 <= switch_probability <= 1):
        numbers = f'{mixup_alpha=}, {cutmix_alpha=}, {probability=}, {switch_probability=}'
        raise ValueError(f'alphas must not be negative and probabilities lie in [0, 1], got {numbers}')
    if not mixup_alpha and not cutmix_alpha:
        return images, targets
    if not mixup_alpha or not cutmix_alpha:
        switch_probability = float(cutmix_alpha > 0)
    draw_key, lam_key = jax.random.split(key)
    chance, switch, row, column = jax.random.uniform(draw_key, (4,), jnp.float32)
    is_cutmix = switch < switch_probability
    alpha = jnp.where(is_cutmix, cutmix_alpha, mixup_alpha)
    lam = jnp.where(chance < probability, jax.random.beta(lam_key, alpha, alpha, dtype=jnp.float32), 1)
    # The one that was not drawn mixes nothing: a lambda of 1, an empty box.
    if mixup_alpha:
        images, targets = mixup(images, targets, jnp.where(is_cutmix, 1, lam))
    if cutmix_alpha:
        _, height, width, _ = images.shape
        lam = jnp.where(is_cutmix, lam, 1)
        box = cutmix_box(lam, below(height, row), below(width, column), height, width)
        images, targets = cutmix(images, targets, box)
    return images, targets


def mixup(images: jax.Array, targets: jax.Array, lam: float | jax.Array) -> tuple[jax.Array, jax.Array]:
    """`lam` of each picture and target, and 1 - `lam` of its partner's."""
    return _blend(images, lam), _blend(targets, lam)


def cutmix(images: jax.Array, targets: jax.Array, box: Box) -> tuple[jax.Array, jax.Array]:
    """Each picture with its partner's pixels in the box; the targets by the share of the area that these are."""
    top, bottom, left, right = box
    _, height, width, _ = images.shape
    lam = 1 - jnp.asarray((bottom - top) * (right - left), _wide(targets)) / (height * width)
    return jnp.where(inside(box, height, width), images[::-1], images), _blend(targets, lam)


def cutmix_box(lam: float | jax.Array, row: jax.Array, column: jax.Array, height: int, width: int) -> Box:
    """The box around a pixel that leaves `lam` of the picture, where it is not cut off at the borders."""
    ratio = jnp.sqrt(1 - lam)
    rows, columns = (ratio * height).astype(jnp.int32), (ratio * width).astype(jnp.int32)
    return *span(row, rows, height), *span(column, columns, width)


def _blend(x: jax.Array, lam: float | jax.Array) -> jax.Array:
    wide = _wide(x)
    own, share = x.astype(wide), jnp.asarray(lam, wide)
    return (share * own + (1 - share) * own[::-1]).astype(x.dtype)


def _wide(x: jax.Array) -> jnp.dtype:
    """At least float32: a lambda in bfloat16 would be wrong by up to 0.2 %."""
    return x.dtype if x.dtype.itemsize >= 4 else jnp.dtype(jnp.float32)
