"""The measures of one model; each runs in new processes."""

import dataclasses
import functools
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from largest_batch import largest_that_fits
from tqdm import tqdm

from benchmarking.checking import Check
from benchmarking.contenders import Contender
from benchmarking.processes import JobError, in_new_process
from benchmarking.results import Measurement
from benchmarking.sides import Workload
from benchmarking.turns import take_turns

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
        with self._bar(len(rows) * (rounds + 1), 'first call') as bar:

            def turn(row: Contender) -> dict[str, float]:
                bar.update()
                return (row in self.contenders and self._start(row, 'inference', batch)) or {}

            turns = take_turns({row.name: functools.partial(turn, row) for row in rows}, rounds)
        return [
            self.measurement(what, batch * (what == 'first_call'), row.name, [each[what] for each in turns[row.name]])
            for what in whats
            for row in self.taking_part(what)
        ]

    def memory(self, what: str, batch: int) -> list[Measurement]:
        """Measure the peak bytes of inference or training, in one process per contender."""
        found = []
        for row in self._bar(self._for_memory(what, 'memory'), 'memory'):
            started = self._start(row, what, batch)
            if started:
                found.append(self.measurement(f'memory, {what}', batch, row.name, [started['memory']]))
        return found

    def largest_batch(self, what: str) -> list[Measurement]:
        """Find the largest batch that does not run out of memory, to one part in 32."""
        found = []
        for row in self._bar(self._for_memory(what, 'largest_batch'), 'largest batch'):

            def fits(batch: int, row: Contender = row) -> bool:
                try:
                    self._run('start', {'contender': row.name, 'what': what, 'batch': batch}, ALONE)
                except JobError as error:
                    if error.out_of_memory:
                        return False
                    raise
                return True

            try:
                found.append(self.measurement(f'largest_batch, {what}', 0, row.name, [largest_that_fits(fits)]))
            except JobError as error:
                self.fail(row.name, str(error))
        return found

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

    def _run(self, job: str, arguments: dict[str, Any], environment: dict[str, str]) -> Any:
        arguments = {'workload': dataclasses.asdict(self.workload), **arguments}
        return in_new_process(job, arguments, self.threads, environment)

    def _bar(self, what: Any, label: str) -> Any:
        """Return a progress bar over rows, or over a number of turns; it is shown only on a terminal."""
        options = {'desc': f'{self.workload.architecture}, {label}', 'disable': None, 'leave': False}
        return tqdm(total=what, **options) if isinstance(what, int) else tqdm(what, **options)
