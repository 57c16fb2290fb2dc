"""Sources of labelled images, each a kind and a name: 'folder:DIR', 'csv:FILE', 'tfds:NAME' and others."""

import importlib.resources
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from tresnet_jax.data.arrays import open_npz
from tresnet_jax.data.coco import open_coco
from tresnet_jax.data.csv_source import open_csv
from tresnet_jax.data.folders import open_folder
from tresnet_jax.data.hfds import open_hfds
from tresnet_jax.data.images import channels_problem
from tresnet_jax.data.target_values import TargetFormat
from tresnet_jax.data.tfds import open_tfds
from tresnet_jax.data.webdataset import open_webdataset
from tresnet_jax.errors import DataError
from tresnet_jax.labels import FASHION_MNIST

KINDS = 'tfds:NAME, folder:DIR, csv:FILE, wds:PATTERN, hfds:NAME, npz:FILE, coco:DIR or embedded:fashion_mnist'
WITH_KEYS = ('wds', 'hfds')  # kinds of data with --input-key and --target-key
WITH_TARGETS = ('csv', 'wds', 'hfds', 'tfds')  # kinds with --target-key if images have any number of labels
ONE_LABEL = ('folder', 'embedded')


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

    @property
    def present(self) -> tuple[int, ...]:
        """The labels of the classes that the whole split has, ascending; all labels if that is unknown."""
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Return {'image': an encoded image as bytes, or (H, W, C) uint8; 'label': int}.

        A `MultiLabelSource` returns 'target', (classes,) float32, instead of 'label'.
        """
        ...

    def describe(self, index: int) -> str:
        """Return the name of an image in logs: its file, or the data set and the index."""
        ...

    def fingerprint(self) -> dict[str, str]:
        """Return digests of what makes up the examples, in their order: 'names', 'sizes' and 'labels', for example.

        They show that a data set has changed. Image files are not read, and their folder does not matter.
        """
        ...


def open_source(
    data: str,
    split: str | None,
    *,
    data_dir: str | Path | None = None,
    val_fraction: float = 0.1,
    class_names: Sequence[str] | None = None,
    for_evaluation: bool = False,
    unlabelled: bool = False,
    input_key: str | None = None,
    target_key: str | None = None,
    target_format: TargetFormat | None = None,
    keep_unlabelled: bool = False,
) -> Source:
    """Open one split of a data set.

    - ``tfds:NAME``: prepared by TensorFlow Datasets, in array_record or TFRecord files.
    - ``folder:DIR``: DIR/train/CLASS/... and DIR/val/CLASS/... (or a synonym, see `SYNONYMS`); or DIR/CLASS/..., where
      a share of each class is for validation.
    - ``csv:FILE``: the columns path, label or labels and, optionally, split.
    - ``wds:PATTERN``: tar shards, WebDataset's format: a folder, or a path with braces, '*' and '?'.
    - ``hfds:NAME``: a folder or a data set of the hub that Hugging Face's library `datasets` can read.
    - ``npz:FILE``: x_train, y_train, x_test, y_test, as in Keras' .npz files.
    - ``coco:DIR``: images with any number of labels, in the layout of MS-COCO.
    - ``embedded:fashion_mnist``: the 2,000 training and 500 test images in this package.

    Args:
        data: one of these.
        split: 'train', 'validation' or 'test', or a synonym, perhaps with a slice, 'train[:500]' or 'train[10%:]'.
            None: the split to evaluate on, validation or else test.
        data_dir: for tfds, the folder of its prepared data; None: TFDS's default. For folder, wds, hfds and npz, the
            folder that relative paths start from; None: the current one. For csv, the folder that the paths of the
            images start from; None: that of the CSV file.
        val_fraction: the share of data without splits that is for validation.
        class_names: for folder, csv, wds and hfds, and with any number of labels also for npz and tfds, the names of
            the labels, as a run has stored them; for coco and for tfds with class names, they must be those of the
            data. None: those of the data, or else those of the training split in timm's order.
        for_evaluation: the data set is evaluated or embedded, not trained on. Data without splits is
            opened whole, and may have a single class.
        unlabelled: also accept a folder of images without class folders, and wds and hfds without labels; their label
            is 0.
        input_key, target_key: what the image and the label are: for wds, extensions and a field of the member json;
            for hfds, columns. With any number of labels, also for csv and tfds. None: see `open_webdataset` and others.
        target_format: images have any number of labels: 'indices', a list of them, or 'multihot', a number from 0 to 1
            for each class; see `target_values`. None: images have one label.
        keep_unlabelled: for coco, keep the images without annotations.

    Raises:
        DataError: an unknown kind of data, a missing data set or split, or data that cannot be trained on.
    """
    kind, _, name = data.partition(':')
    if not 0 <= val_fraction < 1:
        raise DataError(f'val_fraction must be at least 0 and less than 1, got {val_fraction}')
    data_dir = None if data_dir is None else Path(os.path.expanduser(data_dir))
    path = (data_dir or Path()) / os.path.expanduser(name)
    options: dict[str, Any] = {'class_names': class_names, 'for_evaluation': for_evaluation}
    keys: dict[str, Any] = {'input_key': input_key, 'target_key': target_key}
    given = [f'--{key.replace("_", "-")}' for key, value in keys.items() if value]
    allowed = WITH_KEYS if target_format is None or input_key else WITH_TARGETS
    if given and kind not in allowed:
        raise DataError(f'{data}: only {", ".join(allowed)} data takes {" and ".join(given)}')
    if keep_unlabelled and kind != 'coco':
        raise DataError(f'{data}: only coco data takes --keep-unlabelled')
    if target_format is None:
        if target_key and ',' in target_key:
            raise DataError(f'{data}: --target-key {target_key}: for several labels per image give --task multilabel')
        if kind == 'coco' and name:
            raise DataError(f'{data}: has any number of labels per image; give --task multilabel')
    elif kind in ONE_LABEL:
        raise DataError(f'{data}: has one label per image; give --task classification')
    targets: dict[str, Any] = {'target_format': target_format}
    names = None if class_names is None else tuple(class_names)
    if kind == 'tfds' and name:
        return open_tfds(name, split, data_dir, data, class_names=names, target_key=target_key, **targets)
    if kind == 'coco' and name:
        return open_coco(path, split, data, val_fraction, keep_unlabelled=keep_unlabelled, **options)
    if kind == 'folder' and name:
        return open_folder(path, split, data, val_fraction, unlabelled=unlabelled, **options)
    if kind == 'csv' and name:
        return open_csv(name, split, data_dir, data, val_fraction, target_key=target_key, **targets, **options)
    if kind == 'wds' and name:
        keys |= targets
        return open_webdataset(name, split, data_dir, data, val_fraction, unlabelled=unlabelled, **keys, **options)
    if kind == 'hfds' and name:
        keys |= targets
        return open_hfds(name, split, data_dir, data, val_fraction, unlabelled=unlabelled, **keys, **options)
    if kind == 'npz' and name:
        return open_npz(path, split, data, names if target_format else None, target_format)
    if data == 'embedded:fashion_mnist':
        embedded = Path(str(importlib.resources.files('tresnet_jax') / 'embedded' / 'fashion_mnist_subset.npz'))
        return open_npz(embedded, split, data, FASHION_MNIST)
    raise DataError(f'unknown data {data!r}; expected {KINDS}')


def check_channels(source: Source, channels: int) -> None:
    """Check that the first image of a source can have the number of channels that a model takes.

    Raises:
        DataError: it cannot.
    """
    try:
        image = source[0]['image']
    except Exception:  # reported when the image is read for use
        return
    if problem := channels_problem(image, channels):
        hint = (
            f'train with --in-chans {image.shape[-1]}' if isinstance(image, np.ndarray) else 'npz:FILE has any number'
        )
        raise DataError(f'{source.name}: {problem}; {hint}')
