"""Losses: pure functions of logits and targets, (b, classes) each, and the choice of one by a configuration.

Targets are probabilities, hard or soft, already smoothed and mixed (`batch_augment.py`). With several labels per image
each class is an independent probability: 'bce' and 'asl' are sums over the classes of a loss of one logit.

- bce: ``timm/loss/binary_cross_entropy.py``; its threshold and its sum are those of arXiv:2110.00476.
- asl: Ridnik et al., arXiv:2009.14119; ``timm/loss/asymmetric_loss.py`` and github.com/Alibaba-MIIL/ASL.
- poly: Poly-1, Leng et al., arXiv:2204.12511; ``timm/loss/poly_loss.py``.
- semantic: a tree of classes, see `semantic.py`.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from tresnet_jax.training.config import TrainConfig
from tresnet_jax.training.semantic import SemanticTree, semantic_softmax

Weight = float | np.ndarray | None
"""One number, or one per class; None: 1."""

REDUCTIONS = ('batchmean', 'sum', 'mean')


def cross_entropy(logits: jax.Array, targets: jax.Array) -> jax.Array:
    """Return the mean softmax cross entropy of a batch."""
    return optax.softmax_cross_entropy(logits, targets).mean()


def poly_cross_entropy(logits: jax.Array, targets: jax.Array, *, epsilon: float = 2.0) -> jax.Array:
    """Return the mean Poly-1 loss of a batch, ``PolyCrossEntropy`` in timm: cross entropy + epsilon (1 - p).

    Args:
        logits, targets: (b, classes), floating point.
        epsilon: factor of 1 - p, where p is the mean probability of the classes, weighted by the targets.
    """
    right = (targets * jax.nn.softmax(logits)).sum(-1)
    return (optax.softmax_cross_entropy(logits, targets) + epsilon * (1 - right)).mean()


def poly_binary_cross_entropy(
    logits: jax.Array, targets: jax.Array, *, epsilon: float = 2.0, gamma: float = 0.0, alpha: float | None = None
) -> jax.Array:
    """Return the mean Poly-1 loss of independent classes, ``PolyBinaryCrossEntropy`` in timm.

    Args:
        logits, targets: (b, classes), floating point.
        epsilon: factor of the term that is added to the sigmoid cross entropy, the probability of the wrong answer.
        gamma: exponent of this probability, the focal weight of both terms.
        alpha: weight of positives; negatives have 1 - alpha. None: both have 1.
    """
    positive = jax.nn.sigmoid(logits)
    wrong = 1 - (targets * positive + (1 - targets) * (1 - positive))
    loss = optax.sigmoid_binary_cross_entropy(logits, targets) + epsilon * wrong
    if gamma:
        loss = loss * _power(wrong, jnp.full_like(wrong, gamma))
    if alpha is not None:
        loss = loss * (targets * alpha + (1 - targets) * (1 - alpha))
    return loss.mean()


def smooth_binary(targets: jax.Array, smoothing: float) -> jax.Array:
    """Move targets of independent classes towards 0.5, as timm does with several labels per image."""
    return targets * (1 - smoothing) + 0.5 * smoothing if smoothing else targets


def binary_cross_entropy(
    logits: jax.Array,
    targets: jax.Array,
    *,
    target_threshold: float | None = None,
    sum_classes: bool = False,
    class_weight: Weight = None,
    pos_weight: Weight = None,
) -> jax.Array:
    """Return the sigmoid cross entropy of a batch, ``BinaryCrossEntropy`` in timm.

    Args:
        logits, targets: (b, classes), floating point.
        target_threshold: targets above it count as 1, all others as 0; None: targets as they are.
        sum_classes: sum over the classes and average over the batch; False: average over both.
        class_weight: factor on the loss of each class.
        pos_weight: factor on the part of the positives.
    """
    if target_threshold is not None:
        targets = (targets > target_threshold).astype(targets.dtype)
    positive = _weigh(targets * jax.nn.softplus(-logits), pos_weight)
    loss = _weigh(positive + (1 - targets) * jax.nn.softplus(logits), class_weight)
    return loss.sum(-1).mean() if sum_classes else loss.mean()


def asymmetric_loss(
    logits: jax.Array,
    targets: jax.Array,
    *,
    gamma_neg: float = 4.0,
    gamma_pos: float = 1.0,
    clip: float = 0.05,
    eps: float = 1e-8,
    focal_gradient: bool = True,
    reduction: str = 'batchmean',
    class_weight: Weight = None,
    pos_weight: Weight = None,
) -> jax.Array:
    """Return the asymmetric loss of a batch, ``AsymmetricLossMultiLabel`` in timm.

    Args:
        logits, targets: (b, classes), floating point.
        gamma_neg, gamma_pos: exponents of the focal weight of negatives and positives.
        clip: a negative counts only as far as its probability exceeds this value.
        eps: probabilities below it are replaced by it in the logarithm, so they have no gradient.
        focal_gradient: whether the gradient goes through the focal weight too, as in timm. The authors train without
            this (``disable_torch_grad_focal_loss``); the two gradients differ in direction.
        reduction: 'batchmean', the sum over the classes, averaged over the batch, as in timm; 'sum' over both, the
            authors'; 'mean' over both.
        class_weight, pos_weight: as for `binary_cross_entropy`.

    Raises:
        ValueError: the reduction is unknown.
    """
    if reduction not in REDUCTIONS:
        raise ValueError(f'reduction must be one of {", ".join(REDUCTIONS)}, got {reduction!r}')
    positive = jax.nn.sigmoid(logits)
    negative = 1 - positive + clip
    # Comparisons instead of minimum and maximum, whose gradient at a tie is not torch's.
    negative = jnp.where(negative > 1, 1, negative)
    log_positive, log_negative = (jnp.log(jnp.where(p < eps, eps, p)) for p in (positive, negative))
    loss = _weigh(targets * log_positive, pos_weight) + (1 - targets) * log_negative
    if gamma_neg or gamma_pos:
        missing = 1 - (positive * targets + negative * (1 - targets))
        weight = _power(missing, gamma_pos * targets + gamma_neg * (1 - targets))
        loss = loss * (weight if focal_gradient else jax.lax.stop_gradient(weight))
    loss = -_weigh(loss, class_weight)
    if reduction == 'batchmean':
        return loss.sum(-1).mean()
    return loss.sum() if reduction == 'sum' else loss.mean()


def create_loss(
    config: TrainConfig, class_weight: Weight = None, pos_weight: Weight = None, tree: SemanticTree | None = None
) -> Callable[[jax.Array, jax.Array], jax.Array]:
    """Return the loss of a configuration: (logits, targets) of the batch of one device -> its share of the loss.

    The mean over devices, and over the parts of a batch, is the loss of the whole batch, also for the reduction 'sum'.

    Args:
        config: loss, bce_*, asl_*, poly_*, smoothing, batch_size.
        class_weight, pos_weight: see `binary_cross_entropy`; for 'bce' and 'asl'.
        tree: of the classes, for 'semantic'.

    Raises:
        ValueError: 'semantic' has no tree.
    """
    weights: dict[str, Any] = {'class_weight': class_weight, 'pos_weight': pos_weight}
    if config.loss_name == 'bce':
        return functools.partial(
            binary_cross_entropy, target_threshold=config.bce_target_thresh, sum_classes=config.bce_sum, **weights
        )
    if config.loss_name == 'asl':
        whole = config.asl_reduction == 'sum'
        loss = functools.partial(
            asymmetric_loss,
            gamma_neg=config.asl_gamma_neg,
            gamma_pos=config.asl_gamma_pos,
            clip=config.asl_clip,
            focal_gradient=config.asl_focal_gradient,
            reduction='batchmean' if whole else config.asl_reduction,
            **weights,
        )
        return (lambda logits, targets: config.batch_size * loss(logits, targets)) if whole else loss
    if config.loss_name == 'poly':
        if not config.multilabel:
            return functools.partial(poly_cross_entropy, epsilon=config.poly_epsilon)
        options = {'epsilon': config.poly_epsilon, 'gamma': config.poly_gamma, 'alpha': config.poly_alpha}
        return functools.partial(poly_binary_cross_entropy, **options)
    if config.loss_name == 'semantic':
        if tree is None:
            raise ValueError("loss 'semantic' needs a tree of the classes")
        return functools.partial(semantic_softmax, tree=tree, smoothing=config.label_smoothing)
    return cross_entropy


def _weigh(x: jax.Array, weight: Weight) -> jax.Array:
    """Multiply (b, classes) by a weight."""
    return x if weight is None else x * jnp.asarray(weight, x.dtype).reshape(1, -1)


def _power(base: jax.Array, exponent: jax.Array) -> jax.Array:
    """Return base ** exponent for a base and an exponent of at least 0, with the gradient 0 where the base is 0.

    JAX's own derivative is NaN at 0 ** 0, which a confident positive with gamma 0 reaches in float32.
    """
    inside = base > 0
    return jnp.where(inside, jnp.where(inside, base, 1) ** exponent, (exponent == 0).astype(base.dtype))
