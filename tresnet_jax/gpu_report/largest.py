"""The largest batch that fits a memory: what a program takes grows with the batch along a line."""

from collections.abc import Callable

STEP = 8  # tensor cores like multiples of it


def largest_batch(total: Callable[[int], int], limit: int, base: int) -> int:
    """The largest multiple of `STEP` pictures whose program takes at most `limit` bytes; 0 if none is found to fit.

    Two batches give a line and a guess; the program is compiled at the guess, and once more where the line then says
    another. So the answer was compiled and fits; that `STEP` more do not fit is the line's word.

    Args:
        total: bytes that the program takes at a batch.
        base: the batch to begin with, a multiple of twice `STEP`; half of it is the other.

    Raises:
        ValueError: the line does not rise.
    """
    known = {batch: total(batch) for batch in (base // 2, base)}
    guess, other = base, base // 2
    for _ in range(2):
        slope = (known[guess] - known[other]) / (guess - other)
        if slope <= 0:
            raise ValueError(f'{guess} pictures take {known[guess]} bytes, {other} take {known[other]}')
        guess, other = guess + int((limit - known[guess]) / slope // STEP) * STEP, base
        if guess < STEP or guess in known:
            break
        known[guess] = total(guess)
    return max((batch for batch, taken in known.items() if taken <= limit), default=0)
