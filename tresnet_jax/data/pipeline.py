"""From a source to batches on the devices: decoded and augmented on the host by Grain, the same for any number of
processes, workers and threads, and exactly resumable."""

import concurrent.futures
import dataclasses
import functools
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import absl.flags
import grain
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from PIL import Image

from tresnet_jax.data.examples import EvalExamples, Example, TrainExamples, Unreadable, in_order, shuffled
from tresnet_jax.data.sources import Source
from tresnet_jax.data.transforms import EvalTransform
from tresnet_jax.errors import DataError

ENDLESS = 2**62  # batches
ON_HOST = 2  # batches that wait for the devices in memory
ON_DEVICE = 2  # and on the devices


def train_dataset(
    source: Source,
    transform: Callable[[Image.Image, np.random.Generator], np.ndarray],
    *,
    batch_size: int,
    seed: int,
    shard: tuple[int, int] = (0, 1),
    threads: int = 8,
    workers: int = 0,
    max_unreadable: float = 0.01,
    log: Path | None = None,
) -> grain.IterDataset:
    """Endless batches for training: all images, shuffled anew each epoch, each with new augmentation.

    Batches go on over the end of an epoch: none is short, and none is left out. Batch number s of all processes
    together is the same for any number of processes, workers and threads, of which process p has the p-th part.
    An iterator's state is the number of batches taken from it; it can be set in an iterator with other numbers.

    In place of an image that cannot be read comes the next one of the epoch's order.

    Args:
        source: labelled images.
        transform: (image of mode 'RGB', random generator) -> (H, W, 3) uint8; it can be pickled. A JPEG may not
            be decoded yet.
        batch_size: images in a batch, over all processes.
        seed: of order and augmentation, at least 0.
        shard: number of this process, and how many there are.
        threads: that decode, in this process, or in each worker.
        workers: processes that decode; 0 is none. They are started afresh, so a program that uses them begins with
            ``if __name__ == '__main__'``.
        max_unreadable: the largest share of the images that may be unreadable.
        log: a file in which unreadable images are named.

    Returns:
        A dataset of {'image': (b, H, W, 3) uint8, 'label': (b,) int32, 'index': (b,) int32, place in the source},
        b being batch_size / processes.

    Raises:
        DataError: the batch size cannot be shared out; and while reading: too many unreadable images, or a label
            that is out of range.
    """
    _check_shares(batch_size, shard)
    unreadable = Unreadable(source, max_unreadable, log)
    # So many may follow one another, at the end of an epoch and then again at the beginning of the next.
    patience = 2 * unreadable.allowed + 1
    examples = TrainExamples(source, shuffled(source, seed, batch_size), transform, seed, patience)
    batches = _Batches(examples, ENDLESS, batch_size, shard, threads, masked=False)
    return ResumableDataset(batches, workers, unreadable.check)


def eval_dataset(
    source: Source,
    eval_transform: EvalTransform,
    *,
    batch_size: int,
    shard: tuple[int, int] = (0, 1),
    threads: int = 8,
    workers: int = 0,
    max_unreadable: float = 0.01,
    log: Path | None = None,
) -> grain.IterDataset:
    """Batches for evaluation: each image once over all processes, in the source's order.

    Every process has the same number of batches, all of full size. What is added to the last one, and images that
    cannot be read, are black, and their mask is 0.

    Args:
        eval_transform: its `crop_image` is taken; normalising is left to the device.
        source, batch_size, shard, threads, workers, max_unreadable, log: as for `train_dataset`.

    Returns:
        A dataset of {'image': (b, H, W, 3) uint8, 'label': (b,) int32, 'index': (b,) int32, -1 for what was added,
        'mask': (b,) float32, 1 or 0}.

    Raises:
        DataError: as `train_dataset`.
    """
    _check_shares(batch_size, shard)
    blank = eval_transform.height, eval_transform.width
    examples = EvalExamples(source, in_order(source, batch_size), eval_transform.crop_image, blank)
    count = -(-len(source) // batch_size)
    batches = _Batches(examples, count, batch_size, shard, threads, masked=True)
    return ResumableDataset(batches, workers, Unreadable(source, max_unreadable, log).check)


def to_devices(dataset: grain.IterDataset, devices: Sequence[Any]) -> grain.IterDataset:
    """Share each batch out over devices of this process, ahead of time.

    Args:
        dataset: of batches, dicts of (b, ...) arrays.
        devices: of this process, `jax.local_devices()` or some of them.

    Returns:
        A dataset of dicts of (devices, b / devices, ...) arrays, a part on each device, as ``jax.pmap`` takes them.
        An iterator's state is that of the batch taken last, not of what waits behind it.

    Raises:
        DataError: while reading: b is no multiple of the devices.
    """
    sharding = NamedSharding(Mesh(np.asarray(devices), ('batch',)), PartitionSpec('batch'))
    parts = dataset.map(functools.partial(_divide, count=len(devices)))
    return grain.experimental.device_put(parts, sharding, cpu_buffer_size=ON_HOST, device_buffer_size=ON_DEVICE)


def _divide(batch: dict[str, np.ndarray], count: int) -> dict[str, np.ndarray]:
    size = len(batch['label'])
    if size % count:
        raise DataError(f'{size} images of a batch cannot be shared out over {count} devices')
    return {name: x.reshape(count, size // count, *x.shape[1:]) for name, x in batch.items()}


def _check_shares(batch_size: int, shard: tuple[int, int]) -> None:
    process, processes = shard
    if not 0 <= process < processes:
        raise DataError(f'process {process} of {processes}: the first is 0')
    if batch_size < 1 or batch_size % processes:
        raise DataError(f'a batch of {batch_size} images cannot be shared out over {processes} processes')


@dataclasses.dataclass
class _Batches:
    """One process's part of each batch, by number. Its threads work on the images of all batches asked for."""

    examples: Callable[[int], Example]  # by position
    count: int
    batch_size: int
    shard: tuple[int, int]
    threads: int
    masked: bool

    def __post_init__(self) -> None:
        self._pool = concurrent.futures.ThreadPoolExecutor(self.threads, 'decode')

    def __reduce__(self) -> tuple[Any, ...]:  # for pickle: threads cannot travel
        return _Batches, (self.examples, self.count, self.batch_size, self.shard, self.threads, self.masked)

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, number: int) -> dict[str, np.ndarray]:
        process, processes = self.shard
        part = self.batch_size // processes
        first = number * self.batch_size + process * part
        several = max(1, part // (4 * self.threads))  # images to a task, since handing one over takes time too
        tasks = (range(at, min(at + several, first + part)) for at in range(first, first + part, several))
        examples = [example for made in self._pool.map(self._make, tasks) for example in made]
        batch = {
            'image': np.stack([example.image for example in examples]),
            'label': np.asarray([example.label for example in examples], np.int32),
            'index': np.asarray([example.index for example in examples], np.int32),
            # For `Unreadable`, which takes them out.
            'wanted': np.asarray([example.wanted for example in examples], np.int32),
            'problem': np.asarray([example.problem for example in examples]),
        }
        if self.masked:
            batch['mask'] = np.asarray([example.mask for example in examples], np.float32)
        return batch

    def _make(self, positions: range) -> list[Example]:
        return [self.examples(position) for position in positions]


IN_WORK = 2  # batches that are made at the same time, so that no thread waits for the last image of one


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
