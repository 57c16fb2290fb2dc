"""Names of splits, and slices of them: 'train', 'validation[:500]', 'train[10%:]'."""

import dataclasses
import re
from collections.abc import Sequence

from tresnet_jax.errors import DataError

EVALUATION = ('validation', 'val', 'test')  # in the order in which one is looked for
_PATTERN = re.compile(r'(?P<name>[\w.-]+)(\[(?P<start>-?\d+%?)?:(?P<stop>-?\d+%?)?\])?')


@dataclasses.dataclass(frozen=True)
class Split:
    """A split that there is in a data set, and the part of it that was asked for."""

    where: str
    name: str
    text: str
    start: str | None = None
    stop: str | None = None

    def part(self, size: int) -> slice:
        """Which of `size` records are meant; as in TFDS, percentages are rounded to whole records.

        Raises:
            DataError: none.
        """
        start, stop, _ = slice(_bound(self.start, size), _bound(self.stop, size)).indices(size)
        if start >= stop:
            raise DataError(f'{self.where}: none of the {size} images of {self.name} is in {self.text}')
        return slice(start, stop)


def choose_split(text: str | None, available: Sequence[str], where: str) -> Split:
    """Find what was asked for among the splits that there are.

    Args:
        text: a name, perhaps with a slice; 'val' and 'validation' mean the same. None is the split to evaluate on:
            validation, val or test.
        available: names of the splits that there are.
        where: the data set, for errors.

    Raises:
        DataError: there is no such split, or the text is none.
    """
    there = f'there is {", ".join(available)}' if available else 'there is none'
    if text is None:
        name = next((name for name in EVALUATION if name in available), None)
        if name is None:
            raise DataError(f'{where}: no split to evaluate on ({", ".join(EVALUATION)}); {there}')
        return Split(where, name, name)
    match = _PATTERN.fullmatch(text)
    if match is None:
        raise DataError(f'{where}: not a split: {text!r}; write train, validation[:500] or train[10%:90%]')
    asked = match['name']
    names = ('validation', 'val') if asked in ('validation', 'val') else (asked,)
    for name in (asked, *names):
        if name in available:
            return Split(where, name, text, match['start'], match['stop'])
    raise DataError(f'{where}: no split {asked!r}; {there}')


def _bound(text: str | None, size: int) -> int | None:
    if text is None:
        return None
    return round(size * int(text[:-1]) / 100) if text.endswith('%') else int(text)
