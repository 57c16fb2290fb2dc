"""Pickles and checkpoint files made by hand, instruction by instruction, without torch."""

import dataclasses
import io
import pickle
import pickletools
import random
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

CODES = {opcode.name: opcode.code.encode('latin-1') for opcode in pickletools.opcodes}
MAGIC, PROTOCOL = 0x1950A86A20F9469CFC6C, 1001


@dataclasses.dataclass(frozen=True)
class Name:
    """A class or function by its name."""

    module: str
    name: str


@dataclasses.dataclass(frozen=True)
class Call:
    """A call of a class or function, then a BUILD with the state unless that is ()."""

    function: Any
    arguments: Any = ()
    state: Any = ()


@dataclasses.dataclass(frozen=True)
class Outside:
    """A persistent id."""

    identity: Any


@dataclasses.dataclass(frozen=True)
class Raw:
    """Instructions as they are."""

    code: bytes


def instructions(value: Any) -> bytes:
    """The instructions that push a value, in protocol 4 and without a memo."""
    match value:
        case Raw(code):
            return code
        case Name(module, name):
            return instructions(module) + instructions(name) + CODES['STACK_GLOBAL']
        case Call(function, arguments, state):
            code = instructions(function) + instructions(arguments) + CODES['REDUCE']
            return code if state == () else code + instructions(state) + CODES['BUILD']
        case Outside(identity):
            return instructions(identity) + CODES['BINPERSID']
        case tuple():
            return CODES['MARK'] + b''.join(map(instructions, value)) + CODES['TUPLE']
        case list():
            items = b''.join(map(instructions, value))
            return CODES['EMPTY_LIST'] + CODES['MARK'] + items + CODES['APPENDS']
        case dict():
            items = b''.join(instructions(key) + instructions(item) for key, item in value.items())
            return CODES['EMPTY_DICT'] + CODES['MARK'] + items + CODES['SETITEMS']
    return pickle.dumps(value, 3)[2:-1]  # less PROTO and STOP


def stream(value: Any) -> bytes:
    """A whole pickle of a value as `instructions` takes it."""
    return CODES['PROTO'] + b'\4' + instructions(value) + CODES['STOP']


def storage(key: str, kind: str, count: Any, *view: Any) -> Outside:
    """The persistent id of a storage; legacy files need one more argument, the view."""
    return Outside(('storage', Name('torch', kind), key, 'cuda:0', count, *view))


def tensor(storage: Any, shape: Any, strides: Any, offset: Any = 0, *more: Any) -> Call:
    arguments = (storage, offset, shape, strides, False, Call(Name('collections', 'OrderedDict')), *more)
    return Call(Name('torch._utils', '_rebuild_tensor_v2'), arguments)


def write_zip(
    path: Path,
    value: Any,
    storages: Mapping[str, bytes] = {},  # noqa: B006
    byteorder: str | None = 'little',
    compression: int = zipfile.ZIP_STORED,
) -> Path:
    """A file as torch.save writes it."""
    with zipfile.ZipFile(path, 'w', compression, compresslevel=1) as archive:
        archive.writestr('archive/data.pkl', value.code if isinstance(value, Raw) else stream(value))
        if byteorder:
            archive.writestr('archive/byteorder', byteorder)
        for key, data in storages.items():
            archive.writestr(f'archive/data/{key}', data)
        archive.writestr('archive/version', '3\n')
    return path


def legacy(value: Any, storages: Mapping[str, tuple[int, bytes]] = {}) -> bytes:  # noqa: B006
    """A file as torch.save wrote it before 1.6. The storages: key -> number of elements, bytes."""
    file = io.BytesIO()
    for header in (MAGIC, PROTOCOL, {'protocol_version': PROTOCOL, 'little_endian': True, 'type_sizes': {}}):
        pickle.dump(header, file, 2)
    file.write(value.code if isinstance(value, Raw) else stream(value))
    pickle.dump(list(storages), file, 2)
    for count, data in storages.values():
        file.write(struct.pack('<q', count) + data)
    return file.getvalue()


# Instructions that name a class or function, that put a value on the stack, and that use what is there.
NAMING = [
    b'cos\nsystem\n', b'ctorch._utils\n_rebuild_tensor_v2\n', b'cnumpy\ndtype\n', b'ccollections\nOrderedDict\n',
    b'ctorch\nFloatStorage\n',
]  # fmt: skip
PUSHING = [
    b'N', b'K\1', b'J\xff\xff\xff\x7f', b'X\1\0\0\0a', b'C\1a', b'U\2f4', b')', b'}', b']', b'\x8f', b'(', b'h\0',
    b'\x8a\1\5',
]  # fmt: skip
USING = [
    b'q\0', b'\x94', b't', b'\x85', b'\x86', b'\x87', b'R', b'\x81', b'b', b's', b'u', b'a', b'e', b'0', b'1', b'Q',
    b'\x92', b'\x93',
]  # fmt: skip


def nonsense(rng: random.Random) -> list[bytes]:
    """Return instructions in a random order, most of which find what they need on the stack."""
    return rng.choices(NAMING + PUSHING * 3 + USING * 3, k=rng.randrange(3, 60))
