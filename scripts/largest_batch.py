"""Searches for the largest batch that fits into memory.

`largest_that_fits` only needs to know whether a batch fits, as on a GPU that may run out of memory.
`largest_by_bytes` uses the bytes that each batch needs, and so takes few tries: each may be a compilation of minutes.
"""

from collections.abc import Callable, Sequence

STEP = 8  # tensor cores work best with multiples of 8
TRIES = 5  # at most, for each limit


def largest_that_fits(fits: Callable[[int], bool], start: int = 8) -> int:
    """Return the largest batch that fits, up to one part in 32 less; 0 if not even a batch of 1 fits.

    Doubles the batch until it does not fit, then bisects.

    Args:
        fits: batch -> whether it fits; assumed to be true up to some batch and false beyond.
        start: the first batch to try.
    """
    low, high = 0, start
    while fits(high):
        low, high = high, 2 * high
    while high - low > max(1, low // 32):
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def largest_by_bytes(total: Callable[[int], int], limits: Sequence[int], base: int) -> list[int]:
    """Return for each limit the largest multiple of `STEP` images that fits; 0 if no such batch is found.

    Memory grows almost linearly with the batch. Two batches define a line, and the line gives a guess. The guess is
    tried, and tried again if the updated line gives another one, until a guess fits. So each result was tried and
    fits; that `STEP` more images would not fit is an estimate.

    Args:
        total: batch -> bytes it needs.
        limits: bytes, ascending. Each limit refines the line for the next one.
        base: the first batch, a multiple of twice `STEP`; the second one is half of it.

    Raises:
        ValueError: the bytes do not grow with the batch.
    """
    known = {batch: total(batch) for batch in (base // 2, base)}
    found = []
    for limit in limits:
        guesses: list[int] = []
        while len(guesses) < TRIES:
            far, near = (max(known), base) if max(known) > base else (base, base // 2)
            slope = (known[far] - known[near]) / (far - near)
            if slope <= 0:
                raise ValueError(f'{far} images take {known[far]} bytes, {near} take {known[near]}')
            guess = far + int((limit - known[far]) / slope // STEP) * STEP
            # Some batches take much more than the line predicts: go below them by their excess.
            for batch in guesses:
                if known[batch] > limit:
                    guess = min(guess, batch - max(int((known[batch] - limit) / slope // STEP), 1) * STEP)
            if guess < STEP or guess in known:
                break
            known[guess] = total(guess)
            guesses.append(guess)
            if len(guesses) > 1 and any(known[batch] <= limit for batch in guesses):
                break
        found.append(max((batch for batch, taken in known.items() if taken <= limit), default=0))
    return found
