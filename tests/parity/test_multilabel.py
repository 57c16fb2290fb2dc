"""Metrics of multi-label data against scikit-learn and timm's evaluator."""

import numpy as np
import pytest
import torch
from sklearn import metrics
from timm.task.evaluator import MultiLabelClassificationEvaluator

from tresnet_jax.training.multilabel import average_precisions, f1_scores, multilabel_result, sigmoid

TOLERANCE = 1e-12


def data(kind: str) -> tuple[np.ndarray, np.ndarray]:
    """Return scores and labels; class 0 has no image, class 1 has all, and image 0 has no label."""
    rng = np.random.default_rng(0)
    scores = rng.normal(size=(150, 8))
    if kind == 'tied':
        scores = np.round(2 * scores) / 2
    labels = rng.random((150, 8)) < 0.3
    labels[0] = False
    labels[:, 0], labels[:, 1] = False, True
    return scores, labels


@pytest.mark.filterwarnings('ignore:No positive class found')
@pytest.mark.parametrize('kind', ['plain', 'tied'])
def test_average_precision(kind):
    scores, labels = data(kind)
    expected = metrics.average_precision_score(labels, scores, average=None)
    np.testing.assert_allclose(average_precisions(scores, labels), expected, rtol=TOLERANCE, atol=0)


@pytest.mark.parametrize('threshold', [0.2, 0.5, 0.9])
@pytest.mark.parametrize('kind', ['plain', 'tied'])
def test_f1(kind, threshold):
    scores, labels = data(kind)
    predicted = sigmoid(scores) >= threshold
    expected = [
        metrics.f1_score(labels, predicted, average=average, zero_division=0)
        for average in ('micro', 'macro', 'samples')
    ]
    np.testing.assert_allclose(f1_scores(predicted, labels), expected, rtol=TOLERANCE, atol=0)


@pytest.mark.parametrize('soft', [False, True])
def test_evaluator_of_timm(soft):
    scores, labels = data('tied')
    targets = np.random.default_rng(1).choice([0.0, 0.25, 0.5, 1.0], labels.shape) if soft else labels.astype(float)
    evaluator = MultiLabelClassificationEvaluator(threshold=0.4)
    for start in range(0, len(scores), 40):
        evaluator.update(torch.from_numpy(scores[start : start + 40]), torch.from_numpy(targets[start : start + 40]))
    expected = evaluator.compute()
    result = multilabel_result(expected['loss'], scores, targets, 0.4)
    for name in ('map', 'micro_f1', 'macro_f1', 'sample_f1'):
        assert 100 * getattr(result, name) == pytest.approx(expected[name], rel=1e-12), name
