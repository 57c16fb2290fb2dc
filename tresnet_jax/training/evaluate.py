"""Metrics over a data set, on all devices and hosts."""

import contextlib
import dataclasses
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

import numpy as np

from tresnet_jax.errors import TrainingError
from tresnet_jax.training.multilabel import MultiLabelResult, multilabel_result

T = TypeVar('T')
Arrays = dict[str, np.ndarray]

NO_IMAGE = 'there is no image to evaluate'


@dataclasses.dataclass(frozen=True)
class EvalResult:
    """The accuracy of a model over a data set.

    Attributes:
        loss: mean cross entropy.
        top1, top5: shares of the images whose label is the likeliest class, or among the five likeliest.
        count: number of images.
        semantic_top1: with a tree of classes, the share of right answers among all levels of all images, as in
            github.com/Alibaba-MIIL/ImageNet21K; the loss is then that of the semantic softmax.
    """

    loss: float
    top1: float
    top5: float
    count: int
    semantic_top1: float | None = None

    def metrics(self) -> dict[str, float]:
        """Return all attributes that are known."""
        return {name: value for name, value in dataclasses.asdict(self).items() if value is not None}

    def standard_error(self, share: float) -> float:
        """Return the standard error of a share of `count` independent images."""
        return (share * (1 - share) / self.count) ** 0.5


def evaluate(
    step: Callable[[Any, Any], dict[str, Any]],
    variables: Any,
    batches: Any,
    tick: Callable[[int], object] = lambda count: None,
    images: list[Arrays] | None = None,
) -> EvalResult:
    """Run an evaluation step over all batches.

    Args:
        step: `make_eval_step`, over devices.
        variables: (params, batch_stats), on every device.
        batches: an `eval_dataset`, on the devices.
        tick: called after each batch with the number of images evaluated so far, to show progress.
        images: a list that gets the values of single images, if the step returns them: a dict of arrays per batch.

    Raises:
        DataError: the images cannot be read.
        TrainingError: there is no image.
    """
    sums = dict.fromkeys(('loss', 'top1', 'top5', 'count', 'semantic_hits', 'semantic_levels'), 0.0)
    with contextlib.closing(iter(batches)) as iterator:
        for values in one_behind(step(variables, batch) for batch in iterator):
            for name in sums:
                sums[name] += float(values.get(name, 0))
            if images is not None:
                images.append(_without_padding(values['images']))
            tick(round(sums['count']))
    count = round(sums['count'])
    if count == 0:
        raise TrainingError(NO_IMAGE)
    semantic = sums['semantic_hits'] / sums['semantic_levels'] if sums['semantic_levels'] else None
    return EvalResult(sums['loss'] / count, sums['top1'] / count, sums['top5'] / count, count, semantic)


def evaluate_multilabel(
    step: Callable[[Any, Any], dict[str, Any]],
    variables: Any,
    batches: Any,
    tick: Callable[[int], object] = lambda count: None,
    threshold: float = 0.5,
    images: list[Arrays] | None = None,
) -> MultiLabelResult:
    """Run an evaluation step over all batches of images with any number of classes.

    Every process holds the outputs for all images: 8 bytes for each image and class.

    Args:
        step: `make_multilabel_eval_step`, over devices.
        variables, batches, tick: as for `evaluate`.
        threshold: probability from which a class counts as predicted in F1.
        images: a list that gets the results of `step`, without padding.

    Raises:
        DataError, TrainingError: as `evaluate`.
    """
    rows: list[Arrays] = [] if images is None else images
    count = 0
    with contextlib.closing(iter(batches)) as iterator:
        for found in one_behind(step(variables, batch) for batch in iterator):
            rows.append(_without_padding(found))
            count += len(rows[-1]['loss'])
            tick(count)
    if count == 0:
        raise TrainingError(NO_IMAGE)
    logits, targets, losses = (np.concatenate([row[name] for row in rows]) for name in ('logits', 'targets', 'loss'))
    return multilabel_result(float(losses.mean(dtype=np.float64)), logits, targets, threshold)


def _without_padding(values: dict[str, Any]) -> Arrays:
    """Return arrays of a batch on the host, without the rows whose mask is 0."""
    kept = np.asarray(values['mask']) > 0
    return {name: np.asarray(value)[kept] for name, value in values.items()}


def one_behind(items: Iterable[T]) -> Iterator[T]:
    """Yield each item after the next one is made.

    For steps on devices: the host waits for a step only after it dispatched the next one, so the devices never idle.
    """
    pending: list[T] = []
    for item in items:
        yield from pending
        pending = [item]
    yield from pending
