"""Run parts in processes of their own, with a time limit; what they have found by then counts."""

import contextlib
import dataclasses
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarking.measures import SHARED
from benchmarking.processes import TRACEBACKS

from gpu_checking.machine import missing_packages, pip_line
from gpu_checking.plan import PARTS, Part
from gpu_checking.records import FAILED, LEFT_OUT, OUT_OF_TIME, UNFINISHED, PartResult, findings_of
from gpu_checking.sizes import Level

CHILD = 'gpu_checking.child'
SAVE_SECONDS = 5.0  # how often the findings of parts that still run are passed on
DEATH_SECONDS = 10.0  # how long killed processes may take to release the device


def stages_of(names: Sequence[str], together: bool) -> list[list[str]]:
    """Return what runs at the same time, stage after stage.

    Args:
        names: keys of `PARTS`, in the order in which they run.
        together: whether the parts that time nothing may run at the same time. They then come first.
    """
    first = [name for name in names if together and PARTS[name].together]
    return [first] * bool(first) + [[name] for name in names if name not in first]


def limit_of(stages: Sequence[Sequence[str]], seconds: float, level: Level) -> float:
    """Return the time limit of the first of the stages that are left, when `seconds` are left for all."""
    shares = [sum(PARTS[name].shares[level] for name in names) for names in stages]
    return seconds * shares[0] / sum(shares)


@dataclasses.dataclass
class Running:
    """A part that runs.

    Attributes:
        name: a key of `PARTS`.
        process: the process; it leads a process group of its own, with those that it starts.
        folder: what they write into; removed afterwards.
        log: what they print.
        began: when it was started, of `time.monotonic`.
    """

    name: str
    process: subprocess.Popen
    folder: tempfile.TemporaryDirectory
    log: Path
    began: float

    @property
    def result_file(self) -> Path:
        return Path(self.folder.name) / 'result.json'

    def result(self, status: str = '', message: str = '') -> PartResult:
        """Return what it has found so far. A status that is given replaces the one in its file."""
        found = json.loads(self.result_file.read_text(encoding='utf-8')) if self.result_file.exists() else {}
        if not status:
            status, message = found.get('status', ''), found.get('message', '')
        if not status:
            status, message = FAILED, f'its process ended with exit code {self.process.returncode}'
        if status == FAILED:
            message = f'{message}; see {self.log}'
        findings = findings_of(found.get('findings', ()))
        return PartResult(self.name, status, message, time.monotonic() - self.began, findings)

    def end(self) -> None:
        """Kill its processes and wait for them, because the next part needs the memory that they hold."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        deadline = time.monotonic() + DEATH_SECONDS
        while _is_alive(self.process.pid) and time.monotonic() < deadline:
            time.sleep(0.05)


def run_parts(names: Sequence[str], settings: Mapping[str, Any], limit: float, out: Path) -> Iterator[PartResult]:
    """Run parts at the same time, and yield the result of each when it ends.

    Every few seconds, what the others have found so far is yielded too, with the status UNFINISHED. The processes end
    with this generator.

    Args:
        names: keys of `PARTS`.
        settings: arguments of `sizes_of`.
        limit: seconds after which the processes and those they started are killed.
        out: folder; the output goes to logs/NAME.log in it, compiled programs to compiled/.
    """
    with contextlib.ExitStack() as stack:
        running: list[Running] = []
        try:
            for name in names:
                if missing := missing_packages(PARTS[name].needs):
                    yield PartResult(name, LEFT_OUT, pip_line(missing), 0.0, ())
                    continue
                # Processes that were killed may still hold files.
                folder = tempfile.TemporaryDirectory(prefix='gpu_check', ignore_cleanup_errors=True)
                stack.enter_context(folder)
                running.append(_start(name, settings, folder, out))
            yield from _watch(running, limit)
        finally:
            for one in running:
                one.end()


def _watch(running: list[Running], limit: float) -> Iterator[PartResult]:
    """Yield the results of parts; remove those from the list that have ended."""
    saved = time.monotonic()
    counts = {one.name: 0 for one in running}
    while running:
        for one in list(running):
            has_ended, is_late = one.process.poll() is not None, time.monotonic() - one.began >= limit
            if has_ended or is_late:
                one.end()
                running.remove(one)
                yield one.result() if has_ended else one.result(OUT_OF_TIME, f'stopped after {limit:.0f} s')
        if time.monotonic() - saved >= SAVE_SECONDS:
            saved = time.monotonic()
            for result in (one.result(UNFINISHED, 'it was still running') for one in running):
                if len(result.findings) > counts[result.part]:
                    counts[result.part] = len(result.findings)
                    yield result
        time.sleep(0.05)


def _start(name: str, settings: Mapping[str, Any], folder: tempfile.TemporaryDirectory, out: Path) -> Running:
    log = out / 'logs' / f'{name}.log'
    log.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, '-m', CHILD, name, json.dumps(settings), folder.name, f'{folder.name}/result.json']
    with log.open('w', encoding='utf-8') as file:
        # In a session of its own, so that the processes that it starts end with it.
        process = subprocess.Popen(
            command, env=environment(PARTS[name], out, folder.name), stdout=file, stderr=file, start_new_session=True
        )
    return Running(name, process, folder, log, time.monotonic())


def _is_alive(group: int) -> bool:
    """Return whether a process of this group still runs; False where the system does not show it."""
    for path in Path('/proc').glob('[0-9]*/stat'):
        with contextlib.suppress(OSError):  # it has just ended
            state, _, its_group = path.read_text(encoding='utf-8', errors='replace').rpartition(')')[2].split()[:3]
            if int(its_group) == group and state not in 'ZX':
                return True
    return False


def environment(part: Part, out: Path, folder: str) -> dict[str, str]:
    """Return the environment variables of a part's process; what it and its processes leave behind is in `folder`."""
    # It imports the same code as this one, wherever that is.
    found = {**os.environ, 'PYTHONPATH': os.pathsep.join(path or os.getcwd() for path in sys.path)}
    # A part that was killed compiles less the next time. Kernels that were chosen while other parts ran may be slow, so
    # that parts that time something do not use them.
    compiled = out / 'compiled' / ('together' if part.together else 'alone')
    found |= {'JAX_COMPILATION_CACHE_DIR': str(compiled.resolve()), 'TMPDIR': folder}
    # The names of the layers are metadata: a program with them is another one. The lines of Python that called it are
    # metadata too, but would make another program of the same one.
    found |= {'JAX_COMPILATION_CACHE_INCLUDE_METADATA_IN_KEY': 'true', 'JAX_TRACEBACK_IN_LOCATIONS_LIMIT': '0'}
    found |= {TRACEBACKS: '1'}  # they are in the log
    return found | (SHARED if part.on_device or part.together else {})
