"""Labels stored with the images, as numbers or as names: in tar shards and in Hugging Face data sets."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from tresnet_jax.data.file_source import class_order, fixed_order, labels_of, share
from tresnet_jax.data.splits import Split
from tresnet_jax.errors import DataError, shown

MOST_CLASSES = 1_000_000
UNLABELLED = -1  # the label of images without one, as in ImageNet's test set


def check_label(value: Any, name: str, where: str) -> int | str:
    """Return a label read from a data set: a whole number, at least -1, or a name.

    Args:
        value: what was read.
        name: the image, for errors.
        where: the data set, for errors.

    Raises:
        DataError: it is none of them.
    """
    if isinstance(value, list | tuple | dict):
        raise DataError(f'{where}: {shown(name)} has several labels, which are not supported: {str(value)[:100]}')
    if isinstance(value, str) and value:
        return value
    if isinstance(value, int) and not isinstance(value, bool) and UNLABELLED <= value < MOST_CLASSES:
        return value
    raise DataError(
        f'{where}: the label of {shown(name)} is {str(value)[:100]!r}; expected a name, or a number from 0 to '
        f'{MOST_CLASSES - 1}'
    )


def number_labels(
    values: Sequence[int | str],
    class_names: Sequence[str] | None,
    split: str,
    where: str,
    train: Callable[[], Sequence[int | str]] | None = None,
) -> tuple[np.ndarray, tuple[str, ...]]:
    """Return (N,) int32 labels and the name of each class.

    Numbers are labels, and without `class_names` also the names of the classes. Names are classes in timm's natural
    order.

    Args:
        values: all numbers from 0 on, or all names.
        class_names: the names of the labels, as a run has stored them; None: those of the training split.
        split, where: the split and the data set, for errors.
        train: returns the values of the training split; None: `values` are those.

    Raises:
        DataError: there are numbers and names, or labels that the class names lack.
    """
    numbers = [value for value in values if isinstance(value, int)]
    if len(numbers) == len(values):
        highest = max(numbers)
        if class_names is None:
            class_names = tuple(map(str, range(highest + 1)))
        elif highest >= len(class_names):
            raise DataError(f'{where}: the labels of {split} go up to {highest}; there are {len(class_names)} classes')
        return np.asarray(numbers, np.int32), tuple(class_names)
    if numbers:
        name = next(value for value in values if isinstance(value, str))
        raise DataError(f'{where}: some labels are numbers, such as {numbers[0]}, others names, such as {shown(name)}')
    classes = sorted({str(value) for value in values})
    if class_names is None:
        class_names = class_order(classes if train is None else sorted({str(value) for value in train()}))
    labels = dict(zip(classes, labels_of(classes, class_names, split, where), strict=True))
    return np.asarray([labels[str(value)] for value in values], np.int32), tuple(class_names)


def choose_part(labels: np.ndarray, split: Split, validation: bool | None, fraction: float) -> np.ndarray:
    """Return the indices, ascending, of the requested part of a split.

    A part is drawn at random, because examples may be sorted by class.

    Args:
        labels: (N,) labels of the whole split, or of data without splits.
        split: the split, and the part of it.
        validation: draw a share of each class for validation, or the rest for training; None: the data has splits.
        fraction: the share.

    Raises:
        DataError: the part has no examples.
    """
    chosen = np.arange(len(labels))
    if validation is not None:
        groups = np.split(np.argsort(labels, kind='stable'), np.cumsum(np.unique(labels, return_counts=True)[1])[:-1])
        chosen = np.sort([index for group in groups for index in share(group.tolist(), validation, fraction)])
        if not len(chosen):
            raise DataError(f'{split.where}: no images for {split.name}; val_fraction is {fraction}')
    if (part := split.part(len(chosen))) != slice(0, len(chosen)):
        chosen = chosen[np.sort(fixed_order(len(chosen))[part])]
    return chosen.astype(np.int64)
