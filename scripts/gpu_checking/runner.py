"""Run each part in its own process, with a time limit; what it has found by then counts."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarking.measures import SHARED

from gpu_checking.machine import missing_packages, pip_line
from gpu_checking.plan import PARTS, Part
from gpu_checking.records import FAILED, LEFT_OUT, OUT_OF_TIME, PartResult, findings_of
from gpu_checking.sizes import Level

CHILD = 'gpu_checking.child'


def limit_of(names: Sequence[str], seconds: float, level: Level) -> float:
    """Return the time limit of the first of the parts that are left, when `seconds` are left for all."""
    shares = [PARTS[name].share_of(level) for name in names]
    return seconds * shares[0] / sum(shares)


def run_part(name: str, settings: Mapping[str, Any], limit: float, out: Path) -> PartResult:
    """Run a part in a new process and return what it found.

    Args:
        name: a key of `PARTS`.
        settings: arguments of `sizes_of`.
        limit: seconds after which the process and those it started are killed.
        out: folder; the part's output goes to logs/NAME.log in it, compiled programs to compiled/.
    """
    part = PARTS[name]
    if missing := missing_packages(part.needs):
        return PartResult(name, LEFT_OUT, pip_line(missing), 0.0, ())
    log = out / 'logs' / f'{name}.log'
    log.parent.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    # Processes that were killed may still hold files.
    with tempfile.TemporaryDirectory(prefix='gpu_check', ignore_cleanup_errors=True) as folder:
        result = Path(folder) / 'result.json'
        command = [sys.executable, '-m', CHILD, name, json.dumps(settings), folder, str(result)]
        with log.open('w', encoding='utf-8') as file:
            # In a session of its own, so that the processes that it starts end with it.
            process = subprocess.Popen(
                command, env=environment(part, out, folder), stdout=file, stderr=file, start_new_session=True
            )
            try:
                process.wait(limit)
                in_time = True
            except subprocess.TimeoutExpired:
                in_time = False
            finally:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        found = json.loads(result.read_text(encoding='utf-8')) if result.exists() else {}
    status, message = found.get('status', ''), found.get('message', '')
    if not in_time:
        status, message = OUT_OF_TIME, f'stopped after {limit:.0f} s'
    elif not status:
        status, message = FAILED, f'its process ended with exit code {process.returncode}'
    if status == FAILED:
        message = f'{message}; see {log}'
    return PartResult(name, status, message, time.monotonic() - began, findings_of(found.get('findings', ())))


def environment(part: Part, out: Path, folder: str) -> dict[str, str]:
    """Return the environment variables of a part's process; what it and its processes leave behind is in `folder`."""
    # It imports the same code as this one, wherever that is.
    found = {**os.environ, 'PYTHONPATH': os.pathsep.join(path or os.getcwd() for path in sys.path)}
    # A part that was killed compiles less the next time.
    found |= {'JAX_COMPILATION_CACHE_DIR': str((out / 'compiled').resolve()), 'TMPDIR': folder}
    # The names of the layers are metadata: a program with them is another one.
    found |= {'JAX_COMPILATION_CACHE_INCLUDE_METADATA_IN_KEY': 'true'}
    return found | (SHARED if part.on_device else {})
