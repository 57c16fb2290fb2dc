"""Where images and labels come from: 'tfds:NAME', 'folder:DIR', 'npz:FILE' or 'embedded:fashion_mnist'."""

import importlib.resources
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from tresnet_jax.data.arrays import open_npz
from tresnet_jax.data.folders import open_folder
from tresnet_jax.data.tfds import open_tfds
from tresnet_jax.errors import DataError
from tresnet_jax.labels import FASHION_MNIST

KINDS = 'tfds:NAME, folder:DIR, npz:FILE or embedded:fashion_mnist'

__all__ = ['DataError', 'Source', 'StreamedSource', 'open_source']


class Source(Protocol):
    """Labelled images, by index; it can be pickled, for worker processes."""

    @property
    def name(self) -> str:
        """The data set and the split, for people."""
        ...

    @property
    def class_names(self) -> tuple[str, ...]:
        """One a class, in the order of the labels."""
        ...

    @property
    def num_classes(self) -> int: ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> dict[str, Any]:
        """'image': an encoded image as bytes, or (H, W, C) uint8; 'label': int."""
        ...

    def describe(self, index: int) -> str:
        """What an image is called in logs: its file, or the data set and the index."""
        ...


@runtime_checkable
class StreamedSource(Protocol):
    """A source that is read from start to end, since reading by index would be slow."""

    def stream(self, seed: int | None, chunk: int) -> Any:
        """``stream[position]`` is (index, record), shuffled anew in each pass, or in order without a seed."""
        ...


def open_source(
    data: str, split: str | None, *, data_dir: str | Path | None = None, val_fraction: float = 0.1
) -> Source:
    """Open one split of a data set.

    - ``tfds:NAME``: prepared by TensorFlow Datasets. array_record files need no TensorFlow; TFRecord files do
      (extra `tf`).
    - ``folder:DIR``: DIR/train/CLASS/..., DIR/val/CLASS/... (or validation, test), or DIR/CLASS/..., of which a
      share is for validation.
    - ``npz:FILE``: x_train, y_train, x_test, y_test, as in Keras' .npz files.
    - ``embedded:fashion_mnist``: the 2,000 and 500 images that come with this package.

    Args:
        data: one of these.
        split: 'train', 'validation' (or 'val') or 'test', as there is, perhaps a part, 'train[:500]' or
            'train[10%:]'. None is the split to evaluate on: validation, val or test.
        data_dir: of tfds: where its data are; None is its own default. Others take paths relative to it.
        val_fraction: the share of a folder without splits that is for validation.

    Raises:
        DataError: an unknown kind, no such data set or split, or data that cannot be trained on.
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
