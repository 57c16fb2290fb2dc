"""Worker processes that die: they are started again, and the batches are the same."""

import multiprocessing
import re
from collections.abc import Iterator

import numpy as np
import pytest

from tests.helpers.closeness import assert_identical
from tresnet_jax.data.pipeline import ResumableIterator, train_dataset
from tresnet_jax.data.sources import open_source
from tresnet_jax.data.train_transforms import create_train_transform
from tresnet_jax.errors import DataError


class Dying:
    """Starts iterators over batch numbers, whose workers die before these batches."""

    def __init__(self, *deaths: int):
        self.deaths, self.starts = [*deaths], []

    def __call__(self, taken: int) -> Iterator[int]:
        self.starts.append(taken)
        for number in range(taken, 8):
            if self.deaths and number == self.deaths[0]:
                del self.deaths[0]
                raise RuntimeError(
                    'Worker process was terminated unexpectedly with exit code -9. Search the logs above.'
                )
            yield number


def test_they_are_started_again(caplog):
    """Each death is a line in the log; the second one at a batch ends the run with one line."""
    dying = Dying(0, 3, 5)
    iterator = ResumableIterator(dying, lambda batch: batch)
    assert [next(iterator) for _ in range(8)] == [*range(8)] and dying.starts == [0, 0, 3, 5]
    assert caplog.messages == [
        f'a worker process died (exit code -9); the workers are started again at batch {at}' for at in (0, 3, 5)
    ]
    iterator = ResumableIterator(Dying(4, 4), lambda batch: batch)
    assert [next(iterator) for _ in range(4)] == [*range(4)]
    with pytest.raises(DataError) as caught:
        next(iterator)
    # Grain adds a note about its frames to an error, which pytest would match too.
    assert re.fullmatch(
        r'a worker process died twice at batch 4 \(exit code -9\); .* fewer --workers', str(caught.value)
    )


def test_other_errors_pass(caplog):
    def start(taken):
        raise RuntimeError('of the transform')
        yield

    with pytest.raises(RuntimeError) as caught:
        next(ResumableIterator(start, lambda batch: batch))
    assert str(caught.value) == 'of the transform' and not caplog.messages


@pytest.mark.slow
def test_killed_workers(caplog):
    """kill -9 of both, twice."""
    source = open_source('embedded:fashion_mnist', 'train[:200]')
    options = {'batch_size': 8, 'seed': 1, 'threads': 1}
    whole, killed = (
        iter(train_dataset(source, create_train_transform(28), workers=workers, **options)) for workers in (0, 2)
    )
    try:
        for number in range(60):  # more than are built ahead of time
            assert_identical({k: np.asarray(v) for k, v in next(killed).items()}, next(whole))
            if number in (2, 30):
                children = multiprocessing.active_children()
                assert len(children) >= 2
                for child in children:
                    child.kill()
    finally:
        killed.close()
        whole.close()
    assert len(caplog.messages) == 2 and 'exit code -9' in caplog.messages[0]
