"""Index of a tar shard: the examples it holds and where the bytes of their members are.

A shard (WebDataset's format) is an uncompressed tar archive. Members whose paths are the same up to the first dot of
the file name are one example: the key ``dog/001`` has ``dog/001.jpg``, ``dog/001.cls`` and ``dog/001.json``.
"""

import contextlib
import hashlib
import json
import os
import tarfile
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from tresnet_jax.compilation_cache import cache_folder
from tresnet_jax.data.walk import is_skipped
from tresnet_jax.errors import ConversionError, DataError, reason, shown
from tresnet_jax.files import save_text

FORMAT = 1  # of a stored index; others are built again
LONGEST_LABEL = 1024  # bytes of a member cls
CHUNK = 1 << 20

# First bytes of compressed files, and the program that unpacks them.
COMPRESSED = {b'\x1f\x8b': 'gunzip', b'BZh': 'bunzip2', b'\xfd7zXZ': 'unxz', b'(\xb5/\xfd': 'unzstd', b'PK': 'unzip'}


class TarExample(NamedTuple):
    """An example of a shard.

    Attributes:
        key: the path of its members up to the first dot of the file name.
        cls: the text of the member cls; None if there is none.
        members: (first byte, bytes) of each member, by its extension in lower case.
    """

    key: str
    cls: str | None
    members: dict[str, tuple[int, int]]


class TarIndex(NamedTuple):
    """The examples of a shard in the order of their first members, and the number of members that belong to none."""

    examples: list[TarExample]
    passed_over: int


def index_shard(path: Path) -> TarIndex:
    """Return the index of a shard. It is kept in the user's cache folder as long as size and time stay the same.

    Raises:
        DataError: the shard cannot be read, is compressed, truncated or damaged, or has links, sparse files or two
            members of one name. The message begins with the path.
    """
    try:
        status = path.stat()
        version = {'format': FORMAT, 'path': os.path.realpath(path), 'size': status.st_size, 'time': status.st_mtime_ns}
        stored = _cache_file(version['path'])
        if stored is not None and (index := _load(stored, version)) is not None:
            return index
        index = scan_shard(path)
    except OSError as error:
        raise DataError(f'{shown(path)}: cannot be read: {reason(error)}') from error
    if stored is not None:
        with contextlib.suppress(ConversionError):  # the disk is full, for example; the next run builds it again
            save_text(stored, json.dumps(version | {'passed_over': index.passed_over, 'examples': index.examples}))
    return index


def is_indexed(path: Path) -> bool:
    """Return whether the index of a shard is stored, perhaps for an older version of the shard."""
    stored = _cache_file(os.path.realpath(path))
    return stored is not None and stored.exists()


def scan_shard(path: Path) -> TarIndex:
    """Read the headers of all members of a shard.

    Raises:
        DataError: as for `index_shard`.
        OSError: the file cannot be read.
    """
    examples: dict[str, TarExample] = {}
    passed_over = 0
    with path.open('rb') as file:
        size = os.fstat(file.fileno()).st_size
        start = file.read(8)
        for magic, program in COMPRESSED.items():
            if start.startswith(magic):
                raise DataError(f'{shown(path)}: is compressed, so its members have no fixed places; {program} it')
        file.seek(0)
        last, name = -1, ''
        try:
            archive: Any = tarfile.open(fileobj=file, mode='r:')
            while (member := archive.next()) is not None:
                archive.members.clear()  # tarfile would keep all of them in memory
                begin, length = member.offset_data, member.size
                if not last < begin <= begin + length <= size:
                    raise tarfile.ReadError('unexpected end of data')
                last, name = begin, member.name
                if member.isdir():
                    continue
                if not member.isreg() or member.issparse():
                    what = 'a sparse file' if member.isreg() else 'a link or a device'
                    raise DataError(
                        f'{shown(path)}: the member {shown(member.name)} is {what}; pack the files themselves, for '
                        'example with tar --dereference --hard-dereference'
                    )
                parts = _split_name(member.name)
                if parts is None:
                    passed_over += 1
                    continue
                key, extension = parts
                example = examples.setdefault(key, TarExample(key, None, {}))
                if extension in example.members:
                    raise DataError(f'{shown(path)}: has two members {shown(key)}.{shown(extension)}')
                example.members[extension] = (begin, length)
                if extension == 'cls':
                    examples[key] = example._replace(cls=_text(file, begin, length, path, key))
            _check_end(file, archive.offset)
        except DataError:
            raise
        except Exception as error:  # tarfile raises nearly anything on damaged headers
            if isinstance(error, OSError) and error.errno is not None:
                raise
            at = f' after {shown(name)}' if name else ''
            raise DataError(
                f'{shown(path)}: is truncated or damaged{at} ({reason(error)}); expected a tar archive: copy it again'
            ) from error
    return TarIndex(list(examples.values()), passed_over)


def _split_name(name: str) -> tuple[str, str] | None:
    """Return the key and the extension of a member; None if it belongs to no example.

    Hidden files, files of tools and systems, WebDataset's own (``__name__``) and names without a dot belong to none.
    """
    parts = [part for part in name.split('/') if part not in ('', '.')]
    if not parts or any(map(is_skipped, parts)) or '.' not in parts[-1]:
        return None
    stem, _, extension = parts[-1].partition('.')
    if any(part.startswith('__') and part.endswith('__') for part in (*parts[:-1], stem)):
        return None
    return '/'.join([*parts[:-1], stem]), extension.lower()


def _text(file: BinaryIO, begin: int, length: int, path: Path, key: str) -> str:
    """Return the text of a member."""
    if length > LONGEST_LABEL:
        raise DataError(f'{shown(path)}: {shown(key)}.cls has {length:,} bytes; expected the number of a class')
    file.seek(begin)
    return file.read(length).decode('utf-8', 'surrogateescape').strip()


def _check_end(file: BinaryIO, at: int) -> None:
    """Raise ReadError if the archive does not end with blocks of zeros; `tarfile` accepts other ends silently."""
    file.seek(at)
    tail = file.read(tarfile.BLOCKSIZE)
    if len(tail) < tarfile.BLOCKSIZE:
        raise tarfile.ReadError('the end of the archive is missing')
    while tail:
        if tail.strip(b'\0'):
            raise tarfile.ReadError(f'byte {at} is neither a member nor the end of the archive')
        at += len(tail)
        tail = file.read(CHUNK)


def _cache_file(path: str) -> Path | None:
    """Return the file for the index of a shard; None if there is no cache folder."""
    folder = cache_folder('shards')
    return folder and folder / f'{hashlib.sha256(os.fsencode(path)).hexdigest()[:32]}.json'


def _load(stored: Path, version: dict[str, Any]) -> TarIndex | None:
    """Return a stored index; None if there is none, or it is damaged or of another version of the shard."""
    try:
        found = json.loads(stored.read_text(encoding='utf-8'))
        if any(found[name] != value for name, value in version.items()):
            return None
        examples = [
            TarExample(key, cls, {extension: (begin, length) for extension, (begin, length) in members.items()})
            for key, cls, members in found['examples']
        ]
        return TarIndex(examples, found['passed_over'])
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
