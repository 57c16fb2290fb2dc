"""Splits by name, and slices of splits: 'train', 'validation[:500]', 'train[10%:]'."""

import dataclasses
import re
from collections.abc import Sequence

from tresnet_jax.errors import DataError, shown

# timm's names of splits (timm/data/dataset_factory.py), and those of test sets; any case is accepted.
SYNONYMS = {
    'train': ('train', 'training'),
    'validation': ('validation', 'val', 'valid', 'eval', 'evaluation'),
    'test': ('test', 'testing'),
}
EVALUATION = ('validation', 'test')  # the first that exists is the split to evaluate on
_PATTERN = re.compile(r'(?P<name>[^\[\]]+)(\[(?P<start>-?\d+%?)?:(?P<stop>-?\d+%?)?\])?')


@dataclasses.dataclass(frozen=True)
class Split:
    """An existing split of a data set, and the requested part of it."""

    where: str
    """The data set, for errors."""
    name: str
    text: str
    """The name, perhaps with the requested slice."""
    start: str | None = None
    stop: str | None = None

    def part(self, size: int) -> slice:
        """Return which of `size` records to take. As in TFDS, percentages are rounded to whole records.

        Raises:
            DataError: the part has no records.
        """
        start, stop, _ = slice(_bound(self.start, size), _bound(self.stop, size)).indices(size)
        if start >= stop:
            raise DataError(f'{self.where}: {self.text} has no images; {self.name} has {size}')
        return slice(start, stop)


def split_kind(name: str) -> str | None:
    """Return 'train', 'validation' or 'test' if a name is a synonym of it, in any case, else None."""
    return next((kind for kind, names in SYNONYMS.items() if name.lower() in names), None)


def choose_split(text: str | None, available: Sequence[str], where: str) -> Split:
    """Find the requested split among the available ones.

    Args:
        text: a name, perhaps with a slice. If no split has exactly this name, that of the same kind is found: 'val'
            finds 'Validation'. None: the split to evaluate on, that is a validation split, or else a test split.
        available: names of the existing splits.
        where: the data set, for errors.

    Raises:
        DataError: the split does not exist, several splits are of its kind, or the text cannot be parsed.
    """
    existing = f'it has {", ".join(map(shown, available))}' if available else 'it has no splits'
    if text is None:
        kind = next((kind for kind in EVALUATION if kind in map(split_kind, available)), None)
        if kind is None:
            names = ', '.join(name for kind in EVALUATION for name in SYNONYMS[kind])
            hint = f"; name one, or a part: --val-split or --split '{shown(available[0])}[:10%]'" if available else ''
            raise DataError(f'{where}: no split to evaluate on ({names}); {existing}{hint}')
        name = _only([name for name in available if split_kind(name) == kind], where)
        return Split(where, name, name)
    match = _PATTERN.fullmatch(text)
    if match is None:
        raise DataError(f'{where}: not a split: {text!r}; write for example train, validation[:500] or train[10%:90%]')
    asked = match['name']
    same_kind = [name for name in available if split_kind(name) is not None and split_kind(name) == split_kind(asked)]
    if asked not in available and not same_kind:
        raise DataError(f'{where}: no split {asked!r}; {existing}')
    name = asked if asked in available else _only(same_kind, where)
    _only([other for other in available if other.lower() == name.lower()], where)  # 'train' and 'Train'
    return Split(where, name, name + text[len(asked) :], match['start'], match['stop'])


def choose_drawn(text: str | None, where: str, *, for_evaluation: bool) -> Split:
    """Find the requested split of data without splits, of which a share is drawn for validation.

    Args:
        text, where: as for `choose_split`.
        for_evaluation: nothing is drawn: all of the data is the split 'train', the default.

    Raises:
        DataError: as `choose_split`.
    """
    if for_evaluation:
        return choose_split(text or 'train', ['train'], where)
    return choose_split(text, ['train', 'validation'], where)


def _only(names: Sequence[str], where: str) -> str:
    """Return the only name. Raises DataError if there are several."""
    if len(names) > 1:
        both = ' and '.join(map(shown, names))
        raise DataError(f'{where}: {both} are splits of the same kind; name one: --train-split, --val-split or --split')
    return names[0]


def _bound(text: str | None, size: int) -> int | None:
    """Return an end of a slice of `size` records, given as a number or a percentage."""
    if text is None:
        return None
    return round(size * int(text[:-1]) / 100) if text.endswith('%') else int(text)
