"""Images in tar shards, WebDataset's format, read by index. The package webdataset is not needed."""

import concurrent.futures
import dataclasses
import itertools
import json
import logging
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from tresnet_jax.data.fingerprint import array_digest, labels_digest, names_digest
from tresnet_jax.data.label_values import UNLABELLED, check_label, label_examples
from tresnet_jax.data.splits import Split, choose_drawn, choose_split, split_kind
from tresnet_jax.data.tar_index import TarExample, index_shard, is_indexed
from tresnet_jax.data.tar_shards import Shards, find_shards, find_splits
from tresnet_jax.data.target_values import TargetFormat, TargetKeys, has_field, parse_target_keys, target_source
from tresnet_jax.data.targets import MultiLabelSource
from tresnet_jax.data.walk import image_suffixes
from tresnet_jax.errors import DataError, ImageError, reason, shown

OPEN_FILES = 16  # shards indexed at a time
MANY_SHARDS = 20  # to index; a shard of 1 GB takes about a second
LABEL, LABELS = 'label', 'labels'  # fields of the member json, if there is no member cls

_PATTERN = re.compile(r'(.*\.tar(?:\|\d+)?)(\[[^\[\]]*:[^\[\]]*\])?')  # shards as the name of a split

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, eq=False)
class TarSource:
    """Images in tar shards: N members, and (N,) integer labels."""

    name: str
    class_names: tuple[str, ...]
    shards: tuple[str, ...]
    members: tuple[str, ...]
    """The path of each image in its shard."""
    places: np.ndarray
    """(N, 3) int64: number of the shard, first byte of the image, bytes of the image."""
    labels: np.ndarray
    present: tuple[int, ...]
    """The labels of the classes that the whole split has, ascending."""

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    def __len__(self) -> int:
        return len(self.members)

    def __getitem__(self, index: int) -> dict[str, bytes | int]:
        shard, start, length = self.places[index].tolist()
        # Opened for each read: a data set can have more shards than a process may keep open.
        with open(self.shards[shard], 'rb') as file:
            file.seek(start)
            data = file.read(length)
        if len(data) < length:
            raise ImageError('the shard has become shorter since it was indexed')
        return {'image': data, 'label': int(self.labels[index])}

    def describe(self, index: int) -> str:
        """Return the path of the shard and that of the image in it."""
        return f'{self.shards[self.places[index, 0]]}: {self.members[index]}'

    def fingerprint(self) -> dict[str, str]:
        """Return digests of the paths of the images in their shards, of their sizes and of the labels."""
        sizes = array_digest(self.places[:, 2])
        return {'names': names_digest(self.members), 'sizes': sizes, 'labels': labels_digest(self.labels)}


@dataclasses.dataclass(frozen=True)
class _Record:
    """An example that has an image."""

    shard: int
    example: TarExample
    extension: str
    """That of the image."""

    @property
    def name(self) -> str:
        return f'{self.example.key}.{self.extension}'


def open_webdataset(
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
) -> TarSource | MultiLabelSource:
    """Open one split of tar shards, in the order of the shards and of the images in them.

    The label is the member cls, or the field `target_key` of the member json: the number of a class, or its name. As
    in timm, examples with the label -1 are left out.

    Args:
        name: a folder or a pattern; see `find_splits`.
        split: as in `choose_split`, or the pattern of the split's shards, below the folder.
        data_dir: the folder that relative paths start from; None: the current one.
        where: the data set, for errors.
        val_fraction: the share of each class that is for validation if there are no splits.
        class_names: the names of the labels, as a run has stored them. None: those of the training split.
        for_evaluation: shards without splits are opened whole, and may have a single class.
        unlabelled: also accept examples without labels; their label is 0.
        input_key: the extensions of the image, the preferred one first: 'jpg;png'. None: every suffix Pillow can open.
        target_key: the field of json. None: the member cls, or else the field 'label' of json.
        target_format: images have any number of labels, in this form; `target_key` may be a path of names, or several
            fields, and its default is 'labels' too. None: one label.

    Raises:
        DataError: the shards or the split do not exist, a shard cannot be indexed, an image has no label or several
            readings, or as `open_folder`.
    """
    splits, chosen = _choose(name, split, data_dir or Path(), where, for_evaluation)
    drawn = [*splits] == ['']
    shards = splits['' if drawn else chosen.name]

    def read(split: str, shards: Shards) -> tuple[list[_Record], list[int | str] | None]:
        records = _read_index(shards, split, where, input_key)
        return records, _labels(records, shards, where, target_key, unlabelled)

    def make(records: list[_Record], names: tuple[str, ...], labels: np.ndarray, present: tuple[int, ...]) -> TarSource:
        return TarSource(
            shown(f'{where} {chosen.text}'),
            names,
            tuple(map(str, shards.files)),
            tuple(record.name for record in records),
            np.asarray([(record.shard, *record.example.members[record.extension]) for record in records], np.int64),
            labels,
            present,
        )

    train = next((name for name in splits if split_kind(name) == 'train'), chosen.name)
    own = drawn or split_kind(chosen.name) == 'train' or train == chosen.name
    drawn_share = val_fraction if drawn and not for_evaluation else None
    if target_format is not None:
        keys = parse_target_keys(target_key or shards.label, target_format, where)

        def read_targets(split: str, shards: Shards) -> tuple[list[_Record], list[Any]]:
            records = _read_index(shards, split, where, input_key)
            return records, _each(records, shards, where, lambda file, record: _target(file, record, keys, where))

        records, targets = read_targets(chosen.name, shards)
        return target_source(
            targets,
            chosen,
            keys,
            class_names=class_names,
            train=None if own else lambda: read_targets(train, splits[train])[1],
            drawn=drawn_share,
            describe=lambda index: records[index].name,
            make=lambda part: make([records[index] for index in part], (), np.zeros(len(part), np.int32), ()),
        )
    records, values = read(chosen.name, shards)
    found = label_examples(
        len(records) if values is None else values,
        chosen,
        class_names=class_names,
        train=None if own else lambda: read(train, splits[train])[1] or [],
        drawn=drawn_share,
        one_class=for_evaluation,
    )
    return make([records[index] for index in found.indices], found.class_names, found.labels, found.present)


def _choose(
    name: str, split: str | None, base: Path, where: str, for_evaluation: bool
) -> tuple[dict[str, Shards], Split]:
    """Return the shards of each split, '' if there are no splits, and the chosen split."""
    if match := _PATTERN.fullmatch(split or ''):
        folder = base / os.path.expanduser(name)
        found = find_shards(match[1], folder if folder.is_dir() else base, where)
        part = choose_split(f'train{match[2] or ""}', ['train'], where)
        return {match[1]: found}, dataclasses.replace(part, name=match[1], text=match[0])
    splits = find_splits(name, base, where)
    if [*splits] != ['']:
        return splits, choose_split(split, [*splits], where)
    return splits, choose_drawn(split, where, for_evaluation=for_evaluation)


def _read_index(shards: Shards, split: str, where: str, input_key: str | None) -> list[_Record]:
    """Return the examples of a split that have an image; log how many members belong to no example.

    Raises:
        DataError: a shard cannot be indexed, has no images, or an example has several.
    """
    missing = [path for path in shards.files if not path.is_file()]
    if missing:
        raise DataError(f'{where}: {len(missing)} shards of {split} do not exist, such as {shown(missing[0])}')
    new = [path for path in shards.files if not is_indexed(path)]
    if len(new) > MANY_SHARDS:
        logger.warning('%s: reading the headers of %d shards, once; this may take minutes', where, len(new))
    with concurrent.futures.ThreadPoolExecutor(OPEN_FILES, 'index') as pool:
        try:
            found = list(pool.map(index_shard, shards.files))
        except DataError as error:
            raise DataError(f'{where}: {error}') from error
    records: list[_Record] = []
    passed_over = 0
    suffixes = frozenset(suffix[1:] for suffix in image_suffixes())
    for number, (path, index) in enumerate(zip(shards.files, found, strict=True)):
        before = len(records)
        passed_over += index.passed_over
        for example in index.examples:
            extension = _image(example, input_key, suffixes, path, where)
            if extension:
                records.append(_Record(number, example, extension))
            elif 'cls' in example.members:
                key, has = shown(example.key), ', '.join(map(shown, example.members))
                raise DataError(f'{where}: {shown(path)}: {key} has no image{_for(input_key)}; it has {has}')
            else:
                passed_over += len(example.members)
        if len(records) == before:
            some = ', '.join(
                f'{shown(e.key)}.{shown("|".join(e.members))}' for e in itertools.islice(index.examples, 3)
            )
            raise DataError(f'{where}: {shown(path)} has no images{_for(input_key)}; it has {some or "no members"}')
    if shards.count is not None and shards.count != len(records):
        raise DataError(f'{where}: {split} has {len(records):,} examples; expected {shards.count:,}')
    if passed_over:
        logger.warning('%s: passed over %d members of %s that belong to no image', where, passed_over, split)
    return records


def _for(input_key: str | None) -> str:
    return f' (--input-key {input_key})' if input_key else ''


def _image(example: TarExample, input_key: str | None, suffixes: frozenset[str], path: Path, where: str) -> str | None:
    """Return the extension of the image of an example; None if it has no image."""
    if input_key:
        keys = [key.strip().removeprefix('.').lower() for key in re.split('[; ]', input_key)]
        return next((key for key in keys if key in example.members), None)
    found = [extension for extension in example.members if extension in suffixes]
    if len(found) > 1:
        both = ' and '.join(map(shown, found))
        raise DataError(
            f'{where}: {shown(path)}: {shown(example.key)} has the images {both}; choose one: --input-key {found[0]}'
        )
    return found[0] if found else None


def _labels(
    records: Sequence[_Record], shards: Shards, where: str, target_key: str | None, unlabelled: bool
) -> list[int | str] | None:
    """Return the label of each example; None if none has one, which only `unlabelled` allows."""
    field = target_key or shards.label
    values = _each(records, shards, where, lambda file, record: _label(file, record, field, where))
    missing = [record for record, value in zip(records, values, strict=True) if value is None]
    if unlabelled and {*values} <= {None, UNLABELLED}:
        return None
    if missing:
        first = missing[0]
        has = ', '.join(map(shown, first.example.members))
        needed = f'the field {shown(field)} in json' if field else f"the member cls, or the field '{LABEL}' in json"
        raise DataError(
            f'{where}: {len(missing):,} of {len(records):,} images have no label; expected {needed}. The first is '
            f'{shown(first.name)} in {shown(shards.files[first.shard])}, with {has}'
        )
    return [value for value in values if value is not None]


def _label(file: BinaryIO, record: _Record, field: str, where: str) -> int | str | None:
    """Return the label of an example; None if it has none."""
    if not field and record.example.cls is not None:
        return check_label(_number_or_name(record, where), record.name, where)
    fields = _fields(file, record, where)
    value = fields.get(field or LABEL) if isinstance(fields, dict) else None
    return None if value is None else check_label(value, record.name, where)


def _target(file: BinaryIO, record: _Record, keys: TargetKeys, where: str) -> Any:
    """Return the labels of an example, as its member json or cls has them.

    Raises:
        DataError: it has none, or two fields that may be the labels.
    """
    if not keys.fields and record.example.cls is not None:
        return _number_or_name(record, where)
    fields = _fields(file, record, where)
    fields = fields if isinstance(fields, dict) else {}
    if not keys.fields:
        found = [name for name in (LABELS, LABEL) if name in fields]
        if len(found) > 1:
            raise DataError(
                f'{where}: {shown(record.name)} has the fields {LABELS} and {LABEL} in json; name one with --target-key'
            )
        keys = keys._replace(fields=tuple(found) or (LABELS,))
    missing = [key for key in keys.fields if not has_field(fields, key)]
    if missing:
        have = ', '.join(map(shown, fields)) or 'no fields'
        raise DataError(f'{where}: {shown(record.name)} has no field {shown(missing[0])} in json; it has {have}')
    return keys.value(fields, record.name, where)


def _number_or_name(record: _Record, where: str) -> int | str:
    """Return the class that the member cls names. Raises DataError if it has several numbers or lines, or a list."""
    cls = record.example.cls or ''
    if re.fullmatch(r'[0-9]+([\s,;|]+[0-9]+)+|\[.*\]', cls) or '\n' in cls:
        raise DataError(
            f'{where}: the member cls of {shown(record.name)} is {shown(cls)[:100]}; expected the number or the name '
            'of one class. Several labels are a list in the member json, read with --task multilabel'
        )
    return int(cls) if re.fullmatch(r'-?[0-9]{1,9}', cls) else cls


def _each(
    records: Sequence[_Record], shards: Shards, where: str, read: Callable[[BinaryIO, _Record], Any]
) -> list[Any]:
    """Return what a function reads of each example in its shard, which is open.

    Raises:
        DataError: a shard cannot be read, or as the function.
    """
    values: list[Any] = []
    for shard, group in itertools.groupby(records, lambda record: record.shard):
        try:
            with shards.files[shard].open('rb') as file:
                values += [read(file, record) for record in group]
        except OSError as error:
            raise DataError(f'{where}: {shown(shards.files[shard])}: cannot be read: {reason(error)}') from error
    return values


def _fields(file: BinaryIO, record: _Record, where: str) -> Any:
    """Return the content of the member json; None if there is none."""
    if 'json' not in record.example.members:
        return None
    start, length = record.example.members['json']
    file.seek(start)
    try:
        return json.loads(file.read(length))
    except (ValueError, RecursionError) as error:
        raise DataError(f'{where}: {shown(record.example.key)}.json is not JSON: {reason(error)}') from error
