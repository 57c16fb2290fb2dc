"""`train.py`, forked from a process that has imported it, so that many starts cost little."""

import atexit
import contextlib
import importlib
import json
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import tresnet_jax.cli.start
from tests.helpers.paths import ROOT

IMPORTED = ('tresnet_jax.cli.train', 'tresnet_jax.training.loop', 'tensorboardX.summary', 'matplotlib.figure')


class Training:
    """One run of the command line, in a process of its own."""

    def __init__(self, ask: Any, pid: int, log: Path):
        self._ask, self.pid, self._log = ask, pid, log
        self.code: int | None = None

    def poll(self) -> int | None:
        """Return the exit code, negative for a signal; None while it runs."""
        if self.code is None:
            self.code = self._ask({'poll': self.pid})
        return self.code

    def wait(self, seconds: float = 300) -> int:
        """Return the exit code, once it has ended."""
        until = time.monotonic() + seconds
        while (code := self.poll()) is None:
            assert time.monotonic() < until, self.output()
            time.sleep(0.01)
        return code

    def wait_until(self, condition: Callable[[], Any], seconds: float = 300) -> bool:
        """Wait closely for a condition, while it runs. Return whether it came true."""
        until = time.monotonic() + seconds
        while not (found := bool(condition())) and time.monotonic() < until and self.poll() is None:
            time.sleep(0.001)
        return found

    def kill(self, number: int = signal.SIGKILL) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def opened(self) -> bool:
        """Return whether it has begun or resumed, which it says before its first step."""
        return '; begins: ' in self.output() or '; resumes at step ' in self.output()

    def output(self) -> str:
        """Return what it has printed so far, on both streams."""
        return self._log.read_text()


class Trainings:
    """Starts processes that train. Programs are compiled once for all of them.

    Attributes:
        environment: that of the processes, for those that are started in another way.
    """

    def __init__(self, server: subprocess.Popen, folder: Path, environment: dict[str, str]):
        self._server, self._folder, self._count, self.environment = server, folder, 0, environment

    def start(self, *arguments: str | Path, code: str = '') -> Training:
        """Start `train.py`. `code` is Python that the process runs before it."""
        self._count += 1
        log = self._folder / f'{self._count}.log'
        log.touch()
        pid = self._ask({'start': [*map(str, arguments)], 'code': code, 'log': str(log)})
        return Training(self._ask, pid, log)

    def _ask(self, question: dict[str, Any]) -> Any:
        assert self._server.stdin is not None and self._server.stdout is not None
        self._server.stdin.write(json.dumps(question) + '\n')
        self._server.stdin.flush()
        return json.loads(self._server.stdout.readline())


@contextlib.contextmanager
def forked_trainings(folder: Path) -> Iterator[Trainings]:
    """Yield what starts processes; `folder` is for the compiled programs and for what the processes print."""
    environment = os.environ | {
        'JAX_COMPILATION_CACHE_DIR': str(folder / 'compiled'),
        'JAX_ENABLE_COMPILATION_CACHE': 'true',
        'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0',
        'JAX_PLATFORMS': 'cpu',
        'PYTHONPATH': str(ROOT),
    }
    command = [sys.executable, '-m', 'tests.helpers.forked_training']
    pipes = {'stdin': subprocess.PIPE, 'stdout': subprocess.PIPE, 'text': True}
    with subprocess.Popen(command, cwd=ROOT, env=environment, **pipes) as server:
        yield Trainings(server, folder, environment)


def serve() -> None:
    """Answer the questions on standard input. JAX starts its threads after the fork, in the children."""
    for module in IMPORTED:
        importlib.import_module(module)

    for line in sys.stdin:
        question = json.loads(line)
        if 'poll' in question:
            pid, status = os.waitpid(question['poll'], os.WNOHANG)
            print(json.dumps(os.waitstatus_to_exitcode(status) if pid else None), flush=True)
        elif pid := os.fork():
            print(pid, flush=True)
        else:
            log = os.open(question['log'], os.O_WRONLY | os.O_APPEND)
            for stream in (1, 2):
                os.dup2(log, stream)
            sys.argv = ['train.py', *question['start']]
            exec(question['code'], {})
            code: Any = 1
            try:
                code = tresnet_jax.cli.start.train()
            except SystemExit as end:
                code = end.code
            except BaseException:
                traceback.print_exc()
            atexit._run_exitfuncs()  # JAX waits there for the other processes of a run
            sys.stdout.flush()
            os._exit(code)


if __name__ == '__main__':
    serve()
