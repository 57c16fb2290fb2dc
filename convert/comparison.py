"""The error of one tensor relative to a reference, next to the rounding error of float32."""

import dataclasses

import numpy as np


def relative_error(a: np.ndarray, b: np.ndarray) -> float:
    """Return max|a - b| / max|b|; if b is zero everywhere, 0 if a is too, else infinity."""
    difference, largest = float(np.abs(a - b).max(initial=0)), float(np.abs(b).max(initial=0))
    if largest == 0:
        return 0.0 if difference == 0 else float('inf')
    return difference / largest


@dataclasses.dataclass(frozen=True)
class Comparison:
    """One tensor of ours compared with timm's.

    Attributes:
        name: 'features.0' (the stem) to 'features.4' or 'logits', or timm's name of a layer.
        error: relative error of ours against timm's.
        noise: relative error of torch's float32 against its float64.
    """

    name: str
    error: float
    noise: float

    @property
    def agrees(self) -> bool:
        """Whether the error is within ten times the larger of torch's own noise and float32's rounding."""
        return self.error <= 10 * max(self.noise, 1e-7)

    def __str__(self) -> str:
        mark = '' if self.agrees else '   <- differs'
        return f'  {self.name:<24} {self.error:.1e}   (float32 noise of torch itself: {self.noise:.1e}){mark}'
