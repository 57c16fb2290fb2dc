"""Data sets that TensorFlow Datasets has prepared; those in array_record files are read without TensorFlow."""

import dataclasses
import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tresnet_jax.training.errors import DataError
from tresnet_jax.training.splits import EVALUATION
from tresnet_jax.training.tfrecord import TfrecordSource


@dataclasses.dataclass(frozen=True, eq=False)
class ArrayRecordSource:
    """Records of array_record files, in the order of the files; pictures stay encoded."""

    name: str
    class_names: tuple[str, ...]
    image_key: str
    label_key: str
    records: Sequence[bytes]  # serialised examples
    features: Any  # of TFDS: what to take from an example

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> dict[str, bytes | int]:
        import tensorflow_datasets as tfds

        skip = {self.image_key: tfds.decode.SkipDecoding()}
        record = self.features.deserialize_example_np(self.records[index], decoders=skip)
        return {'image': record[self.image_key], 'label': int(record[self.label_key])}

    def describe(self, index: int) -> str:
        """A picture's name in logs."""
        return f'{self.name} {index}'


def open_tfds(name: str, split: str | None, data_dir: Path | None, where: str) -> ArrayRecordSource | TfrecordSource:
    """A split, or what TFDS makes of 'train[:10%]+test', of a data set that is prepared on this machine.

    Args:
        name: as TFDS writes it: 'imagenet2012', 'imagenette/160px-v2', 'mnist:3.0.1'.
        split: None is validation or test.
        data_dir: where TFDS keeps its data; None is its own default.
        where: the data set, for errors.

    Raises:
        DataError: TFDS is not installed, the data set is not prepared, has no such split, or is not of pictures
            with one label each; or it is in TFRecord files and TensorFlow is not installed.
    """
    try:
        import tensorflow_datasets as tfds
        from tensorflow_datasets.core import read_only_builder
    except ImportError as error:
        raise DataError(f"{where}: needs TensorFlow Datasets: pip install 'tresnet_jax[train]' ({error})") from error
    build = f'tfds build {name} --file_format=array_record' + (f' --data_dir={data_dir}' if data_dir else '')
    try:
        folder = None if data_dir is None else str(data_dir)
        builder: Any = read_only_builder.builder_from_files(name, data_dir=folder)
    except Exception as error:  # of many classes, for names that cannot be and for folders that do not fit
        raise DataError(
            f'{where}: not found among the prepared data sets ({_first_line(error)}). '
            f'Give the folder that holds it (data_dir), or prepare it once: {build}'
        ) from error
    features = builder.info.features
    image_key, label_key = (builder.info.supervised_keys or ('image', 'label'))[:2]
    image, label = (features[key] if key in features else None for key in (image_key, label_key))
    if not isinstance(image, tfds.features.Image) or not isinstance(label, tfds.features.ClassLabel):
        raise DataError(f'{where}: not pictures with one label each; its features are {", ".join(features)}')
    class_names = tuple(label.names)
    if len(class_names) < 2:
        raise DataError(f'{where}: only one class, nothing to tell apart')
    split, size = _choose(builder.info.splits, split, where)
    where = f'{where} {split}'

    formats = {form.value for form in builder.info.available_file_formats()}
    if 'array_record' in formats:
        raw = tfds.decode.DeserializeMethod.RAW_BYTES
        records = builder.as_data_source(split, deserialize_method=raw, file_format='array_record')
        both = tfds.features.FeaturesDict({image_key: image, label_key: label})  # and no masks, boxes, ...
        return ArrayRecordSource(where, class_names, image_key, label_key, records, both)
    if 'tfrecord' not in formats:
        raise DataError(f'{where}: prepared as {", ".join(sorted(formats))}; prepare it as array_record: {build}')
    if importlib.util.find_spec('tensorflow') is None:
        raise DataError(
            f'{where}: prepared as TFRecord, which only TensorFlow reads. Either install it: '
            f"pip install 'tresnet_jax[tf]', or prepare the data as array_record, in another folder: {build}"
        )
    return TfrecordSource(where, class_names, image_key, label_key, str(builder.data_dir), split, size)


def _choose(splits: Any, split: str | None, where: str) -> tuple[str, int]:
    """The split that is meant, and its number of pictures."""
    there = ', '.join(splits)
    if split is None:
        split = next((name for name in EVALUATION if name in splits), None)
        if split is None:
            raise DataError(f'{where}: no split to evaluate on ({", ".join(EVALUATION)}); there is {there}')
    try:
        size = splits[split].num_examples
    except Exception as error:  # KeyError, ValueError and others, for each of the ways in which a split can be wrong
        raise DataError(f'{where}: no split {split!r} ({_first_line(error)}); there is {there}') from error
    if not size:
        raise DataError(f'{where}: no pictures in {split}; there is {there}')
    return split, size


def _first_line(error: Exception) -> str:
    return str(error).strip('\'" \n').splitlines()[0] if str(error) else type(error).__name__
