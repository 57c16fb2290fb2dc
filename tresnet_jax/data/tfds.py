"""Data sets that TensorFlow Datasets has prepared; those in array_record files are read without TensorFlow."""

import collections
import dataclasses
import importlib.util
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tresnet_jax.data.splits import EVALUATION
from tresnet_jax.errors import DataError


@dataclasses.dataclass(frozen=True, eq=False)
class ArrayRecordSource:
    """Records of array_record files, in the order of the files; images stay encoded."""

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
        """An image's name in logs."""
        return f'{self.name} {index}'


def open_tfds(name: str, split: str | None, data_dir: Path | None, where: str) -> 'ArrayRecordSource | TfrecordSource':
    """A split, or what TFDS makes of 'train[:10%]+test', of a data set that is prepared on this machine.

    Args:
        name: as TFDS writes it: 'imagenet2012', 'imagenette/160px-v2', 'mnist:3.0.1'.
        split: None is validation or test.
        data_dir: where TFDS keeps its data; None is its own default.
        where: the data set, for errors.

    Raises:
        DataError: TFDS is not installed, the data set is not prepared, has no such split, or is not of images
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
        raise DataError(f'{where}: not images with one label each; its features are {", ".join(features)}')
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
    """The split that is meant, and its number of images."""
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
        raise DataError(f'{where}: no images in {split}; there is {there}')
    return split, size


def _first_line(error: Exception) -> str:
    return str(error).strip('\'" \n').splitlines()[0] if str(error) else type(error).__name__


SHUFFLE_BUFFER = 4096  # records, about 450 MB of ImageNet; the files are in a random order too
KEPT_CHUNKS = 4  # more than are being worked on at the same time


@dataclasses.dataclass(frozen=True)
class TfrecordSource:
    """Records of TFRecord files. They can only be read one after the other: `stream` does, `[index]` is slow.

    TensorFlow is imported when the first record is read, and sees no GPU.
    """

    name: str
    class_names: tuple[str, ...]
    image_key: str
    label_key: str
    builder_dir: str
    split: str
    size: int

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> dict[str, bytes | int]:
        return next(self.read(0, None, index))[1]

    def describe(self, index: int) -> str:
        """An image's name in logs."""
        return f'{self.name} {index}'

    def stream(self, seed: int | None, chunk: int) -> 'Stream':
        """All records again and again, in a new order each time, or, without a seed, in the order of the files.

        Args:
            seed: of the order.
            chunk: how many consecutive records are asked for at about the same time.
        """
        return Stream(self, seed, chunk)

    def read(self, epoch: int, seed: int | None, start: int) -> Iterator[tuple[int, dict[str, bytes | int]]]:
        """One pass from record number `start` of the pass's order on: (index in the files' order, record).

        What comes before `start` is read too and dropped, so that the order does not depend on it.
        """
        import tensorflow as tf  # pyright: ignore[reportMissingModuleSource]
        import tensorflow_datasets as tfds

        tf.config.set_visible_devices([], 'GPU')
        builder: Any = tfds.builder_from_directory(self.builder_dir)
        shuffle = None if seed is None else int(np.random.SeedSequence((seed, epoch)).generate_state(1)[0])
        config = tfds.ReadConfig(
            shuffle_seed=shuffle,
            interleave_cycle_length=1 if shuffle is None else 16,
            add_tfds_id=True,  # file and number in it, which say where a shuffled record is from
            try_autocache=False,
        )
        skip = tfds.decode.SkipDecoding()
        features = {self.image_key: True, self.label_key: True}
        decoders = tfds.decode.PartialDecoding(features, decoders={self.image_key: skip})
        records = builder.as_dataset(
            split=self.split, decoders=decoders, shuffle_files=shuffle is not None, read_config=config
        )
        if shuffle is not None:
            records = records.shuffle(SHUFFLE_BUFFER, seed=shuffle)
        offsets = _offsets(builder.info.splits[self.split].file_instructions)
        for record in records.skip(start).prefetch(tf.data.AUTOTUNE).as_numpy_iterator():
            file, _, number = record['tfds_id'].decode().rpartition('__')
            yield offsets[file] + int(number), {'image': record[self.image_key], 'label': int(record[self.label_key])}


def _offsets(instructions: Any) -> dict[str, int]:
    """For each file the index of its first record, as if all of them were read one after the other."""
    offsets, total = {}, 0
    for instruction in instructions:
        offsets[str(instruction.filename).rpartition('/')[2]] = total - instruction.skip
        total += instruction.examples_in_shard if instruction.take < 0 else instruction.take
    return offsets


class Stream:
    """The records of all passes one after the other: ``stream[position]`` is (index, record).

    Positions may be asked for from several threads, and in any order; it is fast when they hardly ever go back.
    What is asked for depends on nothing but the seed and the position.
    """

    def __init__(self, source: TfrecordSource, seed: int | None, chunk: int):
        self._source, self._seed, self._chunk = source, seed, chunk
        self._lock = threading.Lock()
        self._records: Iterator[Any] = iter(())
        self._next = -1  # chunk that the iterator gives next
        self._chunks: collections.OrderedDict[int, list[Any]] = collections.OrderedDict()

    def __reduce__(self) -> tuple[Any, ...]:  # for pickle: neither the lock nor what is being read can travel
        return Stream, (self._source, self._seed, self._chunk)

    def __getitem__(self, position: int) -> tuple[int, dict[str, bytes | int]]:
        chunk, place = divmod(position, self._chunk)
        with self._lock:
            if chunk not in self._chunks:
                self._read_until(chunk)
            return self._chunks[chunk][place]

    def _read_until(self, chunk: int) -> None:
        ahead = (chunk - self._next) * self._chunk
        if self._next < 0 or not 0 <= ahead < len(self._source):
            self._records, self._next = self._passes(chunk * self._chunk), chunk
        while self._next <= chunk:
            try:
                self._chunks[self._next] = [next(self._records) for _ in range(self._chunk)]
            except Exception as error:  # of tensorflow.errors: where a file is damaged, nothing after it can be had
                raise DataError(f'{self._source.name}: cannot be read on: {error}') from error
            self._next += 1
            if len(self._chunks) > KEPT_CHUNKS:
                self._chunks.popitem(last=False)

    def _passes(self, position: int) -> Iterator[Any]:
        epoch, start = divmod(position, len(self._source))
        while True:
            yield from self._source.read(epoch, self._seed, start)
            epoch, start = epoch + 1, 0
