"""Batches from a source: examples decoded on the host by threads and worker processes, then placed on the devices.

The batches are the same for any number of hosts, worker processes and threads, and an iterator resumes exactly.
"""

import concurrent.futures
import dataclasses
import functools
import logging
import math
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

from tresnet_jax.data.examples import EpochOrders, EvalExamples, Example, SpreadExamples, TrainExamples, Unreadable
from tresnet_jax.data.sources import Source
from tresnet_jax.data.transforms import EvalTransform
from tresnet_jax.errors import DataError

ENDLESS = 2**62  # batches
WORKER_DIED = 'terminated unexpectedly with exit code'  # in Grain's message
CONCURRENT = 2  # batches built at a time, so that no thread idles while the last images of a batch are decoded
ON_HOST = 2  # batches that wait in memory for the devices
ON_DEVICE = 2  # batches that wait on the devices


@dataclasses.dataclass
class _Batches:
    """One process's part of each batch: ``batches[number]``. Its threads work on all batches that are being built."""

    examples: Callable[[int], Example]
    """Position in the order of all batches -> example."""
    count: int
    """Number of batches."""
    batch_size: int
    """Images in a batch, over all processes."""
    shard: tuple[int, int]
    """Number of this process, and of all processes."""
    threads: int
    masked: bool
    """Whether batches have a 'mask'."""

    def __post_init__(self) -> None:
        self._pool = concurrent.futures.ThreadPoolExecutor(self.threads, 'decode')

    def __reduce__(self) -> tuple[Any, ...]:  # threads cannot be pickled
        return _Batches, (self.examples, self.count, self.batch_size, self.shard, self.threads, self.masked)

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, number: int) -> dict[str, np.ndarray]:
        process, processes = self.shard
        part = self.batch_size // processes
        first = number * self.batch_size + process * part
        several = max(1, part // (4 * self.threads))  # images in a task; smaller tasks cost more to hand over
        tasks = (range(at, min(at + several, first + part)) for at in range(first, first + part, several))
        examples = [example for made in self._pool.map(self._make, tasks) for example in made]
        labels = np.asarray([example.label for example in examples])
        batch = {
            'image': np.stack([example.image for example in examples]),
            **({'label': labels.astype(np.int32)} if labels.ndim == 1 else {'target': labels}),
            'index': np.asarray([example.index for example in examples], np.int32),
            # `Unreadable` removes these two.
            'wanted': np.asarray([example.wanted for example in examples], np.int32),
            'problem': np.asarray([example.problem for example in examples]),
        }
        if self.masked:
            batch['mask'] = np.asarray([example.mask for example in examples], np.float32)
        return batch

    def _make(self, positions: range) -> list[Example]:
        return [self.examples(position) for position in positions]


def begin_worker(number: int, count: int) -> None:
    """Tie a worker process to the process that started it.

    The worker ignores Ctrl-C, and the SIGTERM that a cluster sends to all processes of a run: the main process
    decides when to stop, and needs batches until it has finished its step. When the main process ends, for any
    reason, the worker ends too.
    """
    del number, count
    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()


def _allow_workers() -> None:
    """Make Grain's workers start in a program that does not parse absl's flags.

    Grain 0.2.18 reads this flag when it starts workers, and fails if neither all flags were parsed nor this one is
    marked as given (https://github.com/google/grain/issues/1355). Grain marks its other flags in the same way. The
    flag keeps its default, and absl's other flags, such as those of the calling program, stay unparsed.
    """
    name = 'grain_enable_multiprocess_worker_profiling'
    if name in absl.flags.FLAGS and not absl.flags.FLAGS.is_parsed():
        absl.flags.FLAGS[name].present = 1


class ResumableIterator(grain.DatasetIterator):
    """An iterator over the batches of a `ResumableDataset`. No batch is built before the first is requested."""

    _iterator: grain.DatasetIterator | None = None

    def __init__(self, start: Callable[[int], grain.DatasetIterator], check: Callable[[Any], Any]):
        super().__init__()
        self._start, self._check = start, check
        self._taken = 0

    def __next__(self) -> Any:
        self._assert_not_closed()
        batch = self._check(self._next())
        self._taken += 1
        return batch

    def _next(self) -> Any:
        """Return the next batch; start the workers again, once, if one of them died.

        Raises:
            DataError: a worker died again before it built the batch.
        """
        for attempt in range(2):
            if self._iterator is None:
                self._iterator = self._start(self._taken)
            try:
                return next(self._iterator)
            except RuntimeError as error:
                if WORKER_DIED not in str(error):
                    raise
                code = str(error).partition(WORKER_DIED)[2].split('.')[0].strip()
                if attempt:
                    raise DataError(
                        f'a worker process died twice at batch {self._taken:,} (exit code {code}); -9 means that it '
                        'was killed, perhaps for lack of memory: try fewer --workers'
                    ) from error
                self._stop()
                logging.getLogger(__name__).warning(
                    'a worker process died (exit code %s); the workers are started again at batch %d', code, self._taken
                )

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


class ResumableDataset(grain.IterDataset):
    """Batches 0, 1, ..., built ahead of time in this process or in worker processes.

    The state of an iterator is the number of batches taken from it, however many were built ahead. Unlike Grain's own
    states, it can be set in an iterator with another number of workers.

    Args:
        batches: has ``batches[number]`` and ``len(batches)``, and can be pickled.
        workers: processes that build batches; 0: this process does.
        check: called in this process with each batch; the iterator returns its result.
    """

    def __init__(self, batches: Any, workers: int, check: Callable[[Any], Any]):
        super().__init__()
        self._batches, self._workers, self._check = batches, workers, check

    def __iter__(self) -> ResumableIterator:
        return ResumableIterator(self._start, self._check)

    def _start(self, taken: int) -> grain.DatasetIterator:
        """Return an iterator over all batches from number `taken` on."""
        options = grain.ReadOptions(num_threads=CONCURRENT, prefetch_buffer_size=CONCURRENT)
        dataset = grain.MapDataset.source(self._batches)[taken:].to_iter_dataset(options)
        if self._workers:
            _allow_workers()
            dataset = dataset.mp_prefetch(grain.MultiprocessingOptions(self._workers), begin_worker)
        return iter(dataset)


def _check_shares(batch_size: int, shard: tuple[int, int]) -> None:
    """Raise DataError if a batch cannot be divided among the processes."""
    process, processes = shard
    if not 0 <= process < processes:
        raise DataError(f'process {process} of {processes}: expected 0 to {processes - 1}')
    if batch_size < 1 or batch_size % processes:
        raise DataError(f'a batch of {batch_size} images cannot be divided among {processes} processes')


def train_dataset(
    source: Source,
    transform: Callable[[Any, np.random.Generator], np.ndarray],
    *,
    batch_size: int,
    seed: int,
    shard: tuple[int, int] = (0, 1),
    threads: int = 8,
    workers: int = 0,
    max_unreadable: float = 0.01,
    log: Path | None = None,
    max_value: float | None = None,
    repeats: float = 0.0,
    channels: int = 3,
) -> grain.IterDataset:
    """Return endless batches for training: all images, reshuffled each epoch, with new augmentation each time.

    Batches continue across the end of an epoch: all are of full size, and every image is used. Each process gets its
    part of every batch, in the order of the processes. The parts together do not depend on the number of processes,
    workers or threads. The state of an iterator is the number of batches taken from it; it can be set in an iterator
    with another number of processes, workers or threads.

    An unreadable image is replaced by the next readable one of the epoch's order.

    Args:
        source: labelled images.
        transform: (image, random generator) -> (H, W, channels) uint8; it can be pickled. The image has the mode 'RGB',
            'L' for 1 channel, or is a JPEG that is not decoded yet; for another number of channels it is an array.
        batch_size: images in a batch, over all processes.
        seed: determines the order and the augmentation, at least 0.
        shard: the number of this process, from 0, and the number of processes.
        threads: decoding threads, in this process or in each worker.
        workers: decoding processes; 0: this process decodes. Workers import the main module, so a program that uses
            them needs ``if __name__ == '__main__'``.
        max_unreadable: the largest share of the images that may be unreadable.
        log: a file that lists the unreadable images. None: no file.
        max_value: white in grey images of more than 8 bits; see `load_image`.
        repeats: repeated augmentation, see `EpochOrders`. A batch has the same images as with timm's
            ``RepeatAugSampler``; copies of an image are not neighbours in it.
        channels: channels of the images.

    Returns:
        A dataset of {'image': (b, H, W, channels) uint8, 'label': (b,) int32, 'index': (b,) int32, the index in the
        source}, where b is batch_size / processes. A `MultiLabelSource` gives 'target', (b, classes) float32, instead
        of 'label'.

    Raises:
        DataError: the batch size is not a multiple of the processes. While reading: too many images are unreadable,
            or a label is out of range.
    """
    _check_shares(batch_size, shard)
    unreadable = Unreadable(source, max_unreadable, log)
    # Unreadable images may cluster: up to `allowed` at the end of an epoch and again at the start of the next.
    copies = max(1, math.ceil(repeats))
    patience = (2 * unreadable.allowed + 1) * copies
    orders = EpochOrders(len(source), seed, repeats)
    examples = TrainExamples(source, orders, transform, patience, max_value, channels)
    if copies > 1:
        examples = SpreadExamples(examples, batch_size, copies)
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
    max_value: float | None = None,
) -> grain.IterDataset:
    """Return batches for evaluation: each image once, over all processes, in the source's order.

    Every process gets the same number of batches, all of full size. Unreadable images, and the padding of the last
    batch, are black with mask 0.

    Args:
        eval_transform: only its `crop_image` is applied; the device normalises.
        source, batch_size, shard, threads, workers, max_unreadable, log, max_value: as for `train_dataset`.

    Returns:
        A dataset of {'image': (b, H, W, channels) uint8, 'label': (b,) int32, 'index': (b,) int32, -1 for padding,
        'mask': (b,) float32, 1 or 0}, or with 'target' as for `train_dataset`.

    Raises:
        DataError: as for `train_dataset`.
    """
    _check_shares(batch_size, shard)
    size = eval_transform.height, eval_transform.width
    examples = EvalExamples(source, eval_transform.crop_image, *size, max_value, eval_transform.channels)
    count = -(-len(source) // batch_size)
    batches = _Batches(examples, count, batch_size, shard, threads, masked=True)
    return ResumableDataset(batches, workers, Unreadable(source, max_unreadable, log).check)


def _divide(batch: dict[str, np.ndarray], count: int) -> dict[str, np.ndarray]:
    """Reshape the arrays of a batch from (b, ...) to (count, b / count, ...)."""
    size = len(batch['image'])
    if size % count:
        raise DataError(f'a batch of {size} images cannot be divided among {count} devices')
    return {name: x.reshape(count, size // count, *x.shape[1:]) for name, x in batch.items()}


def to_devices(dataset: grain.IterDataset, devices: Sequence[Any]) -> grain.IterDataset:
    """Divide each batch among devices of this process, ahead of time.

    Args:
        dataset: batches, dicts of (b, ...) arrays.
        devices: devices of this process, `jax.local_devices()` or some of them.

    Returns:
        A dataset of dicts of (devices, b / devices, ...) arrays, one part on each device, as ``jax.pmap`` expects.
        The state of an iterator counts the batches taken, not those prepared ahead.

    Raises:
        DataError: while reading: b is not a multiple of the devices.
    """
    sharding = NamedSharding(Mesh(np.asarray(devices), ('batch',)), PartitionSpec('batch'))
    parts = dataset.map(functools.partial(_divide, count=len(devices)))
    return grain.experimental.device_put(parts, sharding, cpu_buffer_size=ON_HOST, device_buffer_size=ON_DEVICE)
