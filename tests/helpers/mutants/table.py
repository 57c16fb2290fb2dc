"""What a mutant is, and patches that several of them use."""

import dataclasses
import types
from collections.abc import Callable
from typing import Any

Patch = tuple[Any, str, Any]  # a module, class, function or dict; the attribute or key; the new value


@dataclasses.dataclass(frozen=True)
class Mutant:
    """One mistake.

    Attributes:
        name: a description.
        comparison: the function of tests/helpers/comparisons whose error must rise.
        patches: the changes that make the mistake.
    """

    name: str
    comparison: str
    patches: tuple[Patch, ...]


def row(name: str, comparison: str, *patches: Patch) -> Mutant:
    return Mutant(name, comparison, patches)


def like(module: types.ModuleType, **changes: Any) -> types.SimpleNamespace:
    """Return a copy of a module with some functions replaced, for use in one of our modules."""
    return types.SimpleNamespace(**{**vars(module), **changes})


def with_options(make: Callable[..., Any], **forced: Any) -> Callable[..., Any]:
    """Return a class or function that ignores some of the caller's keyword arguments."""
    return lambda *args, **options: make(*args, **{**options, **forced})


def defaults(function: Callable[..., Any], **changes: Any) -> Patch:
    return (function, '__kwdefaults__', {**(function.__kwdefaults__ or {}), **changes})
