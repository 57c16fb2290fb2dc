"""Images in files, with labels: what folders and CSV files have in common."""

import dataclasses
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np

from tresnet_jax.data.class_matching import match_names, normal_name
from tresnet_jax.data.fingerprint import labels_digest, names_digest, sizes_digest
from tresnet_jax.data.splits import Split, split_kind
from tresnet_jax.data.walk import natural_key
from tresnet_jax.errors import DataError, shown

T = TypeVar('T')


@dataclasses.dataclass(frozen=True, eq=False)
class FileSource:
    """Image files: N paths below `root`, in POSIX form, and (N,) integer labels."""

    name: str
    class_names: tuple[str, ...]
    root: Path
    files: tuple[str, ...]
    labels: np.ndarray
    present: tuple[int, ...]
    """The labels of the classes that the whole split has, ascending."""

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> dict[str, bytes | int]:
        return {'image': (self.root / self.files[index]).read_bytes(), 'label': int(self.labels[index])}

    def describe(self, index: int) -> str:
        """Return the path of an image. Bytes that are not UTF-8 are surrogates, as in Python's `os` functions."""
        return str(self.root / self.files[index])

    def fingerprint(self) -> dict[str, str]:
        """Return digests of the paths below the root, the sizes of the files and the labels."""
        sizes = sizes_digest([os.path.join(self.root, file) for file in self.files])
        return {'names': names_digest(self.files), 'sizes': sizes, 'labels': labels_digest(self.labels)}


def class_order(names: Sequence[str]) -> tuple[str, ...]:
    """Return class names in the order of their labels: timm's natural order, each name once, in Unicode's form NFC.

    Names that differ only in case are different classes, in the order of their characters.
    """
    order = sorted(names, key=lambda name: (natural_key(name), name))
    return tuple(dict.fromkeys(normal_name(name) for name in order))


def labels_of(classes: Sequence[str], class_names: Sequence[str], split: str, where: str) -> list[int]:
    """Return the label of each class of a split: its place in the class names of the run or of the training split.

    Raises:
        DataError: a class is not among them, or two have the same label.
    """
    found = match_names(classes, class_names, where, 'the training split')
    if found.missing:
        extra = ', '.join(map(shown, found.missing[:5]))
        known = ', '.join(map(shown, class_names[:5])) + ', ...' * (len(class_names) > 5)
        if split_kind(split) == 'train':  # the class names are those of a class map or a run
            raise DataError(
                f'{where}: {len(found.missing)} classes of {shown(split)} are not among the class names: {extra}; '
                f'these are {known}'
            )
        raise DataError(
            f'{where}: train and {shown(split)} have different classes; {len(found.missing)} only in {shown(split)}: '
            f'{extra}; the training split has {known}'
        )
    first: dict[int, str] = {}
    for name, label in zip(classes, found.places, strict=True):
        other = first.setdefault(label, normal_name(name))
        if other != normal_name(name):
            raise DataError(f'{where}: {shown(other)} and {shown(name)} of {shown(split)} are the same class of train')
    return found.places


def repeated_files(paths: Sequence[str], root: Path) -> Iterator[tuple[int, int]]:
    """Yield the places of two paths of the same file, for each path that repeats an earlier one.

    The paths may differ: 'a.png' and './a.png', 'b//a.png' or an absolute path; on some file systems 'A.png' too.

    Args:
        paths: paths below `root`, or absolute ones.
        root: where the paths start.
    """
    root = root.absolute()
    places: dict[str, tuple[int, ...]] = {}
    for place, path in enumerate(paths):
        alike = normal_name(os.path.normpath(os.path.join(root, path))).casefold()
        earlier = places.get(alike, ())
        same = next((other for other in earlier if _is_same_file(root / paths[other], root / path)), None)
        if same is None:
            places[alike] = (*earlier, place)
        else:
            yield same, place


def _is_same_file(one: Path, two: Path) -> bool:
    try:
        return one == two or one.samefile(two)
    except OSError:
        return False


def fixed_order(size: int) -> np.ndarray:
    """Return a fixed random order, in which every part resembles the whole."""
    return np.random.default_rng(0).permutation(size)


def share(files: Sequence[T], validation: bool, fraction: float) -> list[T]:
    """Return the validation or the training files of a class; at least one is for training."""
    count = min(max(1, round(len(files) * fraction)) if fraction else 0, len(files) - 1)
    order: list[int] = fixed_order(len(files)).tolist()
    return [files[i] for i in sorted(order[:count] if validation else order[count:])]


def make_source(
    where: str,
    split: Split,
    class_names: Sequence[str],
    root: Path,
    groups: Sequence[Sequence[str]],
    labels: Sequence[int],
) -> FileSource:
    """Return the source of the requested part of a split.

    A part is drawn at random, because the files are sorted by class. Which files it has does not depend on the labels.

    Args:
        where: the data set, for the name and for errors.
        split: the split, and the part of it.
        class_names: the name of each label.
        root: where the paths start.
        groups: the files of each class of the split, as paths below `root`.
        labels: the label of each group.

    Raises:
        DataError: the part has no files.
    """
    files = [file for group in groups for file in group]
    every = np.repeat(np.asarray(labels, np.int32), [len(group) for group in groups])
    present = tuple(sorted({label for label, group in zip(labels, groups, strict=True) if group}))
    if (part := split.part(len(files))) != slice(0, len(files)):
        kept = np.sort(fixed_order(len(files))[part])
        files, every = [files[i] for i in kept], every[kept]
    return FileSource(shown(f'{where} {split.text}'), tuple(class_names), root, tuple(files), every, present)
