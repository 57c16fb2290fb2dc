"""One example: from a position in the endless order of images, or in one pass, to pixels and a label."""

import collections
import dataclasses
import logging
import math
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from tresnet_jax.data.images import decode
from tresnet_jax.data.sources import Source, StreamedSource
from tresnet_jax.errors import DataError, ImageError, reason

KEPT_EPOCHS = 2  # orders in memory: of the epoch that ends and of the one that begins


class Example(NamedTuple):
    """Of one image.

    `index` is its place in the source, -1 for a blank. `wanted` is the index of the one that should have been
    there, and `problem` says why it could not be read ('' where nothing is wrong).
    """

    image: np.ndarray
    label: int
    index: int
    mask: bool
    wanted: int
    problem: str


@dataclasses.dataclass(frozen=True)
class TrainExamples:
    """Positions 0, 1, ... without end: the images shuffled anew each epoch, each with its own augmentation.

    An example depends on the seed and the position alone. In place of an image that cannot be read comes the next
    one of the order that can, `patience` of them being tried.
    """

    source: Source
    records: Any  # position -> (index, record)
    transform: Callable[[Image.Image, np.random.Generator], np.ndarray]
    seed: int
    patience: int

    def __call__(self, position: int) -> Example:
        failed: list[tuple[int, str]] = []
        for at in range(position, position + self.patience):
            index, record = self.records[at]
            try:
                label = _label(self.source, index, record)
                rng = np.random.default_rng((self.seed, position))
                pixels = _transformed(record['image'], lambda image, rng=rng: self.transform(image, rng))
            except ImageError as error:
                failed.append((index, str(error)))
                continue
            wanted, problem = failed[0] if failed else (index, '')
            return Example(pixels, label, index, True, wanted, problem)
        raise DataError(
            f'{self.source.name}: {len(failed)} images in a row cannot be read, '
            f'the first is {self.source.describe(failed[0][0])}: {failed[0][1]}'
        )


@dataclasses.dataclass(frozen=True)
class EvalExamples:
    """Positions of one pass in the source's order. An image that cannot be read, and what lies beyond the last
    one, is a blank with mask 0."""

    source: Source
    records: Any
    crop: Callable[[Image.Image], np.ndarray]
    blank: tuple[int, int]  # height and width

    def __call__(self, position: int) -> Example:
        blank = np.zeros((*self.blank, 3), np.uint8)
        if position >= len(self.source):
            return Example(blank, 0, -1, False, -1, '')
        index, record = self.records[position]
        try:
            label = _label(self.source, index, record)
            return Example(_transformed(record['image'], self.crop), label, index, True, index, '')
        except ImageError as error:
            return Example(blank, 0, index, False, index, str(error))


def shuffled(source: Source, seed: int, chunk: int) -> Any:
    """Endless records of a source, each epoch in a new order: position -> (index, record)."""
    return source.stream(seed, chunk) if isinstance(source, StreamedSource) else _Shuffled(source, seed)


def in_order(source: Source, chunk: int) -> Any:
    """The records of a source as they come: position -> (index, record)."""
    return source.stream(None, chunk) if isinstance(source, StreamedSource) else _InOrder(source)


class _InOrder:
    def __init__(self, source: Source):
        self.source = source

    def __getitem__(self, position: int) -> tuple[int, Any]:
        return position, _read(self.source, position)


class _Shuffled:
    def __init__(self, source: Source, seed: int):
        self.source, self.seed = source, seed
        self._lock = threading.Lock()
        self._orders: collections.OrderedDict[int, np.ndarray] = collections.OrderedDict()

    def __reduce__(self) -> tuple[Any, ...]:  # for pickle: locks cannot travel
        return _Shuffled, (self.source, self.seed)

    def __getitem__(self, position: int) -> tuple[int, Any]:
        epoch, place = divmod(position, len(self.source))
        index = int(self._order(epoch)[place])
        return index, _read(self.source, index)

    def _order(self, epoch: int) -> np.ndarray:
        with self._lock:  # all threads need a new order at the same time
            if epoch not in self._orders:
                self._orders[epoch] = np.random.default_rng((self.seed, epoch)).permutation(len(self.source))
                if len(self._orders) > KEPT_EPOCHS:
                    self._orders.popitem(last=False)
            return self._orders[epoch]


def _read(source: Source, index: int) -> Any:
    """A record; one whose file is gone, or damaged, is an unreadable image."""
    try:
        return source[index]
    except DataError:
        raise
    except Exception as error:  # OSError for files, errors of their own for array_record and others
        return {'image': error, 'label': 0}


def _label(source: Source, index: int, record: Any) -> int:
    label = record['label']
    if not 0 <= label < source.num_classes:
        raise DataError(f'{source.describe(index)} has label {label}; expected 0 to {source.num_classes - 1}')
    return label


def _transformed(data: Any, transform: Callable[[Image.Image], np.ndarray]) -> np.ndarray:
    """Decode and transform.

    Raises:
        ImageError: the image cannot be read, or the transform refuses it by a ValueError.
    """
    if isinstance(data, Exception):
        raise ImageError(reason(data))
    try:
        return transform(decode(data))
    except ImageError:
        raise
    except ValueError as error:
        raise ImageError(reason(error)) from error
    except Exception:
        # Pillow may raise nearly anything. Where the image can be decoded it was the transform, which is broken.
        image = decode(data)
        try:
            image.load()
        except Exception as error:
            raise ImageError(reason(error)) from error
        raise


class Unreadable:
    """Takes what batches tell of unreadable images; names each once in a log file; stops where there are too many.

    It works in the process that takes the batches, whoever decoded them, so it counts what this process has met.

    Args:
        source: what the images are from.
        share: the largest share of the source's images that may be unreadable.
        log: a file, made when it is needed, to which a line an image is added that is not there yet.
    """

    def __init__(self, source: Source, share: float, log: Path | None):
        self.source, self.share, self.log = source, share, log
        self.allowed = math.floor(share * len(source) + 1e-6)
        self.known: dict[int, str] = {}

    def check(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Remove 'wanted' and 'problem' from a batch, and take note.

        Raises:
            DataError: more than the share is unreadable.
        """
        wanted, problems = batch.pop('wanted'), batch.pop('problem')
        new = {int(i): str(p) for i, p in zip(wanted, problems, strict=True) if p and int(i) not in self.known}
        if new:
            self._note(new)
        return batch

    def _note(self, new: dict[int, str]) -> None:
        first = not self.known
        self.known |= new
        lines = [f'{self.source.describe(index)}: {problem}' for index, problem in new.items()]
        if self.log is not None:
            there = set(self.log.read_text(encoding='utf-8').splitlines()) if self.log.exists() else set()
            with self.log.open('a', encoding='utf-8') as file:
                file.writelines(f'{line}\n' for line in lines if line not in there)
        where = '' if self.log is None else f'; all are named in {self.log}'
        if len(self.known) > self.allowed:
            raise DataError(
                f'{self.source.name}: {len(self.known)} of {len(self.source)} images cannot be read, more than the '
                f'share of {self.share:g} that may be (max_unreadable); the last is {lines[-1]}{where}'
            )
        if first:
            logging.getLogger(__name__).warning('an image that cannot be read is left out: %s%s', lines[0], where)
