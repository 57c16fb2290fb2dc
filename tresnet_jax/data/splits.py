"""Splits by name, and slices of splits: 'train', 'validation[:500]', 'train[10%:]'."""

import dataclasses
import re
from collections.abc import Sequence

from tresnet_jax.errors import DataError

EVALUATION = ('validation', 'val', 'test')  # the first one that exists is the split to evaluate on
_PATTERN = re.compile(r'(?P<name>[\w.-]+)(\[(?P<start>-?\d+%?)?:(?P<stop>-?\d+%?)?\])?')


@dataclasses.dataclass(frozen=True)
class Split:
    """An existing split of a data set, and the requested part of it."""

    where: str
    """The data set, for errors."""
    name: str
    text: str
    """The request: the name, perhaps with a slice."""
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


def choose_split(text: str | None, available: Sequence[str], where: str) -> Split:
    """Find the requested split among the available ones.

    Args:
        text: a name, perhaps with a slice; 'val' and 'validation' mean the same. None: the split to evaluate on,
            'validation', 'val' or 'test'.
        available: names of the existing splits.
        where: the data set, for errors.

    Raises:
        DataError: the split does not exist, or the text cannot be parsed.
    """
    existing = f'it has {", ".join(available)}' if available else 'it has no splits'
    if text is None:
        name = next((name for name in EVALUATION if name in available), None)
        if name is None:
            raise DataError(f'{where}: no split to evaluate on ({", ".join(EVALUATION)}); {existing}')
        return Split(where, name, name)
    match = _PATTERN.fullmatch(text)
    if match is None:
        raise DataError(f'{where}: not a split: {text!r}; write for example train, validation[:500] or train[10%:90%]')
    asked = match['name']
    names = ('validation', 'val') if asked in ('validation', 'val') else (asked,)
    for name in (asked, *names):
        if name in available:
            return Split(where, name, text, match['start'], match['stop'])
    raise DataError(f'{where}: no split {asked!r}; {existing}')


def _bound(text: str | None, size: int) -> int | None:
    """Return an end of a slice of `size` records, given as a number or a percentage."""
    if text is None:
        return None
    return round(size * int(text[:-1]) / 100) if text.endswith('%') else int(text)
