"""Data sets that TensorFlow Datasets has prepared, in array_record or TFRecord files; TensorFlow is not needed."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from tresnet_jax.data.class_matching import check_order
from tresnet_jax.data.fingerprint import array_digest, names_digest, sizes_digest
from tresnet_jax.data.splits import Split, choose_split
from tresnet_jax.data.target_values import TargetFormat, TargetKeys, feature_inside, number_targets, parse_target_keys
from tresnet_jax.data.targets import MultiLabelSource
from tresnet_jax.data.tfrecord import FilePart, open_tfrecords
from tresnet_jax.errors import DataError, reason, shown

FILE_NAME = 'file_name'  # the feature of ImageNet and others
FORMATS = ('array_record', 'tfrecord')  # the preferred one first


@dataclasses.dataclass(frozen=True)
class RecordTargets:
    """Reads the labels of a record that has any number of them."""

    where: str
    keys: TargetKeys
    class_names: tuple[str, ...]

    def __call__(self, record: Any, name: str) -> np.ndarray:
        """Return (classes,) float32. Raises DataError if the labels have another form or are out of range."""
        value = self.keys.value(record, name, self.where)
        split = Split(self.where, name, name)
        return number_targets([value], self.keys, self.class_names, split, None, lambda _: name).targets[0]


@dataclasses.dataclass(frozen=True, eq=False)
class TfdsSource:
    """Records of a prepared data set, in the order of its files; images stay encoded."""

    name: str
    class_names: tuple[str, ...]
    image_key: str
    label_key: str
    records: Any
    """``records[index]`` is a serialised tf.train.Example, bytes."""
    features: Any
    """TFDS features of the image and the label."""
    parts: tuple[FilePart, ...]
    """The files, and which of their records belong to the split."""
    file_names: Any
    """TFDS features of the name of the image's file; None if the data set has none."""
    targets: RecordTargets | None = None
    """With any number of labels per image, what reads them; then `label_key` is ''."""

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    @property
    def present(self) -> tuple[int, ...]:
        """All labels; which of them a split has is unknown."""
        return tuple(range(self.num_classes))

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> dict[str, Any]:
        import tensorflow_datasets as tfds

        skip = {self.image_key: tfds.decode.SkipDecoding()}
        record = self.features.deserialize_example_np(self.records[index], decoders=skip)
        if self.targets is not None:
            return {'image': record[self.image_key], 'target': self.targets(record, self.describe(index))}
        return {'image': record[self.image_key], 'label': int(record[self.label_key])}

    def describe(self, index: int) -> str:
        """Return the name of an image in logs."""
        return f'{self.name} {index}'

    def file_name(self, index: int) -> str:
        """Return the name that the file of an image had when the data was prepared; `describe` if it is unknown."""
        if self.file_names is None:
            return self.describe(index)
        return self.file_names.deserialize_example_np(self.records[index])[FILE_NAME].decode('utf-8', 'replace')

    def fingerprint(self) -> dict[str, str]:
        """Return digests of the names, the sizes and the records of the files; the labels are in them."""
        return {
            'names': names_digest(Path(part.path).name for part in self.parts),
            'sizes': sizes_digest([part.path for part in self.parts]),
            'records': array_digest(np.asarray([(part.skip, part.take) for part in self.parts], np.int64)),
        }


def _choose(splits: Any, split: str | None, where: str) -> str:
    """Return the split to open, after checking that it exists and has images."""
    available = ', '.join(splits)
    if split is None:
        split = choose_split(None, list(splits), where).name
    try:
        size = splits[split].num_examples
    except Exception as error:  # KeyError, ValueError and others, depending on what is wrong with the text
        raise DataError(f'{where}: no split {split!r} ({reason(error)}); it has {available}') from error
    if not size:
        raise DataError(f'{where}: no images in {split}; it has {available}')
    return split


def open_tfds(
    name: str,
    split: str | None,
    data_dir: Path | None,
    where: str,
    *,
    class_names: tuple[str, ...] | None = None,
    target_key: str | None = None,
    target_format: TargetFormat | None = None,
) -> TfdsSource | MultiLabelSource:
    """Open a split of a data set that TFDS has prepared on this machine.

    Args:
        name: as in TFDS: 'imagenet2012', 'imagenette/160px-v2', 'mnist:3.0.1'.
        split: as in TFDS, 'train[:10%]+test' for example; None: that of `choose_split`.
        data_dir: the folder of TFDS's prepared data; None: TFDS's default.
        where: the data set, for errors.
        class_names: with any number of labels, the name of each class; it must equal that in the data set if it has
            names. None: those of the data set.
        target_key: with any number of labels, the feature of the labels, perhaps a path of names, or several, each of
            which is one class. None: labels or label.
        target_format: images have any number of labels, in this form. None: one label.

    Raises:
        DataError: TFDS is not installed; or the data set is not prepared, has no such split, has other features
            than images with one label each, or is in files that are damaged or of another format.
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
    except Exception as error:  # of many classes, for impossible names and for folders of another structure
        raise DataError(
            f'{where}: not found among the prepared data sets ({reason(error)}). '
            f'Give the folder that holds it (data_dir), or prepare it once: {build}'
        ) from error
    features = builder.info.features
    image_key, label_key = (builder.info.supervised_keys or ('image', 'label'))[:2]
    image, label = (features[key] if key in features else None for key in (image_key, label_key))
    targets, needed = None, {}
    if target_format is not None:
        image_key, image = ('image', features['image']) if 'image' in features else (image_key, image)
        keys = parse_target_keys(target_key, target_format, where)
        targets, needed = _targets(features, keys, class_names, where)
        label_key, class_names = '', targets.class_names
        found = isinstance(image, tfds.features.Image)
    else:
        found = isinstance(image, tfds.features.Image) and isinstance(label, tfds.features.ClassLabel)
        class_names, needed = tuple(getattr(label, 'names', ())), {label_key: label}
    if not found:
        what = 'images' if targets else 'images with one label each'
        raise DataError(f'{where}: expected {what}; its features are {", ".join(features)}')
    if len(class_names) < 2 and targets is None:
        raise DataError(f'{where}: only one class; expected at least two')
    split = _choose(builder.info.splits, split, where)
    where = f'{where} {split}'

    formats = {form.value for form in builder.info.available_file_formats()}
    form = next((form for form in FORMATS if form in formats), None)
    if form is None:
        raise DataError(f'{where}: prepared as {", ".join(sorted(formats))}; prepare it as array_record: {build}')
    builder.info.set_file_format(form, override=True, override_if_initialized=True)  # for the file names
    files = builder.info.splits[split].file_instructions
    parts = tuple(FilePart(str(file.filename), file.skip, file.take) for file in files)
    if form == 'array_record':
        raw = tfds.decode.DeserializeMethod.RAW_BYTES
        records = builder.as_data_source(split, deserialize_method=raw, file_format=form)
    else:
        records = open_tfrecords(parts, where)
    features_read = tfds.features.FeaturesDict({image_key: image, **needed})
    named = FILE_NAME in features and isinstance(features[FILE_NAME], tfds.features.Text)
    file_names = tfds.features.FeaturesDict({FILE_NAME: features[FILE_NAME]}) if named else None
    source = TfdsSource(where, class_names, image_key, label_key, records, features_read, parts, file_names, targets)
    return source if targets is None else MultiLabelSource(source, class_names, None)


def _targets(
    features: Any, keys: TargetKeys, class_names: tuple[str, ...] | None, where: str
) -> tuple[RecordTargets, dict[str, Any]]:
    """Return what reads the labels of a record, and the features it reads.

    Raises:
        DataError: a feature does not exist, the data set has other classes, or their number is unknown.
    """
    if not keys.fields:
        found = [name for name in ('labels', 'label') if name in features]
        if len(found) != 1:
            raise DataError(f'{where}: name the labels with --target-key; its features are {", ".join(features)}')
        keys = keys._replace(fields=tuple(found))
    kinds = {}
    for key in keys.fields:
        kinds[key] = features[key] if key in features else _inner(features, key.split('/'))
        if kinds[key] is None:
            raise DataError(f'{where}: --target-key {shown(key)}: no such feature; it has {", ".join(features)}')
    kind = feature_inside(kinds[keys.fields[0]])
    if keys.several:
        own = keys.fields
    elif keys.form == 'multihot':
        shape = kinds[keys.fields[0]].shape
        # The shape of nested features is a dict.
        own = tuple(map(str, range(shape[0]))) if isinstance(shape, tuple) and len(shape) == 1 and shape[0] else None
    else:
        own = tuple(kind.names) if getattr(kind, 'names', None) else None
    names = class_names or own
    if class_names and own and keys.form == 'indices':  # the vectors of multihot have no names of their own
        check_order(own, class_names, where)
    if names is None:
        raise DataError(f'{where}: {shown(keys.fields[0])} has no class names; give them with --class-map FILE.txt')
    top = [key if key in features else key.split('/')[0] for key in keys.fields]
    return RecordTargets(where, keys, tuple(names)), {name: features[name] for name in top}


def _inner(kind: Any, path: list[str]) -> Any:
    """Return the feature at a path of names; None if there is none."""
    for part in path:
        kind = feature_inside(kind)
        if not hasattr(kind, 'keys') or part not in kind:
            return None
        kind = kind[part]
    return kind
