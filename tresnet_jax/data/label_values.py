"""Labels stored with the images, as numbers or as names: in tar shards and in Hugging Face data sets."""

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tresnet_jax.data.class_matching import normal_name
from tresnet_jax.data.file_source import class_order, fixed_order, labels_of, share
from tresnet_jax.data.splits import Split
from tresnet_jax.errors import DataError, reason, shown

MOST_CLASSES = 1_000_000
UNLABELLED = -1  # the label of images without one, as in ImageNet's test set


def read_class_map(path: Path) -> tuple[str, ...]:
    """Read the names of classes in the order of their labels, one per line, as in timm's class maps.

    Raises:
        DataError: the file cannot be read, or a line is empty or repeats another.
    """
    try:
        # Names of folders need not be UTF-8: their bytes are kept.
        lines = path.read_text(encoding='utf-8-sig', errors='surrogateescape').splitlines()
    except OSError as error:
        raise DataError(f'{shown(path)}: cannot be read as a class map: {reason(error)}') from error
    names = tuple(normal_name(line.strip()) for line in lines)
    first: dict[str, int] = {}
    for number, name in enumerate(names, 1):
        if not name or '\0' in name:
            raise DataError(f'{shown(path)}: expected the name of a class on line {number} of a text file')
        if first.setdefault(name, number) != number:
            raise DataError(f'{shown(path)}: {shown(name)} is on the lines {first[name]} and {number}')
    if not names:
        raise DataError(f'{shown(path)}: expected the name of a class on each line, got an empty file')
    return names


def check_label(value: Any, name: str, where: str) -> int | str:
    """Return a label read from a data set: a whole number, at least -1, or a name.

    Args:
        value: what was read.
        name: the image, for errors.
        where: the data set, for errors.

    Raises:
        DataError: it is neither.
    """
    if isinstance(value, list | tuple | dict):
        what = f'{where}: {shown(name)} has several labels, {str(value)[:100]}'
        raise DataError(f'{what}; for several labels per image give --task multilabel')
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
    split: Split,
    train: Callable[[], Sequence[int | str]] | None = None,
) -> tuple[np.ndarray, tuple[str, ...]]:
    """Return (N,) int32 labels and the name of each class.

    Numbers are labels, and without `class_names` also the names of the classes. Names are classes in timm's natural
    order.

    Args:
        values: all numbers from 0 on, or all names.
        class_names: the names of the labels, as a run has stored them; None: those of the training split.
        split: the split, for errors.
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
            raise DataError(
                f'{split.where}: {shown(split.name)} has the label {highest}; there are {len(class_names)} classes'
            )
        return np.asarray(numbers, np.int32), tuple(class_names)
    if numbers:
        name = next(value for value in values if isinstance(value, str))
        raise DataError(
            f'{split.where}: some labels are numbers, such as {numbers[0]}, others names, such as {shown(name)}'
        )
    classes = sorted({str(value) for value in values})
    if class_names is None:
        class_names = class_order(classes if train is None else sorted({str(value) for value in train()}))
    labels = dict(zip(classes, labels_of(classes, class_names, split.name, split.where), strict=True))
    return np.asarray([labels[str(value)] for value in values], np.int32), tuple(class_names)


class Labelled(NamedTuple):
    """The examples of the requested part of a split.

    Attributes:
        indices: (N,) int64, ascending, of the examples in the whole split.
        labels: (N,) int32.
        class_names: the name of each label.
        present: the labels of the classes that the whole split has, ascending.
    """

    indices: np.ndarray
    labels: np.ndarray
    class_names: tuple[str, ...]
    present: tuple[int, ...]


def label_examples(
    values: Sequence[int | str] | int,
    split: Split,
    *,
    class_names: Sequence[str] | None,
    train: Callable[[], Sequence[int | str]] | None,
    drawn: float | None,
    one_class: bool,
) -> Labelled:
    """Number the labels of a split and choose the requested part of it.

    As in timm, examples with the label -1 are left out. A part is drawn at random, because examples may be sorted by
    class.

    Args:
        values: the label of each example, or the number of examples that have none; their label is 0.
        split: the split, and the part of it.
        class_names, train: as for `number_labels`.
        drawn: the share of each class that is the split 'validation', in data without splits. None: the data has
            splits, or is opened whole.
        one_class: accept a single class.

    Raises:
        DataError: as `number_labels`, there is only one class, or the part has no examples.
    """
    if isinstance(values, int):
        kept, labels, names = np.arange(values), np.zeros(values, np.int32), tuple([''])
    else:
        kept = np.asarray([place for place, value in enumerate(values) if value != UNLABELLED], np.int64)
        if not len(kept):
            raise DataError(f'{split.where}: all labels of {shown(split.name)} are {UNLABELLED}: it has no labels')
        if len(kept) < len(values):
            logging.getLogger(__name__).warning(
                '%s: left out %d images of %s with the label %d',
                shown(split.where), len(values) - len(kept), shown(split.name), UNLABELLED,
            )  # fmt: skip
        labels, names = number_labels([values[place] for place in kept], class_names, split, train)
        if len(names) < 2 and not one_class:
            raise DataError(f'{split.where}: only one class, {shown(*names)}; expected at least two')
    chosen = np.arange(len(kept))
    if drawn is not None:
        groups = np.split(np.argsort(labels, kind='stable'), np.cumsum(np.unique(labels, return_counts=True)[1])[:-1])
        parts = [share(group.tolist(), split.name == 'validation', drawn) for group in groups]
        chosen = np.sort(np.asarray([index for part in parts for index in part], np.int64))
        if not len(chosen):
            raise DataError(f'{split.where}: no images for {split.name}; val_fraction is {drawn}')
    if (part := split.part(len(chosen))) != slice(0, len(chosen)):
        chosen = chosen[np.sort(fixed_order(len(chosen))[part])]
    return Labelled(kept[chosen], labels[chosen], names, tuple(np.unique(labels).tolist()))
