"""Losses against timm's code, and the asymmetric loss against its authors' formula: values and gradients in float64."""

import dataclasses

import jax
import numpy as np
import pytest
import torch
from timm.loss import (
    AsymmetricLossMultiLabel,
    BinaryCrossEntropy,
    LabelSmoothingCrossEntropy,
    PolyBinaryCrossEntropy,
    PolyCrossEntropy,
    SoftTargetCrossEntropy,
)
from timm.loss.class_weights import compute_class_weights

from tests.helpers.closeness import assert_close
from tresnet_jax.training.class_weights import CLASS_WEIGHTS, POS_WEIGHTS, ClassCounts, weights_of
from tresnet_jax.training.config import TrainConfig
from tresnet_jax.training.losses import asymmetric_loss, binary_cross_entropy, create_loss, smooth_binary

pytestmark = pytest.mark.usefixtures('x64', 'standard_promotion')

TOLERANCE = 1e-12
IMAGES, CLASSES = 12, 7
TARGETS = ['hard', 'soft']


@pytest.fixture(autouse=True)
def double(monkeypatch):
    """timm computes the asymmetric loss in float32 whatever the input."""
    monkeypatch.setattr(torch.Tensor, 'float', torch.Tensor.double)


def data(kind: str) -> tuple[np.ndarray, np.ndarray]:
    """Return logits, some of them so large that probabilities are clipped, and targets."""
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(IMAGES, CLASSES)) * np.geomspace(0.5, 12, CLASSES)
    targets = rng.random((IMAGES, CLASSES))
    return logits, targets if kind == 'soft' else (targets < 0.3).astype(float)


def weights() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(1)
    return {'class_weight': rng.random(CLASSES) + 0.5, 'pos_weight': 3 * rng.random(CLASSES) + 0.1}


def both(loss, reference, logits: np.ndarray, targets: np.ndarray) -> None:
    """Compare the values and the gradients of two losses."""
    value, gradient = jax.value_and_grad(loss)(logits, targets)
    inputs = torch.from_numpy(logits).requires_grad_()
    expected = reference(inputs, torch.from_numpy(targets))
    expected.backward()
    assert_close(np.asarray(value), expected.detach().numpy(), TOLERANCE)
    assert inputs.grad is not None and inputs.grad.abs().max() > 0
    assert_close(np.asarray(gradient), inputs.grad.numpy(), TOLERANCE)


def test_ce():
    """Soft targets as after mixup, and smoothed one-hot ones, as the step makes them, against class indices."""
    logits, soft = data('soft')
    ours = create_loss(TrainConfig(loss='ce'))
    both(ours, SoftTargetCrossEntropy(), logits, soft / soft.sum(1, keepdims=True))
    labels = np.random.default_rng(2).integers(0, CLASSES, IMAGES)
    for smoothing in (0.0, 0.1):
        reference = LabelSmoothingCrossEntropy(smoothing)
        targets = np.eye(CLASSES)[labels] * (1 - smoothing) + smoothing / CLASSES
        both(ours, lambda x, _, loss=reference: loss(x, torch.from_numpy(labels)), logits, targets)


@pytest.mark.parametrize('kind', TARGETS)
@pytest.mark.parametrize('sum_classes', [False, True])
@pytest.mark.parametrize('threshold', [None, 0.4])
@pytest.mark.parametrize('weighted', [False, True])
def test_bce(kind, sum_classes, threshold, weighted):
    given = weights() if weighted else {}
    tensors = {name: torch.from_numpy(value) for name, value in given.items()}
    options = {'target_threshold': threshold, 'sum_classes': sum_classes}
    reference = BinaryCrossEntropy(
        0.1, weight=tensors.get('class_weight'), pos_weight=tensors.get('pos_weight'), smooth_dense=True, **options
    )
    both(lambda x, y: binary_cross_entropy(x, smooth_binary(y, 0.1), **options, **given), reference, *data(kind))


def test_bce_of_one_class_per_image():
    """Smoothed one-hot targets, as the step makes them, give timm's loss of class indices."""
    logits, _ = data('hard')
    labels = np.random.default_rng(2).integers(0, CLASSES, IMAGES)
    targets = np.eye(CLASSES)[labels] * 0.9 + 0.1 / CLASSES
    reference = BinaryCrossEntropy(0.1, target_threshold=0.2, sum_classes=True)
    both(create_loss(TrainConfig(loss='bce', bce_target_thresh=0.2, bce_sum=True)), lambda x, _: reference(
        x, torch.from_numpy(labels)), logits, targets)  # fmt: skip


@pytest.mark.parametrize('kind', TARGETS)
@pytest.mark.parametrize('reduction', ['batchmean', 'sum', 'mean'])
@pytest.mark.parametrize('focal_gradient', [False, True])
@pytest.mark.parametrize('gammas', [(4, 1), (4, 0), (0, 0), (2.5, 0.5)])
@pytest.mark.parametrize('clip', [0.05, 0.0])
def test_asl(kind, reduction, focal_gradient, gammas, clip):
    neg, pos = gammas
    weighted = weights() if reduction == 'mean' else {}
    reference = AsymmetricLossMultiLabel(
        neg, pos, clip, disable_torch_grad_focal_loss=not focal_gradient, smoothing=0.1, reduction=reduction,
        weight=torch.from_numpy(weighted['class_weight']) if weighted else None,
        pos_weight=torch.from_numpy(weighted['pos_weight']) if weighted else None,
    )  # fmt: skip
    options = {'gamma_neg': neg, 'gamma_pos': pos, 'clip': clip, 'focal_gradient': focal_gradient} | weighted
    both(lambda x, y: asymmetric_loss(x, smooth_binary(y, 0.1), reduction=reduction, **options), reference, *data(kind))


@pytest.mark.parametrize('focal_gradient', [False, True])
def test_asl_of_its_authors(focal_gradient):
    """The formula of the paper and of Alibaba-MIIL/ASL, with the options of its MS-COCO runs."""

    def reference(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        p = torch.sigmoid(x)
        shifted = (1 - p + 0.05).clamp(max=1)
        likelihood = y * torch.log(p.clamp(min=1e-8)) + (1 - y) * torch.log(shifted.clamp(min=1e-8))
        weight = (1 - (p * y + shifted * (1 - y))) ** (0 * y + 4 * (1 - y))
        return -(likelihood * (weight if focal_gradient else weight.detach())).sum()

    config = TrainConfig(
        task='multilabel', loss='asl', asl_gamma_pos=0.0, asl_reduction='sum', batch_size=IMAGES,
        asl_focal_gradient=focal_gradient,
    )  # fmt: skip
    both(create_loss(config), reference, *data('hard'))


@pytest.mark.parametrize('epsilon', [2.0, -1.0, 0.0])
def test_poly(epsilon):
    """Soft targets as after mixup, and smoothed one-hot ones, against class indices."""
    logits, soft = data('soft')
    ours = create_loss(TrainConfig(loss='poly', poly_epsilon=epsilon))
    both(ours, PolyCrossEntropy(epsilon), logits, soft / soft.sum(1, keepdims=True))
    labels = np.random.default_rng(2).integers(0, CLASSES, IMAGES)
    reference = PolyCrossEntropy(epsilon, smoothing=0.1)
    targets = np.eye(CLASSES)[labels] * 0.9 + 0.1 / CLASSES
    both(ours, lambda x, _: reference(x, torch.from_numpy(labels)), logits, targets)


@pytest.mark.parametrize('kind', TARGETS)
@pytest.mark.parametrize('options', [{}, {'gamma': 2.0}, {'alpha': 0.3}, {'gamma': 1.5, 'alpha': 0.3, 'epsilon': -1.0}])
def test_poly_of_independent_classes(kind, options):
    config = TrainConfig(task='multilabel', loss='poly', **{f'poly_{name}': value for name, value in options.items()})
    ours = create_loss(config)
    reference = PolyBinaryCrossEntropy(smoothing=0.1, **options)
    both(lambda x, y: ours(x, smooth_binary(y, 0.1)), reference, *data(kind))


def test_the_two_gradients_differ():
    """The gradient through the focal weight is no detail: the two have other directions and lengths."""
    logits, targets = data('hard')
    through, around = (
        np.asarray(jax.grad(lambda x, f=f: asymmetric_loss(x, targets, focal_gradient=f))(logits)).ravel()
        for f in (True, False)
    )
    cosine = through @ around / np.linalg.norm(through) / np.linalg.norm(around)
    assert 0.5 < cosine < 0.99


@pytest.mark.parametrize('method', [*POS_WEIGHTS, *CLASS_WEIGHTS])
@pytest.mark.parametrize('largest', [None, 3.0])
def test_weights_of_classes(method, largest):
    counts = ClassCounts(np.array([0.0, 1.0, 7.0, 40.0, 99.0, 100.0]), 100)
    options = {'power': 0.5, 'beta': 0.99}
    ours = weights_of(counts, method, largest=largest, **options)
    _, expected = compute_class_weights(counts.positives.tolist(), 100, method, max_weight=largest, **options)
    assert_close(ours, expected.numpy(), 1e-7)  # timm rounds to float32


def test_defaults_of_timm():
    """A loss without options is timm's default one."""
    logits, targets = data('hard')
    both(create_loss(TrainConfig(task='multilabel')), BinaryCrossEntropy(0.0, smooth_dense=True), logits, targets)
    config = dataclasses.replace(TrainConfig(task='multilabel'), loss='asl')
    both(create_loss(config), AsymmetricLossMultiLabel(), logits, targets)
    both(create_loss(dataclasses.replace(config, loss='poly')), PolyBinaryCrossEntropy(), logits, targets)
    one_hot = np.eye(CLASSES)[np.arange(IMAGES) % CLASSES]
    both(create_loss(TrainConfig(loss='poly')), PolyCrossEntropy(), logits, one_hot)
