"""TFRecord files, read by index without TensorFlow.

A file is a sequence of records (tensorflow/core/lib/io/record_writer.h), all numbers little-endian:

    uint64 length | uint32 checksum of the length | data | uint32 checksum of the data

A file has no index, so `open_tfrecords` walks through the lengths once. Every read verifies the checksum of the data,
which also detects a wrong length.
"""

import concurrent.futures
import dataclasses
import os
import struct
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from tresnet_jax.errors import DataError, ImageError, reason

HEADER, FOOTER = 12, 4  # bytes before and after the data of a record
OPEN_FILES = 16  # files indexed at a time

BLOCK = 512  # bytes that `crc32c` looks up at a time


def _checksum_tables() -> np.ndarray:
    """Return (BLOCK, 256) uint32: how a byte at a position of a block changes the block's CRC-32C."""
    table = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        table = (table >> 1) ^ np.where(table & 1, np.uint32(0x82F63B78), np.uint32(0))
    tables = [table]  # of the last byte; each earlier byte passes one more zero byte
    while len(tables) < BLOCK:
        tables.append((tables[-1] >> 8) ^ table[tables[-1] & 255])
    return np.stack(tables[::-1])


_TABLES = _checksum_tables()
_POSITIONS = np.arange(BLOCK)
_FIRST, _SECOND, _THIRD, _FOURTH, *_, _LAST = _TABLES.tolist()


def crc32c(data: bytes) -> int:
    """Return the CRC-32C (Castagnoli) of bytes.

    The CRC is linear, so the CRC of a block is the exclusive or of one table entry per byte. The register carried over
    from the previous block has the effect of four bytes that are added to the first four of the block.
    """
    whole = len(data) // BLOCK * BLOCK
    blocks = np.frombuffer(data, np.uint8, whole).reshape(-1, BLOCK)
    crc = 0xFFFFFFFF
    for block in np.bitwise_xor.reduce(_TABLES[_POSITIONS, blocks], axis=1).tolist():
        crc = block ^ _FIRST[crc & 255] ^ _SECOND[crc >> 8 & 255] ^ _THIRD[crc >> 16 & 255] ^ _FOURTH[crc >> 24]
    for byte in data[whole:]:
        crc = crc >> 8 ^ _LAST[(crc ^ byte) & 255]
    return crc ^ 0xFFFFFFFF


def masked_crc32c(data: bytes) -> int:
    """Return the checksum that TFRecord files store (tensorflow/core/lib/hash/crc32c.h)."""
    crc = crc32c(data)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


class FilePart(NamedTuple):
    """Records `skip` to `skip + take` of a file."""

    path: str
    skip: int
    take: int


@dataclasses.dataclass(frozen=True, eq=False)
class TfRecords:
    """The records of several files, by index; can be pickled. Made by `open_tfrecords`."""

    paths: tuple[str, ...]
    firsts: np.ndarray
    """(files + 1,) int64: index of the first record of each file, and the number of records."""
    starts: np.ndarray
    """(records,) int64: byte of its file at which the data of a record begins."""
    lengths: np.ndarray
    """(records,) int64: bytes of data."""

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, index: int) -> bytes:
        """Read the data of a record.

        Raises:
            ImageError: the data does not have the checksum that follows it.
            OSError: the file cannot be read.
        """
        if not 0 <= index < len(self):
            raise IndexError(f'record {index} of {len(self)}')
        path = self.paths[int(np.searchsorted(self.firsts, index, side='right')) - 1]
        start, length = int(self.starts[index]), int(self.lengths[index])
        # Opened for each read: a data set can have more files than a process may keep open.
        with open(path, 'rb') as file:
            file.seek(start)
            stored = file.read(length + FOOTER)
        data, checksum = stored[:length], stored[length:]
        if checksum != struct.pack('<I', masked_crc32c(data)):
            raise ImageError(f'{path}: the record at byte {start - HEADER} is damaged: its checksum does not match')
        return data


def _index(part: FilePart) -> np.ndarray:
    """Return (take, 2) int64: where the data of each record begins, and its length in bytes."""
    positions = np.empty((part.skip + part.take, 2), np.int64)
    with open(part.path, 'rb', buffering=0) as file:
        size, at = os.fstat(file.fileno()).st_size, 0
        for number in range(len(positions)):
            file.seek(at)
            header = file.read(HEADER)
            length = int.from_bytes(header[:8], 'little')
            end = at + HEADER + length + FOOTER
            if len(header) < HEADER or end > size:
                raise DataError(
                    f'{part.path}: truncated or damaged at byte {at}: expected {len(positions)} records, '
                    f'found {number}; copy or prepare it again'
                )
            positions[number] = at + HEADER, length
            at = end
    return positions[part.skip :]


def open_tfrecords(parts: Sequence[FilePart], where: str) -> TfRecords:
    """Index the records of files, in the order of `parts`.

    Args:
        parts: the files and their records to read.
        where: the data set, for errors.

    Raises:
        DataError: a file is missing, truncated, not a TFRecord file, or has too few records.
    """
    with concurrent.futures.ThreadPoolExecutor(OPEN_FILES, 'index') as pool:
        try:
            found = list(pool.map(_index, parts))
        except DataError as error:
            raise DataError(f'{where}: {error}') from error
        except OSError as error:
            raise DataError(f'{where}: {error.filename}: {reason(error)}') from error
    positions = np.concatenate(found)
    return TfRecords(
        paths=tuple(part.path for part in parts),
        firsts=np.cumsum([0, *(part.take for part in parts)]),
        starts=positions[:, 0],
        lengths=positions[:, 1],
    )
