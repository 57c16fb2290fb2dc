"""Jobs in processes of their own: what is cold is cold, and what runs out of memory takes nothing else along."""

import importlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

# How XLA, torch and cuDNN say it.
OUT_OF_MEMORY = ('RESOURCE_EXHAUSTED', 'out of memory', 'ALLOC_FAILED')


class JobError(Exception):
    """A job failed; one line says why. `out_of_memory` tells whether memory was what it lacked."""

    def __init__(self, message: str, out_of_memory: bool = False):
        super().__init__(message)
        self.out_of_memory = out_of_memory


def in_new_process(job: str, arguments: dict[str, Any], threads: int | None, environment: dict[str, str]) -> Any:
    """The result of a function of `jobs`, by its name, called with these arguments in a new process.

    Args:
        job: the function; arguments and result go through JSON.
        arguments: of the function.
        threads: how many cores the process may use; None is those of this one.
        environment: variables that it has beside this one's.

    Raises:
        JobError: it raised an exception, or died.
    """
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / 'result.json'
        paths = os.pathsep.join(path or os.getcwd() for path in sys.path)
        done = subprocess.run(
            [sys.executable, '-m', f'{__package__}.processes', job, json.dumps(arguments), str(threads or 0), result],
            env=os.environ | {'PYTHONPATH': paths} | environment,
            stdout=2,  # what libraries print is no result
        )
        if not result.exists():
            raise JobError(f'its process ended with exit code {done.returncode}', done.returncode == -9)
        found = json.loads(result.read_text())
    if 'error' in found:
        raise JobError(found['error'], found['out_of_memory'])
    return found['result']


def failure(error: Exception) -> tuple[str, bool]:
    """One line about an exception, and whether memory ran out."""
    text = f'{type(error).__name__}: {error}'
    return text.splitlines()[0], any(words in text for words in OUT_OF_MEMORY)


def main(job: str, arguments: str, threads: str, result: str) -> None:
    if int(threads):  # before anything makes threads
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: int(threads)])
    try:
        jobs = importlib.import_module(f'{__package__}.jobs')
        found = {'result': getattr(jobs, job)(**json.loads(arguments))}
    except Exception as error:  # of any library
        found = dict(zip(('error', 'out_of_memory'), failure(error), strict=True))
    Path(result).write_text(json.dumps(found))


if __name__ == '__main__':
    main(*sys.argv[1:])
