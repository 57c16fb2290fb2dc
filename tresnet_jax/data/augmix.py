"""AugMix: a mixture of an image and of chains of operations on it (``timm/data/auto_augment.py``).

Paper: https://arxiv.org/abs/1912.02781. `auto_augment_transform` makes it from timm's strings.
"""

import dataclasses
from typing import Any

import numpy as np
from PIL import Image

OPERATIONS = (  # as in timm, which adds those of colour and light to the paper's
    'AutoContrast', 'ColorIncreasing', 'ContrastIncreasing', 'BrightnessIncreasing', 'SharpnessIncreasing', 'Equalize',
    'Rotate', 'PosterizeIncreasing', 'SolarizeIncreasing', 'ShearX', 'ShearY', 'TranslateXRel', 'TranslateYRel',
)  # fmt: skip
TRANSLATION = 0.3  # largest share of the image's edge, instead of 0.45
RANDOM_DEPTHS = (1, 3)


@dataclasses.dataclass(frozen=True)
class AugMix:
    """Mixes `width` chains of operations with random shares, and the result with the image.

    It asks its generator for the same numbers in the same order as timm asks NumPy and Python's `random`.
    """

    policy: Any
    """A `Policy` whose choices are single operations: (image, generator, number of operations) -> image."""
    width: int = 3
    depth: int = 0
    """Operations of a chain; 0: drawn for each chain, from `RANDOM_DEPTHS`."""
    alpha: float = 1.0
    """The shares of the chains are Dirichlet(alpha, ...), that of all of them together is Beta(alpha, alpha)."""
    blended: bool = False
    """Mix by one blend of 8-bit images for each chain, which is faster and differs by rounding."""

    def __call__(self, image: Image.Image, rng: np.random.Generator) -> Image.Image:
        """Return the augmented image, of the same mode ('RGB' or 'L') and size."""
        shares = rng.dirichlet([self.alpha] * self.width).astype(np.float32)
        together = np.float32(rng.beta(self.alpha, self.alpha))
        if self.blended:
            result = image
            for share in blend_shares(shares * together):
                result = Image.blend(result, self._chain(image, rng), share)
            return result
        chains = (np.asarray(self._chain(image, rng), np.float32) for _ in shares)
        mixed = sum((share * pixels for share, pixels in zip(shares, chains, strict=True)), np.float32(0))
        pixels = np.clip(mixed, 0, 255).astype(np.uint8)
        return Image.blend(image, Image.fromarray(pixels), float(together))

    def _chain(self, image: Image.Image, rng: np.random.Generator) -> Image.Image:
        low, high = RANDOM_DEPTHS
        return self.policy(image, rng, self.depth or int(rng.integers(low, high + 1)))


def blend_shares(shares: np.ndarray) -> list[float]:
    """Return how much of each image to blend in, one after the other, so that each has its share in the end.

    Args:
        shares: (images,) float32, whose sum is at most 1; the first image has the rest.
    """
    found, rest = [], np.float32(1)  # of what was blended before
    for share in shares[::-1]:
        found.append(share / rest)
        rest = rest * (1 - found[-1])
    return [float(share) for share in found[::-1]]
