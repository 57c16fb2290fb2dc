"""Accuracy over a data set, on all devices and hosts."""

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any

from tresnet_jax.errors import TrainingError


@dataclasses.dataclass(frozen=True)
class EvalResult:
    """Of `count` images: loss is the mean cross entropy, top1 and top5 are shares."""

    loss: float
    top1: float
    top5: float
    count: int

    def standard_error(self, share: float) -> float:
        """Of a share of so many independent images."""
        return (share * (1 - share) / self.count) ** 0.5


def evaluate(
    step: Callable[[Any, Any], dict[str, Any]],
    variables: Any,
    batches: Iterable[Any],
    tick: Callable[[int], object] = lambda count: None,
) -> EvalResult:
    """Run an evaluation step over all batches.

    Args:
        step: of `make_eval_step`, over devices.
        variables: (params, batch_stats) on every device.
        batches: on the devices, with 'mask'.
        tick: told how many images are done, for progress.

    Raises:
        TrainingError: there is no image.
    """
    sums = {'loss': 0.0, 'top1': 0.0, 'top5': 0.0, 'count': 0.0}
    waiting: dict[str, Any] | None = None  # one step behind, so that the devices always have work
    for batch in batches:
        done, waiting = waiting, step(variables, batch)
        sums = _add(sums, done)
        tick(int(sums['count']))
    sums = _add(sums, waiting)
    count = round(sums['count'])
    tick(count)
    if count == 0:
        raise TrainingError('there is no image to evaluate')
    return EvalResult(sums['loss'] / count, sums['top1'] / count, sums['top5'] / count, count)


def _add(sums: dict[str, float], values: dict[str, Any] | None) -> dict[str, float]:
    return sums if values is None else {name: sums[name] + float(values[name]) for name in sums}
