"""Any number of labels per image, as data sets store them; the rules are timm's (``timm/data/readers/targets.py``).

- indices: a list of classes, as numbers or as names; an empty list is an image without any. Repeats are allowed.
- multihot: a list with a number from 0 to 1 for each class.
- several fields, each of which is one class: a number above 0, or true, is on.
"""

import math
import numbers
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

from tresnet_jax.data.class_matching import normal_name
from tresnet_jax.data.file_source import class_order, labels_of
from tresnet_jax.data.label_values import MOST_CLASSES, label_examples
from tresnet_jax.data.splits import Split
from tresnet_jax.data.targets import MultiLabelSource, Targets, targets_of
from tresnet_jax.errors import DataError, shown

TargetFormat = Literal['indices', 'multihot']


class TargetKeys(NamedTuple):
    """Which fields of an example are its labels, and in which form.

    Attributes:
        fields: their names; none: the source's default; several: each is one class.
        form: the form of a single field.
    """

    fields: tuple[str, ...]
    form: TargetFormat

    @property
    def several(self) -> bool:
        """Whether each field is one class."""
        return len(self.fields) > 1

    def value(self, fields: Any, name: str, where: str) -> Any:
        """Return the labels of an example.

        Args:
            fields: of the example, by name; the fields exist.
            name: the example, for errors.
            where: the data set, for errors.

        Returns:
            The value of the only field; or of several, the names of those that are on.

        Raises:
            DataError: one of several fields is not a number.
        """
        if not self.several:
            return get_field(fields, self.fields[0])
        values = {key: get_field(fields, key) for key in self.fields}
        wrong = [key for key, value in values.items() if not _is_number(value) and not _is_bool(value)]
        if wrong:
            what = f'{shown(wrong[0])} of {shown(name)} is {_text(values[wrong[0]])}'
            raise DataError(f'{where}: {what}; expected a number, above 0 if the image has this class')
        return [key for key, value in values.items() if value > 0]


def parse_target_keys(text: str | None, form: TargetFormat, where: str) -> TargetKeys:
    """Return which fields `--target-key` and `--target-format` name.

    Raises:
        DataError: a name is empty or repeated, or several fields have a format.
    """
    if not text or ',' not in text:
        return TargetKeys((text,) if text else (), form)
    keys = tuple(key.strip() for key in text.split(','))
    if not all(keys) or len({*keys}) < len(keys):
        raise DataError(f'{where}: --target-key {shown(text)}: expected different names, separated by commas')
    if form != 'indices':
        raise DataError(f'{where}: --target-format {form} is for one field; --target-key names {len(keys)}')
    return TargetKeys(keys, form)


def has_field(container: Any, path: str) -> bool:
    """Return whether a field exists; see `get_field`."""
    try:
        get_field(container, path)
    except (KeyError, TypeError):
        return False
    return True


def get_field(container: Any, path: str) -> Any:
    """Return a field by its name, or by a path of names, 'objects/category'.

    A field whose own name has a '/' takes precedence. In a list the rest of the path is that of each item.

    Example:
        >>> get_field({'objects': [{'category': 3}, {'category': 1}]}, 'objects/category')
        [3, 1]

    Raises:
        KeyError, TypeError: there is no such field.
    """
    return container[path] if path in container else _descend(container, path.split('/'))


def feature_inside(kind: Any) -> Any:
    """Return the feature that lists hold, at any depth, or the feature itself; of `datasets` or TFDS."""
    while hasattr(kind, 'feature'):
        kind = kind.feature
    return kind


def _descend(value: Any, path: Sequence[str]) -> Any:
    for place, part in enumerate(path):
        if isinstance(value, list | tuple):
            return [_descend(item, path[place:]) for item in value]
        value = value[part]
    return value


class Numbered(NamedTuple):
    """The targets of some images, and the name of each class."""

    targets: Targets
    class_names: tuple[str, ...]


def number_targets(
    values: Sequence[Any],
    keys: TargetKeys,
    class_names: Sequence[str] | None,
    split: Split,
    train: Callable[[], Sequence[Any]] | None,
    describe: Callable[[int], str],
) -> Numbered:
    """Return the targets of the labels of images.

    Args:
        values: the labels of each image.
        keys: their form.
        class_names: the name of each class, as a run or the data set has them. None: with several fields their names,
            for names those of the training split in timm's natural order, and otherwise numbers.
        split: the split, for errors.
        train: returns the labels of the training split; None: `values` are those.
        describe: the name of an image, for errors.

    Raises:
        DataError: a value has another form, is out of range, or is of a class that is not among the names.
    """
    where = split.where
    if keys.several:
        if class_names is not None and tuple(class_names) != keys.fields:
            have = ', '.join(map(shown, class_names[:5]))
            raise DataError(f'{where}: --target-key names {", ".join(map(shown, keys.fields))}; the classes are {have}')
        class_names, train = keys.fields, None
    if keys.form == 'multihot':
        vectors = [_vector(value, describe(place), where) for place, value in enumerate(values)]
        names = class_names or tuple(map(str, range(len(vectors[0]))))
        wrong = next((place for place, vector in enumerate(vectors) if len(vector) != len(names)), None)
        if wrong is not None:
            have = f'{len(vectors[wrong])} numbers'
            raise DataError(
                f'{where}: {shown(describe(wrong))} has {have}; expected one for each of {len(names)} classes'
            )
        return Numbered(targets_of([dict(enumerate(vector)) for vector in vectors], len(names)), tuple(names))
    lists = [_indices(value, describe(place), where) for place, value in enumerate(values)]
    if class_names is None and train is not None:
        learned = [
            _indices(value, f'number {place} of the training split', where) for place, value in enumerate(train())
        ]
    else:
        learned = lists
    every = {label for each in lists for label in each}
    numbered = _are_numbers(every | {label for each in learned for label in each}, split)
    places: dict[int | str, int] = {}
    if numbered:
        highest = max((label for each in learned for label in each), default=-1)
        names = tuple(class_names or map(str, range(int(highest) + 1)))
        places |= {label: int(label) for label in every}
        top = max(places.values(), default=-1)
        if top >= len(names):
            image = shown(describe(next(i for i, each in enumerate(lists) if top in each)))
            raise DataError(f'{where}: {image} has the label {top}; there are {len(names)} classes')
    else:
        names = tuple(class_names or class_order([str(label) for each in learned for label in each]))
        found = sorted(str(label) for label in every)
        places.update(zip(found, labels_of(found, names, split.name, where), strict=True))
    if not names:
        raise DataError(f'{where}: no image of {shown(split.name)} has a label')
    return Numbered(targets_of([{places[label]: 1.0 for label in each} for each in lists], len(names)), names)


def target_source(
    values: Sequence[Any],
    split: Split,
    keys: TargetKeys,
    *,
    class_names: Sequence[str] | None,
    train: Callable[[], Sequence[Any]] | None,
    drawn: float | None,
    describe: Callable[[int], str],
    make: Callable[[np.ndarray], Any],
) -> MultiLabelSource:
    """Number the labels of a split and choose the requested part of it.

    Args:
        values, keys, class_names, train, describe: as for `number_targets`.
        split: the split, and the part of it.
        drawn: the share that is the split 'validation', in data without splits. None: the data has splits, or is
            opened whole.
        make: makes the source of the images, given their indices in the whole split.

    Raises:
        DataError: as `number_targets`, or the part has no images.
    """
    part = label_examples(len(values), split, class_names=None, train=None, drawn=drawn, one_class=True).indices
    found = number_targets(values, keys, class_names, split, train, describe)
    return MultiLabelSource(make(part), found.class_names, found.targets.select(part))


def _indices(value: Any, name: str, where: str) -> list[int | str]:
    """Return the labels of an image, which are a list of numbers or names, or a single one."""
    labels: list[Any] | None = [value] if isinstance(value, str | bytes | numbers.Number) else _as_list(value)
    labels = labels and [label.decode('utf-8', 'replace') if isinstance(label, bytes) else label for label in labels]
    for label in labels if labels is not None else [value]:
        is_index = isinstance(label, int | np.integer) and not _is_bool(label) and 0 <= label < MOST_CLASSES
        if labels is None or not (is_index or (isinstance(label, str) and label)):
            hint = '; for numbers from 0 to 1, one per class, give --target-format multihot'
            hint = hint if isinstance(label, float) or _is_bool(label) else ''
            raise DataError(
                f'{where}: {shown(name)} has the label {_text(label)}; expected a list of class indices, from 0 to '
                f'{MOST_CLASSES - 1}, or of names{hint}'
            )
    return [normal_name(label) if isinstance(label, str) else int(label) for label in labels or ()]


def _vector(value: Any, name: str, where: str) -> list[float]:
    """Return the number of each class."""
    found = _as_list(value)
    if found is None or not found or not all(_is_bool(v) or (_is_number(v) and 0 <= v <= 1) for v in found):
        raise DataError(
            f'{where}: the labels of {shown(name)} are {_text(value)}; expected a list of numbers from 0 to 1, one per '
            'class (--target-format multihot)'
        )
    return [float(v) for v in found]


def _as_list(value: Any) -> list[Any] | None:
    """Return a list, a tuple or a vector as a list; None if it is none of them."""
    if isinstance(value, np.ndarray):
        return value.tolist() if value.ndim == 1 else None
    return list(value) if isinstance(value, list | tuple) else None


def _are_numbers(labels: set[int | str], split: Split) -> bool:
    """Return whether labels are numbers; True if there are none.

    Raises:
        DataError: some are numbers, others names.
    """
    names = sorted(label for label in labels if isinstance(label, str))
    if not names or len(names) == len(labels):
        return not names
    number = next(label for label in labels if not isinstance(label, str))
    raise DataError(
        f'{split.where}: some labels are numbers, such as {number}, others names, such as {shown(names[0])}'
    )


def _is_bool(value: Any) -> bool:
    return isinstance(value, bool | np.bool_)


def _is_number(value: Any) -> bool:
    return isinstance(value, numbers.Real) and not _is_bool(value) and math.isfinite(value)


def _text(value: Any) -> str:
    """Return a value as text for a message."""
    return str(dict(value) if isinstance(value, Mapping) else value)[:100] or "''"
