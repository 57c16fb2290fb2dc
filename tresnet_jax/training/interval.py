"""Means and rates between two lines of metrics."""

import math
import time

import numpy as np


class Interval:
    """Sums between two lines of metrics.

    Args:
        batch_size: pictures in a step.

    Attributes:
        last: the metrics of the last finite step.
        waited: seconds spent waiting for data.
    """

    def __init__(self, batch_size: int):
        self._batch_size = batch_size
        self._rate = math.nan
        self.last: dict[str, float] = {}
        self.restart()

    def restart(self) -> None:
        self._values: list[dict[str, float]] = []
        self.restart_clock()

    def restart_clock(self) -> None:
        """Leave what has been done out of the rate, though not out of the means."""
        self.waited = 0.0
        self._began = time.perf_counter()
        self._untimed = len(self._values)

    def add(self, values: dict[str, float]) -> None:
        """The metrics of one more step."""
        self.last = values
        self._values.append(values)

    def summary(self, step: int, epoch: float, lr: float) -> dict[str, float]:
        """Means over the interval; without a finite step in it, not a number."""
        seconds = time.perf_counter() - self._began
        self._rate = (len(self._values) - self._untimed) / seconds
        means = {name: float(np.mean([v[name] for v in self._values])) for name in self.last if self._values}
        return {
            'step': step,
            'epoch': epoch,
            'loss': math.nan,
            'top1': math.nan,
            **means,
            'lr': lr,
            'images_per_second': self._rate * self._batch_size,
            'wait': self.waited / seconds,
        }

    def seconds_left(self, steps: int) -> float:
        return steps / self._rate if self._rate > 0 else math.inf
