"""Images listed in a CSV file with the columns path, label or labels and, if the data has splits, split."""

import collections
import csv
import itertools
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tresnet_jax.data.class_matching import normal_name
from tresnet_jax.data.file_source import FileSource, class_order, labels_of, make_source, repeated_files, share
from tresnet_jax.data.splits import Split, choose_drawn, choose_split, split_kind
from tresnet_jax.data.target_values import TargetFormat, TargetKeys, parse_target_keys, target_source
from tresnet_jax.data.targets import MultiLabelSource
from tresnet_jax.errors import DataError, reason, shown

SEPARATOR = '|'  # of the labels of an image
OTHER_SEPARATORS = frozenset(',;[]')  # in files for other programs
PROBED = 32  # files whose existence is checked when the CSV file is opened


class Row(NamedTuple):
    """A row of a CSV file; `split` is '' if the file has no such column.

    With any number of labels, `label` is the text of the column; or with several columns, the names of those that are
    on, separated by '|'.
    """

    line: int
    path: str
    label: str
    split: str


def open_csv(
    name: str,
    split: str | None,
    data_dir: Path | None,
    where: str,
    val_fraction: float,
    *,
    class_names: Sequence[str] | None = None,
    for_evaluation: bool = False,
    target_key: str | None = None,
    target_format: TargetFormat | None = None,
) -> FileSource | MultiLabelSource:
    """Open one split of a CSV file.

    The file is in UTF-8, separated by commas, with a header. The classes are the labels of the training split, in
    timm's natural order. Without the column split, a share of each class, drawn with a fixed seed, is the split
    'validation'.

    Args:
        name: the CSV file, relative to `data_dir` or to the current folder.
        split: as in `choose_split`; the names are those in the column split.
        data_dir: the folder that the paths of the images start from; None: the folder of the CSV file.
        where: the data set, for errors.
        val_fraction: the share of each class that is for validation if there is no column split.
        class_names: the names of the labels, as a run has stored them. None: those of the training split.
        for_evaluation: a file without the column split is opened whole, and may have a single class.
        target_key: for images with any number of labels, the column of the labels, or several, each of which is one
            class. None: labels or label.
        target_format: images have any number of labels, in this form. None: one label.

    Raises:
        DataError: the file does not exist, is ambiguous or has other columns; a row is incomplete or contradicts
            another; none of the images exists; or as `open_folder`.
    """
    file = _find(name, data_dir, where)
    keys = None if target_format is None else parse_target_keys(target_key, target_format, where)
    rows = read_rows(file, where, data_dir or file.parent, keys)
    splits = list(dict.fromkeys(row.split for row in rows if row.split))
    if not splits:
        chosen = choose_drawn(split, where, for_evaluation=for_evaluation)
    else:
        chosen = choose_split(split, splits, where)
    if keys is not None:
        drawn = None if splits or for_evaluation else val_fraction
        source = _with_targets(rows, chosen, keys, class_names, drawn, data_dir or file.parent)
        _check_files(source, where)
        return source
    groups = collections.defaultdict(list)
    for row in rows:
        if not splits or row.split == chosen.name:
            groups[row.label].append(row.path)
    if class_names is None:
        train = next((name for name in splits if split_kind(name) == 'train'), None)
        own = train is None or split_kind(chosen.name) == 'train'
        class_names = class_order([*groups] if own else [row.label for row in rows if row.split == train])
    if len(class_names) < 2 and not for_evaluation:
        raise DataError(f'{where}: only one class, {shown(*class_names)}; expected at least two')
    classes = sorted(groups)
    labels = labels_of(classes, class_names, chosen.name, where)
    files = [sorted(groups[name]) for name in classes]
    if not splits and not for_evaluation:
        files = [share(group, chosen.name == 'validation', val_fraction) for group in files]
        if not any(files):
            raise DataError(f'{where}: no images for {chosen.name}; val_fraction is {val_fraction}')
    source = make_source(where, chosen, class_names, data_dir or file.parent, files, labels)
    _check_files(source, where)
    return source


def _with_targets(
    rows: Sequence[Row],
    split: Split,
    keys: TargetKeys,
    class_names: Sequence[str] | None,
    drawn: float | None,
    root: Path,
) -> MultiLabelSource:
    """Return the source of images with any number of labels; the arguments are those of `target_source`."""
    read = _reader(rows, keys, split.where)
    kept = sorted((row for row in rows if not row.split or row.split == split.name), key=lambda row: row.path)
    training = [row for row in rows if split_kind(row.split) == 'train']
    own = not training or split_kind(split.name) == 'train'

    def make(part: np.ndarray) -> FileSource:
        files = tuple(kept[index].path for index in part)
        return FileSource(shown(f'{split.where} {split.text}'), (), root, files, np.zeros(len(files), np.int32), ())

    return target_source(
        [read(row) for row in kept],
        split,
        keys,
        class_names=class_names,
        train=None if own else lambda: [read(row) for row in training],
        drawn=drawn,
        describe=lambda index: f'line {kept[index].line}',
        make=make,
    )


def _reader(rows: Sequence[Row], keys: TargetKeys, where: str) -> Callable[[Row], list[Any]]:
    """Return the function that reads the labels of a row.

    Labels are separated by '|'; or by spaces, if no row has a '|'.

    Raises:
        DataError: a word may be several labels in another notation, 'cat,dog' or "['cat']"; or two words always stand
            together, so that they may be one label.
    """
    if keys.form == 'multihot':
        return lambda row: [_number(text) for text in row.label.replace(SEPARATOR, ' ').split()]
    if keys.several or any(SEPARATOR in row.label for row in rows):
        return lambda row: [text.strip() for text in row.label.split(SEPARATOR) if text.strip()]
    words = collections.Counter(word for row in rows for word in row.label.split())
    if other := next((word for word in words if OTHER_SEPARATORS & {*word}), None):
        raise DataError(
            f'{where}: the labels {shown(other)} may be separated by another character than {SEPARATOR} or a space; '
            f'separate labels by {SEPARATOR}, also in {shown(other)}{SEPARATOR} if that is one label'
        )
    pairs = collections.Counter(pair for row in rows for pair in itertools.pairwise(row.label.split()))
    for (one, two), times in pairs.items():
        if words[one] == words[two] == times:
            raise DataError(
                f'{where}: {shown(f"{one} {two}")} may be one label or two; separate labels by {SEPARATOR}, as in '
                f'{shown(f"{one} {two}{SEPARATOR}")} or {shown(f"{one}{SEPARATOR}{two}")}'
            )
    return lambda row: row.label.split()


def _number(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text


def read_rows(file: Path, where: str, root: Path, keys: TargetKeys | None = None) -> list[Row]:
    """Read the rows of a CSV file.

    Args:
        file, where: the file, and the data set for errors.
        root: where the paths start.
        keys: the columns with any number of labels, which may be empty; None: one label, in the column label.

    Raises:
        DataError: the file cannot be read, has other columns or no rows, a row is incomplete, or an image is listed
            twice.
    """
    try:
        # File names need not be UTF-8: their bytes are kept.
        with file.open(encoding='utf-8-sig', errors='surrogateescape', newline='') as opened:
            table = csv.reader(opened, strict=True)
            header = next(table, [])
            places = _columns(header, where, keys)
            rows = [_row(line, places, table.line_num, where, keys) for line in table if line]
    except (OSError, csv.Error) as error:
        raise DataError(f'{where}: {shown(file)} cannot be read as a CSV file: {reason(error)}') from error
    if not rows:
        raise DataError(f'{where}: {shown(file)} has no rows')
    for one, two in repeated_files([row.path for row in rows], root):
        other, row = rows[one], rows[two]
        image = shown(row.path) if row.path == other.path else f'{shown(row.path)}, which is {shown(other.path)},'
        for what, before, now in (('labels', other.label, row.label), ('splits', other.split, row.split)):
            if before != now:
                raise DataError(
                    f'{where}: {image} has two {what}: {shown(before)} (line {other.line}) and {shown(now)} '
                    f'(line {row.line})'
                )
        # Evaluation would count it twice, and a part of a split could hold one of the two.
        raise DataError(f'{where}: {image} is listed twice (lines {other.line} and {row.line}); leave out one')
    return rows


def _find(name: str, data_dir: Path | None, where: str) -> Path:
    """Return the CSV file, relative to `data_dir` or to the current folder."""
    here = Path(os.path.expanduser(name))
    below = here if data_dir is None else data_dir / here
    if below != here and below.is_file() and here.is_file() and not below.samefile(here):
        raise DataError(f'{where}: may be {shown(below)} or {shown(here.absolute())}; give an absolute path')
    file = below if below.is_file() else here
    if not file.is_file():
        looked = shown(below) if below == here else f'{shown(below)}, or {shown(here)} in the current folder,'
        raise DataError(f'{where}: the file {looked} does not exist')
    return file


def _columns(header: list[str], where: str, keys: TargetKeys | None) -> dict[str, int]:
    """Return the position of each known column, after checking the header. '' is the number of columns."""
    names = [name.strip().lower() for name in header]
    found = ', '.join(map(shown, header[:10]))
    if keys is None:
        if 'labels' in names:
            raise DataError(f'{where}: has a column labels; for several labels per image give --task multilabel')
        labels = ('label',)
    elif keys.fields:
        taken = [name for name in ('path', 'split') if name in keys.fields]
        if taken:
            raise DataError(f'{where}: --target-key {",".join(keys.fields)}: the column {taken[0]} has no labels')
        names = [name if name in ('path', 'split') else own.strip() for name, own in zip(names, header, strict=True)]
        labels = keys.fields
    else:
        labels = tuple(name for name in ('labels', 'label') if name in names) or ('labels',)
        if len(labels) > 1:
            raise DataError(f'{where}: has the columns labels and label; name one with --target-key')
    known = ('path', *labels, 'split')
    repeated = [name for name in known if names.count(name) > 1]
    if repeated:
        raise DataError(f'{where}: has several columns {repeated[0]}')
    if not {'path', *labels} <= {*names}:
        wanted = f'path, {", ".join(labels)}'
        raise DataError(f'{where}: expected the columns {wanted} and, optionally, split, got {found or "no header"}')
    return {name: names.index(name) for name in known if name in names} | {'': len(names)}


def _row(values: list[str], places: dict[str, int], line: int, where: str, keys: TargetKeys | None) -> Row:
    if len(values) != places['']:
        raise DataError(
            f'{where}: line {line} has {len(values)} values, but the header has {places[""]}; put names with commas in '
            'quotes'
        )
    found = {name: values[place].strip() for name, place in places.items() if name}
    empty = [name for name, value in found.items() if not value and (keys is None or name in ('path', 'split'))]
    if empty:
        raise DataError(f'{where}: line {line} has no {empty[0]}')
    path, split = found.pop('path'), found.pop('split', '')
    if keys is not None and keys.several:
        numbers = {name: _number(value) for name, value in found.items()}
        label = SEPARATOR.join(keys.value(numbers, f'line {line}', where))
    else:
        (label,) = found.values()
    return Row(line, path, normal_name(label), split)


def _check_files(source: FileSource | MultiLabelSource, where: str) -> None:
    """Raise DataError if none of a few files exists: the paths start from another folder."""
    probed = np.linspace(0, len(source) - 1, min(PROBED, len(source))).round().astype(int)
    if not any(Path(source.describe(index)).exists() for index in probed):
        raise DataError(
            f'{where}: none of {len(probed)} images looked for exists, such as {shown(source.describe(0))}; paths are '
            'relative to the folder of the CSV file, or to --data-dir'
        )
