"""Do all contenders compute the same? Each is held against timm in float64, within a bound set by timm's own noise."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from benchmarking.contenders import CONTENDERS
from benchmarking.sides import Side, Subject
from convert.verify import relative_error

STEPS = 3
# A ReLU whose input is about zero is open in one rounding and shut in another, and then gradients differ by more than
# noise. The steps change the logits by a tenth of their size and more.
LEAST_BOUND = {'inference': 1e-6, 'train': 1e-3}


@dataclasses.dataclass(frozen=True)
class Check:
    """The largest error of a contender's logits, relative to the largest of timm's in float64, and what is allowed."""

    contender: str
    what: str
    error: float
    bound: float

    @property
    def agrees(self) -> bool:
        return self.error <= self.bound

    def __str__(self) -> str:
        parted = '' if self.agrees else '   <- differs'
        return f'{self.contender}, {self.what}: relative error {self.error:.1e}, at most {self.bound:.1e}{parted}'


class Checker:
    """timm's outputs on a batch, and how far its own float32 (or half precision) is from them.

    Inference gives one batch of logits. Training gives those of the third step on the same batch, which two updates
    have changed.

    Args:
        subject: what the contenders have loaded.
        images: (1, B, H, W, 3).
        labels: (1, B).
        whats: 'inference' and 'train', or one of them.
    """

    def __init__(self, subject: Subject, images: np.ndarray, labels: np.ndarray, whats: Sequence[str]):
        from benchmarking.torch_side import TorchSide, wake

        wake(subject.threads)
        self.images, self.labels = images, labels
        exact, rounded = TorchSide(dataclasses.replace(subject, dtype='float64')), TorchSide(subject)
        self.expected = {what: self.logits(exact, what) for what in whats}
        self.bounds = {
            what: max(10 * relative_error(self.logits(rounded, what), logits), LEAST_BOUND[what])
            for what, logits in self.expected.items()
        }

    def logits(self, side: Side, what: str) -> np.ndarray:
        if what == 'inference':
            return side.inference(self.images)()
        step = side.training(self.images, self.labels)
        return [step() for _ in range(STEPS)][-1]

    def compare(self, contender: str, side: Side) -> list[Check]:
        """Of what it takes part in."""
        return [
            Check(contender, what, relative_error(self.logits(side, what), expected), self.bounds[what])
            for what, expected in self.expected.items()
            if what in CONTENDERS[contender].measures
        ]
