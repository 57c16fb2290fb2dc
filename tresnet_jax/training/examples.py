"""One example: from a position in the endless order of pictures, or in one pass, to pixels and a label."""

import collections
import dataclasses
import threading
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from tresnet_jax.pictures import PictureError
from tresnet_jax.training.decoding import decode, reason
from tresnet_jax.training.errors import DataError
from tresnet_jax.training.sources import Source, StreamedSource

KEPT_EPOCHS = 2  # orders in memory: of the epoch that ends and of the one that begins


class Example(NamedTuple):
    """Of one picture.

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
    """Positions 0, 1, ... without end: the pictures shuffled anew each epoch, each with its own augmentation.

    An example depends on the seed and the position alone. In place of a picture that cannot be read comes the next
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
                pixels = _transformed(record['image'], lambda picture, rng=rng: self.transform(picture, rng))
            except PictureError as error:
                failed.append((index, str(error)))
                continue
            wanted, problem = failed[0] if failed else (index, '')
            return Example(pixels, label, index, True, wanted, problem)
        raise DataError(
            f'{self.source.name}: {len(failed)} pictures in a row cannot be read, '
            f'the first is {self.source.describe(failed[0][0])}: {failed[0][1]}'
        )


@dataclasses.dataclass(frozen=True)
class EvalExamples:
    """Positions of one pass in the source's order. A picture that cannot be read, and what lies beyond the last
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
        except PictureError as error:
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
    """A record; one whose file is gone, or damaged, is an unreadable picture."""
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
        PictureError: the picture cannot be read, or the transform refuses it by a ValueError.
    """
    if isinstance(data, Exception):
        raise PictureError(reason(data))
    try:
        return transform(decode(data))
    except PictureError:
        raise
    except ValueError as error:
        raise PictureError(reason(error)) from error
    except Exception:
        # Pillow may raise nearly anything. Where the picture can be decoded it was the transform, which is broken.
        picture = decode(data)
        try:
            picture.load()
        except Exception as error:
            raise PictureError(reason(error)) from error
        raise
