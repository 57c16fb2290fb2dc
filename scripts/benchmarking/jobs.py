"""Jobs that run in new processes; arguments and results are JSON values."""

import dataclasses
import functools
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np

from benchmarking.checking import Check, Checker
from benchmarking.contenders import CONTENDERS, Contender
from benchmarking.inputs import random_inputs
from benchmarking.memory import peak_resident
from benchmarking.processes import failure
from benchmarking.sides import Side, Workload
from benchmarking.turns import take_turns, timed
from tresnet_jax.cli.common import Progress

T = TypeVar('T')

BATCHES = 3  # different batches that calls cycle through
CHECKED_BATCH = 4  # at least: batch norm over fewer values amplifies rounding


class LoadedSides:
    """The loaded contenders of one model. One that fails is removed and noted in `failures` (contender, message)."""

    def __init__(self, workload: Workload, contenders: Sequence[str]):
        self.failures: list[tuple[str, str]] = []
        self.sides: dict[str, Any] = dict.fromkeys(contenders)
        self.sides = self.each(lambda name, _: load(CONTENDERS[name], workload))

    def each(self, action: Callable[[str, Side], T], what: str | None = None) -> dict[str, T]:
        """Return the results of `action` by contender, for those that take part in `what`."""
        found = {}
        for name in [name for name in self.sides if what is None or what in CONTENDERS[name].measures]:
            try:
                found[name] = action(name, self.sides[name])
            except Exception as error:  # of any library
                self.failures.append((name, failure(error)[0]))
                del self.sides[name]
        return found


def load(row: Contender, workload: Workload) -> Side:
    """Start the device of a contender and load its model."""
    row.wake(workload.threads)
    return row.load(workload)


def devices(contenders: Sequence[str], threads: int) -> dict[str, Any]:
    """Return {'devices': {contender: 'cpu' or the name of a GPU}, 'failures': [(contender, message)]}."""
    found, failures = {}, []
    for name in contenders:
        try:
            found[name] = CONTENDERS[name].wake(threads)
        except Exception as error:  # of any library
            failures.append((name, failure(error)[0]))
    return {'devices': found, 'failures': failures}


def side_by_side(
    workload: dict[str, Any],
    contenders: Sequence[str],
    batch_sizes: Mapping[str, Sequence[int]],
    rounds: int,
    turn_seconds: float,
    check: bool,
) -> dict[str, Any]:
    """Time the contenders of one model in turns.

    Args:
        workload: fields of a `Workload`.
        contenders: their names.
        batch_sizes: for 'inference' and for 'train'; nothing is timed if both are missing.
        rounds: number of rounds that count.
        turn_seconds: duration of a turn.
        check: first compare the outputs with timm's; if one differs, nothing is timed.

    Returns:
        {'seconds': [(what, batch size, contender, [seconds per call, one per round])], 'checks': [fields of
        `checking.Check`], 'failures': [(contender, message)]}.
    """
    given = Workload(**workload)
    loaded = LoadedSides(given, contenders)
    checks: list[Check] = []
    if check:
        whats = ['inference', *(['train'] if batch_sizes.get('train') else [])]
        checker = Checker(given, max(CHECKED_BATCH, *batch_sizes.get('train', [0])), whats)
        checks = [found for each in loaded.each(checker.compare).values() for found in each]
    seconds = []
    cases = [(what, batch) for what, sizes in batch_sizes.items() for batch in sizes]
    cases = cases if all(check.agrees for check in checks) else []
    with Progress(len(cases), f'batch sizes of {given.architecture}') as progress:
        for done, (what, batch) in enumerate(cases, start=1):
            inputs = random_inputs(given, what, batch, BATCHES)
            turn_of = functools.partial(_turn, what=what, inputs=inputs, seconds=turn_seconds)
            seconds += [(what, batch, *found) for found in take_turns(loaded.each(turn_of, what), rounds).items()]
            progress.update(done)
    return {'seconds': seconds, 'checks': [dataclasses.asdict(c) for c in checks], 'failures': loaded.failures}


def _turn(
    name: str, side: Side, *, what: str, inputs: tuple[np.ndarray, np.ndarray], seconds: float
) -> Callable[[], float]:
    del name
    return timed(call_of(side, what, *inputs), seconds)


def start(workload: dict[str, Any], contender: str, what: str, batch: int) -> dict[str, float]:
    """Measure one contender from the start; to be called in a new process.

    Args:
        workload: fields of a `Workload`.
        contender: its name.
        what: 'inference' or 'train'.
        batch: number of images.

    Returns:
        Seconds: 'build' (from the file to a model) and 'first_call' (of inference or of a step, with compilation).
        Bytes: 'memory', the peak of three calls: of the device's memory, or on a CPU of the process's memory above
        what it took to import the libraries.
    """
    given, row = Workload(**workload), CONTENDERS[contender]
    row.wake(given.threads)
    images, labels = random_inputs(given, what, batch, 1)
    before = peak_resident()
    times = [time.perf_counter()]
    side = row.load(given)
    times.append(time.perf_counter())
    call = call_of(side, what, images, labels)
    call()
    times.append(time.perf_counter())
    call()
    call()
    peak = side.peak_bytes()
    memory = peak_resident() - before if peak is None else peak
    return {'build': times[1] - times[0], 'first_call': times[2] - times[1], 'memory': memory}


def call_of(side: Side, what: str, images: np.ndarray, labels: np.ndarray) -> Callable[[], object]:
    """Return the function that is timed: inference on the next batch, or a training step on it."""
    return side.inference(images) if what == 'inference' else side.training(images, labels).step
