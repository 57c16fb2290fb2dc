"""Options of programs: which values they take, and how ``--help`` shows them.

The annotation of a field defines both: its type, the range of its values, its metavar and the meaning of None.

    lr: Annotated[float | None, POSITIVE, flag('LR', 'by the batch size')] = None
"""

import dataclasses
import json
import math
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal

import tyro

LARGEST_INT = 2**31 - 1  # of steps and sizes, which are int32 on the devices


@dataclasses.dataclass(frozen=True)
class Range:
    """The numbers that an option takes. Numbers that are not finite are in no range.

    Attributes:
        text: the range in words, after 'must be'.
        low, high: the smallest and the largest number.
        above, below: whether `low` and `high` themselves are excluded.
    """

    text: str
    low: float = -math.inf
    high: float = math.inf
    above: bool = False
    below: bool = False

    def has(self, value: float) -> bool:
        """Return whether a number is in the range."""
        return (self.low < value if self.above else self.low <= value) and (
            value < self.high if self.below else value <= self.high
        )


POSITIVE = Range('positive', 0, above=True)
NOT_NEGATIVE = Range('at least 0', 0)
SHARE = Range('between 0 and 1', 0, 1)
BELOW_1 = Range('at least 0 and less than 1', 0, 1, below=True)


@dataclasses.dataclass(frozen=True)
class OneOf:
    """The texts that an option takes. Unlike a Literal, it leaves the check to `faults`."""

    values: tuple[str, ...]


def flag(metavar: str | None = None, default: str | None = None) -> Any:
    """Return how ``--help`` shows an option: its metavar and, for a default of None, a description of the default."""
    # A recipe or a run may give the option another default, which is shown as it is.
    hint = None if default is None else lambda value: f'(default: {default if value in ("None", "") else value})'
    return tyro.conf.arg(metavar=metavar, help_behavior_hint=hint)


def flag_name(field: str) -> str:
    """Return the flag of a field: '--clip-grad' for 'clip_grad'."""
    return f'--{field.replace("_", "-")}'


def as_flag(field: str, value: Any) -> str:
    """Return the flag that sets a field to a value, for messages: '--lr 0.1', '--no-remat', 'no --clip-grad'."""
    name = flag_name(field)
    if value is None or value == ():
        return f'no {name}'
    if isinstance(value, bool):
        return name if value else flag_name(f'no_{field}')
    return f'{name} {" ".join(map(str, value)) if isinstance(value, tuple) else value}'


def faults(options: Any) -> Iterator[tuple[str, str]]:
    """Yield the name of each field of a dataclass whose value is wrong, and what it must be; fields of fields too."""
    for name, kind in typing.get_type_hints(type(options), include_extras=True).items():
        value = getattr(options, name)
        if dataclasses.is_dataclass(value):
            yield from faults(value)
        elif (what := requirement(kind, value)) is not None:
            yield name, f'must be {what}, got {shown_value(value)}'


def check_options(options: Any, error: type[ValueError]) -> None:
    """Raise `error` with one line if a field of a dataclass has a wrong value."""
    for name, what in faults(options):
        raise error(f'{flag_name(name)} {what}')


def from_json(kinds: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """Return JSON values as values of fields: lists as tuples, and texts as paths where the field is a path."""
    found = {}
    for name, value in values.items():
        value = tuple(value) if isinstance(value, list) else value
        found[name] = Path(value) if isinstance(value, str) and _takes_path(kinds[name]) else value
    return found


def shown_value(value: Any) -> str:
    """Return a value as JSON text for messages; an unset one is null."""
    return json.dumps(value, default=str, ensure_ascii=False)[:200]


def requirement(kind: Any, value: Any) -> str | None:
    """Return what a value of this annotated type must be, or None if the value is valid.

    Args:
        kind: bool, int, float, str, Path, a Literal, a tuple of these, any of them or None; annotated or not.
        value: the value. A bool does not count as a number.
    """
    marks: tuple[Any, ...] = ()
    if typing.get_origin(kind) is Annotated:
        kind, *rest = typing.get_args(kind)
        marks = tuple(rest)
    options = typing.get_args(kind) if _is_union(kind) else (kind,)
    if value is None and NoneType in options:
        return None
    options = [option for option in options if option is not NoneType]
    if not any(_is_of(option, value) for option in options):
        return ' or '.join(_text(option) for option in options)
    for item in value if isinstance(value, tuple) else (value,):
        for mark in marks:
            if isinstance(mark, Range) and isinstance(item, int | float) and not mark.has(item):
                return mark.text
            if isinstance(mark, OneOf) and item not in mark.values:
                return f'one of {", ".join(mark.values)}'
    return None


def _is_union(kind: Any) -> bool:
    return typing.get_origin(kind) in (typing.Union, UnionType)


def _is_of(kind: Any, value: Any) -> bool:
    """Return whether a value is of a type without None."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is Literal:
        return isinstance(value, str) and value in arguments
    if origin is tuple:
        if not isinstance(value, tuple):
            return False
        kinds = arguments[:1] * len(value) if arguments[1:] == (...,) else arguments
        return len(kinds) == len(value) and all(map(_is_of, kinds, value))
    if kind is float:
        return type(value) in (int, float) and math.isfinite(value)
    if kind is int:
        return type(value) is int and value <= LARGEST_INT
    return isinstance(value, kind)


def _text(kind: Any) -> str:
    """Return a type in words, after 'must be'."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is Literal:
        return f'one of {", ".join(arguments)}'
    if origin is tuple:
        what = {float: 'numbers', int: 'whole numbers', str: 'texts'}[arguments[0]]
        return f'a list of {what}' if arguments[1:] == (...,) else f'{len(arguments)} {what}'
    return {
        bool: 'true or false',
        int: f'a whole number of at most {LARGEST_INT}',
        float: 'a number',
        str: 'a text',
        Path: 'a path',
    }[kind]


def _takes_path(kind: Any) -> bool:
    if typing.get_origin(kind) is Annotated:
        kind = typing.get_args(kind)[0]
    return kind is Path or (_is_union(kind) and Path in typing.get_args(kind))
