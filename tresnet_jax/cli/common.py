"""Shared by all command lines: the parser, one-line errors, quiet libraries and progress."""

import contextlib
import io
import logging
import os
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import tqdm
import tyro

from tresnet_jax.errors import UNSHOWABLE, reason, shown

Arguments = TypeVar('Arguments')

INTERVAL = 30.0  # seconds between lines of progress
BAR = '{l_bar}{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}, {rate_noinv_fmt}]'


def parse(
    kind: type[Arguments],
    arguments: Sequence[str] | None,
    default: Arguments | None = None,
    prog: str | None = None,
    description: str | None = None,
    *,
    pairs: bool = False,
) -> Arguments:
    """Parse a command line into a dataclass. Wrong usage and ``--help`` raise SystemExit.

    Args:
        kind: the dataclass; its fields are the flags.
        arguments: the command line without the name of the program; None: that of this process.
        default: an instance with the defaults of the flags; None: the defaults of the dataclass.
        prog: the name of the program in ``--help``; None: the name it was started by.
        description: the text of ``--help``; None: the docstring of the dataclass.
        pairs: accept ``--no-remat`` as well as ``--remat``, for programs whose defaults come from elsewhere, such as
            a recipe. Otherwise a switch has only the flag that changes its default.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    with _escaped_errors() if any(map(UNSHOWABLE.search, arguments)) else contextlib.nullcontext():
        return tyro.cli(
            kind,
            args=arguments,
            default=tyro.MISSING_NONPROP if default is None else default,
            prog=prog or program_name(),
            description=description,
            config=() if pairs else (tyro.conf.FlagCreatePairsOff,),
        )


@contextlib.contextmanager
def _escaped_errors() -> Iterator[None]:
    """Escape control characters in what is printed on standard error; the parser repeats arguments as they are."""
    printed = io.StringIO()
    try:
        with contextlib.redirect_stderr(printed):
            yield
    finally:
        sys.stderr.write(_printable(printed.getvalue()))


def program_name() -> str:
    """Return the name this program was started by: 'train.py', 'tresnet-jax-train' or 'python -m convert'."""
    path = Path(sys.argv[0])
    return f'python -m {path.parent.name}' if path.name == '__main__.py' else path.name


def fail(error: BaseException) -> int:
    """Print an error on standard error. Return the exit code: 130 for Ctrl-C, 2 for every other error.

    Raises:
        BrokenPipeError: that is the error; `closed_output` handles it.
    """
    if isinstance(error, BrokenPipeError):
        raise error
    if isinstance(error, KeyboardInterrupt):
        print('interrupted', file=sys.stderr)
        return 130
    text = str(error)
    if isinstance(error, OSError) and error.filename is not None:  # such as a path that is too long, or not allowed
        text = f'{str(error.filename)[:300]}: {reason(error)}'
    print(f'error: {_printable(text)}', file=sys.stderr)
    return 2


def quiet_libraries() -> None:
    """Hide the log lines of libraries, for the whole process.

    Orbax logs every step of a save through absl's logger. If it cannot read an array, it abandons the others, and
    asyncio logs their errors with tracebacks; the first error is the one that is reported.
    """
    for name in ('absl', 'asyncio'):
        logging.getLogger(name).setLevel(logging.CRITICAL)


def _printable(text: str) -> str:
    """Return lines of text with file names that are not UTF-8 escaped, because those cannot be printed."""
    return '\n'.join(map(shown, text.split('\n')))


@contextlib.contextmanager
def closed_output() -> Iterator[None]:
    """End the program with exit code 1 and without a message if the reader of its output, such as `head`, has gone."""
    try:
        try:
            yield
        finally:
            sys.stdout.flush()  # now, because an error in Python's own flush at the end cannot be caught
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(1) from None


class Progress:
    """Progress on standard error: a bar on a terminal, elsewhere one line every 30 seconds.

    Args:
        total: units of work in all.
        unit: the plural of what is counted, such as 'images'.
        active: show progress. False in all processes of a run but the first.
    """

    def __init__(self, total: int, unit: str, active: bool = True):
        self._total, self._unit = total, unit
        self._has_bar = active and sys.stderr.isatty()
        self._has_lines = active and not self._has_bar
        self._bar = tqdm.tqdm(total=total, unit=f' {unit}', bar_format=BAR, disable=not self._has_bar)
        self._last = time.monotonic()

    def __enter__(self) -> 'Progress':
        return self

    def __exit__(self, *error: Any) -> None:
        self._bar.close()

    def update(self, done: int) -> None:
        """Show that `done` units are finished."""
        if self._has_bar:
            self._bar.update(done - self._bar.n)
        now = time.monotonic()
        if self._has_lines and now - self._last >= INTERVAL:
            self._last = now
            share = f'{100 * done / self._total:.0f} %'
            print(f'{done:,} of {self._total:,} {self._unit} ({share})', file=sys.stderr, flush=True)

    def write(self, text: str, *, error: bool = False) -> None:
        """Print text to standard output, or to standard error if `error`, above the bar."""
        self._bar.write(_printable(text), file=sys.stderr if error else sys.stdout)
