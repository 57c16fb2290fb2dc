"""What the command lines share: flags that are the fields of a dataclass, and errors that are one line."""

import sys
from collections.abc import Sequence
from typing import TypeVar

import tyro

Command = TypeVar('Command')


def parse(kind: type[Command], arguments: Sequence[str] | None, default: Command | None = None) -> Command:
    """The command line as a dataclass; wrong usage and ``--help`` raise SystemExit.

    Args:
        kind: the dataclass, whose docstring is the text of ``--help``.
        arguments: None takes those of the process.
        default: its fields are what flags that are not given stand for; None is the defaults of the dataclass.
    """
    return tyro.cli(
        kind,
        args=None if arguments is None else list(arguments),
        default=tyro.MISSING_NONPROP if default is None else default,
        config=(tyro.conf.FlagCreatePairsOff,),
    )


def fail(error: Exception) -> int:
    """Print the one line that the project's errors are on standard error; the exit code is 2."""
    print(f'error: {error}', file=sys.stderr)
    return 2
