"""Find tar shards by a pattern, and which of them belong to which split."""

import collections
import glob
import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tresnet_jax.data.splits import split_kind
from tresnet_jax.errors import DataError, reason, shown

MOST_FILES = 1_000_000  # that a pattern may name
INFO_FILES = ('_info.json', 'info.json')  # timm's description of a data set, beside its shards
COMPRESSED_TAR = re.compile(r'\.(tgz|tbz2?|txz|tar\.(gz|bz2|xz|zst|lz4|Z))$', re.IGNORECASE)
_NUMBERS = re.compile(r'(-?\d+)\.\.(-?\d+)(?:\.\.(-?\d+))?')
_LETTERS = re.compile(r'([a-zA-Z])\.\.([a-zA-Z])(?:\.\.(-?\d+))?')


class Shards(NamedTuple):
    """The shards of a split.

    Attributes:
        files: their paths, in order.
        count: the number of examples that the pattern or `_info.json` gives; None if neither does.
        label: the field of the member json that is the label, by `_info.json`; '' is the default.
    """

    files: tuple[Path, ...]
    count: int | None = None
    label: str = ''


def find_shards(pattern: str, base: Path, where: str) -> Shards:
    """Find the shards that a pattern names, as WebDataset and timm write it.

    Args:
        pattern: a path with braces, '{0000..0146}' or '{train,val}', and with '*', '?' and '[...]'; several are joined
            by '::'. timm's '|COUNT' at the end is the number of examples. A path that exists is taken as it is.
        base: the folder that relative paths start from.
        where: the data set, for errors.

    Raises:
        DataError: a shard does not exist or is named twice, the braces do not match, or the pattern is a URL.
    """
    pattern, _, count = pattern.partition('|')
    if count and not count.isdecimal():
        raise DataError(f'{where}: expected a number of examples after |, got {shown(count)}')
    files: list[Path] = []
    for part in pattern.split('::'):
        if re.match(r'[a-z][a-z0-9+.-]+:', part):
            raise DataError(f'{where}: {shown(part)} is not a path; download the shards first')
        whole = base / os.path.expanduser(part)
        for path in [whole] if whole.exists() else [base / os.path.expanduser(p) for p in expand_braces(part, where)]:
            files += [path] if path.exists() else map(Path, sorted(glob.glob(str(path))) or [path])
    missing = [path for path in files if not path.is_file()]
    if missing:
        some = f'{len(missing)} of {len(files)} shards do not exist' if len(files) > 1 else 'no such shard'
        raise DataError(f'{where}: {some}: {_some(missing)}')
    path, times = collections.Counter(files).most_common(1)[0]
    if times > 1:
        raise DataError(f'{where}: names {shown(path)} {times} times')
    return Shards(tuple(files), int(count) if count else None)


def find_splits(name: str, base: Path, where: str) -> dict[str, Shards]:
    """Find the shards of each split of a folder or a pattern; the name '' stands for shards without splits.

    The splits are those of `_info.json` in a folder. Otherwise the name of a split, such as 'train' or 'validation',
    is a word in the name of each of its shards, or of the folders that the shards do not have in common.

    Args:
        name: a folder, or a pattern of `find_shards`.
        base, where: as for `find_shards`.

    Raises:
        DataError: as `find_shards`; there are no shards, `_info.json` cannot be read, or it is unclear to which split
            a shard belongs.
    """
    folder = base / os.path.expanduser(name)
    if folder.is_dir():
        for info in INFO_FILES:
            if (folder / info).is_file():
                return _read_info(folder / info, where)
        found = Shards(_in_folder(folder, where))
    else:
        found = find_shards(name, base, where)
    common = os.path.commonpath([path.parent.absolute() for path in found.files])
    kinds = [_kind(os.path.relpath(path, common), where) for path in found.files]
    if None not in kinds and found.count is not None and len({*kinds}) > 1:
        raise DataError(f'{where}: |{found.count} counts the examples of several splits; leave it out')
    if None in kinds and len({*kinds}) > 1:
        first = found.files[kinds.index(None)]
        raise DataError(f'{where}: the name of {shown(first)} has no split, unlike those of other shards')
    splits = {kind: [path for path, k in zip(found.files, kinds, strict=True) if k == kind] for kind in kinds}
    return {kind or '': Shards(tuple(files), found.count) for kind, files in splits.items()}


def expand_braces(pattern: str, where: str) -> list[str]:
    """Return what a pattern with braces stands for, in order, as in bash and WebDataset.

    Example:
        >>> expand_braces('{train,val}-{08..10}.tar', 'data')[:4]
        ['train-08.tar', 'train-09.tar', 'train-10.tar', 'val-08.tar']

    Raises:
        DataError: the braces do not match, or there are too many names.
    """
    start = pattern.find('{')
    if start < 0:
        if '}' in pattern:
            raise DataError(f'{where}: a brace of {shown(pattern)} is not opened')
        return [pattern]
    depth, cuts = 0, [start]
    for at in range(start, len(pattern)):
        depth += {'{': 1, '}': -1}.get(pattern[at], 0)
        if depth == 0 or (depth == 1 and pattern[at] == ','):
            cuts.append(at)
        if depth == 0:
            break
    else:
        raise DataError(f'{where}: a brace of {shown(pattern)} is not closed')
    inner = pattern[start + 1 : cuts[-1]]
    if len(cuts) > 2:
        pieces = [pattern[a + 1 : b] for a, b in zip(cuts, cuts[1:], strict=False)]
        options = [option for piece in pieces for option in expand_braces(piece, where)]
    else:
        options = _range(inner) or [f'{{{option}}}' for option in expand_braces(inner, where)]
    rest = expand_braces(pattern[cuts[-1] + 1 :], where)
    if len(options) * len(rest) > MOST_FILES:
        raise DataError(f'{where}: {shown(pattern)} stands for more than {MOST_FILES:,} names')
    return [pattern[:start] + option + end for option in options for end in rest]


def _range(text: str) -> Sequence[str]:
    """Return the values of '0000..0146', 'a..f' or '0..10..2'; empty if the text is something else."""
    if match := _NUMBERS.fullmatch(text):
        first, last = int(match[1]), int(match[2])
        padded = any(re.match(r'-?0\d', bound) for bound in match.groups()[:2])
        width = max(len(match[1]), len(match[2])) if padded else 0
        values = range(first, last + (1 if last >= first else -1), _step(match[3], first, last))
        return [f'{value:0{width}}' for value in values[: MOST_FILES + 1]]
    if match := _LETTERS.fullmatch(text):
        first, last = ord(match[1]), ord(match[2])
        return [chr(value) for value in range(first, last + (1 if last >= first else -1), _step(match[3], first, last))]
    return []


def _step(text: str | None, first: int, last: int) -> int:
    return (abs(int(text or 1)) or 1) * (1 if last >= first else -1)


def _kind(path: str, where: str) -> str | None:
    """Return the split that a word in the name of a shard stands for: 'train', 'validation' or 'test'; else None."""
    for part in reversed(Path(path).parts):  # the name of the file counts more than that of its folder
        kinds = {split_kind(word) for word in re.findall('[a-z]+', part.lower())} - {None}
        if len(kinds) > 1:
            both = ' and '.join(sorted(map(str, kinds)))
            raise DataError(
                f'{where}: of which split is {shown(path)}? Its name has {both}; name the shards of each split: '
                "--train-split 'A*.tar' --val-split 'B*.tar', or --split"
            )
        if kinds:
            return kinds.pop()
    return None


def _in_folder(folder: Path, where: str) -> tuple[Path, ...]:
    """Return the shards in a folder and in its subfolders, sorted."""
    files = sorted(path for pattern in ('*', '*/*') for path in folder.glob(pattern) if not path.name.startswith('.'))
    compressed = [path for path in files if COMPRESSED_TAR.search(path.name)]
    if compressed:
        raise DataError(f'{where}: {len(compressed)} shards are compressed; unpack them: {_some(compressed)}')
    shards = tuple(path for path in files if path.suffix.lower() == '.tar')
    if not shards:
        raise DataError(f'{where}: no shards (*.tar) in {shown(folder)}')
    return shards


def _read_info(path: Path, where: str) -> dict[str, Shards]:
    """Read timm's description of the splits: {'splits': {NAME: {'filenames': [...], 'num_samples': COUNT, ...}}}."""
    try:
        splits: dict[str, Any] = json.loads(path.read_text(encoding='utf-8'))['splits']
        found = {
            name: Shards(
                tuple(path.parent / _inside(file) for file in split['filenames']),
                int(split['num_samples']),
                str(split.get('alt_label') or ''),
            )
            for name, split in splits.items()
        }
    except (OSError, ValueError, OverflowError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DataError(f'{where}: {shown(path)} does not describe splits as timm does: {reason(error)}') from error
    if not found or not all(shards.files for shards in found.values()):
        raise DataError(f'{where}: {shown(path)} names no shards')
    return found


def _inside(file: str) -> str:
    """Return a path below the folder of `_info.json`. Raises ValueError if it is outside."""
    if os.path.isabs(file) or '..' in Path(file).parts:
        raise ValueError(f'the shard {shown(file)} is outside its folder')
    return file


def _some(paths: Sequence[Path]) -> str:
    return ', '.join(map(shown, paths[:3])) + (', ...' if len(paths) > 3 else '')
