"""Sources of labelled images: 'tfds:NAME', 'folder:DIR', 'npz:FILE' or 'embedded:fashion_mnist'."""

import importlib.resources
from pathlib import Path
from typing import Any, Protocol

from tresnet_jax.data.arrays import open_npz
from tresnet_jax.data.folders import open_folder
from tresnet_jax.data.tfds import open_tfds
from tresnet_jax.errors import DataError
from tresnet_jax.labels import FASHION_MNIST

KINDS = 'tfds:NAME, folder:DIR, npz:FILE or embedded:fashion_mnist'


class Source(Protocol):
    """Labelled images by index. A source can be pickled, for worker processes."""

    @property
    def name(self) -> str:
        """The data set and the split, for messages."""
        ...

    @property
    def class_names(self) -> tuple[str, ...]:
        """The name of each class, in the order of the labels."""
        ...

    @property
    def num_classes(self) -> int: ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Return {'image': an encoded image as bytes, or (H, W, C) uint8; 'label': int}."""
        ...

    def describe(self, index: int) -> str:
        """Return the name of an image in logs: its file, or the data set and the index."""
        ...


def open_source(
    data: str, split: str | None, *, data_dir: str | Path | None = None, val_fraction: float = 0.1
) -> Source:
    """Open one split of a data set.

    - ``tfds:NAME``: prepared by TensorFlow Datasets, in array_record or TFRecord files.
    - ``folder:DIR``: DIR/train/CLASS/... and DIR/val/CLASS/... (or validation, test); or DIR/CLASS/..., where a share
      of each class is for validation.
    - ``npz:FILE``: x_train, y_train, x_test, y_test, as in Keras' .npz files.
    - ``embedded:fashion_mnist``: the 2,000 training and 500 test images in this package.

    Args:
        data: one of these.
        split: 'train', 'validation' (or 'val') or 'test', perhaps with a slice, 'train[:500]' or 'train[10%:]'.
            None: the split to evaluate on, 'validation', 'val' or 'test'.
        data_dir: for tfds, the folder of its prepared data; None: TFDS's default. For folder and npz, the folder that
            relative paths start from; None: the current one.
        val_fraction: the share of a folder without splits that is for validation.

    Raises:
        DataError: an unknown kind of data, a missing data set or split, or data that cannot be trained on.
    """
    kind, _, name = data.partition(':')
    if not 0 <= val_fraction < 1:
        raise DataError(f'val_fraction must be at least 0 and less than 1, got {val_fraction}')
    data_dir = None if data_dir is None else Path(data_dir).expanduser()
    path = (data_dir or Path()) / Path(name).expanduser()
    if kind == 'tfds' and name:
        return open_tfds(name, split, data_dir, data)
    if kind == 'folder' and name:
        return open_folder(path, split, data, val_fraction)
    if kind == 'npz' and name:
        return open_npz(path, split, data)
    if data == 'embedded:fashion_mnist':
        embedded = Path(str(importlib.resources.files('tresnet_jax') / 'embedded' / 'fashion_mnist_subset.npz'))
        return open_npz(embedded, split, data, FASHION_MNIST)
    raise DataError(f'unknown data {data!r}; expected {KINDS}')
