"""Timing side by side: contenders take turns, so that other load on the machine affects all of them."""

import gc
import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

T = TypeVar('T')


def take_turns(contenders: Mapping[str, Callable[[], T]], rounds: int) -> dict[str, list[T]]:
    """Call each contender once per round and return its results; a warm-up round before them is not counted.

    Each round starts with a different contender. Garbage is collected before each turn and never during one.
    """
    names = list(contenders)
    found: dict[str, list[T]] = {name: [] for name in names}
    was_enabled = gc.isenabled()
    try:
        for number in range(rounds + 1):
            first = number % len(names) if names else 0
            for name in names[first:] + names[:first]:
                gc.enable()
                gc.collect()
                gc.disable()
                value = contenders[name]()
                if number:
                    found[name].append(value)
    finally:
        (gc.enable if was_enabled else gc.disable)()
    return found


def timed(call: Callable[[], object], seconds: float) -> Callable[[], float]:
    """Return a turn: a function that calls `call` for about `seconds` and returns the mean seconds per call.

    `call` is called twice here: the first call compiles, and the second determines how many calls fill a turn, at least
    one. Each turn starts with a call that is not timed, because threads of the previous contender may still be waiting
    for work, and freed memory has been returned to the system.
    """
    call()
    began = time.perf_counter()
    call()
    count = max(1, math.ceil(seconds / (time.perf_counter() - began)))

    def turn() -> float:
        call()
        began = time.perf_counter()
        for _ in range(count):
            call()
        return (time.perf_counter() - began) / count

    return turn


def spread(values: Sequence[float]) -> float:
    """Return the interquartile range over the median; 0 for a single value."""
    if len(values) < 2:
        return 0.0
    low, middle, high = statistics.quantiles(values, n=4)
    return (high - low) / middle
