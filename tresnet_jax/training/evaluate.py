"""Accuracy over a data set, on all devices and hosts."""

import contextlib
import dataclasses
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

from tresnet_jax.errors import TrainingError

T = TypeVar('T')


@dataclasses.dataclass(frozen=True)
class EvalResult:
    """The accuracy of a model over a data set.

    Attributes:
        loss: mean cross entropy.
        top1, top5: shares of the images whose label is the likeliest class, or among the five likeliest.
        count: number of images.
    """

    loss: float
    top1: float
    top5: float
    count: int

    def standard_error(self, share: float) -> float:
        """Return the standard error of a share of `count` independent images."""
        return (share * (1 - share) / self.count) ** 0.5


def evaluate(
    step: Callable[[Any, Any], dict[str, Any]],
    variables: Any,
    batches: Any,
    tick: Callable[[int], object] = lambda count: None,
) -> EvalResult:
    """Run an evaluation step over all batches.

    Args:
        step: `make_eval_step`, over devices.
        variables: (params, batch_stats), on every device.
        batches: an `eval_dataset`, on the devices.
        tick: called after each batch with the number of images evaluated so far, to show progress.

    Raises:
        DataError: the images cannot be read.
        TrainingError: there is no image.
    """
    sums = dict.fromkeys(('loss', 'top1', 'top5', 'count'), 0.0)
    with contextlib.closing(iter(batches)) as iterator:
        for values in one_behind(step(variables, batch) for batch in iterator):
            for name in sums:
                sums[name] += float(values[name])
            tick(round(sums['count']))
    count = round(sums['count'])
    if count == 0:
        raise TrainingError('there is no image to evaluate')
    return EvalResult(sums['loss'] / count, sums['top1'] / count, sums['top5'] / count, count)


def one_behind(items: Iterable[T]) -> Iterator[T]:
    """Yield each item after the next one is made.

    For steps on devices: the host waits for a step only after it dispatched the next one, so the devices never idle.
    """
    pending: list[T] = []
    for item in items:
        yield from pending
        pending = [item]
    yield from pending
