"""A zip archive as torch writes it: members are views of the mapped file."""

import functools
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import IO

from tresnet_jax.checkpoints.records import Unreadable, printable
from tresnet_jax.errors import ConversionError, reason

# What is compressed, or repeats, may take this many times the size of its file, or this many bytes if that is more. The
# weights of a trained network hardly compress; rounded to bfloat16 and kept as float32, 2.1 times.
MOST_EXPANDED = 2.5
ALWAYS_ALLOWED = 64 * 2**20
LOCAL_HEADER = struct.Struct('<4s22xHH')  # the signature; the lengths of the name and of the extra field


class Archive:
    """The members of a zip archive. Nothing is unpacked to disk, and names never become paths.

    Checksums are not compared: torch can write archives without valid ones, and does not compare them either.

    Args:
        path: for messages.
        file: the archive, open for reading.
        data: all of it.

    Raises:
        Unreadable: the archive is damaged, or two members have one name.
    """

    def __init__(self, path: Path, file: IO[bytes], data: memoryview) -> None:
        self._path = path
        self._data = data
        self._inflated: dict[str, bytes] = {}
        self._inflated_size = 0
        try:
            with zipfile.ZipFile(file) as archive:
                members = archive.infolist()
        except Exception as error:  # of many kinds, for a damaged archive
            raise Unreadable(f'is a damaged or cut zip archive ({printable(reason(error))}); fetch it again') from error
        self._members: dict[str, zipfile.ZipInfo] = {}
        for member in members:
            name = member.filename
            if name in self._members:
                raise Unreadable(f'is a zip archive with two members of the name {printable(name)}')
            if name.startswith('/') or '..' in name.split('/') or '\\' in name:
                raise Unreadable(f'is a zip archive with a member outside of it, {printable(name)}')
            self._members[name] = member

    def __contains__(self, name: str) -> bool:
        return name in self._members

    @property
    def names(self) -> list[str]:
        """The names of all members, in the order of the archive."""
        return list(self._members)

    def size(self, name: str) -> int:
        """Return the number of bytes that a member has once it is decompressed."""
        return self._members[name].file_size

    def member(self, name: str) -> Callable[[], memoryview]:
        """Return the function that reads a member. Only compressed members take memory, and take it once.

        Raises:
            Unreadable: the archive is damaged there, or encrypted, or compressed by something other than deflate.
        """
        member = self._members[name]
        shown = printable(name)
        start = member.header_offset + LOCAL_HEADER.size
        if not 0 <= member.header_offset <= start <= len(self._data):
            raise Unreadable(f'is a zip archive that ends before its member {shown}; fetch it again')
        signature, name_length, extra_length = LOCAL_HEADER.unpack(self._data[member.header_offset : start])
        end = start + name_length + extra_length + member.compress_size
        stored_name = member.orig_filename.encode('utf-8' if member.flag_bits & 0x800 else 'cp437')
        if signature != b'PK\x03\x04' or bytes(self._data[start : start + name_length]) != stored_name:
            raise Unreadable(f'is a zip archive whose directory is wrong about {shown}')
        if end > len(self._data):
            raise Unreadable(f'is a zip archive that ends within its member {shown}; fetch it again')
        if member.flag_bits & 1:
            raise Unreadable(f'is a zip archive with an encrypted member, {shown}')
        raw = self._data[end - member.compress_size : end]
        if member.compress_type == zipfile.ZIP_STORED:
            if member.compress_size != member.file_size:
                raise Unreadable(f'is a zip archive with two sizes of its member {shown}')
            return lambda: raw
        if member.compress_type != zipfile.ZIP_DEFLATED:
            raise Unreadable(f'is a zip archive with an unknown compression of its member {shown}; pack it without')
        return functools.partial(self._inflate, member, raw)

    def _inflate(self, member: zipfile.ZipInfo, raw: memoryview) -> memoryview:
        if member.filename not in self._inflated:
            self._inflated_size += member.file_size
            if self._inflated_size > max(ALWAYS_ALLOWED, MOST_EXPANDED * len(self._data)):
                raise self._error(
                    f'is a zip archive that expands more than {MOST_EXPANDED} times; pack it without compression'
                )
            try:
                data = zlib.decompressobj(-15).decompress(raw, member.file_size + 1)
            except zlib.error as error:
                raise self._error(f'is a damaged zip archive ({printable(error)}); fetch it again') from error
            if len(data) != member.file_size:
                raise self._error(f'is a zip archive with two sizes of its member {printable(member.filename)}')
            self._inflated[member.filename] = data
        return memoryview(self._inflated[member.filename])

    def _error(self, message: str) -> ConversionError:
        return ConversionError(f'{self._path}: {message}')
