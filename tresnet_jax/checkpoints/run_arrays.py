"""The arrays in a checkpoint of a run, which Orbax wrote, read with TensorStore.

Orbax reads all arrays in an event loop of its own, and closes the loop at the first error. What the other arrays then
report goes to a closed loop, and Python prints a traceback for each. Without a loop, an error is reported once.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tresnet_jax.checkpoints.archive import ALWAYS_ALLOWED

DRIVERS = {'zarr.json': 'zarr3', '.zarray': 'zarr'}  # the file that describes an array -> TensorStore's driver
# Orbax compresses arrays. Frozen weights that came from bfloat16 take less than half of their size.
MOST_COMPRESSED = 4


def find_arrays(folder: Path) -> dict[str, dict[str, Any]]:
    """Return TensorStore's description of each array in a folder by name, such as 'params.body.conv1.conv.kernel'.

    Args:
        folder: the state of a checkpoint, an absolute path.

    Raises:
        Exception: the folder holds no arrays of Orbax, or is damaged; TensorStore has many classes.
    """
    import tensorstore

    store = {'driver': 'ocdbt', 'base': {'driver': 'file', 'path': f'{folder}/'}}
    found = {}
    for key in tensorstore.KvStore.open(store).result().list().result():
        name, _, part = key.decode().rpartition('/')
        if part in DRIVERS:
            # Where data is missing, the array is damaged; TensorStore would read zeros.
            options = {'driver': DRIVERS[part], 'fill_missing_data_reads': False}
            found[name] = {**options, 'kvstore': {**store, 'path': f'{name}/'}}
    return found


def read_arrays(folder: Path, wanted: Mapping[str, dict[str, Any]]) -> dict[str, np.ndarray]:
    """Return arrays by name.

    Args:
        folder: the state of a checkpoint.
        wanted: name -> description, as `find_arrays` returns them.

    Raises:
        ValueError: the arrays claim to be much larger than the files.
        Exception: an array is damaged; TensorStore has many classes.
    """
    arrays = _open(wanted)
    _check_sizes(folder, sum(map(_memory, arrays.values())))
    reads = {name: array.read() for name, array in arrays.items()}
    return {name: read.result() for name, read in reads.items()}


def check_arrays(folder: Path) -> None:
    """Read all arrays in a folder, one after the other, and keep none.

    Args:
        folder: the state of a checkpoint, an absolute path.

    Raises:
        Exception: an array is damaged; TensorStore has many classes.
    """
    for array in _open(find_arrays(folder)).values():
        array.read().result()


def _open(wanted: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    """Return arrays whose data is not yet read."""
    import tensorstore

    context = tensorstore.Context()  # shared, so that the tables of the folder are read once
    opening = {name: tensorstore.open(spec, read=True, context=context) for name, spec in wanted.items()}
    return {name: array.result() for name, array in opening.items()}


def _memory(array: Any) -> int:
    """Return the bytes that reading an array takes: its own, or those of a piece of it, which is read whole."""
    piece = array.chunk_layout.read_chunk.shape
    return array.dtype.numpy_dtype.itemsize * max(math.prod(array.shape), math.prod(piece))


def _check_sizes(folder: Path, claimed: int) -> None:
    """Raise ValueError if the arrays of a checkpoint claim to have many more bytes than its files."""
    stored = sum(path.stat().st_size for path in folder.rglob('*') if path.is_file())
    if claimed > max(ALWAYS_ALLOWED, MOST_COMPRESSED * stored):
        raise ValueError(f'its arrays claim {claimed:,} bytes, its files have {stored:,}; copy the run again')
