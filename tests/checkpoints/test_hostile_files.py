"""Damaged and hostile archives and older files of torch, and files damaged at random."""

import io
import pickle
import random
import re
import resource
import struct
import time
import tracemalloc
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.helpers.pickle_files import CODES, Call, Name, Raw, legacy, nonsense, storage, stream, tensor, write_zip
from tresnet_jax.checkpoints.read import _largest_state, read
from tresnet_jax.checkpoints.records import children, walk
from tresnet_jax.checkpoints.stored import StoredTensor
from tresnet_jax.checkpoints.timm_layouts import INPLACE_ABN
from tresnet_jax.checkpoints.torch_file import load
from tresnet_jax.errors import ConversionError

DATA = np.arange(24, dtype=np.float32).tobytes()
STATE = {'weight': tensor(storage('0', 'FloatStorage', 24), (4, 6), (6, 1))}
LEGACY_STATE = {'weight': tensor(storage('0', 'FloatStorage', 24, None), (4, 6), (6, 1))}


def read_all(path: Path) -> int:
    """Load a file and read its tensors; the number of tensors."""
    containers = [value for _, value in walk([load(path)])]
    tensors = [child for value in containers for _, child in children(value) if isinstance(child, StoredTensor)]
    for found in tensors:
        found.numpy()
    return len(tensors)


def refusal(path: Path) -> str:
    """The message that refuses a file, less the file's name: one line without control characters."""
    with pytest.raises(ConversionError) as caught:
        read_all(path)
    message = str(caught.value)
    assert message.startswith(f'{path}: ') and message.isprintable() and len(message) < len(str(path)) + 400
    return message.removeprefix(f'{path}: ')


def archive(path: Path, *members: tuple[str, bytes], compression: int = zipfile.ZIP_STORED) -> Path:
    with warnings.catch_warnings(), zipfile.ZipFile(path, 'w', compression) as file:
        warnings.simplefilter('ignore')  # of names that are there twice
        for name, data in members:
            file.writestr(name, data)
    return path


PICKLE = ('a/data.pkl', stream(STATE))
STORAGE = ('a/data/0', DATA)
ARCHIVES = {
    'a member twice': ([PICKLE, STORAGE, STORAGE], 'two members of the name a/data/0'),
    'the pickle twice': ([PICKLE, PICKLE, STORAGE], 'two members of the name a/data.pkl'),
    'two pickles': ([PICKLE, STORAGE, ('b/data.pkl', stream(3))], 'several saved objects: a/data.pkl, b/data.pkl'),
    'a parent folder': ([PICKLE, STORAGE, ('a/../../evil', b'')], r'outside of it, a/\.\./\.\./evil'),
    'an absolute name': ([PICKLE, STORAGE, ('/etc/passwd', b'')], 'outside of it, /etc/passwd'),
    'a name of Windows': ([PICKLE, STORAGE, ('a\\b', b'')], 'outside of it'),
    'an escape code': ([PICKLE, ('a\x1b[31m', b''), ('a\x1b[31m', b'')], r'of the name a\\x1b\[31m'),
    'no storage': ([PICKLE], 'no member a/data/0, which a tensor needs'),
    'a short storage': ([PICKLE, ('a/data/0', DATA[:-1])], 'has 95 bytes, not 96, in its member a/data/0'),
    'an odd byte order': ([PICKLE, STORAGE, ('a/byteorder', b'middle\x1b')], r'unknown byte order'),
    'nothing': ([], 'not a|neither|other files'),
    'other files': (
        [('readme.txt', b'a'), ('weights.pth', b'')],
        r'other files \(readme.txt, weights.pth\); run: unzip',
    ),
    'a damaged array': ([('a.npy', b'\x93NUMPY\1\0\xff\xff')], 'has a damaged array'),
    'an array of no version': ([('a.npy', b'\x93NUMPY\x09\0\2\0{}  ')], 'has a damaged array'),
    'no array': ([('a.npy', b'os.system')], 'has a damaged array'),
}


@pytest.mark.parametrize('case', ARCHIVES)
def test_archives(tmp_path, case):
    members, message = ARCHIVES[case]
    assert re.search(message, refusal(archive(tmp_path / 'file.pt', *members)))


def npy(header: str, data: bytes = b'abcd') -> bytes:
    return b'\x93NUMPY\1\0' + struct.pack('<H', len(header)) + header.encode() + data


@pytest.mark.parametrize(
    'header, message',
    [
        ("{'descr': '<f4', 'fortran_order': False, 'shape': (2,), }", 'goes beyond its storage of 1 elements'),
        ("{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000000,), }", 'goes beyond'),
        (
            "{'descr': '<f4', 'fortran_order': False, 'shape': (0, 999999999999999999, 999999999999999999), }",
            'out of range',
        ),
        ("{'descr': '<f4', 'fortran_order': False, 'shape': (%s), }" % ('1, ' * 100), 'without a valid shape'),
    ],
)
def test_npz(tmp_path, header, message):
    assert message in refusal(archive(tmp_path / 'a.npz', ('a.npy', npy(header))))


def test_npz_of_code_is_not_evaluated(tmp_path):
    for descr in (
        '__import__("os").system("touch MARKER")',
        "'|O'",
        "'<f3'",
        "'<S0'",
        f"'<f4', 'fortran_order': False, 'shape': ({'9' * 5000},), }}",
        "[('a', '<f4')]",
    ):
        header = f"{{'descr': {descr}, 'fortran_order': False, 'shape': (1,), }}"
        assert read_all(archive(tmp_path / 'a.npz', ('a.npy', npy(header)))) == 0


def edited(data: bytes, change: Callable[[bytearray, int, int], None]) -> bytes:
    """An archive whose member a/data/0 was changed: change(bytes, its local header, its entry in the directory)."""
    data = bytearray(data)
    change(data, data.index(b'a/data/0') - 30, data.rindex(b'a/data/0') - 46)
    return bytes(data)


def put(data: bytearray, position: int, format: str, value: int) -> None:
    struct.pack_into(format, data, position, value)


EDITS = {
    'encrypted': (lambda data, local, entry: put(data, entry + 8, '<H', 1), 'encrypted member, a/data/0'),
    'compressed by LZMA': (lambda data, local, entry: put(data, entry + 10, '<H', 14), 'unknown compression'),
    'two sizes': (lambda data, local, entry: put(data, entry + 24, '<I', 2**31), 'two sizes of its member a/data/0'),
    'a large size': (
        lambda data, local, entry: (put(data, entry + 20, '<I', 2**31), put(data, entry + 24, '<I', 2**31)),
        'ends within its member a/data/0',
    ),
    'a header beyond the file': (
        lambda data, local, entry: put(data, entry + 42, '<I', 2**31),
        'ends before its member',
    ),
    'another header': (lambda data, local, entry: put(data, entry + 42, '<I', 0), 'directory is wrong about a/data/0'),
    'no header': (lambda data, local, entry: put(data, local, '<I', 0), 'directory is wrong about a/data/0'),
    'another name': (lambda data, local, entry: put(data, local + 30, '<B', 65), 'directory is wrong about a/data/0'),
    'a long name': (lambda data, local, entry: put(data, local + 26, '<H', 65535), 'directory is wrong|ends within'),
    'a long extra field': (lambda data, local, entry: put(data, local + 28, '<H', 65535), 'ends within its member'),
}


@pytest.mark.parametrize('case', EDITS)
def test_archives_that_contradict_themselves(tmp_path, case):
    change, message = EDITS[case]
    path = archive(tmp_path / 'file.pt', PICKLE, STORAGE)
    path.write_bytes(edited(path.read_bytes(), change))
    assert re.search(message, refusal(path))


def test_checksums_are_not_compared(tmp_path):
    """torch.serialization.set_crc32_options(False) writes archives without valid ones."""
    path = archive(tmp_path / 'file.pt', PICKLE, STORAGE)
    path.write_bytes(edited(path.read_bytes(), lambda data, local, entry: put(data, entry + 16, '<I', 0)))
    assert read_all(path) == 1


def test_zip_bombs(tmp_path):
    zeros = tensor(storage('0', 'ByteStorage', 2**27), (2**27,), (1,))
    path = write_zip(tmp_path / 'a.pt', zeros, {'0': bytes(2**27)}, compression=zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < 600_000
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert 'expands more than 2.5 times; pack it without compression' in refusal(path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 10_000  # KiB
    # Many members, each of which is allowed.
    many = [tensor(storage(str(key), 'ByteStorage', 2**25), (2**25,), (1,)) for key in range(4)]
    path = write_zip(tmp_path / 'b.pt', many, dict.fromkeys('0123', bytes(2**25)), compression=zipfile.ZIP_DEFLATED)
    assert 'expands more than 2.5 times' in refusal(path)
    # The pickle itself.
    text = stream('a' * 2**26)
    assert 'expands more' in refusal(archive(tmp_path / 'c.pt', ('a/data.pkl', text), compression=zipfile.ZIP_DEFLATED))


@pytest.mark.parametrize('position, message', [(24, 'two sizes'), (-10, 'damaged zip archive|two sizes')])
def test_damaged_compression(tmp_path, position, message):
    path = archive(tmp_path / 'file.pt', PICKLE, ('a/data/0', DATA), compression=zipfile.ZIP_DEFLATED)

    def change(data, local, entry):
        if position == 24:
            put(data, entry + 24, '<I', 97)
        else:
            data[local + 38 : local + 60] = b'\xff' * 22

    path.write_bytes(edited(path.read_bytes(), change))
    assert re.search(message, refusal(path))


@pytest.mark.parametrize('share', [0.1, 0.5, 0.9, 0.99])
@pytest.mark.parametrize('kind', ['zip', 'legacy'])
def test_cut_files(tmp_path, kind, share):
    path = tmp_path / 'file.pt'
    data = legacy(LEGACY_STATE, {'0': (24, DATA)}) if kind == 'legacy' else archive(path, PICKLE, STORAGE).read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    assert re.search('cut|damaged', refusal(path)) and 'fetch it again' in refusal(path)


OTHER = {'a': tensor(storage('0', 'FloatStorage', 24, None), (1,), (1,))}
LEGACY = {
    'another protocol': (legacy(3).replace(b'M\xe9\3.', b'M\xe8\3.', 1), "unknown version of torch's older format"),
    'storages without tensors': (legacy(3, {'0': (24, DATA)}), 'damaged list of storages'),
    'no storages': (legacy(LEGACY_STATE), 'has fewer bytes than the 96 that its tensors need in its storage 0'),
    'a short storage': (
        legacy(LEGACY_STATE, {'0': (23, DATA)}),
        'has fewer bytes than the 96 that its tensors need in its storage 0',
    ),
    'a long storage': (legacy(LEGACY_STATE, {'0': (25, DATA)}), 'cut short'),
    'as many elements as there can be': (legacy(LEGACY_STATE, {'0': (2**62, DATA)}), 'cut short'),
    'a negative number of elements': (legacy(LEGACY_STATE, {'0': (-1, DATA)}), 'cut short'),
    'another list of storages': (legacy(Raw(stream(3) + stream({'0': 1}))), 'damaged list of storages'),
    'a list of odd keys': (legacy(Raw(stream(3) + stream([[]]))), 'damaged list of storages'),
    'a list that is a call': (
        legacy(Raw(stream(3) + stream(Call(Name('os', 'system'), ('a',))))),
        'damaged list of storages',
    ),
    'two dtypes': (
        legacy([OTHER, tensor(storage('0', 'HalfStorage', 24, None), (1,), (1,))], {'0': (24, DATA)}),
        'without a valid size',
    ),
    'a view outside': (
        legacy(tensor(storage('0', 'FloatStorage', 24, ('1', 20, 5)), (1,), (1,)), {'0': (24, DATA)}),
        'without a valid size',
    ),
    'a view before': (
        legacy(tensor(storage('0', 'FloatStorage', 24, ('1', -1, 5)), (1,), (1,)), {'0': (24, DATA)}),
        'without a valid size',
    ),
}


@pytest.mark.parametrize('case', LEGACY)
def test_older_files(tmp_path, case):
    data, message = LEGACY[case]
    (tmp_path / 'file.pt').write_bytes(data)
    assert message in refusal(tmp_path / 'file.pt')


def damaged(data: bytes, rng: random.Random) -> bytes:
    """The data cut, or with bytes changed, repeated, moved or of another instruction."""
    data = bytearray(data)
    match rng.randrange(5):
        case 0:
            del data[rng.randrange(len(data)) :]
        case 1:
            for _ in range(rng.choice([1, 2, 8, 64])):
                data[rng.randrange(len(data))] = rng.choice([0, 1, 127, 128, 255, rng.randrange(256)])
        case 2:
            start, target = rng.randrange(len(data)), rng.randrange(len(data))
            data[target:target] = data[start : start + rng.randrange(1, 40)]
        case 3:
            start = rng.randrange(len(data))
            del data[start : start + rng.randrange(1, 40)]
        case 4:
            for _ in range(rng.choice([1, 3, 9])):
                data[rng.randrange(len(data))] = rng.choice(INSTRUCTIONS)
    return bytes(data)


INSTRUCTIONS = [code[0] for code in CODES.values()]


def test_files_damaged_at_random(tmp_path):
    """2,000 files: nothing but ConversionError, in bounded time and memory."""
    rng = random.Random(0)
    path = tmp_path / 'file'
    arrays = {'a': np.arange(5.0), 'b': np.asfortranarray(np.ones((2, 3), np.float16)), 'c': np.float32(2)}
    state = {
        'state_dict': STATE,
        'args': Call(Name('argparse', 'Namespace'), (), {'lr': 0.1}),
        'epoch': [1, (2.5, None)],
    }
    older = {'state_dict': LEGACY_STATE, 'args': state['args']}
    npz = io.BytesIO()
    np.savez(npz, **arrays)
    seeds = [
        write_zip(path, state, {'0': DATA}).read_bytes(),
        write_zip(path, state, {'0': DATA}, compression=zipfile.ZIP_DEFLATED).read_bytes(),
        legacy(older, {'0': (24, DATA)}),
        *(pickle.dumps(arrays, protocol) for protocol in (2, 4, 5)),
        npz.getvalue(),
    ]
    inner = [stream(state), *(pickle.dumps(arrays, protocol) for protocol in (0, 2, 5))]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.perf_counter()
    outcomes = {'read': 0, 'refused': 0}
    for index in range(2000):
        if index % 4 == 0:  # a damaged pickle in a sound archive
            data = damaged(rng.choice(inner), rng) if index % 8 else b'\x80\2' + b''.join(nonsense(rng)) + b'.'
            write_zip(path, Raw(data), {'0': DATA})
        else:
            path.write_bytes(damaged(rng.choice(seeds), rng))
        try:
            read_all(path)
            outcomes['read'] += 1
        except ConversionError as error:
            message = str(error)
            assert message.startswith(f'{path}: ') and message.isprintable() and len(message) < len(str(path)) + 400
            outcomes['refused'] += 1
    assert min(outcomes.values()) > 100, outcomes
    assert time.perf_counter() - start < 60
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # KiB


def test_a_network_that_repeats_elements(tmp_path):
    """Of in-place ABN, whose gammas are computed: 3 GB from 64 numbers."""
    names = (*INPLACE_ABN.signature, *(f'body.layer1.{i}.conv1.1.weight' for i in range(50)))
    shapes = dict.fromkeys(names, (2**24,)) | {name: (4, 4, 1, 1) for name in names if name.endswith('.0.weight')}
    tensors = {key: tensor(storage('0', 'FloatStorage', 64), shapes[key], (0,) * len(shapes[key])) for key in names}
    path = write_zip(tmp_path / 'a.pth', tensors, {'0': bytes(256)})
    with pytest.raises(ConversionError, match='its network repeat elements, or are compressed: 3,'):
        read(path)


def test_what_a_file_has_instead_of_tensors_is_not_copied(tmp_path):
    """The message shows five of the numbers in a file."""
    tree = set(range(100_000))
    tracemalloc.start()
    try:
        with pytest.raises(ConversionError, match=r'no state dict of tensors \(it has 0, 1, 2, 3, 4\)'):
            _largest_state(tmp_path, tree)
        assert tracemalloc.get_traced_memory()[1] < 10**6
    finally:
        tracemalloc.stop()
