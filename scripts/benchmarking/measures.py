"""The measures of one model, each in processes of its own."""

import dataclasses
import functools
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from benchmarking.checking import Check
from benchmarking.contenders import Contender
from benchmarking.processes import JobError, in_new_process
from benchmarking.results import Measurement
from benchmarking.sides import Subject
from benchmarking.turns import take_turns

# PyTorch is to find memory beside JAX, which otherwise takes three quarters of a GPU at once.
SHARED = {'XLA_PYTHON_CLIENT_PREALLOCATE': 'false'}
# A process of its own may have nearly all; JAX refuses the older name beside the new one.
ALONE = {} if 'XLA_PYTHON_CLIENT_MEM_FRACTION' in os.environ else {'XLA_CLIENT_MEM_FRACTION': '0.9'}


class Bench:
    """Runs a model's contenders.

    Args:
        subject: what is run.
        contenders: that take part; one that fails is noted in `failures` (contender, message) and left out from then.
        threads: cores that a process may use; None is all of this one's.
        cache: a folder for what JAX compiles, of the contenders that are cached.
    """

    def __init__(self, subject: Subject, contenders: Sequence[Contender], threads: int | None, cache: Path):
        self.subject, self.threads, self.cache = subject, threads, cache
        self.contenders = [row for row in contenders if row.takes(subject)]
        self.failures: list[tuple[str, str]] = []
        self.checks: list[Check] = []

    def fail(self, name: str, message: str) -> None:
        self.failures.append((name, message))
        self.contenders = [row for row in self.contenders if row.name != name]

    def taking_part(self, *whats: str) -> list[Contender]:
        return [row for row in self.contenders if set(whats) & set(row.measures)]

    def measured(self, what: str, batch: int, contender: str, values: Sequence[float]) -> Measurement:
        return Measurement(self.subject.architecture, what, batch, contender, tuple(values))

    def side_by_side(
        self, batch_sizes: Mapping[str, Sequence[int]], rounds: int, turn_seconds: float, check: bool
    ) -> list[Measurement]:
        """Seconds of calls of inference and training, in one process; `jobs.side_by_side` has the arguments.

        What `check` finds is then in `checks`.
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
        return [self.measured(*row) for row in found['seconds']]

    def from_the_start(self, whats: Sequence[str], batch: int, rounds: int) -> list[Measurement]:
        """Seconds of 'build' and of 'first_call' of inference, or of one of them."""
        there = self.taking_part(*whats)
        with self._bar(len(there) * (rounds + 1), 'first call') as bar:

            def turn(row: Contender) -> dict[str, float]:
                bar.update()
                return (row in self.contenders and self._start(row, 'inference', batch)) or {}

            turns = take_turns({row.name: functools.partial(turn, row) for row in there}, rounds)
        return [
            self.measured(what, batch * (what == 'first_call'), row.name, [each[what] for each in turns[row.name]])
            for what in whats
            for row in self.taking_part(what)
        ]

    def memory(self, what: str, batch: int) -> list[Measurement]:
        """Bytes that inference or training took at most, in one process each."""
        found = []
        for row in self._bar(self._for_memory(what, 'memory'), 'memory'):
            started = self._start(row, what, batch)
            if started:
                found.append(self.measured(f'memory, {what}', batch, row.name, [started['memory']]))
        return found

    def largest_batch(self, what: str) -> list[Measurement]:
        """Images of the largest batch that does not run out of memory, to one part in 32."""
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
                found.append(self.measured(f'largest_batch, {what}', 0, row.name, [largest(fits)]))
            except JobError as error:
                self.fail(row.name, str(error))
        return found

    def _for_memory(self, what: str, measure: str) -> list[Contender]:
        return [row for row in self.taking_part(measure) if what in row.measures]

    def _start(self, row: Contender, what: str, batch: int) -> dict[str, float] | None:
        """`jobs.start`; None where it fails."""
        environment = ALONE | {'JAX_ENABLE_COMPILATION_CACHE': 'true' if row.cached else 'false'}
        environment |= {'JAX_COMPILATION_CACHE_DIR': str(self.cache)}
        try:
            return self._run('start', {'contender': row.name, 'what': what, 'batch': batch}, environment)
        except JobError as error:
            self.fail(row.name, str(error))
            return None

    def _run(self, job: str, arguments: dict[str, Any], environment: dict[str, str]) -> Any:
        arguments = {'subject': dataclasses.asdict(self.subject), **arguments}
        return in_new_process(job, arguments, self.threads, environment)

    def _bar(self, what: Any, label: str) -> Any:
        """A progress bar over rows, or over so many turns; on a terminal alone."""
        options = {'desc': f'{self.subject.architecture}, {label}', 'disable': None, 'leave': False}
        return tqdm(total=what, **options) if isinstance(what, int) else tqdm(what, **options)


def largest(fits: Callable[[int], bool], start: int = 8) -> int:
    """The largest number that fits, or up to one part in 32 less; 0 where not even 1 fits.

    Doubles until one does not fit, and then halves the interval between.
    """
    low, high = 0, start
    while fits(high):
        low, high = high, 2 * high
    while high - low > max(1, low // 32):
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low
