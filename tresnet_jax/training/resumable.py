"""Grain's iteration over batches that can be had by number, with a state that is one number."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable
from typing import Any

import absl.flags
import grain

IN_WORK = 2  # batches that are made at the same time, so that no thread waits for the last picture of one


class ResumableDataset(grain.IterDataset):
    """Batches 0, 1, ... made ahead of time, in this process or in workers.

    The state of its iterators is the number of batches taken, whatever was made ahead. It can be set in an iterator
    with other numbers of workers, which Grain's own states cannot.

    Args:
        batches: ``batches[number]`` and ``len``; it can be pickled.
        workers: processes that make batches; 0 is none.
        check: takes each batch, in this process, and gives what the iterator gives.
    """

    def __init__(self, batches: Any, workers: int, check: Callable[[Any], Any]):
        super().__init__()
        self._batches, self._workers, self._check = batches, workers, check

    def __iter__(self) -> 'ResumableIterator':
        return ResumableIterator(self._start, self._check)

    def _start(self, taken: int) -> grain.DatasetIterator:
        """An iterator over all batches from number `taken` on."""
        options = grain.ReadOptions(num_threads=IN_WORK, prefetch_buffer_size=IN_WORK)
        dataset = grain.MapDataset.source(self._batches)[taken:].to_iter_dataset(options)
        if self._workers:
            if not absl.flags.FLAGS.is_parsed():
                absl.flags.FLAGS.mark_as_parsed()  # Grain 0.2.18 reads a flag and fails where no main program did so
            dataset = dataset.mp_prefetch(grain.MultiprocessingOptions(self._workers), begin_worker)
        return iter(dataset)


class ResumableIterator(grain.DatasetIterator):
    """Of a `ResumableDataset`. Nothing is made before the first batch is asked for."""

    _iterator: grain.DatasetIterator | None = None

    def __init__(self, start: Callable[[int], grain.DatasetIterator], check: Callable[[Any], Any]):
        super().__init__()
        self._start, self._check = start, check
        self._taken = 0

    def __next__(self) -> Any:
        self._assert_not_closed()
        if self._iterator is None:
            self._iterator = self._start(self._taken)
        batch = self._check(next(self._iterator))
        self._taken += 1
        return batch

    def get_state(self) -> dict[str, Any]:
        return {'batches': self._taken}

    def set_state(self, state: dict[str, Any]) -> None:
        self._stop()
        self._taken = state['batches']

    def close(self) -> None:
        self._stop()
        super().close()

    def _stop(self) -> None:
        if self._iterator is not None:
            self._iterator.close()
            self._iterator = None


def begin_worker(number: int, count: int) -> None:
    """Tie a worker to the process that started it.

    Ctrl-C, and a SIGTERM that a cluster sends to all processes of a run, are for that process to decide on, which
    still needs batches while it ends its step. When it is gone, however it went, the worker goes too.
    """
    del number, count
    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()
