"""What a comparison is, and what several of them use."""

# pyright: reportPrivateImportUsage=false
# timm does not mark what it exports.

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import timm.models.resnet
import timm.models.tresnet
import torch

import convert
from tests.helpers.closeness import relative_error
from tests.helpers.reference import randomise, reference
from tresnet_jax import variants

# Both sides round in the same way or not at all.
EXACT = 0.0
# float32 constants against Python's numbers.
SINGLE = 1e-6

COMPARISONS: dict[str, 'Comparison'] = {}


class Comparison:
    """An error against timm, with the suite's tolerance and test.

    A call returns the error. It is infinite if our side cannot hold the weights or has another shape.

    Args:
        function: computes the error.
        suite: 'module.function' of the full test in tests/parity; None if there is none.
        tolerance: the largest error that the test allows.
    """

    def __init__(self, function: Callable[[], float], suite: str | None, tolerance: float):
        self.function, self.suite, self.tolerance = function, suite, tolerance

    def __call__(self) -> float:
        try:
            return float(self.function())
        except convert.ConversionError:
            return float('inf')


def comparison(suite: str | None, tolerance: float) -> Callable[[Callable[[], float]], Comparison]:
    """Register a function as the comparison of its name."""

    def register(function: Callable[[], float]) -> Comparison:
        COMPARISONS[function.__name__] = Comparison(function, suite, tolerance)
        return COMPARISONS[function.__name__]

    return register


def error_of(a: Any, b: Any) -> float:
    """Return the relative error; infinite if the shapes differ or ours is not finite."""
    a, b = np.asarray(a), np.asarray(b)
    return relative_error(a, b) if a.shape == b.shape and np.isfinite(a).all() else float('inf')


def largest_error(ours: dict[str, Any], theirs: dict[str, Any]) -> float:
    """Return the largest relative error of two dicts; infinite if their keys differ."""
    if ours.keys() != theirs.keys():
        return float('inf')
    return max(error_of(ours[key], theirs[key]) for key in theirs)


def differing(ours: dict, theirs: dict) -> float:
    """Return how many keys are missing on one side or have another value."""
    missing = object()
    return sum(ours.get(key, missing) != theirs.get(key, missing) for key in ours.keys() | theirs.keys())


# Networks with the features that SMALL lacks: the second version's blocks at a width that it rounds, and a bottleneck's
# shortcut of stride 1.
SMALL_ROWS = {
    'small_v2': variants.TResNetConfig((1, 1, 1, 1), width_factor=0.3, v2=True),
    'small_bottlenecks': variants.ResNetDConfig((1, 1, 1, 1), variants.ALL_BOTTLENECK, 8, (8, 12, 16, 24)),
}
SIZES = {
    'test_tresnet': (36, 48), 'small_v2': (40, 48), 'test_resnet': (64, 49), 'small_bottlenecks': (64, 49),
}  # fmt: skip


@functools.cache
def timm_reference(name: str, **options: Any) -> Any:
    if name not in SMALL_ROWS:
        return reference(name, **options)
    torch.manual_seed(0)
    if name == 'small_v2':
        made = timm.models.tresnet.TResNet([1, 1, 1, 1], width_factor=0.3, v2=True)
    else:
        bottleneck: Any = timm.models.resnet.Bottleneck
        made = timm.models.resnet.ResNet(
            bottleneck, (1, 1, 1, 1), stem_width=8, stem_type='deep', avg_down=True,
            channels=(8, 12, 16, 24),
        )  # fmt: skip
    made = made.double()
    randomise(made, 0)
    return made
