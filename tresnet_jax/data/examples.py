"""Examples by position: read, decode and transform an image; count and log unreadable images."""

import collections
import dataclasses
import logging
import math
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tresnet_jax.data.images import MODES, channels_problem, decode, finish_decoding
from tresnet_jax.data.sources import Source
from tresnet_jax.data.targets import MultiLabelSource
from tresnet_jax.errors import DataError, ImageError, reason, shown

ROUND = 256  # positions of an epoch of repeated augmentation are a multiple, as in timm
KEPT_EPOCHS = 2  # orders in memory: those of the epoch that ends and of the epoch that begins


class Example(NamedTuple):
    """An image, its label, and what happened when it was read."""

    image: np.ndarray
    """(H, W, channels) uint8."""
    label: int | np.ndarray
    """The class, or with any number of classes per image (classes,) float32."""
    index: int
    """Index of the image in the source; -1 for padding after the last image."""
    mask: bool
    """False for a blank, which stands for an unreadable image or for padding."""
    wanted: int
    """Index of the image at this position, which differs from `index` if it was unreadable and replaced."""
    problem: str
    """Why the image `wanted` could not be read; '' if it could."""


def epoch_size(size: int, repeats: float = 0.0) -> int:
    """Return the number of positions in an epoch of `size` images; with `repeats`, timm's multiple of 256."""
    return size // ROUND * ROUND if repeats and size >= ROUND else size


class EpochOrders:
    """Endless shuffled indices: ``orders[position]``. Each epoch has every index once, in a new order.

    With `repeats`, each index stands at that many positions in a row (Hoffer et al., arXiv:1901.09335), and an epoch
    ends after `epoch_size` positions, as in timm's ``RepeatAugSampler``. It has 1 / repeats of the images.

    Args:
        size: number of images.
        seed: determines the orders, at least 0.
        repeats: number of positions of an image, not necessarily whole; 0: one, in epochs of all images.
    """

    def __init__(self, size: int, seed: int, repeats: float = 0.0):
        self.size, self.seed, self.repeats = size, seed, repeats
        self.positions = epoch_size(size, repeats)  # of an epoch
        self._lock = threading.Lock()
        self._orders: collections.OrderedDict[int, np.ndarray] = collections.OrderedDict()

    def __reduce__(self) -> tuple[Any, ...]:  # a lock cannot be pickled
        return EpochOrders, (self.size, self.seed, self.repeats)

    def __getitem__(self, position: int) -> int:
        epoch, place = divmod(position, self.positions)
        return int(self._order(epoch)[math.floor(place / (self.repeats or 1))])

    def _order(self, epoch: int) -> np.ndarray:
        with self._lock:  # all threads need a new order at the same time
            if epoch not in self._orders:
                self._orders[epoch] = np.random.default_rng((self.seed, epoch)).permutation(self.size)
                if len(self._orders) > KEPT_EPOCHS:
                    self._orders.popitem(last=False)
            return self._orders[epoch]


@dataclasses.dataclass(frozen=True)
class TrainExamples:
    """Examples at positions 0, 1, ... without end: reshuffled each epoch, each with its own augmentation.

    An example depends only on the seed and the position. An unreadable image is replaced by the next readable one
    of the order; `patience` images are tried.
    """

    source: Source
    orders: EpochOrders
    transform: Callable[[Any, np.random.Generator], np.ndarray]
    patience: int
    max_value: float | None = None
    """White in grey images of more than 8 bits; see `load_image`."""
    channels: int = 3

    def __call__(self, position: int) -> Example:
        failed: list[tuple[int, str]] = []
        for at in range(position, position + self.patience):
            index = self.orders[at]
            record = _read(self.source, index)
            try:
                label = _label(self.source, index, record)
                rng = np.random.default_rng((self.orders.seed, position))
                transform = lambda image, rng=rng: self.transform(image, rng)  # noqa: E731
                pixels = _transformed(record['image'], transform, self.max_value, self.channels)
            except ImageError as error:
                failed.append((index, str(error)))
                continue
            wanted, problem = failed[0] if failed else (index, '')
            return Example(pixels, label, index, True, wanted, problem)
        raise DataError(
            f'{self.source.name}: {len(failed)} images in a row cannot be read; '
            f'the first is {shown(self.source.describe(failed[0][0]))}: {failed[0][1]}'
        )


@dataclasses.dataclass(frozen=True)
class SpreadExamples:
    """Examples in another order within each batch: all first copies of the images, then all second ones, and so on.

    Repeated augmentation would otherwise mix an image with itself, because mixup and CutMix mix neighbours. Copies also
    come to different devices, as in timm.
    """

    examples: Callable[[int], Example]
    batch_size: int
    copies: int

    def __call__(self, slot: int) -> Example:
        batch, place = divmod(slot, self.batch_size)
        whole, rest = divmod(self.batch_size, self.copies)  # the first `rest` groups have one more
        if place < rest * (whole + 1):
            group, at = divmod(place, whole + 1)
        else:
            group, at = divmod(place - rest * (whole + 1), whole)
            group += rest
        return self.examples(batch * self.batch_size + at * self.copies + group)


@dataclasses.dataclass(frozen=True)
class EvalExamples:
    """Examples of one pass in the source's order. Unreadable images and padding are blanks with mask False."""

    source: Source
    crop: Callable[[Any], np.ndarray]
    height: int
    width: int
    max_value: float | None = None
    channels: int = 3

    def __call__(self, position: int) -> Example:
        blank = np.zeros((self.height, self.width, self.channels), np.uint8)
        none = self.source.blank() if isinstance(self.source, MultiLabelSource) else 0
        if position >= len(self.source):
            return Example(blank, none, -1, False, -1, '')
        record = _read(self.source, position)
        try:
            label = _label(self.source, position, record)
            pixels = _transformed(record['image'], self.crop, self.max_value, self.channels)
            return Example(pixels, label, position, True, position, '')
        except ImageError as error:
            return Example(blank, none, position, False, position, str(error))


def _read(source: Source, index: int) -> Any:
    """Return a record; if its file is missing or damaged, its 'image' is the exception."""
    try:
        return source[index]
    except DataError:
        raise
    except Exception as error:  # OSError for files; array_record and TFDS raise errors of their own
        return {'image': error, 'label': 0}


def _label(source: Source, index: int, record: Any) -> int | np.ndarray:
    """Return the label of a record, or the targets of its classes.

    Raises:
        DataError: it is not the number of a class.
    """
    if 'target' in record:  # checked where it is read
        return record['target']
    label = record['label']
    if not 0 <= label < source.num_classes:
        raise DataError(f'{shown(source.describe(index))} has label {label}; expected 0 to {source.num_classes - 1}')
    return label


def _transformed(
    data: Any, transform: Callable[[Any], np.ndarray], max_value: float | None, channels: int
) -> np.ndarray:
    """Decode and transform an image, or an array of another number of channels than 1 and 3.

    Raises:
        ImageError: the image cannot be read, or the transform refuses it with a ValueError.
    """
    if isinstance(data, Exception):
        raise ImageError(reason(data))
    if channels not in MODES:
        if problem := channels_problem(data, channels):
            raise ImageError(problem)
        return transform(data)
    try:
        return transform(decode(data, max_value, channels))
    except ImageError:
        raise
    except ValueError as error:
        raise ImageError(reason(error)) from error
    except Exception:
        # Pillow may raise nearly anything. If the image can be decoded, the error is the transform's.
        finish_decoding(decode(data, max_value, channels))
        raise


def allowed_unreadable(size: int, share: float) -> int:
    """Return how many of `size` images may be unreadable if a share of them may be."""
    return math.floor(share * size + 1e-6)


def check_total(source: Source, skipped: int, share: float) -> None:
    """Check the unreadable images of all processes, each of which has counted its own.

    Args:
        source: the source of the images.
        skipped: number of unreadable images.
        share: the largest share of the images that may be unreadable.

    Raises:
        DataError: there are more.
    """
    if skipped > allowed_unreadable(len(source), share):
        raise DataError(f'{source.name}: {_too_many(skipped, len(source), share)}')


def _too_many(skipped: int, size: int, share: float) -> str:
    return f'{skipped} of {size} images cannot be read, more than the allowed share of {share:g} (max_unreadable)'


class Unreadable:
    """Counts the unreadable images of batches, logs each once, and raises when there are too many.

    It runs in the process that consumes the batches, whichever process decoded them, and counts the images of that
    process's batches. `check_total` counts those of several processes.

    Args:
        source: the source of the images.
        share: the largest share of the source's images that may be unreadable.
        log: a file that lists the unreadable images, one per line, created when needed. None: no file.
    """

    def __init__(self, source: Source, share: float, log: Path | None):
        self.source, self.share, self.log = source, share, log
        self.allowed = allowed_unreadable(len(source), share)
        self.known: dict[int, str] = {}

    def check(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Remove 'wanted' and 'problem' from a batch and record the problems.

        Raises:
            DataError: more than the allowed share is unreadable, or the log cannot be written.
        """
        wanted, problems = batch.pop('wanted'), batch.pop('problem')
        new = {int(i): str(p) for i, p in zip(wanted, problems, strict=True) if p and int(i) not in self.known}
        if new:
            self._record(new)
        return batch

    def _record(self, new: dict[int, str]) -> None:
        first = not self.known
        self.known |= new
        lines = [f'{shown(self.source.describe(index))}: {shown(problem)}' for index, problem in new.items()]
        if self.log is not None:
            try:
                logged = set(self.log.read_text(encoding='utf-8').splitlines()) if self.log.exists() else set()
                with self.log.open('a', encoding='utf-8') as file:
                    file.writelines(f'{line}\n' for line in lines if line not in logged)
            except OSError as error:
                raise DataError(f'{self.log}: cannot be written: {reason(error)}; it would get {lines[-1]}') from error
        where = '' if self.log is None else f'; {self.log} lists all of them'
        if len(self.known) > self.allowed:
            what = _too_many(len(self.known), len(self.source), self.share)
            raise DataError(f'{self.source.name}: {what}; the last is {lines[-1]}{where}')
        if first:
            logging.getLogger(__name__).warning('an unreadable image is skipped: %s%s', lines[0], where)
