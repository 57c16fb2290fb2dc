"""Metrics of images with any number of labels, over a whole data set, on the host.

The metrics are those of timm (``timm/task/evaluator.py``) and of scikit-learn: a class that no image has counts as 0 in
the means, and so does an F1 without labels and predictions.
"""

import dataclasses

import numpy as np

POSITIVE_FROM = 0.5  # soft targets of at least this are labels, as in timm


@dataclasses.dataclass(frozen=True)
class MultiLabelResult:
    """How well a model finds the labels of a data set.

    Attributes:
        loss: mean sigmoid cross entropy over images and classes.
        map: mean of the average precisions of all classes.
        micro_f1: F1 of all labels together.
        macro_f1: mean of the F1 of all classes.
        sample_f1: mean of the F1 of all images.
        count: number of images.
        average_precisions: (classes,) float64.
    """

    loss: float
    map: float
    micro_f1: float
    macro_f1: float
    sample_f1: float
    count: int
    average_precisions: np.ndarray = dataclasses.field(compare=False)

    def metrics(self) -> dict[str, float]:
        """Return all attributes that are one number."""
        return {name: getattr(self, name) for name in ('loss', 'map', 'micro_f1', 'macro_f1', 'sample_f1', 'count')}


def multilabel_result(loss: float, logits: np.ndarray, targets: np.ndarray, threshold: float) -> MultiLabelResult:
    """Return the metrics of a data set.

    Args:
        loss: mean loss.
        logits: (images, classes), floating point.
        targets: (images, classes), from 0 to 1.
        threshold: probability from which a class counts as predicted.
    """
    labels = targets >= POSITIVE_FROM
    precisions = average_precisions(logits, labels)
    micro, macro, sample = f1_scores(sigmoid(logits) >= threshold, labels)
    return MultiLabelResult(loss, float(precisions.mean()), micro, macro, sample, len(logits), precisions)


def sigmoid(logits: np.ndarray) -> np.ndarray:
    """Return probabilities, float64."""
    return 0.5 + 0.5 * np.tanh(0.5 * logits.astype(np.float64))


def average_precisions(scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return the average precision of each class, (classes,) float64; 0 for a class that no image has.

    This is the mean over the images of the class; each contributes the precision among all images that score at least
    as high.

    Args:
        scores: (images, classes). Logits: probabilities of 1 would be ties.
        labels: (images, classes) bool.
    """
    return np.asarray([_average_precision(scores[:, i], labels[:, i]) for i in range(scores.shape[1])], np.float64)


def _average_precision(scores: np.ndarray, labels: np.ndarray) -> float:
    positives = int(labels.sum())
    if not positives:
        return 0.0
    order = np.argsort(-scores, kind='stable')
    scores, found = scores[order], np.cumsum(labels[order])
    ends = np.append(np.flatnonzero(scores[1:] != scores[:-1]), len(scores) - 1)  # images that tie have one threshold
    found = found[ends]
    return float((np.diff(found, prepend=0) * (found / (ends + 1))).sum() / positives)


def f1_scores(predicted: np.ndarray, labels: np.ndarray) -> tuple[float, float, float]:
    """Return F1 over all labels, its mean over the classes, and its mean over the images.

    Args:
        predicted, labels: (images, classes) bool.
    """
    right = predicted & labels

    def f1(axis: int | None) -> float:
        both = predicted.sum(axis, dtype=np.int64) + labels.sum(axis, dtype=np.int64)
        return float((2 * right.sum(axis, dtype=np.int64) / np.maximum(both, 1)).mean())

    return f1(None), f1(0), f1(1)
