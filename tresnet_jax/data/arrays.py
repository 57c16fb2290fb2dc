"""Images in arrays: .npz files in the layout of Keras' data sets, x_train, y_train, x_test, y_test."""

import dataclasses
import zipfile
import zlib
from pathlib import Path

import numpy as np

from tresnet_jax.data.fingerprint import array_digest, labels_digest
from tresnet_jax.data.splits import choose_split, split_kind
from tresnet_jax.data.target_values import TargetFormat, TargetKeys, target_source
from tresnet_jax.data.targets import MultiLabelSource
from tresnet_jax.errors import DataError, reason
from tresnet_jax.files import check_regular


@dataclasses.dataclass(frozen=True, eq=False)
class ArraySource:
    """Images in memory: (N, H, W) or (N, H, W, C) uint8, and (N,) integer labels."""

    name: str
    class_names: tuple[str, ...]
    images: np.ndarray
    labels: np.ndarray
    present: tuple[int, ...]
    """The labels of the classes that the whole split has, ascending."""

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict[str, np.ndarray | int]:
        image = self.images[index]
        return {'image': image if image.ndim == 3 else image[..., None], 'label': int(self.labels[index])}

    def describe(self, index: int) -> str:
        """Return the name of an image in logs."""
        return f'{self.name} {index}'

    def fingerprint(self) -> dict[str, str]:
        """Return digests of the images and the labels."""
        return {'images': array_digest(self.images), 'labels': labels_digest(self.labels)}


def open_npz(
    path: Path,
    split: str | None,
    where: str,
    class_names: tuple[str, ...] | None = None,
    target_format: TargetFormat | None = None,
) -> ArraySource | MultiLabelSource:
    """Open one split of a .npz file.

    The split NAME consists of x_NAME, (N, H, W) or (N, H, W, channels) uint8, and y_NAME, (N,) or (N, 1) integers; or
    with `target_format` 'multihot', (N, classes) numbers from 0 to 1.

    Args:
        path: the file.
        split: as in `choose_split`.
        where: the data set, for errors.
        class_names: the name of each class. None: numbers, up to the highest label of any split.
        target_format: images have any number of labels; None: one.

    Raises:
        DataError: the file cannot be read, has no such split, or has arrays of other shapes, dtypes or labels.
    """
    check_regular(path, DataError)
    try:
        with path.open('rb') as opened:
            file = np.load(opened, allow_pickle=False)
            if isinstance(file, np.ndarray):
                raise DataError(f'{where}: expected a .npz file, got a single array')
            available = [key[2:] for key in file.files if key.startswith('x_') and f'y_{key[2:]}' in file.files]
            chosen = choose_split(split, available, where)
            labels = {name: file[f'y_{name}'] for name in available}
            images = file[f'x_{chosen.name}']
    except DataError:
        raise
    except FileNotFoundError:
        raise DataError(f'{where}: the file {path} does not exist') from None
    except (OSError, ValueError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:  # damaged, encrypted
        raise DataError(f'{where}: cannot be read as a .npz file of plain arrays ({reason(error)})') from error
    _check_images(images, len(np.atleast_1d(labels[chosen.name])), f'{where} x_{chosen.name}')
    if target_format is not None:
        vectors = _vectors(labels[chosen.name], target_format, f'{where} y_{chosen.name}')
        taken = chosen.part(len(images))
        images = images[taken]
        return target_source(
            vectors[taken],
            dataclasses.replace(chosen, start=None, stop=None),
            TargetKeys((), target_format),
            class_names=class_names,
            train=None,
            drawn=None,
            describe=lambda index: f'number {taken.start + index} of y_{chosen.name}',
            make=lambda part: ArraySource(
                f'{where} {chosen.text}', (), images[part], np.zeros(len(part), np.int32), ()
            ),
        )
    labels = {name: _labels(y, f'{where} y_{name}') for name, y in labels.items()}
    highest = max(int(y.max()) for y in labels.values() if len(y))
    if class_names is None:
        class_names = tuple(str(i) for i in range(highest + 1))
    elif highest >= len(class_names):
        raise DataError(f'{where}: labels go up to {highest}, but there are {len(class_names)} classes')
    if len(class_names) < 2:
        raise DataError(f'{where}: only one class; expected at least two')
    present = sorted(set(labels[chosen.name].tolist()))
    train = next((name for name in available if split_kind(name) == 'train'), chosen.name)
    new = sorted({*present} - set(labels[train].tolist()))
    if new:
        raise DataError(f'{where}: {chosen.name} has classes that train does not have: {", ".join(map(str, new[:10]))}')
    part = chosen.part(len(images))
    return ArraySource(f'{where} {chosen.text}', class_names, images[part], labels[chosen.name][part], tuple(present))


def _vectors(labels: np.ndarray, target_format: TargetFormat, where: str) -> list[np.ndarray]:
    """Check labels and return the vector of each image."""
    what = f'{where}: {labels.dtype} {labels.shape}'
    if target_format != 'multihot':
        raise DataError(
            f'{what} cannot be lists of labels; for a number from 0 to 1 per class give --target-format multihot'
        )
    if labels.ndim != 2 or labels.dtype.kind not in 'biuf':
        raise DataError(f'{what}; expected (N, classes) numbers from 0 to 1')
    return [*labels]


def _labels(labels: np.ndarray, where: str) -> np.ndarray:
    """Check labels and return them as (N,)."""
    if labels.ndim == 2 and labels.shape[1] == 1:  # as in Keras' CIFAR
        labels = labels[:, 0]
    if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer):
        raise DataError(f'{where}: expected (N,) integers, got {labels.shape} {labels.dtype}')
    if len(labels) and labels.min() < 0:
        raise DataError(f'{where}: a label is {labels.min()}; the first class is 0')
    return labels


def _check_images(images: np.ndarray, labels: int, where: str) -> None:
    if images.dtype != np.uint8 or images.ndim not in (3, 4):
        raise DataError(f'{where}: expected (N, H, W) or (N, H, W, channels) uint8, got {images.shape} {images.dtype}')
    if not images.size:
        raise DataError(f'{where}: no images')
    if len(images) != labels:
        raise DataError(f'{where}: {len(images)} images but {labels} labels')
