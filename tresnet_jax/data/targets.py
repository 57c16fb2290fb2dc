"""Targets of images with any number of classes, and sources that have them."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from tresnet_jax.data.fingerprint import array_digest


@dataclasses.dataclass(frozen=True, eq=False)
class Targets:
    """(N, classes) numbers from 0 to 1, of which only those above 0 are in memory. ``targets[index]`` is one row."""

    starts: np.ndarray
    """(N + 1,) int64: where each image begins in the next two, and their length."""
    classes: np.ndarray
    """int32, ascending for each image."""
    values: np.ndarray
    """float32, above 0."""
    num_classes: int

    def __len__(self) -> int:
        return len(self.starts) - 1

    def __getitem__(self, index: int) -> np.ndarray:
        """Return (classes,) float32."""
        if not 0 <= index < len(self):
            raise IndexError(f'image {index} of {len(self)}')
        part = slice(self.starts[index], self.starts[index + 1])
        row = np.zeros(self.num_classes, np.float32)
        row[self.classes[part]] = self.values[part]
        return row

    def select(self, indices: np.ndarray) -> 'Targets':
        """Return the targets of some images, in the order of their indices."""
        lengths = self.starts[indices + 1] - self.starts[indices]
        starts = np.concatenate([[0], np.cumsum(lengths)])
        places = np.arange(starts[-1]) + np.repeat(self.starts[indices] - starts[:-1], lengths)
        return Targets(starts, self.classes[places], self.values[places], self.num_classes)

    def counts(self) -> np.ndarray:
        """Return the sum over all images, (classes,) float64."""
        return np.bincount(self.classes, self.values, self.num_classes)

    def digest(self) -> str:
        """Return a digest of all values."""
        parts = (self.starts.astype('<i8'), self.classes.astype('<i8'), self.values.astype('<f8'))
        return array_digest(np.concatenate([[self.num_classes], *parts]).astype('<f8'))


def targets_of(rows: Sequence[dict[int, float]], num_classes: int) -> Targets:
    """Return the targets of images, each a dict of its classes and their values; values of 0 may be left out."""
    kept = [sorted((label, value) for label, value in row.items() if value) for row in rows]
    return Targets(
        np.cumsum([0, *map(len, kept)], dtype=np.int64),
        np.asarray([label for row in kept for label, _ in row], np.int32),
        np.asarray([value for row in kept for _, value in row], np.float32),
        num_classes,
    )


@dataclasses.dataclass(frozen=True, eq=False)
class MultiLabelSource:
    """The images of a source, with any number of classes each.

    A record has 'target', (classes,) float32, instead of 'label'.
    """

    source: Any
    """A `Source`; its labels are not used."""
    class_names: tuple[str, ...]
    targets: Targets | None
    """None: the records of the source have 'target' already."""

    @property
    def name(self) -> str:
        return self.source.name

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    @property
    def present(self) -> tuple[int, ...]:
        """All labels; images may lack any."""
        return tuple(range(self.num_classes))

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> dict[str, Any]:
        record = self.source[index]
        target = record['target'] if self.targets is None else self.targets[index]
        return {'image': record['image'], 'target': target}

    def describe(self, index: int) -> str:
        """Return the name of an image in logs."""
        return self.source.describe(index)

    def fingerprint(self) -> dict[str, str]:
        """Return the digests of the source, and that of the targets."""
        found = self.source.fingerprint()
        return found if self.targets is None else found | {'labels': self.targets.digest()}

    def blank(self) -> np.ndarray:
        """Return the target of an image without classes."""
        return np.zeros(self.num_classes, np.float32)
