"""Scores of each class against scikit-learn's."""

import numpy as np
import pytest
from sklearn import metrics

from tresnet_jax.training.class_scores import confusion_matrix, scores_of_confusion, scores_of_labels


@pytest.mark.parametrize('others', [False, True])
def test_confusion_matrix_and_scores(others):
    """Class 0 has no image, class 1 is never predicted; with `others`, some predictions are none of the classes."""
    rng = np.random.default_rng(0)
    labels, predicted = rng.integers(1, 6, 300), rng.integers(2, 6 + others, 300)
    predicted[:150] = np.maximum(labels[:150], 2)
    matrix = confusion_matrix(labels, predicted, 6)
    np.testing.assert_array_equal(matrix, metrics.confusion_matrix(labels, predicted, labels=range(7))[:6])
    assert matrix[:, 6].any() == others
    expected = metrics.precision_recall_fscore_support(labels, predicted, labels=range(6), zero_division=0)
    found = scores_of_confusion(matrix)
    for got, want in zip((found.precision, found.recall, found.f1, found.images), expected, strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-14, atol=0)
    np.testing.assert_array_equal(found.predicted, np.bincount(predicted, minlength=7)[:6])


def test_scores_of_any_number_of_classes():
    rng = np.random.default_rng(1)
    labels, predicted = rng.random((80, 5)) < 0.4, rng.random((80, 5)) < 0.3
    labels[:, 0], predicted[:, 1] = False, False
    expected = metrics.precision_recall_fscore_support(labels, predicted, zero_division=0)
    found = scores_of_labels(predicted, labels)
    for got, want in zip((found.precision, found.recall, found.f1, found.images), expected, strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-14, atol=0)
    np.testing.assert_array_equal(found.predicted, predicted.sum(0))
