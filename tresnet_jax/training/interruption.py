"""Being asked to stop."""

import contextlib
import signal
from collections.abc import Callable, Iterator
from typing import Any

import jax
from jax.experimental import multihost_utils


@contextlib.contextmanager
def interruption() -> Iterator[Callable[[int], bool]]:
    """A function that tells, at a step, whether the run was asked to stop: SIGTERM, or Ctrl-C (twice is at once).

    Over several hosts JAX's own service listens, and all processes stop at the same step.
    """
    if jax.process_count() > 1:
        yield multihost_utils.reached_preemption_sync_point
        return
    asked: list[int] = []

    def note(signum: int, frame: Any) -> None:
        del frame
        asked.append(signum)
        signal.signal(signal.SIGINT, signal.default_int_handler)

    before = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield lambda step: bool(asked)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
