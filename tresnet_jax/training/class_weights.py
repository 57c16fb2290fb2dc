"""Weights of classes in the loss, from how often each class occurs; ``timm/loss/class_weights.py``."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tresnet_jax.data.class_matching import other_order
from tresnet_jax.data.sources import Source
from tresnet_jax.data.targets import MultiLabelSource
from tresnet_jax.errors import TrainingError, shown
from tresnet_jax.files import read_json
from tresnet_jax.training.config import TrainConfig
from tresnet_jax.training.option_rules import CLASS_WEIGHTS, POS_WEIGHTS


class ClassCounts(NamedTuple):
    """How often each class occurs.

    Attributes:
        positives: (classes,) float64, images with the class; targets between 0 and 1 count in part.
        images: number of images.
    """

    positives: np.ndarray
    images: int


def weights_of(
    counts: ClassCounts, method: str, *, power: float = 1.0, beta: float = 0.999, largest: float | None = None
) -> np.ndarray:
    """Return the weight of each class, (classes,) float64. A class without images counts as if it had one.

    Args:
        counts: see `ClassCounts`.
        method: 'neg_pos', the number of images without the class divided by the number with it; 'inv_freq', the number
            of all images divided by the number with it; 'effective_num', (1 - beta) / (1 - beta^n), Cui et al.,
            arXiv:1901.05555. The last two have the mean 1.
        power: exponent of 'neg_pos' and 'inv_freq'.
        beta: parameter of 'effective_num'.
        largest: weights above it are lowered to it.
    """
    positives = np.maximum(counts.positives.astype(np.float64), 1)
    if method == 'neg_pos':
        weights = (np.maximum(counts.images - positives, 0) / positives) ** power
    else:
        weights = (counts.images / positives) ** power if method == 'inv_freq' else (1 - beta) / (1 - beta**positives)
        weights = weights / weights.mean()
    return weights if largest is None else np.minimum(weights, largest)


def loss_weight(
    text: str | None,
    methods: Sequence[str],
    counts: ClassCounts | None,
    num_classes: int,
    name: str,
    **options: Any,
) -> float | np.ndarray | None:
    """Return the weight that an option of the loss specifies: one number, or one per class; None: no weight.

    Args:
        text: a method, a number, or one number per class, separated by commas; None: no weight.
        methods: the methods of this option.
        counts: of the training images; None if they are unknown.
        num_classes: number of classes of the model.
        name: the flag, for errors.
        options: see `weights_of`.

    Raises:
        TrainingError: `text` is none of these, or the counts are unknown or are of another number of classes.
    """
    if text is None:
        return None
    if text in methods:
        if counts is None:
            raise TrainingError(f'{name} {text}: how often each class occurs is unknown; give --class-stats FILE')
        if len(counts.positives) != num_classes:
            have = len(counts.positives)
            raise TrainingError(f'{name} {text}: needs counts of the {num_classes} classes of the model, got {have}')
        return weights_of(counts, text, **options)
    try:
        numbers = [float(part) for part in text.split(',')]
    except ValueError:
        numbers = []
    if not numbers or not all(math.isfinite(number) and number >= 0 for number in numbers):
        raise TrainingError(
            f'{name} must be {", ".join(methods)}, or a number of at least 0, or one per class separated by commas, '
            f'got {shown(text)}'
        )
    if len(numbers) not in (1, num_classes):
        raise TrainingError(f'{name}: got {len(numbers)} numbers; expected 1, or {num_classes}, one per class')
    return numbers[0] if len(numbers) == 1 else np.asarray(numbers)


def loss_weights(config: TrainConfig, source: Source, num_classes: int) -> dict[str, float | np.ndarray | None]:
    """Return the class weight and the positive weight of a configuration: arguments of `create_loss`.

    Args:
        config: loss_*, class_stats.
        source: the training images, which are counted without class_stats.
        num_classes: number of classes of the model.

    Raises:
        TrainingError: as `loss_weight` and `read_class_stats`.
    """
    counts = count_classes(source) if config.class_stats is None else read_class_stats(config.class_stats, source)
    found = {}
    for name, methods in (('class_weight', CLASS_WEIGHTS), ('pos_weight', POS_WEIGHTS)):
        found[name] = loss_weight(
            getattr(config, f'loss_{name}'),
            methods,
            counts,
            num_classes,
            f'--loss-{name.replace("_", "-")}',
            power=config.loss_weight_power,
            beta=config.loss_weight_beta,
            largest=config.loss_weight_max,
        )
    return found


def count_classes(source: Source) -> ClassCounts | None:
    """Return how often each class occurs; None if that is only in the records of the images."""
    if isinstance(source, MultiLabelSource):
        return None if source.targets is None else ClassCounts(source.targets.counts(), len(source))
    labels = getattr(source, 'labels', None)
    if labels is None:
        return None
    return ClassCounts(np.bincount(labels, minlength=source.num_classes).astype(np.float64), len(source))


def read_class_stats(path: Path, source: Source | None = None) -> ClassCounts:
    """Read counts as timm's class_weights.py writes them: a JSON object with pos_counts, num_samples and class_names.

    Args:
        path: the file.
        source: the training images, whose classes must have the same order; None: it is not compared.

    Raises:
        TrainingError: the file cannot be read, has no counts, or has another order of the classes.
    """
    stats = read_json(path, TrainingError)
    stats = stats if isinstance(stats, dict) else {}
    counts, images = stats.get('pos_counts'), stats.get('num_samples')
    if (
        type(images) is not int
        or not isinstance(counts, list)
        or not counts
        or not all(type(count) in (int, float) and 0 <= count <= images for count in counts)
    ):
        raise TrainingError(
            f'{shown(path)}: expected an object with num_samples, a whole number, and pos_counts, a list of one number '
            'from 0 to num_samples per class'
        )
    other = other_order(source.class_names, stats.get('class_names'), source.name) if source else None
    if other is not None:
        raise TrainingError(f'{shown(path)}: has another order of the classes: {other}')
    return ClassCounts(np.asarray(counts, np.float64), images)
