"""Data sets of the Hugging Face library `datasets`, read by index; images stay encoded."""

import dataclasses
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tresnet_jax.data.class_matching import normal_name
from tresnet_jax.data.fingerprint import labels_digest, names_digest
from tresnet_jax.data.label_values import UNLABELLED, check_label, label_examples
from tresnet_jax.data.splits import choose_drawn, choose_split, split_kind
from tresnet_jax.data.target_values import TargetFormat, TargetKeys, feature_inside, parse_target_keys, target_source
from tresnet_jax.data.targets import MultiLabelSource
from tresnet_jax.errors import DataError, ImageError, reason, shown

IMAGES, LABEL, LABELS = ('image', 'img'), 'label', 'labels'  # names of columns that need no flag


@dataclasses.dataclass(frozen=True, eq=False)
class HfSource:
    """Rows of a data set: an image in the column `key`, and (N,) integer labels."""

    name: str
    class_names: tuple[str, ...]
    key: str
    rows: Any
    """`datasets.Dataset` with the column `key`: {'bytes': ..., 'path': ...}."""
    paths: Any
    """`datasets.Dataset` with the path of each image."""
    indices: np.ndarray
    """(N,) int64: the row of each image."""
    labels: np.ndarray
    present: tuple[int, ...]
    """The labels of the classes that the whole split has, ascending."""
    folders: tuple[str, ...]
    """Real paths of the folders that images in files of their own may be in."""

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> dict[str, bytes | int]:
        image = self.rows[int(self.indices[index])][self.key] or {}
        data = image.get('bytes')
        return {'image': self._read(image.get('path')) if data is None else data, 'label': int(self.labels[index])}

    def _read(self, path: str | None) -> bytes:
        """Read an image that the data set has by its path. Raises ImageError if it is outside the data set."""
        if not path:
            raise ImageError('the row has no image')
        real = os.path.realpath(path)
        if not any(os.path.commonpath([real, folder]) == folder for folder in self.folders):
            raise ImageError(f'the row has the path {shown(path)}, which is outside the data set, instead of an image')
        return Path(real).read_bytes()

    def describe(self, index: int) -> str:
        """Return the name of the data set, the row, and the path of the image if the data set has it."""
        (path,) = self.paths[int(self.indices[index])].values()
        return f'{self.name} {self.indices[index]}' + (f': {path}' if path else '')

    def fingerprint(self) -> dict[str, str]:
        """Return digests of the file names that the data set has, of the sizes of the images in it, and of the labels.

        Its folder on this host and in the cache does not matter.
        """
        import pyarrow.compute

        table = self.rows.flatten().with_format('arrow')[:]
        lengths = pyarrow.compute.call_function('binary_length', [table[f'{self.key}.bytes']]).fill_null(-1)
        paths = self.paths.with_format('arrow')[:][f'{self.key}.path'].to_pylist()
        return {
            'names': names_digest(os.path.basename(paths[row] or '') for row in self.indices),
            'sizes': labels_digest(lengths.to_numpy()[self.indices]),
            'labels': labels_digest(self.labels),
        }


def open_hfds(
    name: str,
    split: str | None,
    data_dir: Path | None,
    where: str,
    val_fraction: float,
    *,
    class_names: Sequence[str] | None = None,
    for_evaluation: bool = False,
    unlabelled: bool = False,
    input_key: str | None = None,
    target_key: str | None = None,
    target_format: TargetFormat | None = None,
) -> HfSource | MultiLabelSource:
    """Open one split of a data set that `datasets` can read.

    Args:
        name: a folder, from `Dataset.save_to_disk` or with parquet files, for example; or the name of a data set on
            the hub, perhaps with a configuration, 'NAME:CONFIG'.
        split: as in `choose_split`.
        data_dir: the folder that relative paths start from; for data sets of the hub, their cache. None: the current
            folder, and the library's default.
        where: the data set, for errors.
        val_fraction: the share of each class that is for validation if there are no splits.
        class_names: the names of the labels, as a run has stored them. None: those of the column, or of the training
            split.
        for_evaluation: data without splits is opened whole, and may have a single class.
        unlabelled: also accept data without labels; their label is 0.
        input_key: the column of the images. None: image or img, or else the only column of images.
        target_key: the column of the labels. None: label, or else the only column of class labels.
        target_format: images have any number of labels, in this form; `target_key` may be a path of names, or several
            columns, and its default is labels or label, or else the only column of lists of class labels. None: one
            label.

    Raises:
        DataError: `datasets` is not installed or cannot read the data, the split does not exist, the columns are
            unclear, or an image has no label.
    """
    try:
        import datasets
        from datasets import config
        from huggingface_hub import constants
    except ImportError as error:
        raise DataError(f"{where}: needs Hugging Face's datasets: pip install 'tresnet_jax[hfds]' ({error})") from error
    folder = (data_dir or Path()) / os.path.expanduser(name)
    try:
        splits = _load(datasets, name, folder, data_dir, where)
    except DataError:
        raise
    except Exception as error:  # of many classes
        raise DataError(f'{where}: datasets cannot read it: {reason(error)}') from error
    drawn = [*splits] == ['']
    if drawn:
        chosen = choose_drawn(split, where, for_evaluation=for_evaluation)
    else:
        chosen = choose_split(split, [*splits], where)
    rows = splits['' if drawn else chosen.name]
    image = _image_column(datasets, rows.features, input_key, where)
    folders = (folder, data_dir, config.HF_DATASETS_CACHE, constants.HF_HUB_CACHE)
    folders = tuple(os.path.realpath(path) for path in folders if path and Path(path).is_dir())
    images = rows.select_columns([image]).cast_column(image, datasets.Image(decode=False)).with_format(None)
    paths = images.flatten().select_columns([f'{image}.path'])

    def make(indices: np.ndarray, names: tuple[str, ...], labels: np.ndarray, present: tuple[int, ...]) -> HfSource:
        title = shown(f'{where} {chosen.text}')
        return HfSource(title, names, image, images, paths, indices, labels, present, folders)

    train = next((name for name in splits if split_kind(name) == 'train'), chosen.name)
    own = drawn or split_kind(chosen.name) == 'train' or train == chosen.name
    share_drawn = val_fraction if drawn and not for_evaluation else None
    if target_format is not None:
        keys = parse_target_keys(target_key, target_format, where)
        keys = (
            keys if keys.fields else TargetKeys((_labels_column(datasets, rows.features, image, where),), target_format)
        )
        return target_source(
            _target_values(rows, keys, where),
            chosen,
            keys,
            class_names=class_names or _target_names(rows.features, keys),
            train=None if own else lambda: _target_values(splits[train], keys, where),
            drawn=share_drawn,
            describe=lambda row: f'row {row} of {chosen.name}',
            make=lambda indices: make(indices, (), np.zeros(len(indices), np.int32), ()),
        )
    label = _label_column(datasets, rows.features, image, target_key, where, unlabelled)
    values = None if label is None else _values(rows, label, chosen.name, where)
    if unlabelled and values is not None and {*values} == {UNLABELLED}:
        values = None
    if class_names is None and label is not None:
        class_names = getattr(rows.features[label], 'names', None)
    found = label_examples(
        len(rows) if values is None else values,
        chosen,
        class_names=class_names,
        train=None if own or label is None else lambda: _values(splits[train], str(label), train, where),
        drawn=share_drawn,
        one_class=for_evaluation,
    )
    return make(found.indices, found.class_names, found.labels, found.present)


def _load(datasets: Any, name: str, folder: Path, data_dir: Path | None, where: str) -> dict[str, Any]:
    """Return the splits of a data set; the name '' stands for data without splits."""
    if folder.is_dir():
        if any((folder / file).is_file() for file in ('dataset_dict.json', 'state.json')):
            found = datasets.load_from_disk(str(folder))
        else:
            found = datasets.load_dataset(str(folder.resolve()))
    elif re.fullmatch(r'[\w.-]+(/[\w.-]+)?(:[^:]+)?', name):
        repository, _, configuration = name.partition(':')
        found = datasets.load_dataset(repository, configuration or None, cache_dir=data_dir and str(data_dir))
    else:
        raise DataError(f'{where}: the folder {shown(folder)} does not exist')
    if isinstance(found, datasets.Dataset):
        found = {str(found.split or ''): found}
    if not any(len(rows) for rows in found.values()):
        raise DataError(f'{where}: has no rows')
    return dict(found)


def _image_column(datasets: Any, features: Any, key: str | None, where: str) -> str:
    """Return the column of the images."""
    images = [name for name, kind in features.items() if isinstance(kind, datasets.Image)]
    encoded = [name for name in (*IMAGES, key) if name in features and _is_encoded(datasets, features[name])]
    if key:
        if key not in (*images, *encoded):
            what = 'no images' if key in features else 'no such column'
            raise DataError(f'{where}: --input-key {shown(key)}: {what}; the columns are {_columns(features)}')
        return key
    found = [name for name in IMAGES if name in (*images, *encoded)] or images
    return _only(found, 'images', '--input-key', features, where)


def _is_encoded(datasets: Any, kind: Any) -> bool:
    """Return whether a column has the bytes of image files, but is not marked as images."""
    if isinstance(kind, dict):
        return {*kind} == {'bytes', 'path'}
    return isinstance(kind, datasets.Value) and kind.dtype in ('binary', 'large_binary')


def _label_column(
    datasets: Any, features: Any, image: str, key: str | None, where: str, unlabelled: bool
) -> str | None:
    """Return the column of the labels; None if there is none, which only `unlabelled` allows."""
    found = [key] if key else [LABEL] if LABEL in features else []
    found = found or [name for name, kind in features.items() if isinstance(kind, datasets.ClassLabel)]
    if not found and unlabelled:
        return None
    label = _only(found, 'labels', '--target-key', features, where)
    if label not in features or label == image:
        raise DataError(f'{where}: --target-key {shown(label)}: no such column; the columns are {_columns(features)}')
    return label


def _only(found: Sequence[str], what: str, flag: str, features: Any, where: str) -> str:
    """Return the only column. Raises DataError if there is none, or several."""
    if len(found) != 1:
        problem = (
            f'several columns may be the {what}, {", ".join(map(shown, found))}' if found else f'no column of {what}'
        )
        raise DataError(f'{where}: {problem}; name it with {flag}. The columns are {_columns(features)}')
    return found[0]


def _columns(features: Any) -> str:
    return ', '.join(shown(name) for name in features)


def _values(rows: Any, label: str, split: str, where: str) -> list[int | str]:
    """Return the label of each row: the name of a class if the data set has names, or else what the column has."""
    names = getattr(rows.features[label], 'names', None)
    values = rows.select_columns([label]).with_format(None)[:][label]
    missing = sum(value is None for value in values)
    if missing:
        raise DataError(f'{where}: {missing:,} of {len(values):,} rows of {shown(split)} have no {shown(label)}')
    checked = [check_label(value, f'row {row} of {split}', where) for row, value in enumerate(values)]
    if names is None:
        return checked
    largest = max((value for value in checked if isinstance(value, int)), default=0)
    if largest >= len(names):
        raise DataError(f'{where}: {shown(split)} has the label {largest}; {shown(label)} has {len(names)} class names')
    return [names[value] if isinstance(value, int) and value >= 0 else value for value in checked]


def _labels_column(datasets: Any, features: Any, image: str, where: str) -> str:
    """Return the column with any number of labels."""
    found = [name for name in (LABELS, LABEL) if name in features and name != image]
    lists = [name for name, kind in features.items() if isinstance(feature_inside(kind), datasets.ClassLabel)]
    return _only(found or lists, 'labels', '--target-key', features, where)


def _feature(features: Any, path: str) -> Any:
    """Return the kind of a field; raises KeyError or TypeError if there is none."""
    if path in features:
        return feature_inside(features[path])
    for part in path.split('/'):
        features = feature_inside(features)[part]
    return feature_inside(features)


def _target_names(features: Any, keys: TargetKeys) -> tuple[str, ...] | None:
    """Return the class names that the data set has for a single field."""
    names = None if keys.several else getattr(_feature(features, keys.fields[0]), 'names', None)
    return None if names is None else tuple(map(normal_name, names))


def _target_values(rows: Any, keys: TargetKeys, where: str) -> list[Any]:
    """Return the labels of each row: names of classes if the data set has them, or else what the columns have."""
    for key in keys.fields:
        try:
            _feature(rows.features, key)
        except (KeyError, TypeError):
            columns = _columns(rows.features)
            raise DataError(f'{where}: --target-key {shown(key)}: no such column; the columns are {columns}') from None
    columns = list(dict.fromkeys(key if key in rows.features else key.split('/')[0] for key in keys.fields))
    table = rows.select_columns(columns).with_format(None)
    values = [keys.value(row, f'row {number}', where) for number, row in enumerate(table)]
    names = _target_names(rows.features, keys)
    if names is None or keys.form == 'multihot':
        return values
    lists = [value if isinstance(value, list) else [value] for value in values]
    for number, labels in enumerate(lists):
        largest = max((label for label in labels if type(label) is int), default=0)
        if largest >= len(names):
            what = f'{where}: row {number} has the label {largest}'
            raise DataError(f'{what}; {shown(keys.fields[0])} has {len(names)} class names')
    # Other labels that are not among the names are refused with their row where they are numbered.
    return [[names[label] if type(label) is int and label >= 0 else label for label in labels] for labels in lists]
