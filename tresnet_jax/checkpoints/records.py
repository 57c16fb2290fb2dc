"""The values of a pickle whose classes are not imported, and how to walk through them."""

import dataclasses
from collections import deque
from collections.abc import Iterator
from typing import Any


class Unreadable(ValueError):
    """A file breaks a rule of its format; the message is the reason, in one line and without the name of the file."""


def printable(text: object, most: int = 200) -> str:
    """Return text of an unknown source for a message: control characters escaped, cut after `most` characters."""
    text = str(text)[: most + 1]
    text = ''.join(c if c.isprintable() else c.encode('unicode_escape', 'surrogatepass').decode() for c in text)
    return text if len(text) <= most else f'{text[:most]}...'


class Leaf:
    """Base of the values that functions given to `Unpickler` return: tensors and their storages."""

    __slots__ = ()


@dataclasses.dataclass(frozen=True, eq=False, slots=True)
class Global:
    """A class or a function that a stream names.

    Attributes:
        name: module and name with a dot, 'torch.nn.modules.conv.Conv2d'.
    """

    name: str


@dataclasses.dataclass(eq=False, slots=True, repr=False)
class Record:
    """An object of a class that is never imported.

    Attributes:
        class_name: the class, or the function that returns the object.
        arguments: the positional arguments of the call.
        keywords: the keyword arguments of the call.
        state: the argument of `__setstate__`: mostly the attributes; None without one.
        mapping: the items, where the class is a dictionary; else None.
        elements: the elements, where the class is a list; else None.
    """

    class_name: str
    arguments: tuple = ()
    keywords: dict | None = None
    state: Any = None
    mapping: dict | None = None
    elements: list | None = None

    @property
    def attributes(self) -> dict[str, Any]:
        """The attributes that `state` holds, those of `__slots__` included."""
        parts = self.state if type(self.state) is tuple and len(self.state) == 2 else (self.state,)
        return {key: part[key] for part in parts if type(part) is dict for key in part if isinstance(key, str)}

    def __repr__(self) -> str:
        return f'Record({self.class_name})'


PLAIN_CONTAINERS = (dict, list, tuple, set, frozenset)
CONTAINERS = (*PLAIN_CONTAINERS, Record)


def described(value: Any) -> str:
    """Return what a value is, for a message."""
    if isinstance(value, Global):
        return f'the class {value.name}'
    if isinstance(value, Record):
        return f'an object of {value.class_name}'
    if isinstance(value, Leaf):
        return 'a tensor'
    return f'a value of type {type(value).__name__}'


def children(value: Any) -> Iterator[tuple[str, Any]]:
    """Return what a container holds, with the key, index or attribute of each; nothing for any other value."""
    if isinstance(value, dict):
        yield from ((str(key), item) for key, item in value.items())
    elif isinstance(value, list | tuple | set | frozenset):
        yield from ((str(index), item) for index, item in enumerate(value))
    elif isinstance(value, Record):
        attributes = value.attributes
        yield from attributes.items()
        if not attributes:
            yield 'state', value.state
        yield from children(value.arguments)
        for part in (value.keywords, value.mapping, value.elements):
            yield from children(part)


def walk(root: Any) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Return every container once with its shortest path, the root with an empty one; cycles are allowed.

    Containers are records and non-empty dictionaries, lists, tuples and sets. All of one depth precede those of the
    next.
    """
    # Waiting containers share the beginnings of their paths, because many long paths would take much memory.
    waiting: deque[tuple[tuple, Any]] = deque([((), root)])
    seen = {id(root)}
    while waiting:
        place, value = waiting.popleft()
        yield _path(place), value
        for name, child in children(value):
            if isinstance(child, CONTAINERS) and child and id(child) not in seen:
                seen.add(id(child))
                waiting.append(((place, name), child))


def _path(place: tuple) -> tuple[str, ...]:
    """((((), 'a'), 'b'), 'c') -> ('a', 'b', 'c')."""
    names = []
    while place:
        place, name = place
        names.append(name)
    return tuple(reversed(names))
