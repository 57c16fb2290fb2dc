"""Files of torch.save, torch.jit.save, pickle.dump and numpy.savez -> plain values. Needs no torch and runs no code.

Tensors stay in the file, which is mapped into memory, until `StoredTensor.numpy` reads them.
"""

import functools
import io
import mmap
import os
import re
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from tresnet_jax.checkpoints import other_files
from tresnet_jax.checkpoints.archive import Archive
from tresnet_jax.checkpoints.pickles import Budget, Unpickler
from tresnet_jax.checkpoints.records import Global, Record, Unreadable, printable
from tresnet_jax.checkpoints.stored import DTYPE, Storage, StoredTensor, contiguous, element_type, functions, view
from tresnet_jax.errors import ConversionError, reason
from tresnet_jax.files import check_regular

MAGIC = 0x1950A86A20F9469CFC6C  # the first pickle in a file of torch.save before torch 1.6
LEGACY_PROTOCOL = 1001  # the second one
NPY_HEADER = re.compile(
    rb"\{'descr': '([<>|=])(\w+)', 'fortran_order': (True|False), 'shape': \(((?:\d{1,18}, ?)*(?:\d{1,18})?)\), \}\s*"
)


def load(path: str | Path) -> Any:
    """Read a file of torch, in the zip, TorchScript or older format, a plain pickle, or an .npz file.

    Returns:
        What was saved: dictionaries, lists, tuples, sets, numbers, text and bytes; a `StoredTensor` for each tensor,
        parameter or NumPy array; a `Record` for an object of any other class, modules and TorchScript modules
        included; a `Global` for a class. `records.walk` visits all containers. An .npz file is a dictionary.

    Raises:
        ConversionError: the file cannot be read; the message names it and gives the reason in one line.
    """
    path = Path(path)
    check_regular(path)
    try:
        with _Stream(path) as stream:
            return _load(path, stream)
    except Unreadable as error:
        raise ConversionError(f'{path}: {error}') from error
    except OSError as error:
        raise ConversionError(f'{path}: cannot be read: {printable(reason(error))}') from error


def recognise(path: str | Path) -> str | None:
    """Return one line about a file or folder without readable weights: what it is, and how to save the weights.

    None: the file is a safetensors file, or `load` reads it and nothing shows that it has no weights.
    """
    path = Path(path)
    if path.is_dir():
        return other_files.of_folder(path)
    try:
        return other_files.of_structure(load(path))
    except ConversionError as error:
        line = str(error).removeprefix(f'{path}: ')
        return None if line == other_files.SAFETENSORS else line


class _Stream(io.BufferedReader):
    """A file that refuses to allocate more bytes than it has, whatever length a pickle claims."""

    def __init__(self, path: Path) -> None:
        super().__init__(io.FileIO(path), 2**16)
        self.size = os.fstat(self.fileno()).st_size

    def read(self, size: int | None = -1, /) -> bytes:
        if size is not None and size > 2**16 and size > self.size - self.tell():
            raise Unreadable('is cut short; fetch it again')
        return super().read(size)

    def map(self) -> memoryview:
        return memoryview(mmap.mmap(self.fileno(), 0, access=mmap.ACCESS_READ))


def _load(path: Path, stream: _Stream) -> Any:
    head = stream.read(1024)
    stream.seek(0)
    line = other_files.of_bytes(head, path.name)
    if line:
        raise Unreadable(line)
    budget = Budget(size=4 * stream.size + 2**20)
    if head.startswith(b'PK\x03\x04'):
        return _load_archive(path, Archive(path, stream, stream.map()), budget)
    table = functions(budget)
    table['torch.storage._load_from_bytes'] = functools.partial(_load_from_bytes, budget)
    first = Unpickler(stream, table, None, budget).load()
    return _load_legacy(stream, stream.map(), table, budget) if type(first) is int and first == MAGIC else first


def _load_archive(path: Path, archive: Archive, budget: Budget) -> Any:
    roots = [name for name in archive.names if re.fullmatch(r'([^/]+/)?data\.pkl', name)]
    if len(roots) > 1:
        raise Unreadable(f'holds several saved objects: {printable(", ".join(roots))}; unpack it')
    if not roots:
        if archive.names and all(name.endswith('.npy') for name in archive.names):
            return {name.removesuffix('.npy'): _npy(archive.member(name)()) for name in archive.names}
        raise Unreadable(other_files.of_archive(archive.names, path.name))
    folder = roots[0].removesuffix('data.pkl')
    order = bytes(archive.member(f'{folder}byteorder')()) if f'{folder}byteorder' in archive else b'little'
    if order not in (b'little', b'big'):
        raise Unreadable(f'has the unknown byte order {printable(order, 20)}')

    def persistent_load(identity: Any) -> Storage:
        match identity:
            case ('storage', kind, str(key), _, int(count)) if type(identity) is tuple:
                dtype, unit = element_type(kind)
                name = f'{folder}data/{key}'
                if name not in archive:
                    raise Unreadable(f'has no member {printable(name)}, which a tensor needs')
                if not 0 <= count * unit <= archive.size(name):
                    raise Unreadable(
                        f'has {archive.size(name)} bytes, not {count * unit}, in its member {printable(name)}'
                    )
                return Storage(dtype, count * unit, archive.member(name), order.decode())
        raise Unreadable('its pickle refers to a storage in an unknown way')

    data = io.BytesIO(archive.member(roots[0])())
    return Unpickler(data, functions(budget), persistent_load, budget).load()


def _load_legacy(stream: Any, data: memoryview, table: dict[str, Callable[..., Any]], budget: Budget) -> Any:
    """Read the format of torch before 1.6, after its magic number.

    Four pickles follow: the protocol, facts about the machine, the object and the keys of the storages; then each
    storage: the number of its elements, as int64, and its bytes. All numbers are little-endian on every machine.

    Args:
        stream: the file, after the first pickle.
        data: all of it.
        table: the functions of the pickle.
        budget: the costs that are left.
    """

    def plain() -> Any:
        return Unpickler(stream, {}, None, budget).load()

    units: dict[str, int] = {}  # bytes of an element, by key
    needed: dict[str, int] = {}  # bytes that tensors use
    places: dict[str, memoryview] = {}

    def persistent_load(identity: Any) -> Any:
        match identity:
            case ('module', Global() as kind, _, _):  # a module's class, with its source code
                return kind
            case ('storage', kind, str(key), _, int(count), None):
                start, size = 0, count
            case ('storage', kind, str(key), _, int(count), (_, int(start), int(size))):
                pass
            case _:
                raise Unreadable('its pickle refers to a storage in an unknown way')
        dtype, unit = element_type(kind)
        if not 0 <= start <= start + size <= count or units.setdefault(key, unit) != unit:
            raise Unreadable('has a storage without a valid size')
        needed[key] = max(needed.get(key, 0), count * unit)
        return Storage(dtype, size * unit, lambda: places[key][start * unit :])

    if plain() != LEGACY_PROTOCOL:
        raise Unreadable("is of an unknown version of torch's older format")
    plain()
    root = Unpickler(stream, table, persistent_load, budget).load()
    keys = plain()
    if type(keys) is not list or not all(isinstance(key, str) and key in units for key in keys):
        raise Unreadable('has a damaged list of storages; fetch it again')
    position = stream.tell()
    for key in keys:
        count = struct.unpack('<q', data[position : position + 8])[0] if position + 8 <= len(data) else -1
        end = position + 8 + count * units[key]
        if count < 0 or end > len(data):
            raise Unreadable('is cut short; fetch it again')
        places[key] = data[position + 8 : end]
        position = end
    for key, size in needed.items():
        if len(places.get(key, b'')) < size:
            raise Unreadable(f'has fewer bytes than the {size} that its tensors need in its storage {printable(key)}')
    return root


def _load_from_bytes(budget: Budget, data: Any) -> Any:
    """`torch.storage._load_from_bytes`: a storage within a plain pickle, as a file of its own."""
    if not isinstance(data, bytes):
        raise TypeError
    budget.spend(size=len(data))
    stream = io.BytesIO(data)
    if Unpickler(stream, {}, None, budget).load() != MAGIC:
        raise Unreadable("has a storage that is not in torch's older format")
    return _load_legacy(stream, memoryview(data), functions(budget), budget)


def _npy(data: memoryview) -> StoredTensor | Record:
    """Return the array of an .npy file; a record where it holds something other than numbers and text."""
    magic, version = bytes(data[:6]), bytes(data[6:7])
    if magic != b'\x93NUMPY' or version not in (b'\1', b'\2', b'\3') or len(data) < 12:
        raise Unreadable('has a damaged array; fetch it again')
    length = struct.Struct('<H' if version == b'\1' else '<I')
    start = 8 + length.size
    end = start + length.unpack(data[8:start])[0]
    match = NPY_HEADER.fullmatch(bytes(data[start : min(end, start + 10_000)]))
    if not match or not DTYPE.fullmatch(match[2].decode()):
        return Record('numpy.ndarray')
    dtype = np.dtype(match[2].decode())
    shape = tuple(int(number) for number in match[4].replace(b' ', b'').split(b',') if number)
    order = 'big' if match[1] == b'>' else 'little'
    storage = Storage(dtype, len(data) - end, lambda: data[end:], order)
    return view(storage, dtype, 0, shape, contiguous(shape, match[3] == b'True'))
