"""Check that all contenders compute the same: compare each with timm in float64, within a bound set by timm's noise."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from benchmarking.contenders import CONTENDERS
from benchmarking.inputs import random_inputs
from benchmarking.sides import Side, Workload
from convert.verify import relative_error

STEPS = 2
# Rounding opens or closes a ReLU whose input is about zero, and then gradients differ by more than noise. The steps
# change the logits by a tenth of their size or more.
LEAST_BOUND = {'inference': 1e-6, 'train': 1e-3}


@dataclasses.dataclass(frozen=True)
class Check:
    """The largest error of a contender's logits relative to the largest of timm's in float64, and its bound."""

    contender: str
    what: str
    error: float
    bound: float

    @property
    def agrees(self) -> bool:
        return self.error <= self.bound

    def __str__(self) -> str:
        mark = '' if self.agrees else '   <- differs'
        return f'{self.contender}, {self.what}: relative error {self.error:.1e}, at most {self.bound:.1e}{mark}'


class Checker:
    """timm's logits in float64, and the error of timm's own float32 (or half precision).

    For inference these are the logits of one batch. For training they are the logits, in training mode, after two
    steps on the same batch.

    Args:
        workload: what the contenders have loaded.
        batch: number of images.
        whats: 'inference', 'train' or both.
    """

    def __init__(self, workload: Workload, batch: int, whats: Sequence[str]):
        from benchmarking.torch_side import TorchSide, wake

        wake(workload.threads)
        self.inputs = {what: random_inputs(workload, what, batch, 1) for what in whats}
        exact, rounded = TorchSide(dataclasses.replace(workload, dtype='float64')), TorchSide(workload)
        self.expected = {what: self.logits(exact, what) for what in whats}
        self.bounds = {
            what: max(10 * relative_error(self.logits(rounded, what), logits), LEAST_BOUND[what])
            for what, logits in self.expected.items()
        }

    def logits(self, side: Side, what: str) -> np.ndarray:
        """Return the logits that are compared."""
        images, labels = self.inputs[what]
        if what == 'inference':
            return side.inference(images)()
        training = side.training(images, labels)
        for _ in range(STEPS):
            training.step()
        return training.logits(images[0])

    def compare(self, contender: str, side: Side) -> list[Check]:
        """Check a contender in everything that it takes part in."""
        return [
            Check(contender, what, relative_error(self.logits(side, what), expected), self.bounds[what])
            for what, expected in self.expected.items()
            if what in CONTENDERS[contender].measures
        ]
