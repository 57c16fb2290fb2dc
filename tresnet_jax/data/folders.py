"""Images in class folders: DIR/train/cat/1.jpg and DIR/val/cat/2.jpg, or DIR/cat/1.jpg without splits."""

import dataclasses
import os
from pathlib import Path

import numpy as np

from tresnet_jax.data.images import is_hidden, is_image
from tresnet_jax.data.splits import EVALUATION, choose_split
from tresnet_jax.errors import DataError

SPLITS = ('train', *EVALUATION)


@dataclasses.dataclass(frozen=True, eq=False)
class FolderSource:
    """Image files: N paths below `root`, in POSIX form, and (N,) integer labels."""

    name: str
    class_names: tuple[str, ...]
    root: Path
    files: tuple[str, ...]
    labels: np.ndarray

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> dict[str, bytes | int]:
        return {'image': (self.root / self.files[index]).read_bytes(), 'label': int(self.labels[index])}

    def describe(self, index: int) -> str:
        """Return the name of an image in logs."""
        return str(self.root / self.files[index])


def open_folder(root: Path, split: str | None, where: str, val_fraction: float) -> FolderSource:
    """Open one split of a folder. The classes are its subfolders, sorted by name, with images at any depth.

    The splits are those of the folders train, validation, val and test that contain folders. If there are none,
    `root` contains the classes, and a share of each class, drawn with a fixed seed, is the split 'validation'.
    A slice of a split is drawn at random too, because the files are sorted by class.

    Args:
        root: the folder.
        split: as in `choose_split`.
        where: the data set, for errors.
        val_fraction: the share of each class that is for validation if the folder has no splits.

    Raises:
        DataError: the folder or the split does not exist, there are fewer than two classes, a class has no images, or
            train and the split have different classes.
    """
    if not root.is_dir():
        raise DataError(f'{where}: the folder {root} does not exist')
    splits = [name for name in SPLITS if _folders(root / name)]
    chosen = choose_split(split, splits or ('train', 'validation'), where)
    base = root / chosen.name if splits else root
    classes = _folders(base)
    if not classes:
        raise DataError(f'{where}: no class folders in {base}; expected {base}/CLASS/IMAGE')
    if len(classes) == 1:
        raise DataError(f'{where}: only one class folder, {base / classes[0]}; expected at least two')
    if 'train' in splits:
        _check_same(_folders(root / 'train'), classes, chosen.name, where)
    by_class = [_images(base, name) for name in classes]
    empty = [str(base / name) for name, files in zip(classes, by_class, strict=True) if not files]
    if empty:
        names = ', '.join(empty[:5])
        raise DataError(f'{where}: no images in {len(empty)} of {len(classes)} class folders: {names}')
    if not splits:
        by_class = [_share(files, chosen.name == 'validation', val_fraction) for files in by_class]
    files = [file for group in by_class for file in group]
    if not files:
        raise DataError(f'{where}: no images for {chosen.name}; val_fraction is {val_fraction}')
    labels = np.repeat(np.arange(len(classes), dtype=np.int32), [len(group) for group in by_class])
    if (part := chosen.part(len(files))) != slice(0, len(files)):
        kept = np.sort(_order(len(files))[part])
        files, labels = [files[i] for i in kept], labels[kept]
    return FolderSource(f'{where} {chosen.text}', tuple(classes), base, tuple(files), labels)


def _folders(path: Path) -> list[str]:
    """Return the names of the folders in a folder, sorted; hidden folders are skipped."""
    if not path.is_dir():
        return []
    with os.scandir(path) as entries:
        return sorted(entry.name for entry in entries if entry.is_dir() and not is_hidden(entry.name))


def _images(base: Path, name: str) -> list[str]:
    """Return the paths of the images of a class, relative to `base`, sorted."""
    found = []
    for folder, _, files in os.walk(base / name, followlinks=True):
        below = Path(folder).relative_to(base).as_posix()
        found += [f'{below}/{file}' for file in files if is_image(file)]
    return sorted(found)


def _order(size: int) -> np.ndarray:
    """Return a fixed random order, in which every part resembles the whole."""
    return np.random.default_rng(0).permutation(size)


def _share(files: list[str], validation: bool, fraction: float) -> list[str]:
    """Return the validation or the training files of a class; at least one is for training."""
    count = min(max(1, round(len(files) * fraction)) if fraction else 0, len(files) - 1)
    order = _order(len(files))
    return [files[i] for i in sorted(order[:count] if validation else order[count:])]


def _check_same(train: list[str], other: list[str], name: str, where: str) -> None:
    """Raise DataError if the split `name` has other class folders than train."""
    extra, missing = sorted({*other} - {*train}), sorted({*train} - {*other})
    differences = [
        f'{len(names)} {what}: {", ".join(names[:5])}'
        for names, what in ((extra, f'only in {name}'), (missing, 'only in train'))
        if names
    ]
    if differences:
        raise DataError(f'{where}: train and {name} have different class folders; {"; ".join(differences)}')
