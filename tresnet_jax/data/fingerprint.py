"""Digests of the examples of a data set, which show whether it has changed. Image files are not read."""

import concurrent.futures
import hashlib
import os
from collections.abc import Iterable, Sequence

import numpy as np

STATS = 16  # files whose size is asked for at a time, because a network answers late


def names_digest(names: Iterable[str]) -> str:
    """Return a digest of names in their order. Names may hold surrogates, for bytes that are not UTF-8."""
    state = hashlib.blake2b(digest_size=16)
    for name in names:
        state.update(name.encode('utf-8', 'surrogatepass') + b'\0')
    return state.hexdigest()


def array_digest(array: np.ndarray) -> str:
    """Return a digest of the shape, the dtype and the values of an array."""
    state = hashlib.blake2b(f'{array.dtype.str} {array.shape}'.encode(), digest_size=16)
    state.update(np.ascontiguousarray(array).data)
    return state.hexdigest()


def labels_digest(labels: np.ndarray) -> str:
    """Return a digest of labels, whatever their dtype."""
    return array_digest(labels.astype('<i8'))


def sizes_digest(paths: Sequence[str]) -> str:
    """Return a digest of the sizes of files in bytes; a missing file counts as -1."""
    with concurrent.futures.ThreadPoolExecutor(STATS) as pool:
        parts = [paths[start : start + 1000] for start in range(0, len(paths), 1000)]
        sizes = [size for part in pool.map(lambda part: [_size(path) for path in part], parts) for size in part]
    return labels_digest(np.asarray(sizes, np.int64))


def _size(path: str) -> int:
    try:
        return os.stat(path).st_size
    except OSError:
        return -1
