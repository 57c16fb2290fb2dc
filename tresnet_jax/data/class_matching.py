"""Match classes by name: those of a data set to those of a model, or those of one split to those of another."""

import collections
import re
import unicodedata
from collections.abc import Iterable, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

from tresnet_jax.errors import DataError, shown

SHOWN = 3  # classes that a message names


class ClassMatch(NamedTuple):
    """Where the classes of a data set are among those of a model.

    Attributes:
        places: (classes of the data,) int32, the class index of the model.
        by: how they were matched: by name, by WordNet synset, some by one and some by the other, or by their numbers,
            the model's class indices. 'order': the model has no class names, and has as many classes as the data.
        text: the same as one line of text, with a few classes whose names differ.
    """

    places: np.ndarray
    by: Literal['name', 'synset', 'synset and name', 'index', 'order']
    text: str


def normal_name(name: str) -> str:
    """Return a name in Unicode's composed form (NFC), so that both forms of 'é' are the same name."""
    return unicodedata.normalize('NFC', name)


def check_order(names: Sequence[str], expected: Sequence[str], where: str) -> None:
    """Raise DataError if the classes of data whose labels are numbers are not the expected ones, in their order."""
    if len(names) != len(expected):
        raise DataError(f'{where}: has {len(names)} classes; expected {len(expected)}')
    for place, (name, other) in enumerate(zip(names, expected, strict=True)):
        if normal_name(name) != normal_name(other):
            raise DataError(f'{where}: class {place} is {shown(name)}; expected {shown(other)}')


def other_order(names: Sequence[str], listed: Any, where: str) -> str | None:
    """Return which class of the data has another place in a file's list of classes; None if none has.

    Names that the list lacks are not compared: names of another kind, words instead of synsets, have nothing in common.

    Args:
        names: of the classes of the data.
        listed: what the file has; anything but a list is no list of classes.
        where: the data set.
    """
    ours, theirs = _places(names), _places(map(str, listed if isinstance(listed, list) else ()))
    for name, labels in ours.items():  # names may repeat in both, as 'crane' does
        if (found := theirs.get(name, labels)) != labels:
            here, there = (' and '.join(map(str, places)) for places in (labels, found))
            return f'{shown(name)} is class {here} in {where}, {there} in the file'
    return None


def _places(names: Iterable[str]) -> dict[str, list[int]]:
    """Return the places of each name."""
    found: dict[str, list[int]] = collections.defaultdict(list)
    for place, name in enumerate(names):
        found[normal_name(name)].append(place)
    return found


def match_classes(
    names: Sequence[str],
    model_names: Sequence[str] | None,
    synsets: Sequence[str] | None,
    num_classes: int,
    where: str,
    model: str,
) -> ClassMatch:
    """Find each class of a data set among the classes of a model.

    The first of these that finds all classes: by synset and by name; by number if all are numbers below `num_classes`;
    in order if the model has no names and as many classes.

    Args:
        names: of the classes of the data.
        model_names: of the model's classes; None if unknown.
        synsets: of the model's classes; None if they are unknown or not WordNet's.
        num_classes: classes of the model.
        where, model: the data set and the model, for errors.

    Raises:
        DataError: a class is not found, several of the model's classes have its name, two classes are the same class
            of the model, or the classes can be matched in two ways.
    """
    numbers, numbered = _numbers(names), _numbers(model_names or ())
    by_synset = {synset: place for place, synset in enumerate(synsets or ())}
    others = [name for name in names if name not in by_synset]
    found = match_names(others, model_names or (), where, model)
    if not found.missing:
        by_name = iter(found.places)  # no dictionary, because names may repeat
        places = [by_synset[name] if name in by_synset else next(by_name) for name in names]
        by = 'name' if len(others) == len(names) else 'synset and name' if others else 'synset'
    elif numbers and numbered and numbered != list(range(num_classes)):
        raise DataError(
            f'{where}: both its classes and those of {model} are named by numbers, but the model has no class '
            f'{_some(found.missing)}. Are they names, or class indices? Name the classes as the model does: '
            f'{_some(model_names or ())}'
        )
    elif numbers:
        if max(numbers) >= num_classes:
            raise DataError(
                f'{where}: its classes are numbers up to {max(numbers)}, but the indices of the classes of {model} go '
                f'from 0 to {num_classes - 1}'
            )
        places, by = numbers, 'index'
    elif model_names:
        raise DataError(
            f'{where}: {model} lacks {len(found.missing)} of {len(names)} classes: {_some(found.missing)}; '
            f'expected names such as {_some(model_names)}'
            + (f', synsets such as {_some(synsets)},' if synsets and list(synsets) != list(model_names) else '')
            + f' or class indices from 0 to {num_classes - 1}'
        )
    elif len(names) == num_classes:
        places, by = list(range(num_classes)), 'order'
    else:
        raise DataError(
            f'{where}: has {len(names)} classes, but {model} has {num_classes} without names; name the classes of the '
            f'data by class index, from 0 to {num_classes - 1}'
        )
    _check_distinct(names, places, where, model)
    return ClassMatch(np.asarray(places, np.int32), by, _describe(names, model_names, places, num_classes, by))


class NameMatch(NamedTuple):
    """The result of `match_names`: the place of each name, -1 if it is missing, and the missing names."""

    places: list[int]
    missing: list[str]


def match_names(names: Sequence[str], among: Sequence[str], where: str, other: str) -> NameMatch:
    """Find names among others: the same name, or else one that differs in case, spaces, '_', '-' and '/' only.

    Args:
        names: the names to find.
        among: the names to search.
        where, other: what has the names, and what has those searched, for errors.

    Raises:
        DataError: several of the others have a name.
    """
    if list(map(normal_name, names)) == list(map(normal_name, among)):  # names of a model may repeat, as 'crane' does
        return NameMatch(list(range(len(names))), [])
    exact: dict[str, list[int]] = collections.defaultdict(list)
    loose: dict[str, list[int]] = collections.defaultdict(list)
    for place, name in enumerate(among):
        exact[normal_name(name)].append(place)
        loose[_loose(name)].append(place)
    places: list[int] = []
    for name in names:
        found = exact.get(normal_name(name)) or loose.get(_loose(name)) or [-1]
        if len(found) > 1:
            both = ' and '.join(f'{shown(among[place])} ({place})' for place in found)
            raise DataError(f'{where}: the class {shown(name)} may be one of several of {other}: {both}')
        places += found
    return NameMatch(places, [name for name, place in zip(names, places, strict=True) if place < 0])


def _loose(name: str) -> str:
    """Return a name without what often differs in the names of folders: case, spaces, '_', '-' and '/'."""
    folded = normal_name(normal_name(name).casefold())
    return re.sub(r'[\s_/-]+', '', folded) or folded


def _numbers(names: Sequence[str]) -> list[int] | None:
    """Return names such as '0' or '007' as numbers; None if a name is not a number, or there are no names."""
    return [int(name) for name in names] if names and all(re.fullmatch(r'[0-9]{1,9}', name) for name in names) else None


def _check_distinct(names: Sequence[str], places: Sequence[int], where: str, model: str) -> None:
    """Raise DataError if two classes of the data have the same place."""
    first: dict[int, str] = {}
    for name, place in zip(names, places, strict=True):
        if place in first:
            both = f'{shown(first[place])} and {shown(name)}'
            raise DataError(f'{where}: the classes {both} are the same class of {model}, number {place}')
        first[place] = name


def _describe(
    names: Sequence[str], model_names: Sequence[str] | None, places: Sequence[int], num_classes: int, by: str
) -> str:
    """Return how classes were matched, with a few that have other names or other places in the model."""
    which = f'all {num_classes}' if len(names) == num_classes else f'{len(names)} of {num_classes}'
    text = f'{which} classes, matched by {by}'
    if by == 'order':
        return f'{text}, because the model has no class names'
    pairs = [
        f'{shown(name)} is {shown(model_names[place])}'
        for name, place in zip(names, places, strict=True)
        if model_names and normal_name(name) != normal_name(model_names[place])
    ]
    return f'{text}: {_some(pairs)}' if pairs else text


def _some(names: Sequence[str]) -> str:
    """Return the first names of a list, as text."""
    return ', '.join(map(shown, names[:SHOWN])) + (', ...' if len(names) > SHOWN else '')
