"""Timing side by side: contenders take turns, so that whatever else the machine does is shared."""

import gc
import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

T = TypeVar('T')


def take_turns(contenders: Mapping[str, Callable[[], T]], rounds: int) -> dict[str, list[T]]:
    """What each contender gave in each round; one more round before them is not counted.

    Within a round every contender has its turn, and each round begins with another one. Python's garbage is collected
    before a turn and left alone during it.
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
    """A turn that calls for about so many seconds, at least once, and gives the mean seconds of a call.

    Calls twice at once: what is compiled at first is not timed, and the second call tells how many fill a turn. Each
    turn begins with one more that is left out: threads of the contender before may still be looking for work, and
    memory that was freed has gone back to the system.
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
    """Quartile distance over median; 0 of a single value."""
    if len(values) < 2:
        return 0.0
    low, middle, high = statistics.quantiles(values, n=4)
    return (high - low) / middle
