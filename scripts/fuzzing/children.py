"""Forked children that open one file after the other, and what counts as a fault.

A file must be accepted, or refused by an error of the library. It is a fault if code runs, another exception is raised,
the process dies, a file is written or changed, a message is not plain text,
or a file takes too long or too much memory.
"""

import contextlib
import dataclasses
import json
import os
import random
import re
import resource
import select
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tresnet_jax.errors import UNSHOWABLE

SECONDS = 20.0  # of the processor, for one file
WAITING = 300.0  # seconds in all: a reader that sleeps
SHARE, EXTRA = 2.5, 300 * 2**20  # bytes of memory: times the size of the file, and in addition
ADDRESSES = 8 * 2**30  # bytes of address space beyond what a child begins with, so that no file can exhaust the machine
CHUNK = 200  # files of one child
LONGEST = 6000  # characters of a message
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
# Python's audit events of what no reader does.
RUNNING = (
    'os.system', 'os.exec', 'os.posix_spawn', 'os.spawn', 'os.fork', 'os.forkpty', 'pty.spawn', 'subprocess.Popen',
    'webbrowser.open', 'pickle.find_class', 'code.__new__', 'socket.connect', 'socket.getaddrinfo', 'socket.bind',
)  # fmt: skip
LIBRARIES = 'ldconfig'  # Python itself runs it to find a library, when torch is imported
CHANGING = (
    'os.remove', 'os.rename', 'os.rmdir', 'os.mkdir', 'os.link', 'os.symlink', 'os.truncate', 'os.chmod',
    'shutil.rmtree',
    'shutil.move', 'shutil.copyfile', 'shutil.unpack_archive',
)  # fmt: skip


class TooSlow(BaseException):
    """A file took too long."""


@dataclasses.dataclass(frozen=True)
class Kind:
    """One kind of input.

    Attributes:
        name: its name on the command line.
        what: a description of the inputs.
        make: (random numbers, empty folder) -> what the uses get; everything it writes is in the folder.
        uses: functions that open it. Each returns if it accepts it, and raises one of `errors` if not.
        errors: the errors with which a use may refuse.
        writes: whether a use may write files; then they are only compared if it refuses.
    """

    name: str
    what: str
    make: Callable[[random.Random, Path], Any]
    uses: tuple[Callable[[Any], object], ...]
    errors: tuple[type[BaseException], ...]
    writes: bool = False


@dataclasses.dataclass(frozen=True)
class Outcome:
    """The outcome for one file.

    Attributes:
        index: its number.
        status: 'accepted', 'refused' or 'fault'.
        message: the message of the refusal, or what is wrong.
        seconds: of the processor.
        memory: bytes above what the process had before.
    """

    index: int
    status: str
    message: str = ''
    seconds: float = 0.0
    memory: int = 0


def case_of(kind: Kind, seed: int, index: int, folder: Path) -> Any:
    """Write the input of a number into an empty folder, and return what the uses get."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return kind.make(random.Random(f'{kind.name}/{seed}/{index}'), folder)


def examine(kind: Kind, given: Any, folder: Path, index: int = 0, events: list[str] | None = None) -> Outcome:
    """Open one input in this process and return what became of it.

    Args:
        kind: how it is opened.
        given: the result of `make`.
        folder: where it is.
        index: its number.
        events: the list to which the hook of `watch` appends.
    """
    events = [] if events is None else events
    before, size = contents(folder), size_of(folder)
    memory, start = _reset_peak(), time.process_time()
    status, lines = 'accepted', []
    for use in kind.uses:
        events.clear()
        try:
            with _limited():
                use(given)
        except kind.errors as error:
            if not _is_own(error):
                return Outcome(index, 'fault', _described(error), time.process_time() - start)
            status = 'refused'
            lines.append(str(error))
        except TooSlow:
            return Outcome(index, 'fault', f'takes more than {SECONDS:.0f} s', time.process_time() - start)
        except BaseException as error:
            return Outcome(index, 'fault', _described(error), time.process_time() - start)
        if wrong := [event for event in events if not (kind.writes and event.startswith('writes'))]:
            return Outcome(index, 'fault', f'does what no reader does: {", ".join(wrong[:5])}')
    seconds, peak = time.process_time() - start, _peak() - memory
    message = '\n'.join(lines)
    problem = text_problem(message)
    if (status == 'refused' or not kind.writes) and contents(folder) != before:
        problem = f'files changed: {sorted(contents(folder) ^ before)[:5]}'
    if peak > SHARE * size + EXTRA:
        problem = f'takes {peak / 2**20:.0f} MiB for {size:,} bytes'
    return Outcome(index, 'fault' if problem else status, problem or message, seconds, peak)


def _is_own(error: BaseException) -> bool:
    """Return whether an error is of a class of ours, or a plain ValueError that was raised in our code."""
    if not type(error).__module__.startswith(('tresnet_jax', 'convert', 'fuzzing')):
        file = traceback.extract_tb(error.__traceback__)[-1].filename
        return (
            type(error) is ValueError
            and ('/tresnet_jax/' in file or '/convert/' in file)
            and '/site-packages/' not in file
        )
    return True


def _described(error: BaseException) -> str:
    where = traceback.extract_tb(error.__traceback__)[-1]
    place = f'{Path(where.filename).name}:{where.lineno}'
    return f'{type(error).__name__} in {place}: {error}\n{"".join(traceback.format_exception(error))}'


def text_problem(text: str) -> str:
    """Return what is wrong with a message or with printed text; '' if nothing is."""
    if re.search(r'^\s*Traceback \(most recent call last\)', text, re.M):  # within a line, it is part of a name
        return f'prints a traceback: {text[-2000:]!r}'
    odd = UNSHOWABLE.search(re.sub(r'[\n\t\udc80-\udcff]', '', text))
    if odd:
        return f'a message with {odd[0]!r}: {text[:500]!r}'
    return f'a message of {len(text):,} characters: {text[:200]!r}' if len(text) > LONGEST else ''


def contents(folder: Path) -> set[tuple[str, int, int, int]]:
    """Return name, kind, size and time of every file in a folder."""
    found = set()
    for root, folders, files in os.walk(folder):
        for name in folders + files:
            status = os.lstat(os.path.join(root, name))
            size = 0 if name in folders else status.st_size
            found.add((os.path.relpath(os.path.join(root, name), folder), status.st_mode, size, status.st_mtime_ns))
    return found


def size_of(folder: Path) -> int:
    """Return the bytes of all files in a folder, as their blocks on the disk; holes count for nothing."""
    paths = [os.path.join(root, name) for root, _, files in os.walk(folder) for name in files]
    return sum(min(os.lstat(path).st_size, 512 * os.lstat(path).st_blocks) for path in paths)


@contextlib.contextmanager
def _limited() -> Iterator[None]:
    """Raise TooSlow after the time of one file."""

    def end(*_: Any) -> None:
        raise TooSlow

    signal.signal(signal.SIGPROF, end)
    signal.signal(signal.SIGALRM, end)
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    signal.setitimer(signal.ITIMER_REAL, WAITING)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.setitimer(signal.ITIMER_REAL, 0)


def _reset_peak() -> int:
    """Set the peak of this process's memory to what it has now, and return that in bytes."""
    with contextlib.suppress(OSError):
        Path('/proc/self/clear_refs').write_text('5')
    return _field('VmRSS')


def _peak() -> int:
    return _field('VmHWM')


def _field(name: str) -> int:
    return int(re.search(rf'{name}:\s+(\d+)', Path('/proc/self/status').read_text())[1]) * 1024  # pyright: ignore[reportOptionalSubscript]


def watch(events: list[str]) -> None:
    """Append what no reader does to `events`, for the rest of this process."""

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event in RUNNING and LIBRARIES not in str(arguments):
            events.append(f'{event} {arguments!r:.200}')
        elif event in CHANGING:
            events.append(f'writes: {event} {arguments!r:.200}')
        elif event == 'open' and isinstance(arguments[2], int) and arguments[2] & WRITING:
            if not str(arguments[0]).startswith(('/dev/', '/proc/self/')) and not isinstance(arguments[0], int):
                events.append(f'writes: opens {arguments[0]!r:.200}')

    sys.addaudithook(hook)


def run(kind: Kind, seed: int, indices: list[int], folder: Path, findings: Path) -> Iterator[Outcome]:
    """Yield what became of each input, in order; children die and are replaced as needed.

    Args:
        kind: the kind of input.
        seed, indices: the numbers of the inputs.
        folder: for the files; a folder of this process alone.
        findings: where inputs with a fault are kept.
    """
    waiting = list(indices)
    while waiting:
        done, started = 0, None
        reader, writer = os.pipe()
        child = os.fork()
        if not child:
            os.close(reader)
            _serve(kind, seed, waiting[:CHUNK], folder, findings, writer)
        os.close(writer)
        for line in _lines(reader, child):
            document = json.loads(line)
            if 'start' in document:
                started = document['start']
            else:
                done, started = done + 1, None
                yield Outcome(**document)
        _, status = os.waitpid(child, 0)
        if started is not None:
            done += 1
            keep(folder, findings, kind, seed, started)
            code = os.waitstatus_to_exitcode(status)
            yield Outcome(started, 'fault', f'the process ended by {signal.Signals(-code).name if code < 0 else code}')
        elif not done:
            raise RuntimeError(f'a child of {kind.name} ended before its file: {(folder / "child_error").read_text()}')
        del waiting[:done]


def _lines(reader: int, child: int) -> Iterator[str]:
    """Yield the lines of a child; kill it if it prints nothing for too long, as in a library that ignores signals."""
    with open(reader, 'rb', buffering=0) as pipe:
        rest = b''
        while True:
            if not select.select([pipe], [], [], 2 * WAITING)[0]:
                os.kill(child, signal.SIGKILL)
            data = pipe.read(65536)
            if not data:
                return
            *lines, rest = (rest + data).split(b'\n')
            yield from (line.decode() for line in lines)


def _serve(kind: Kind, seed: int, indices: list[int], folder: Path, findings: Path, writer: int) -> None:
    """Open inputs in this child and report each; never returns."""
    code = 1
    try:
        home = folder / 'home'
        home.mkdir(parents=True, exist_ok=True)
        os.chdir(home)
        events: list[str] = []
        printed = os.open(folder / 'printed', os.O_RDWR | os.O_CREAT | os.O_TRUNC)
        for stream in (1, 2):
            os.dup2(printed, stream)
        limit = _field('VmSize') + ADDRESSES
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        watch(events)
        with open(writer, 'w', buffering=1, encoding='utf-8') as pipe:
            for index in indices:
                given = case_of(kind, seed, index, folder / 'case')
                pipe.write(json.dumps({'start': index}) + '\n')
                os.ftruncate(printed, 0)
                os.lseek(printed, 0, os.SEEK_SET)
                outcome = examine(kind, given, folder / 'case', index, events)
                outcome = _with_output(outcome, printed, home, kind.writes)
                if outcome.status == 'fault':
                    keep(folder, findings, kind, seed, index, outcome.message)
                shown = dataclasses.replace(
                    outcome, message=outcome.message[:LONGEST].encode('ascii', 'backslashreplace').decode()
                )
                pipe.write(json.dumps(dataclasses.asdict(shown)) + '\n')
        code = 0
    except BaseException:
        Path(folder / 'child_error').write_text(traceback.format_exc())
    finally:
        os._exit(code)


def _with_output(outcome: Outcome, printed: int, home: Path, writes: bool) -> Outcome:
    """Return the outcome, a fault if something odd was printed or a file appeared in the current folder."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(ValueError):
            stream.flush()
    text = os.pread(printed, 2**20, 0).decode('utf-8', 'surrogateescape')
    if outcome.status != 'fault' and (
        problem := text_problem(text) if len(text) < LONGEST else text_problem(text[:LONGEST])
    ):
        return dataclasses.replace(outcome, status='fault', message=f'prints {problem}')
    names = [path.name for path in home.iterdir()]
    for name in names:
        shutil.rmtree(home / name) if (home / name).is_dir() else (home / name).unlink()
    if outcome.status != 'fault' and (names if not writes else 'MARKER' in names):
        return dataclasses.replace(outcome, status='fault', message=f'writes {", ".join(names)}')
    return outcome


def keep(folder: Path, findings: Path, kind: Kind, seed: int, index: int, message: str = 'the process ended') -> None:
    """Copy an input with a fault to `findings`, and write what is wrong with it next to it."""
    target = findings / kind.name / f'{seed}-{index}'
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    (target / 'fault.txt').write_text(message, encoding='utf-8', errors='backslashreplace')
    with contextlib.suppress(OSError, shutil.Error):  # a link to nothing, a pipe
        shutil.copytree(folder / 'case', target / 'case', symlinks=True, ignore=_special)


def _special(folder: str, names: list[str]) -> list[str]:
    """Return the names in a folder that are neither files, folders nor links, or are very large."""
    paths = {name: Path(folder) / name for name in names}
    return [
        name
        for name, path in paths.items()
        if not path.is_symlink() and not path.is_dir() and (not path.is_file() or path.stat().st_size > 2**26)
    ]
