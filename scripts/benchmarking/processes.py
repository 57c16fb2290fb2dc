"""Run jobs in new processes, so that each starts cold and running out of memory affects nothing else."""

import importlib
import json
import os
import subprocess
import sys
import tempfile
import traceback
from pathlib import Path
from typing import Any

from tresnet_jax.errors import reason

TRACEBACKS = 'BENCHMARK_TRACEBACKS'  # an environment variable: print the traceback of each failure
JOBS, PROGRAM = f'{__package__}.jobs', f'{__package__}.processes'
# In lower case, from messages of XLA, torch, cuDNN and cuBLAS.
OUT_OF_MEMORY = ('resource_exhausted', 'out of memory', 'alloc_failed', 'allocation_failed', 'failed to allocate')


class JobError(Exception):
    """A job failed; the message is one line. `out_of_memory`: whether it ran out of memory."""

    def __init__(self, message: str, out_of_memory: bool = False):
        super().__init__(message)
        self.out_of_memory = out_of_memory


def in_new_process(
    job: str,
    arguments: dict[str, Any],
    threads: int | None,
    environment: dict[str, str],
    module: str = JOBS,
    limit: float | None = None,
) -> Any:
    """Call a function in a new process and return its result. Arguments and result are passed as JSON.

    Args:
        job: name of the function.
        arguments: its keyword arguments.
        threads: number of cores that the process may use; None: the same as this process.
        environment: environment variables to add to those of this process.
        module: the module that has the function.
        limit: seconds after which the process is killed; None: no limit.

    Raises:
        JobError: the function raised an exception, the process died, or it was killed.
    """
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / 'result.json'
        paths = os.pathsep.join(path or os.getcwd() for path in sys.path)
        try:
            done = subprocess.run(
                [sys.executable, '-m', PROGRAM, job, json.dumps(arguments), str(threads or 0), result, module],
                env=os.environ | {'PYTHONPATH': paths} | environment,
                stdout=2,  # libraries may print to standard output
                timeout=limit,
            )
        except subprocess.TimeoutExpired as error:
            raise JobError(f'its process was stopped after {error.timeout:.0f} s') from error
        if not result.exists():
            raise JobError(f'its process ended with exit code {done.returncode}', done.returncode == -9)
        found = json.loads(result.read_text())
    if 'error' in found:
        raise JobError(found['error'], found['out_of_memory'])
    return found['result']


def failure(error: Exception) -> tuple[str, bool]:
    """Return an exception as one line, and whether it means that memory ran out."""
    out_of_memory = is_out_of_memory(str(error))
    if os.environ.get(TRACEBACKS) and not out_of_memory:
        traceback.print_exception(error)
    return f'{type(error).__name__}: {reason(error)}', out_of_memory


def is_out_of_memory(message: str) -> bool:
    """Return whether the message of an exception means that memory ran out."""
    return any(words in message.lower() for words in OUT_OF_MEMORY)


def main(job: str, arguments: str, threads: str, result: str, module: str = JOBS) -> None:
    """Run a job in this process and write its result, or its error, to the file `result` as JSON."""
    if int(threads):  # before any threads are created
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: int(threads)])
    try:
        found = {'result': getattr(importlib.import_module(module), job)(**json.loads(arguments))}
    except Exception as error:  # of any library
        found = dict(zip(('error', 'out_of_memory'), failure(error), strict=True))
    Path(result).write_text(json.dumps(found))


if __name__ == '__main__':
    main(*sys.argv[1:])
