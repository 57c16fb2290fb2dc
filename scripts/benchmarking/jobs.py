"""What runs in a process of its own; arguments and results are what JSON has."""

import dataclasses
import functools
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
from tqdm import tqdm

from benchmarking.checking import Check, Checker
from benchmarking.contenders import CONTENDERS, Contender
from benchmarking.memory import peak_resident
from benchmarking.processes import failure
from benchmarking.sides import CLASSES, Call, Side, Subject
from benchmarking.turns import take_turns, timed

T = TypeVar('T')

BATCHES = 3  # different ones that calls go through
CHECKED_BATCH = 4  # at least: batch norm of fewer values amplifies rounding


class Running:
    """The loaded contenders of one model; one that fails is noted in `failures` (contender, message) and left out."""

    def __init__(self, subject: Subject, contenders: Sequence[str]):
        self.failures: list[tuple[str, str]] = []
        self.sides: dict[str, Any] = dict.fromkeys(contenders)
        self.sides = self.each(lambda name, _: load(CONTENDERS[name], subject))

    def each(self, action: Callable[[str, Side], T], what: str | None = None) -> dict[str, T]:
        """The action's results by contender, of those that take part in `what`."""
        found = {}
        for name in [name for name in self.sides if what is None or what in CONTENDERS[name].measures]:
            try:
                found[name] = action(name, self.sides[name])
            except Exception as error:  # of any library
                self.failures.append((name, failure(error)[0]))
                del self.sides[name]
        return found


def load(row: Contender, subject: Subject) -> Side:
    row.wake(subject.threads)
    return row.load(subject)


def devices(contenders: Sequence[str], threads: int) -> dict[str, Any]:
    """{'devices': 'cpu' or the name of a GPU, by contender, 'failures': [(contender, message)]}."""
    found, failures = {}, []
    for name in contenders:
        try:
            found[name] = CONTENDERS[name].wake(threads)
        except Exception as error:  # of any library
            failures.append((name, failure(error)[0]))
    return {'devices': found, 'failures': failures}


def side_by_side(
    subject: dict[str, Any],
    contenders: Sequence[str],
    batch_sizes: Mapping[str, Sequence[int]],
    rounds: int,
    turn_seconds: float,
    check: bool,
) -> dict[str, Any]:
    """Contenders of one model take turns.

    Args:
        subject: of `contenders.Subject`.
        contenders: their names.
        batch_sizes: of 'inference' and of 'train'; without any nothing is timed.
        rounds: that are counted.
        turn_seconds: that a turn fills with calls.
        check: compare their outputs with timm's before; nothing is timed where one differs.

    Returns:
        {'seconds': [(what, batch size, contender, [seconds of a call, one a round])], 'checks': [fields of
        `checking.Check`], 'failures': [(contender, message)]}.
    """
    given = Subject(**subject)
    running = Running(given, contenders)
    checks: list[Check] = []
    if check:
        whats = ['inference', *(['train'] if batch_sizes.get('train') else [])]
        checker = Checker(given, *inputs(given, max(CHECKED_BATCH, *batch_sizes.get('train', [0])), 1), whats)
        checks = [found for each in running.each(checker.compare).values() for found in each]
    seconds = []
    cases = [(what, batch) for what, sizes in batch_sizes.items() for batch in sizes]
    for what, batch in tqdm(cases if all(c.agrees for c in checks) else [], subject['architecture'], disable=None):
        turn_of = functools.partial(_turn, what=what, inputs=inputs(given, batch, BATCHES), seconds=turn_seconds)
        seconds += [(what, batch, *found) for found in take_turns(running.each(turn_of, what), rounds).items()]
    return {'seconds': seconds, 'checks': [dataclasses.asdict(c) for c in checks], 'failures': running.failures}


def _turn(
    name: str, side: Side, *, what: str, inputs: tuple[np.ndarray, np.ndarray], seconds: float
) -> Callable[[], float]:
    del name
    return timed(call_of(side, what, *inputs), seconds)


def start(subject: dict[str, Any], contender: str, what: str, batch: int) -> dict[str, float]:
    """One contender from the beginning, in a new process.

    Args:
        subject: of `contenders.Subject`.
        contender: its name.
        what: 'inference' or 'train'.
        batch: images.

    Returns:
        Seconds: 'build' (from the file to a model), 'first_call' (of inference, or of a step; compiling counts).
        Bytes: 'memory', the most there was in the device's memory in three calls, or on a CPU in the process beyond
        what importing the libraries took.
    """
    given, row = Subject(**subject), CONTENDERS[contender]
    row.wake(given.threads)
    images, labels = inputs(given, batch, 1)
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


def call_of(side: Side, what: str, images: np.ndarray, labels: np.ndarray) -> Call:
    return side.inference(images) if what == 'inference' else side.training(images, labels)


def inputs(subject: Subject, batch: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Seeded images (count, batch, H, W, 3) float32, standard normal, and labels (count, batch)."""
    rng = np.random.default_rng(0)
    size = subject.image_size
    return rng.standard_normal((count, batch, size, size, 3), np.float32), rng.integers(0, CLASSES, (count, batch))
