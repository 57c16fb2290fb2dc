"""Walk through folders of images. Training, evaluation, embedding and prediction find files in the same way."""

import collections
import contextlib
import logging
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from tresnet_jax.errors import DataError, reason, shown

# Folders that file managers, archives, synchronisation tools and file systems add. Hidden names begin with a dot.
SERVICE_FOLDERS = frozenset(
    '@eadir @recycle @recently-snapshot @tmp #recycle #snapshot __macosx __pycache__ $recycle.bin recycler '
    'lost+found found.000'.split()
) | {'system volume information', 'network trash folder', 'temporary items'}
SERVICE_FILES = frozenset(('thumbs.db', 'ehthumbs.db', 'desktop.ini', 'icon\r'))

# Pillow recognises these formats, but has no decoder for their pixels.
NOT_DECODED = frozenset(('BUFR', 'GRIB', 'HDF5', 'MPEG'))


class Walk(NamedTuple):
    """The files of a folder.

    Attributes:
        images: paths of the images below the folder, in POSIX form, sorted.
        passed_over: the number of other files by suffix, in lower case; '' is no suffix. Hidden files are not counted.
    """

    images: list[str]
    passed_over: Mapping[str, int]


def natural_key(name: str) -> list[str | int]:
    """Return the key that sorts names as timm does (timm/utils/misc.py): in lower case, digits as numbers.

    Example:
        >>> sorted(['Apple 10', 'Zebra', 'apple 6', 'Apple 5'], key=natural_key)
        ['Apple 5', 'apple 6', 'Apple 10', 'Zebra']
    """
    parts = re.split(r'(\d+)', name.lower())
    return [int(part) if place % 2 else part for place, part in enumerate(parts)]


def is_skipped(name: str) -> bool:
    """Return whether a file or folder is skipped: a hidden one, such as '._dog.jpg', or one of `SERVICE_FOLDERS`."""
    return name.startswith('.') or name.lower() in SERVICE_FOLDERS or name.lower() in SERVICE_FILES


def image_suffixes() -> frozenset[str]:
    """Return the suffixes, in lower case, of the formats that Pillow and its registered plugins can open."""
    formats = Image.registered_extensions()  # loads Pillow's own plugins
    openable = ({*Image.OPEN} | {'MPO'}) - NOT_DECODED  # MPO is opened by the plugin for JPEG
    return frozenset(suffix.lower() for suffix, name in formats.items() if name in openable)


def subfolders(folder: Path) -> list[str]:
    """Return the names of the folders in a folder, sorted; [] if it is not a folder.

    Skipped are `is_skipped` names, and links to the folder itself or to a folder above it.

    Raises:
        DataError: the folder cannot be read.
    """
    if not folder.is_dir():
        return []
    above = os.path.realpath(folder)
    return [
        entry.name
        for entry in _entries(folder)
        if entry.is_dir() and not (entry.is_symlink() and _contains(os.path.realpath(entry.path), above))
    ]


def has_images(folder: Path, *, below: bool = False) -> bool:
    """Return whether a folder holds an image; if `below`, whether one of its subfolders does, at any depth.

    Raises:
        DataError: a folder cannot be read.
    """
    if below:
        visited, pending = {folder_identity(folder)}, [folder / name for name in subfolders(folder)]
        while pending:
            inner = pending.pop()
            if (identity := folder_identity(inner)) not in visited:
                if has_images(inner):
                    return True
                visited.add(identity)
                pending += [inner / name for name in subfolders(inner)]
        return False
    suffixes = image_suffixes()
    with _readable(folder), os.scandir(folder) as entries:
        return any(not is_skipped(e.name) and _suffix(e.name) in suffixes and _is_file(e) for e in entries)


def walk(root: Path) -> Walk:
    """Find the images below a folder, at any depth.

    Hidden and service folders are skipped. Links to files and folders are followed; each folder is visited once, by
    its own path if it is below `root`, and a link to a folder above itself is not followed. A broken link with the
    suffix of an image counts as an image, so that it is reported as unreadable.

    Raises:
        DataError: a folder cannot be read.
    """
    suffixes = image_suffixes()
    images: list[str] = []
    passed_over: collections.Counter[str] = collections.Counter()
    visited: set[object] = set()
    folders, links = [''], collections.deque[str]()
    linked = False  # whether `folders` are reached through a link
    while folders or links:
        if folders:
            below = folders.pop()
        else:
            below, linked = links.popleft(), True
        folder = root / below
        identity = folder_identity(folder)
        if linked and identity in visited:
            continue
        visited.add(identity)
        real = os.path.realpath(folder)
        for entry in _entries(folder):
            path = f'{below}/{entry.name}' if below else entry.name
            if entry.is_dir():
                if not entry.is_symlink():
                    folders.append(path)
                elif not _contains(os.path.realpath(entry.path), real):
                    links.append(path)
            elif _is_file(entry):
                suffix = _suffix(entry.name)
                if suffix in suffixes:
                    images.append(path)
                else:
                    passed_over[suffix] += 1
    return Walk(sorted(images), passed_over)


def find_images(paths: Iterable[str | os.PathLike]) -> list[Path]:
    """Return the given files, whatever their names, and the images of the given folders, as `walk` finds them.

    The images of a folder are sorted. What is passed over is logged.

    Raises:
        DataError: a folder cannot be read.
    """
    found: list[Path] = []
    for path in map(Path, paths):
        if path.is_dir():
            files = walk(path)
            report_passed_over(str(path), files.passed_over)
            found += sorted(path / image for image in files.images)
        else:
            found.append(path)
    return found


def describe_passed_over(passed_over: Mapping[str, int]) -> str:
    """Return what files `walk` has passed over, in a few words; '' if there are none.

    Example:
        >>> describe_passed_over({'.txt': 2, '': 1})
        '3 files that are not images by their suffix (2 .txt, 1 without suffix)'
    """
    if not passed_over:
        return ''
    most = sorted(passed_over.items(), key=lambda item: (-item[1], item[0]))
    kinds = [f'{count:,} {shown(suffix) or "without suffix"}' for suffix, count in most[:8]]
    more = [f'{sum(count for _, count in most[8:]):,} others'] if most[8:] else []
    total = sum(passed_over.values())
    files = 'file that is not an image' if total == 1 else 'files that are not images'
    return f'{total:,} {files} by {"its" if total == 1 else "their"} suffix ({", ".join(kinds + more)})'


def report_passed_over(where: str, passed_over: Mapping[str, int]) -> None:
    """Log one line that counts and names the files that `walk` has passed over, if there are any."""
    if passed_over:
        logging.getLogger(__name__).warning('%s: passed over %s', shown(where), describe_passed_over(passed_over))


def folder_identity(folder: Path) -> object:
    """Return a value that is the same for two paths of one folder.

    Raises:
        DataError: the folder cannot be read.
    """
    with _readable(folder):
        status = folder.stat()
    # Some network file systems give every file the number 0.
    return (status.st_dev, status.st_ino) if status.st_ino else os.path.realpath(folder)


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    """Return the entries of a folder that are not skipped, sorted by name."""
    with _readable(folder), os.scandir(folder) as entries:
        return sorted((entry for entry in entries if not is_skipped(entry.name)), key=lambda entry: entry.name)


@contextlib.contextmanager
def _readable(folder: Path) -> Iterator[None]:
    """Turn an OSError into a DataError that names the folder."""
    try:
        yield
    except OSError as error:
        raise DataError(f'{shown(folder)}: cannot be read: {reason(error)}') from error


def _is_file(entry: os.DirEntry[str]) -> bool:
    """Return whether an entry is a file or a broken link; False for folders, pipes and devices."""
    return entry.is_file() or (entry.is_symlink() and not os.path.exists(entry.path))


def _suffix(name: str) -> str:
    return os.path.splitext(name)[1].lower()


def _contains(folder: str, path: str) -> bool:
    """Return whether `path` is a folder or below it; both are real paths."""
    return path == folder or path.startswith(folder.rstrip(os.sep) + os.sep)
