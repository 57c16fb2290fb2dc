"""The largest batch that fits a memory: what a program takes grows with the batch along a line, nearly."""

from collections.abc import Callable, Sequence

STEP = 8  # tensor cores like multiples of it
TRIES = 5  # for a limit


def largest_batches(total: Callable[[int], int], limits: Sequence[int], base: int) -> list[int]:
    """For each limit the largest multiple of `STEP` images whose program takes no more; 0 if none is found to fit.

    Two batches give a line and a guess; the program is compiled at the guess, and once more where the line then says
    another, or until one fits. So the answer was compiled and fits; that `STEP` more do not fit is the line's word.

    Args:
        total: bytes that the program takes at a batch.
        limits: bytes, rising: what is found out for one makes the line of the next better.
        base: the batch to begin with, a multiple of twice `STEP`; half of it is the other.

    Raises:
        ValueError: the line does not rise.
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
            # Some batches take much more than the line says: from these go down by what they take too much.
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
