"""Measure each program in a separate process: it needs its own environment, and may need much memory or crash."""

import dataclasses
import json
import os
import subprocess
import sys

from gpu_reporting.devices import environment, plugin
from gpu_reporting.fingerprint import ENTRY, ROOTS
from gpu_reporting.program import Figures, Program


class ReportError(ValueError):
    """A program cannot be compiled or a report cannot be read; the message says what to do."""


def require_plugin() -> None:
    """Raise ReportError if JAX's CUDA plugin is not installed."""
    if plugin() is None:
        raise ReportError(
            "compiling for a GPU needs JAX's CUDA plugin, but no GPU: pip install 'tresnet_jax[cuda12,train]', "
            'or in a clone: make gpu-report'
        )


def measure_in_subprocess(program: Program, earlier: Figures | None = None) -> Figures:
    """Return the figures of `measure.measure`, computed in a new process.

    Args:
        program: what is compiled.
        earlier: figures from other code; they are returned if the program still has their digest.

    Raises:
        ReportError: the CUDA plugin is missing, the program is invalid, or its compilation failed.
    """
    program.check()
    require_plugin()
    line = [
        sys.executable,
        '-P',
        '-m',
        ENTRY,
        json.dumps(dataclasses.asdict(program)),
        (earlier or {}).get('digest', ''),
    ]
    # The new process imports the same code as this one, wherever that is.
    path = os.pathsep.join(filter(None, [*map(str, ROOTS), os.environ.get('PYTHONPATH')]))
    done = subprocess.run(line, env={**environment(), 'PYTHONPATH': path}, capture_output=True, text=True)
    if done.returncode == 0:
        figures: Figures | None = json.loads(done.stdout)
        if figures is None:  # only where the digest was given
            assert earlier is not None
            return earlier
        return figures
    last = (done.stderr.strip().splitlines() or [f'exit code {done.returncode}'])[-1]
    raise ReportError(last.removeprefix('error: ') if done.returncode == 2 else f'{program.name}: {last}')
