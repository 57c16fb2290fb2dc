"""Files of torch and pickles of NumPy and Paddle, read without torch."""

import argparse
import collections
import enum
import pathlib
import pickle
import subprocess
import sys
import types
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from tests.helpers.pickle_files import Call, Name, legacy, storage, stream, tensor, write_zip
from tresnet_jax.checkpoints.records import Global, Record, walk
from tresnet_jax.checkpoints.stored import DTYPES, STORAGES, StoredTensor
from tresnet_jax.checkpoints.torch_file import load
from tresnet_jax.errors import ConversionError

CONTAINERS = ('zip', 'deflated', 'big-endian', 'legacy', 'plain pickle')
VALUES = np.arange(24, dtype=np.float32)


def read(folder: Path, container: str, kind: str, array: np.ndarray, value: Callable[[Any], Any]) -> Any:
    """Write value(storage with the bytes of the array) in a container and load it."""
    path, data = folder / 'file.pt', array.tobytes()
    match container:
        case 'legacy':
            path.write_bytes(legacy(value(storage('0', kind, array.size, None)), {'0': (array.size, data)}))
        case 'plain pickle':  # which has every storage as a legacy file within it
            inner = legacy(storage('0', kind, array.size, None), {'0': (array.size, data)})
            path.write_bytes(stream(value(Call(Name('torch.storage', '_load_from_bytes'), (inner,)))))
        case 'big-endian':
            unit = array.dtype.itemsize // (2 if array.dtype.kind == 'c' else 1)
            data = np.frombuffer(data, f'u{unit}').byteswap().tobytes()
            write_zip(path, value(storage('0', kind, array.size)), {'0': data}, 'big')
        case _:
            compression = zipfile.ZIP_DEFLATED if container == 'deflated' else zipfile.ZIP_STORED
            write_zip(path, value(storage('0', kind, array.size)), {'0': data}, compression=compression)
    return load(path)


def unpickle(folder: Path, data: bytes) -> Any:
    (folder / 'file.pkl').write_bytes(data)
    return load(folder / 'file.pkl')


def assert_same(value: StoredTensor, expected: np.ndarray) -> None:
    array = value.numpy()
    assert (value.dtype, value.shape) == (array.dtype, array.shape) == (expected.dtype, expected.shape)
    assert array.tobytes() == expected.tobytes()


@pytest.mark.parametrize('container', CONTAINERS)
@pytest.mark.parametrize('kind, dtype', STORAGES.items())
def test_dtypes(tmp_path, container, kind, dtype):
    array = np.array([0, 1, 1, 0, 1, 0]).astype(DTYPES[f'torch.{dtype}'])
    root = read(tmp_path, container, f'{kind}Storage', array, lambda s: {'weight': tensor(s, (2, 3), (3, 1))})
    assert_same(root['weight'], array.reshape(2, 3))


@pytest.mark.parametrize('dtype', ['uint16', 'uint64', 'float8_e5m2', 'float8_e4m3fn', 'float8_e8m0fnu'])
def test_dtypes_without_a_storage_class(tmp_path, dtype):
    array = np.array([0.5, 1, 2]).astype(DTYPES[f'torch.{dtype}'])
    name = Name('torch._utils', '_rebuild_tensor_v3')

    def value(s):
        return Call(name, (s, 0, (3,), (1,), False, {}, Name('torch', dtype)))

    untyped = storage('0', 'UntypedStorage', array.nbytes)
    write_zip(tmp_path / 'a.pt', value(untyped), {'0': array.tobytes()})
    assert_same(load(tmp_path / 'a.pt'), array)


@pytest.mark.parametrize('container', CONTAINERS)
def test_views(tmp_path, container):
    """Tensors of one storage: whole, transposed, strided, expanded, overlapping, of no dimension, empty."""

    def value(s):
        return [
            tensor(s, (4, 6), (6, 1)),
            tensor(s, (6, 4), (1, 6)),
            tensor(s, (2, 3), (12, 2), 1),
            tensor(s, (5, 6), (0, 1), 6),
            tensor(s, (22, 3), (1, 1)),
            tensor(s, (), (), 23),
            tensor(s, (3, 0), (1, 1), 24),
        ]

    tensors = read(tmp_path, container, 'FloatStorage', VALUES, value)
    square = VALUES.reshape(4, 6)
    expected = [
        square,
        square.T,
        square[::2, 1::2],
        np.broadcast_to(square[1], (5, 6)),
        np.lib.stride_tricks.sliding_window_view(VALUES, 3),
        VALUES[23],
        np.empty((3, 0), np.float32),
    ]
    for found, wanted in zip(tensors, expected, strict=True):
        assert_same(found, np.asarray(wanted))
    if container in ('zip', 'legacy'):
        assert np.shares_memory(tensors[0].numpy(), tensors[1].numpy())  # of the mapped file
        assert not tensors[0].numpy().flags.writeable


def test_a_legacy_view_of_a_storage(tmp_path):
    value = tensor(storage('0', 'FloatStorage', 24, ('1', 6, 12)), (2, 3), (3, 1), 6)
    assert_same(load_legacy(tmp_path, value), VALUES[12:18].reshape(2, 3))


def load_legacy(folder: Path, value: Any) -> Any:
    (folder / 'a.pt').write_bytes(legacy(value, {'0': (24, VALUES.tobytes())}))
    return load(folder / 'a.pt')


def test_parameters_and_subclasses_are_their_tensors(tmp_path):
    def value(s):
        plain, hooks = tensor(s, (4, 6), (6, 1)), Call(Name('collections', 'OrderedDict'))
        arguments = plain.arguments
        return [
            plain,
            Call(Name('torch._utils', '_rebuild_parameter'), (plain, True, hooks)),
            Call(Name('torch._utils', '_rebuild_parameter_with_state'), (plain, True, hooks, {'tag': 1})),
            Call(Name('torch.nn.parameter', 'Parameter'), (plain, True), (True, False, hooks)),
            Call(Name('torch._tensor', '_rebuild_from_type_v2'), (plain.function, Name('a', 'Mine'), arguments, {})),
            Call(Name('torch._utils', '_rebuild_device_tensor_from_cpu_tensor'), (plain, None, 'xla:0', True)),
        ]

    for found in read(tmp_path, 'zip', 'FloatStorage', VALUES, value):
        assert_same(found, VALUES.reshape(4, 6))


def test_tensors_of_other_kinds_stay_records(tmp_path):
    """Sparse, quantised, conjugated and complex32 tensors: their names, and no wrong values."""
    hooks = Call(Name('collections', 'OrderedDict'))
    scheme = (Name('torch', 'per_tensor_affine'), 0.5, 3)
    quantised = storage('0', 'QInt8Storage', 24)
    value = {
        'quantised': Call(Name('torch._utils', '_rebuild_qtensor'), (quantised, 0, (2,), (1,), scheme, False, hooks)),
        'quantised, plain': tensor(quantised, (2,), (1,)),
        'sparse': Call(Name('torch._utils', '_rebuild_sparse_tensor'), (Name('torch', 'sparse_coo'), ())),
        'conjugated': tensor(storage('0', 'ComplexFloatStorage', 3), (3,), (1,), 0, {'conj': True}),
        'half complex': Call(
            Name('torch._utils', '_rebuild_tensor_v3'),
            (storage('0', 'UntypedStorage', 24), 0, (3,), (1,), False, hooks, Name('torch', 'complex32')),
        ),
    }
    write_zip(tmp_path / 'a.pt', value, {'0': bytes(24)})
    root = load(tmp_path / 'a.pt')
    assert {type(item) for item in root.values()} == {Record}
    assert root['quantised'].class_name == 'torch._utils._rebuild_qtensor'


ARRAYS = [
    VALUES.reshape(4, 6),
    np.asfortranarray(VALUES.reshape(4, 6)),
    VALUES.reshape(2, 3, 4).transpose(2, 0, 1),
    VALUES.astype('>f4'),
    VALUES.astype(np.float64)[::2],
    VALUES.astype(np.float16),
    VALUES.astype(ml_dtypes.bfloat16),
    VALUES > 3,
    np.array([-1, 2], np.int8),
    np.array([2**63], np.uint64),
    np.array([1 + 2j]),
    np.array(3.5),
    np.empty((0, 5)),
    np.array(['ankle boot', 'bag']),
    np.array([b'bag']),
]


@pytest.mark.parametrize('numpy', [1, 2])
@pytest.mark.parametrize('protocol', range(2, 6))
def test_arrays(tmp_path, numpy, protocol):
    """Both NumPys, by the module's names that they write."""
    root = unpickle(tmp_path, as_numpy(numpy, pickle.dumps(ARRAYS, protocol), protocol))
    for found, array in zip(root, ARRAYS, strict=True):
        assert_same(found, array.astype(found.dtype))
        assert found.dtype == (array.dtype if array.dtype.byteorder != '>' else np.float32)


def as_numpy(version: int, data: bytes, protocol: int) -> bytes:
    """The pickle with the names of NumPy 1 or 2; the length before a name of protocol 4 is that of the name."""
    for module in (b'multiarray', b'numeric'):
        old, new = b'numpy.core.' + module, b'numpy._core.' + module
        if protocol >= 4:
            old, new = bytes([len(old)]) + old, bytes([len(new)]) + new
        data = data.replace(old, new) if version == 2 else data.replace(new, old)
    # A frame's length counts these bytes too, but a reader need not look at it.
    return data


@pytest.mark.parametrize('numpy', [1, 2])
@pytest.mark.parametrize('protocol', range(2, 6))
def test_scalars(tmp_path, numpy, protocol):
    scalars = [np.float32(0.1), np.float64(81.5), np.int64(-3), np.uint8(200), np.bool_(True), np.str_('bag')]
    root = unpickle(tmp_path, as_numpy(numpy, pickle.dumps(scalars, protocol), protocol))
    assert root == [scalar.item() for scalar in scalars]
    assert [type(value) for value in root] == [float, float, int, int, bool, str]


def test_arrays_of_objects_stay_records(tmp_path):
    odd = [
        np.array([1, None]),
        np.array(['2026-01-01'], 'M8[D]'),
        np.zeros(2, 'i4,f4'),
        np.datetime64('2026-01-01'),
        np.random.default_rng(0).bit_generator.state,
    ]
    array, dates, fields, date, state = unpickle(tmp_path, pickle.dumps(odd))
    assert {array.class_name, dates.class_name, fields.class_name} == {'numpy.ndarray'}
    assert array.state[4] == [1, None] and date.class_name == 'numpy.generic' and state['bit_generator'] == 'PCG64'


@pytest.mark.parametrize('protocol', [2, 4])
def test_paddle(tmp_path, protocol):
    state = {'conv1.weight': VALUES.reshape(4, 6), 'bn._mean': VALUES}
    state['StructuredToParameterName@@'] = {key: f'{key}.w_0' for key in state}
    root = unpickle(tmp_path, pickle.dumps(state, protocol))
    assert list(root) == list(state)
    assert_same(root['conv1.weight'], state['conv1.weight'])


def test_npz(tmp_path):
    arrays = {str(index): array for index, array in enumerate(ARRAYS) if array.dtype != ml_dtypes.bfloat16}
    for save in (np.savez, np.savez_compressed):
        save(tmp_path / 'a.npz', **arrays, objects=np.array([None]))
        root = load(tmp_path / 'a.npz')
        assert list(root) == [*arrays, 'objects'] and isinstance(root.pop('objects'), Record)
        for name, found in root.items():
            assert_same(found, arrays[name].astype(found.dtype))


class Colour(enum.Enum):
    RED = 1


class Config(dict):
    pass


class Items(list):
    pass


class Slots:
    __slots__ = ('a', '__dict__')


class Stateful:
    ran = False

    def __setstate__(self, state):
        Stateful.ran = True

    def __init__(self, value=None):
        Stateful.ran = True

    def __getstate__(self):
        return {'value': 3}


@pytest.mark.parametrize('protocol', range(pickle.HIGHEST_PROTOCOL + 1))
def test_objects_become_records(tmp_path, protocol):
    """What training scripts keep beside the weights; none of the classes is imported or called."""
    config, items, stateful = Config(lr=0.1), Items([1, 2]), Stateful()
    config.path = pathlib.PurePosixPath('/data')
    objects = {
        'namespace': argparse.Namespace(lr=0.1, model='resnet50d'),
        'simple': types.SimpleNamespace(size=224),
        'path': pathlib.PurePosixPath('/data/images'),
        'config': config,
        'items': items,
        'stateful': stateful,
        'colour': Colour.RED,
        'class': Stateful,
        'counter': collections.Counter('aab'),
        'default': collections.defaultdict(list, {'a': [1]}),
        'ordered': collections.OrderedDict(b=1, a=2),
        'queue': collections.deque([1, 2], 5),
        'set': {1, 2},
        'frozen': frozenset({3}),
        'complex': 1 + 2j,
        'bytes': b'\0\xff',
        'empty': b'',
        'numbers': [0, -1, 255, 65535, 2**31, -(2**31), 2**70, 0.5, True, False, None],
        'text': 'Grüße \n \ud800',
    }
    if protocol >= 2:
        objects['slots'] = Slots()
        objects['slots'].a, objects['slots'].b = 1, 2
    data = pickle.dumps(objects, protocol)
    Stateful.ran = False
    root = read_pickle_of_any_protocol(tmp_path, data)
    assert not Stateful.ran
    assert root['namespace'].class_name == 'argparse.Namespace'
    assert root['namespace'].attributes == {'lr': 0.1, 'model': 'resnet50d'}
    assert root['simple'].attributes == {'size': 224}
    assert pathlib.PurePosixPath(*root['path'].arguments) == objects['path']  # Python 3.13 pickles it whole
    assert root['stateful'].attributes == {'value': 3}
    assert isinstance(root['class'], Global) and root['class'].name.endswith('.Stateful')
    assert root['colour'].class_name.endswith(('.Colour', 'getattr'))
    assert (root['counter'], root['default']) == ({'a': 2, 'b': 1}, {'a': [1]})
    assert list(root['ordered'].items()) == [('b', 1), ('a', 2)]
    for key in ('set', 'frozen', 'complex', 'bytes', 'empty', 'numbers', 'text'):
        assert root[key] == objects[key] and type(root[key]) is type(objects[key])
    if protocol >= 2:
        assert root['config'].mapping == {'lr': 0.1}
        assert pathlib.PurePosixPath(*root['config'].attributes['path'].arguments) == config.path
        assert root['items'].elements == [1, 2]
        assert root['queue'].elements == [1, 2] or root['queue'].arguments[0] == [1, 2]
        assert root['slots'].attributes == {'a': 1, 'b': 2}


def read_pickle_of_any_protocol(folder: Path, data: bytes) -> Any:
    """Protocols 0 and 1 have no first byte of their own, and are read within an archive of torch."""
    with zipfile.ZipFile(folder / 'a.pt', 'w') as archive:
        archive.writestr('a/data.pkl', data)
    return load(folder / 'a.pt')


def test_cycles_and_shared_objects(tmp_path):
    learner = argparse.Namespace(items=[], pair=None)
    learner.self = learner
    learner.items.append(learner)
    learner.pair = (learner, learner.items)
    root = unpickle(tmp_path, pickle.dumps([learner, learner]))
    assert root[0] is root[1] is root[0].attributes['self'] is root[0].attributes['items'][0]
    assert {path for path, _ in walk(root)} == {(), ('0',), ('0', 'items'), ('0', 'pair')} | {
        path for path, value in walk(root) if isinstance(value, dict)
    }
    items: list[Any] = []
    cycle = (items,)
    items.append(cycle)
    root = unpickle(tmp_path, pickle.dumps(cycle))
    assert root[0][0][0] is root[0]


def test_a_module_is_walkable(tmp_path):
    def value(s):
        convolution = Call(
            Name('torch.nn.modules.conv', 'Conv2d'), (), {'_parameters': {'weight': tensor(s, (4, 6), (6, 1))}}
        )
        return Call(Name('timm.models.resnet', 'ResNet'), (), {'_modules': {'conv1': convolution}, 'training': False})

    root = read(tmp_path, 'legacy', 'FloatStorage', VALUES, value)
    assert root.class_name == 'timm.models.resnet.ResNet'
    found = {path: item for path, item in walk(root) if isinstance(item, Record)}
    assert set(found) == {(), ('_modules', 'conv1')}
    assert_same(found['_modules', 'conv1'].attributes['_parameters']['weight'], VALUES.reshape(4, 6))


def test_a_method_that_is_looked_up_when_loading(tmp_path):
    """mmengine's HistoryBuffer pickles its methods as calls of `getattr`."""
    method = Call(Name('builtins', 'getattr'), (Name('mmengine.logging.history_buffer', 'HistoryBuffer'), 'mean'))
    root = unpickle(tmp_path, stream({'statistics': {'mean': method}}))
    assert root['statistics']['mean'].class_name == 'builtins.getattr'


def test_python_2(tmp_path):
    """Text and bytes of Python 2 have one instruction, and NumPy's arrays are such bytes."""
    data = (
        b'\x80\x02}q\0U\x06weightq\1cnumpy.core.multiarray\n_reconstruct\nq\2cnumpy\nndarray\nq\3K\0\x85q\4U\1bq\5\x87q\6Rq\7'
        b'(K\1K\2\x85q\x08cnumpy\ndtype\nq\tU\2f4q\nK\0K\1\x87q\x0bRq\x0c(K\3U\1<q\rNNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\0tq\x0eb'
        b'\x89U\x08\0\0\x80?\0\0\x80\xbfq\x0ftq\x10bs.'
    )
    assert_same(unpickle(tmp_path, data)['weight'], np.array([1, -1], np.float32))


def test_neither_torch_nor_a_class_of_the_file_is_imported(tmp_path):
    state = {
        'a': tensor(storage('0', 'FloatStorage', 24), (24,), (1,)),
        'b': Call(Name('this', 's'), ()),
    }
    write_zip(tmp_path / 'a.pt', state, {'0': VALUES.tobytes()})
    code = (
        'import sys\n'
        'from tresnet_jax.checkpoints.torch_file import load\n'
        "load(sys.argv[1])['a'].numpy()\n"
        "assert 'torch' not in sys.modules and 'this' not in sys.modules\n"
    )
    subprocess.run([sys.executable, '-W', 'error', '-c', code, str(tmp_path / 'a.pt')], check=True)


def test_a_file_that_does_not_exist(tmp_path):
    with pytest.raises(ConversionError, match=r'a\.pt: cannot be read: No such file'):
        load(tmp_path / 'a.pt')


def test_the_file_is_closed_and_may_be_replaced(tmp_path):
    path = write_zip(tmp_path / 'a.pt', tensor(storage('0', 'FloatStorage', 24), (24,), (1,)), {'0': VALUES.tobytes()})
    found = load(path)
    (tmp_path / 'b.pt').write_bytes(b'')
    (tmp_path / 'b.pt').replace(path)
    assert_same(found, VALUES)
