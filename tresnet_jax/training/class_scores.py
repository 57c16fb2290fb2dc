"""How well a model finds each class: confusion matrix, precision, recall and F1, as scikit-learn defines them."""

from typing import NamedTuple

import numpy as np


class ClassScores(NamedTuple):
    """The scores of each class, (classes,). A share of nothing is 0, as scikit-learn's ``zero_division=0``.

    Attributes:
        images: number of images of the class.
        predicted: number of images for which the class is predicted.
        precision: share of the images for which the class is predicted that are of the class.
        recall: share of the images of the class for which it is predicted. With one class per image this is the
            accuracy on the class.
        f1: harmonic mean of precision and recall.
    """

    images: np.ndarray
    predicted: np.ndarray
    precision: np.ndarray
    recall: np.ndarray
    f1: np.ndarray


def confusion_matrix(labels: np.ndarray, predicted: np.ndarray, num_classes: int) -> np.ndarray:
    """Count the images of each class by what is predicted.

    Args:
        labels: (images,) from 0 to `num_classes` - 1.
        predicted: (images,) likewise; `num_classes` stands for every other output of the model.

    Returns:
        (num_classes, num_classes + 1) int64: a row for each label, a column for each prediction.
    """
    places = labels.astype(np.int64) * (num_classes + 1) + predicted
    return np.bincount(places, minlength=num_classes * (num_classes + 1)).reshape(num_classes, num_classes + 1)


def scores_of_confusion(matrix: np.ndarray) -> ClassScores:
    """Return the scores of a result of `confusion_matrix`."""
    square = matrix[:, : len(matrix)]
    return _scores(np.diagonal(square), matrix.sum(1), square.sum(0))


def scores_of_labels(predicted: np.ndarray, labels: np.ndarray) -> ClassScores:
    """Return the scores of images with any number of classes.

    Args:
        predicted, labels: (images, classes) bool.
    """
    return _scores(*(values.sum(0, dtype=np.int64) for values in (predicted & labels, labels, predicted)))


def _scores(right: np.ndarray, images: np.ndarray, predicted: np.ndarray) -> ClassScores:
    return ClassScores(
        images,
        predicted,
        precision=right / np.maximum(predicted, 1),
        recall=right / np.maximum(images, 1),
        f1=2 * right / np.maximum(images + predicted, 1),
    )
