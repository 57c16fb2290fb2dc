"""Files of torch, in the zip and in the older format: damaged, hostile and enormous."""

import functools
import io
import pickle
import random
import struct
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from convert import ConversionError
from fuzzing import seeds, values
from fuzzing.children import Kind
from tests.helpers.pickle_files import (
    CODES,
    Call,
    Name,
    Outside,
    Raw,
    instructions,
    legacy,
    nonsense,
    storage,
    stream,
    tensor,
)
from tresnet_jax.checkpoints.records import children, walk
from tresnet_jax.checkpoints.stored import StoredTensor, contiguous
from tresnet_jax.checkpoints.torch_file import load

FLOODS = (b'}', b'\x8f', b']', b'N\x94', b'h\0)R', b'C\2ab', b'U\2ab', b'X\2\0\0\0ab', b'J\1\1\1\1',
b'G@\1\1\1\1\1\1\1', b'N\x85', b'}\x94', b'}NNs',
          b'\x8f(Ne\x90', b'}K\1Ns', b']Na', b'\x8a\4\1\2\3\4', b'h\0h\0)R\x85R')  # fmt: skip
RUN = 'open("MARKER", "w").write("ran")'
FUNCTIONS = (
    ('os', 'system', 'touch MARKER'), ('posix', 'system', 'touch MARKER'), ('subprocess', 'Popen', ['touch', 'MARKER']),
    ('builtins', 'eval', RUN), ('builtins', 'exec', RUN), ('__builtin__', 'eval', RUN), ('builtins', '__import__',
    'antigravity'),
    ('builtins', 'getattr', Name('os', 'path'), 'os'), ('builtins', 'open', 'MARKER', 'w'), ('io', 'open', 'MARKER',
    'w'),
    ('pickle', 'loads', pickle.dumps(1)), ('_pickle', 'loads', pickle.dumps(1)), ('marshal', 'loads', b'\xe3'),
    ('importlib', 'import_module', 'antigravity'), ('runpy', 'run_path', 'MARKER'), ('shutil', 'rmtree', '.'),
    ('torch', 'load', 'MARKER'), ('torch.hub', 'load', 'a/b', 'c'), ('torch._utils', '_import_dotted_name',
    'os.system'),
    ('torch.storage', '_load_from_bytes', b'\x80\x02.'), ('numpy', 'load', 'MARKER'), ('numpy', 'zeros', (10**12,)),
    ('numpy.core.multiarray', '_reconstruct', Name('numpy', 'ndarray'), (10**12,), b'b'), ('numpy', 'dtype', 'f4',
    False, True),
    ('numpy.core.multiarray', 'scalar', Name('os', 'system'), b'a'), ('_codecs', 'encode', 'touch', 'latin1'),
    ('collections', 'OrderedDict', [['a', 1]]), ('builtins', 'bytearray', 10**12), ('builtins', 'list', 'abc'),
    ('torch._tensor', '_rebuild_from_type_v2', Name('os', 'system'), Name('builtins', 'str'), ('touch MARKER',), {}),
    ('torch._utils', '_rebuild_parameter', 3, True, {}), ('torch.jit', 'load', 'MARKER'), ('copyreg', '_reconstructor',
    1, 2, 3),
)  # fmt: skip
BESIDE = (
    'epoch',
    'arch',
    'metric',
    'version',
    'optimizer',
    'state_dict_ema',
    'class_names',
    'idx_to_class',
    'label_names',
    'meta',
    'step',
)
STATED = ('model', 'img_size', 'input_size', 'crop_pct', 'mean', 'std', 'interpolation', 'crop_mode', 'in_chans',
    'task', 'num_classes',
          'val_crop_size', 'val_resize_size')  # fmt: skip
STORAGES = (
    'FloatStorage',
    'HalfStorage',
    'BFloat16Storage',
    'DoubleStorage',
    'LongStorage',
    'ByteStorage',
    'QInt8Storage',
    'OddStorage',
)
DATA = np.arange(24, dtype=np.float32).tobytes()


def make(rng: random.Random, folder: Path, older: bool) -> Path:
    """Write one file in the zip format, or in that of torch before 1.6."""
    path = folder / 'model.pth'
    match rng.randrange(6):
        case 0 if rng.random() < 0.3:
            data = values.damaged(rng, network(older), rng.choice((None, 30_000)))
        case 0:
            data = _lying(rng, older)
        case 1:
            data = _small(rng, Raw(values.damaged(rng, stream(_value(rng, older, 3)))), older)
        case 2:
            data = _small(rng, Raw(_nonsense(rng)), older)
        case 3 if not older:
            data = _archive(rng)
        case _:
            data = _small(rng, _value(rng, older, 4), older)
    if rng.random() < 0.2:
        data = values.damaged(rng, data, rng.choice((None, 2000)))
    path.write_bytes(data)
    return path


@functools.cache
def _network(older: bool) -> tuple[dict[str, Any], dict[str, bytes]]:
    """Return a network as the values of a pickle, and its storages."""
    tensors, storages = {}, {}
    for number, (key, array) in enumerate(seeds.state().items()):
        array = np.asarray(array, np.float16)
        place = storage(str(number), 'HalfStorage', array.size, *((None,) if older else ()))
        tensors[key] = tensor(place, array.shape, contiguous(array.shape))
        storages[str(number)] = array.tobytes()
    return tensors, storages


@functools.cache
def network(older: bool) -> bytes:
    """Return a good file of a whole network, as timm's training script writes it."""
    tensors, storages = _network(older)
    arguments = Call(Name('argparse', 'Namespace'), (), {'lr': 0.1})
    return _whole({'state_dict': tensors, 'epoch': 3, 'arch': 'test_resnet', 'args': arguments}, storages, older)


def _lying(rng: random.Random, older: bool) -> bytes:
    """Return a file of a network with a tensor that lies, or odd values beside it."""
    tensors, storages = _network(older)
    tensors = dict(tensors)
    if rng.random() < 0.4:
        key = rng.choice(list(tensors))
        tensors[key if rng.random() < 0.7 else _key(values.text(rng))] = _value(rng, older, 2)
    if rng.random() < 0.1:
        del tensors[rng.choice(list(tensors))]
    root: dict[str, Any] = {'state_dict': tensors} if rng.random() < 0.8 else dict(tensors)
    beside = rng.sample(BESIDE, rng.randrange(4))
    root |= {key: _value(rng, older, 3) for key in beside}
    if rng.random() < 0.5:
        stated = {key: _plain(rng) for key in rng.sample(STATED, rng.randrange(1, 5))}
        root['args'] = Call(Name('argparse', 'Namespace'), (), stated) if rng.random() < 0.5 else stated
    return _whole(root, storages, older)


def _whole(value: Any, storages: Mapping[str, bytes], older: bool, units: int = 2) -> bytes:
    if older:
        return legacy(value, {key: (len(data) // units, data) for key, data in storages.items()})
    file = io.BytesIO()
    with zipfile.ZipFile(file, 'w') as archive:
        archive.writestr(zipfile.ZipInfo('archive/data.pkl'), value.code if isinstance(value, Raw) else stream(value))
        for key, data in storages.items():
            archive.writestr(zipfile.ZipInfo(f'archive/data/{key}'), data)
    return file.getvalue()


def _small(rng: random.Random, value: Any, older: bool) -> bytes:
    """Return a file around a value or instructions; now and then a plain pickle."""
    if rng.random() < 0.1:
        return value.code if isinstance(value, Raw) else stream(value)
    storages = {'0': DATA, **({'1': DATA[:8]} if rng.random() < 0.2 else {})}
    return _whole(value, storages if rng.random() < 0.95 else {}, older, 4)


def _value(rng: random.Random, older: bool, depth: int) -> Any:
    """Return a value of a pickle: containers, tensors that lie, calls of dangerous functions."""
    match rng.randrange(9 if depth else 4):
        case 0:
            return _plain(rng)
        case 1 | 2:
            return _tensor(rng, older)
        case 3:
            module, name, *arguments = rng.choice(FUNCTIONS)
            state = () if rng.random() < 0.7 else _value(rng, older, 0)
            return Call(Name(module, name), tuple(arguments), state)
        case 4:
            return [_value(rng, older, depth - 1) for _ in range(rng.randrange(4))]
        case 5:
            return tuple(_value(rng, older, depth - 1) for _ in range(rng.randrange(4)))
        case 6:
            module, name, *_ = rng.choice(FUNCTIONS)
            return Call(Name(module, name), tuple(_value(rng, older, depth - 1) for _ in range(rng.randrange(4))))
        case _:
            keys = (
                'state_dict',
                'model',
                'epoch',
                'args',
                'conv1.0.weight',
                'fc.weight',
                values.text(rng),
                'class_names',
            )
            return {_key(key): _value(rng, older, depth - 1) for key in rng.sample(keys, rng.randrange(5))}


def _key(text: str) -> str:
    return text.encode('utf-8', 'replace').decode()


def _plain(rng: random.Random) -> Any:
    """Return a value of JSON without surrogates, which pickles cannot hold."""
    value = values.value(rng, 2)
    return Raw(instructions(value)) if not isinstance(value, str) else _key(value)


def _tensor(rng: random.Random, older: bool) -> Any:
    """Return a tensor; one of its numbers lies, or none."""
    count, shape, strides, offset = rng.choice((24, 24, 24, 25, 2**62, -1)), (4, 6), (6, 1), 0
    match rng.randrange(6):
        case 0:
            shape = tuple(values.number(rng) for _ in range(rng.randrange(5)))
        case 1:
            strides = tuple(values.number(rng) for _ in range(2))
        case 2:
            offset = values.number(rng)
        case 3:
            shape, strides = (24,) * rng.choice((2, 6, 70)), (0,) * rng.choice((2, 6, 70))
    key = rng.choice(('0', '0', '0', '1', '../../secret', '/etc/passwd', 'a\x1b[31m'))
    views = ((None,), (('1', 0, 24),), (('1', values.number(rng), values.number(rng)),)) if older else ((),)
    place = storage(key, rng.choice(STORAGES[:1] * 6 + STORAGES), count, *rng.choice(views))
    return tensor(rng.choice((place, place, place, Outside('0'), 3)), shape, strides, offset)


def _nonsense(rng: random.Random) -> bytes:
    """Return instructions in a random order, most of which find what they need on the stack."""
    parts = nonsense(rng)
    if rng.random() < 0.3:
        code = rng.choice(list(CODES.values()))
        parts.insert(
            rng.randrange(len(parts)),
            code + rng.choice((b'', b'\xff\xff\xff\xff', b'a\nb\n', struct.pack('<Q', 2**62))),
        )
    if rng.random() < 0.01:  # as many values as a stream may have
        unit = rng.choice(FLOODS)
        return (
            b'\x80\4cos\nsystem\nq\0]('
            + unit * (rng.choice((10**6, 4_900_000)) // max(1, rng.choice((1, 2, 3))))
            + b'e.'
        )
    if rng.random() < 0.1:
        parts.insert(0, rng.choice((b'](', b'(', b'\x85', b'}K\1', b'2')) * rng.choice((400, 5000, 200_000)))
    return b'\x80\2' + b''.join(parts) + b'.'


def _archive(rng: random.Random) -> bytes:
    """Return an archive whose members have odd names, contradict each other, or expand enormously."""
    good = [
        ('archive/data.pkl', stream({'a': tensor(storage('0', 'FloatStorage', 24), (4, 6), (6, 1))})),
        ('archive/data/0', DATA),
    ]
    names = ('../evil', '/etc/passwd', 'archive/../../evil', 'a\\b', 'archive/data/0', 'archive/data.pkl',
        'b/data.pkl', 'archive/byteorder',
             'a\x1b[31m', '\ufffd', 'a' * 65_000, 'constants.pkl', 'archive/data/', 'weights.npy')  # fmt: skip
    match rng.randrange(4):
        case 0:  # a bomb
            size = rng.choice((2**20, 2**24, 2**26, 2**27))
            count = rng.choice((1, 1, 3))
            many = [tensor(storage(str(key), 'ByteStorage', size), (size,), (1,)) for key in range(count)]
            good = [('archive/data.pkl', stream(many)), *((f'archive/data/{key}', bytes(size)) for key in range(count))]
            if rng.random() < 0.5:  # beside bytes that do not compress, to which the limit is relative
                good.append(('archive/data/x', random.Random(0).randbytes(rng.choice((2**20, 2**23)))))
        case 1:
            npy = b"\x93NUMPY\1\0\x46\0{'descr': '<f4', 'fortran_order': False, 'shape': (24,), }            \n" + DATA
            good = [(f'{name}.npy', values.damaged(rng, npy) if rng.random() < 0.6 else npy) for name in ('a', 'b')]
        case _:
            for _ in range(rng.choice((1, 2, 5))):
                good.insert(
                    rng.randrange(len(good) + 1),
                    (rng.choice(names), rng.choice((b'', DATA, b'little', b'big', b'odd\x1b', stream(3)))),
                )
    file = io.BytesIO()
    method = rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA))
    if any(len(data) > 2**21 for _, data in good):
        method = zipfile.ZIP_DEFLATED
    with (
        warnings.catch_warnings(),
        zipfile.ZipFile(file, 'w') as archive,
    ):
        warnings.simplefilter('ignore')  # of names that are there twice
        for name, data in good:
            archive.writestr(zipfile.ZipInfo(name), data, method, 1)  # without the time
    data = bytearray(file.getvalue())
    for _ in range(rng.choice((0, 0, 1, 2))):  # numbers of the directory, or of a local header
        at = data.rindex(b'PK\1\2') if rng.random() < 0.5 else data.index(b'PK\3\4')
        place = at + rng.randrange(4, 46)
        data[place : place + 2] = rng.choice((b'\0\0', b'\xff\xff', b'\1\0', b'\x63\0'))
    return bytes(data)


def read_all(path: Path) -> object:
    """Load a file and read its tensors."""
    containers = [value for _, value in walk([load(path)])]
    tensors = [child for value in containers for _, child in children(value) if isinstance(child, StoredTensor)]
    return [found.numpy().shape for found in tensors]


USES = (read_all, *seeds.readers())
ZIP = Kind(
    'torch', "torch's zip format, .npz, plain pickles", functools.partial(make, older=False), USES, (ConversionError,)
)
OLDER = Kind('legacy', "torch's format before 1.6", functools.partial(make, older=True), USES, (ConversionError,))
