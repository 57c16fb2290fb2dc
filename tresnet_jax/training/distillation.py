"""Knowledge distillation: the outputs of a teacher as targets in addition to the labels, ``timm/task/distillation.py``.

- logit: Hinton et al., arXiv:1503.02531; softmax of both networks at a temperature.
- feature: the pooled features before the classifier, mapped to the teacher's width if it differs.

The teacher is in evaluation mode and not trained. Its parameters are an argument of the step (`over_devices`, `fixed`).
"""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp

from tresnet_jax.checkpoints.run import PROJECTION
from tresnet_jax.models.base import Tree

Normalisation = tuple[tuple[float, ...], tuple[float, ...]]  # mean and std of each channel, for values in [0, 1]


def logit_loss(logits: jax.Array, teacher: jax.Array, temperature: float) -> jax.Array:
    """Return temperature^2 times the KL divergence from the teacher's softmax to the student's, averaged over images.

    Args:
        logits, teacher: (b, classes), floating point.
        temperature: divides the logits of both.
    """
    ours, theirs = (jax.nn.log_softmax(x / temperature) for x in (logits, teacher))
    return (jnp.exp(theirs) * (theirs - ours)).sum(-1).mean() * temperature**2


def feature_loss(features: jax.Array, teacher: jax.Array) -> jax.Array:
    """Return the mean squared difference of features (b, width)."""
    return jnp.square(features - teacher).mean()


def loss_shares(task: float | None, distill: float | None) -> tuple[float, float]:
    """Return the factors of the labels' loss and of the teacher's loss, by timm's rule.

    Both are 1 by default. If only the first is given, they add up to 1.
    """
    if distill is None:
        return (1.0, 1.0) if task is None else (task, 1 - task)
    return 1.0 if task is None else task, distill


@dataclasses.dataclass(frozen=True)
class Distillation:
    """How a student learns from a teacher. It holds no arrays.

    Attributes:
        kind: 'logit' or 'feature'.
        teacher: `functional` of the teacher, which returns logits, or pooled features without its classifier.
        outputs: the teacher's logits that belong to the student's classes, in their order; None: all.
        normalisations: those of the student's images and of the teacher's.
        temperature: of 'logit'.
        shares: factors of the labels' loss and of the teacher's loss.
    """

    kind: Literal['logit', 'feature']
    teacher: Callable[..., Any]
    outputs: tuple[int, ...] | None
    normalisations: tuple[Normalisation, Normalisation]
    temperature: float
    shares: tuple[float, float]

    def student(
        self, apply: Callable[..., Any], params: Tree, batch_stats: Tree, images: jax.Array, keys: jax.Array
    ) -> tuple[jax.Array, jax.Array, Tree]:
        """Return the logits of the student, its outputs to compare with the teacher's, and its new statistics.

        Args:
            apply: `functional` of the student.
            params, batch_stats: its trees; `params` may also hold the projection of its features.
            images: normalised for the student.
            keys: (b,), for its random layers.
        """
        if self.kind == 'logit':
            logits, batch_stats = apply(params, batch_stats, images, train=True, rngs={'dropout': keys})
            return logits, logits, batch_stats
        rngs = {'dropout': keys}
        maps, batch_stats = apply(params, batch_stats, images, train=True, rngs=rngs, method='forward_features')

        def head(number: int, **options: Any) -> jax.Array:
            # As in timm, dropout is drawn separately for the logits and for the features.
            rngs = {'dropout': jax.vmap(jax.random.fold_in, (0, None))(keys, number)}
            return apply(params, batch_stats, maps, train=True, rngs=rngs, method='forward_head', **options)[0]

        features = head(2, pre_logits=True)
        if PROJECTION in params:
            kernel, bias = (params[PROJECTION][name].astype(features.dtype) for name in ('kernel', 'bias'))
            features = features @ kernel + bias[None]
        return head(1), features, batch_stats

    def loss(self, outputs: jax.Array, variables: tuple[Tree, Tree], images: jax.Array) -> jax.Array:
        """Return the loss of the student's outputs.

        Args:
            outputs: as `student` returns them.
            variables: (params, batch_stats) of the teacher.
            images: normalised for the student, float32 or float64, which is the dtype of the loss.
        """
        expected = jax.lax.stop_gradient(self.teacher(*variables, self._for_teacher(images)))
        outputs, expected = (x.astype(images.dtype) for x in (outputs, expected))
        if self.kind == 'feature':
            return feature_loss(outputs, expected)
        if self.outputs is not None:
            expected = expected[:, jnp.asarray(self.outputs)]
        return logit_loss(outputs, expected, self.temperature)

    def _for_teacher(self, images: jax.Array) -> jax.Array:
        """Return images with the teacher's normalisation."""
        if self.normalisations[0] == self.normalisations[1]:
            return images
        (mean, std), (other_mean, other_std) = (
            tuple(jnp.asarray(values, images.dtype).reshape(1, 1, 1, -1) for values in each)
            for each in self.normalisations
        )
        return (images * std + mean - other_mean) / other_std


def without_projection(apply: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function like `apply` whose parameters may also hold the projection of features."""

    def call(params: Tree, *arguments: Any, **options: Any) -> Any:
        return apply({name: value for name, value in params.items() if name != PROJECTION}, *arguments, **options)

    return call
