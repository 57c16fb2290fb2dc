"""The measures of one model; each runs in new processes."""

import dataclasses
import functools
import itertools
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from largest_batch import largest_that_fits

from benchmarking.checking import Check
from benchmarking.contenders import Contender
from benchmarking.processes import JobError, in_new_process
from benchmarking.results import Measurement
from benchmarking.sides import Workload
from benchmarking.turns import take_turns
from tresnet_jax.cli.common import Progress

# Leave memory for PyTorch: by default JAX reserves three quarters of a GPU.
SHARED = {'XLA_PYTHON_CLIENT_PREALLOCATE': 'false'}
# A single contender may use almost all. JAX rejects this name together with the older one.
ALONE = {} if 'XLA_PYTHON_CLIENT_MEM_FRACTION' in os.environ else {'XLA_CLIENT_MEM_FRACTION': '0.9'}


class Bench:
    """Measures the contenders of one model.

    Args:
        workload: the model and the options.
        contenders: the contenders that take part. One that fails is noted in `failures` (contender, message) and left
            out from then on.
        threads: number of cores that a process may use; None: the same as this process.
        cache: folder of JAX's compilation cache, for the contenders that use it.
    """

    def __init__(self, workload: Workload, contenders: Sequence[Contender], threads: int | None, cache: Path):
        self.workload, self.threads, self.cache = workload, threads, cache
        self.contenders = [row for row in contenders if row.takes(workload)]
        self.failures: list[tuple[str, str]] = []
        self.checks: list[Check] = []

    def fail(self, name: str, message: str) -> None:
        """Leave a contender out from now on."""
        self.failures.append((name, message))
        self.contenders = [row for row in self.contenders if row.name != name]

    def taking_part(self, *whats: str) -> list[Contender]:
        """Return the contenders that take part in any of these measures."""
        return [row for row in self.contenders if set(whats) & set(row.measures)]

    def measurement(self, what: str, batch: int, contender: str, values: Sequence[float]) -> Measurement:
        return Measurement(self.workload.architecture, what, batch, contender, tuple(values))

    def side_by_side(
        self, batch_sizes: Mapping[str, Sequence[int]], rounds: int, turn_seconds: float, check: bool
    ) -> list[Measurement]:
        """Measure seconds per call of inference and training, in one process; see `jobs.side_by_side`.

        The results of `check` are then in `checks`.
        """
        arguments = {
            'contenders': [row.name for row in self.taking_part('inference', 'train')],
            'batch_sizes': batch_sizes,
            'rounds': rounds,
            'turn_seconds': turn_seconds,
            'check': check,
        }
        found = self._run('side_by_side', arguments, SHARED)
        for failure in found['failures']:
            self.fail(*failure)
        self.checks = [Check(**fields) for fields in found['checks']]
        return [self.measurement(*row) for row in found['seconds']]

    def from_the_start(self, whats: Sequence[str], batch: int, rounds: int) -> list[Measurement]:
        """Measure seconds of 'build' and of 'first_call' of inference, or of one of them."""
        rows = self.taking_part(*whats)
        done = itertools.count(1)
        with self._progress(len(rows) * (rounds + 1), 'starts') as progress:

            def turn(row: Contender) -> dict[str, float]:
                found = self._start(row, 'inference', batch) if row in self.contenders else None
                progress.update(next(done))
                return found or {}

            turns = take_turns({row.name: functools.partial(turn, row) for row in rows}, rounds)
        return [
            self.measurement(what, batch * (what == 'first_call'), row.name, [each[what] for each in turns[row.name]])
            for what in whats
            for row in self.taking_part(what)
        ]

    def memory(self, what: str, batch: int) -> list[Measurement]:
        """Measure the peak bytes of inference or training, in one process per contender."""
        found = []
        rows = self._for_memory(what, 'memory')
        with self._progress(len(rows), 'memory measurements') as progress:
            for done, row in enumerate(rows, start=1):
                if started := self._start(row, what, batch):
                    found.append(self.measurement(f'memory, {what}', batch, row.name, [started['memory']]))
                progress.update(done)
        return found

    def largest_batch(self, what: str, first: int = 8) -> list[Measurement]:
        """Find the largest batch that does not run out of memory, to one part in 32; `first` is tried first."""
        found = []
        rows = self._for_memory(what, 'largest_batch')
        with self._progress(len(rows), 'largest batches') as progress:
            for done, row in enumerate(rows, start=1):
                try:
                    batch = largest_that_fits(functools.partial(self._fits, row, what), first)
                    found.append(self.measurement(f'largest_batch, {what}', 0, row.name, [batch]))
                except JobError as error:
                    self.fail(row.name, str(error))
                progress.update(done)
        return found

    def _fits(self, row: Contender, what: str, batch: int) -> bool:
        """Return whether a contender runs this batch without running out of memory."""
        try:
            self._run('start', {'contender': row.name, 'what': what, 'batch': batch}, ALONE)
        except JobError as error:
            if error.out_of_memory:
                return False
            raise
        return True

    def _for_memory(self, what: str, measure: str) -> list[Contender]:
        return [row for row in self.taking_part(measure) if what in row.measures]

    def _start(self, row: Contender, what: str, batch: int) -> dict[str, float] | None:
        """Run `jobs.start`; return None if it fails."""
        environment = ALONE | {'JAX_ENABLE_COMPILATION_CACHE': 'true' if row.cached else 'false'}
        environment |= {'JAX_COMPILATION_CACHE_DIR': str(self.cache)}
        try:
            return self._run('start', {'contender': row.name, 'what': what, 'batch': batch}, environment)
        except JobError as error:
            self.fail(row.name, str(error))
            return None

    def _progress(self, total: int, unit: str) -> Progress:
        return Progress(total, f'{unit} of {self.workload.architecture}')

    def _run(self, job: str, arguments: dict[str, Any], environment: dict[str, str]) -> Any:
        arguments = {'workload': dataclasses.asdict(self.workload), **arguments}
        return in_new_process(job, arguments, self.threads, environment)
