"""Hostile pickles: nothing runs, nothing takes long or much memory, and one line says what is wrong."""

import io
import pickle
import re
import struct
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.helpers.pickle_files import (
    CODES,
    Call,
    Name,
    Outside,
    Raw,
    instructions,
    legacy,
    storage,
    stream,
    tensor,
    write_zip,
)
from tresnet_jax.checkpoints.pickles import Budget, Unpickler
from tresnet_jax.checkpoints.records import Record, Unreadable
from tresnet_jax.checkpoints.torch_file import load
from tresnet_jax.errors import ConversionError

DATA = np.arange(24, dtype=np.float32).tobytes()
CONTAINERS = ('plain pickle', 'zip', 'legacy')
SYSTEM = Name('os', 'system')
RUN = 'open("MARKER", "w").write("ran")'


def write(path: Path, container: str, value: Any) -> Path:
    """A value, or the instructions between PROTO and STOP, in a container whose storage '0' has 24 float32."""
    data = stream(value)
    if container == 'zip':
        return write_zip(path, Raw(data), {'0': DATA})
    storages = {'0': (24, DATA)} if b'FloatStorage' in data else {}
    path.write_bytes(data if container == 'plain pickle' else legacy(Raw(data), storages))
    return path


def refusal(path: Path) -> str:
    """The message that refuses a file, less the file's name: one line without control characters."""
    start = time.perf_counter()
    with pytest.raises(ConversionError) as caught:
        load(path)
    assert time.perf_counter() - start < 20
    message = str(caught.value)
    assert message.startswith(f'{path}: ') and message.isprintable() and len(message) < len(str(path)) + 400
    return message.removeprefix(f'{path}: ')


def call(module: str, name: str, *arguments: Any) -> Call:
    return Call(Name(module, name), arguments)


def code(*parts: str | bytes) -> Raw:
    """Instructions by their names, and their arguments as bytes."""
    return Raw(b''.join(CODES[part] if isinstance(part, str) else part for part in parts))


def build(target: Any) -> Raw:
    return code(instructions(target), instructions({'__class__': SYSTEM}), 'BUILD')


def copies(value: Any, times: int, module: str, name: str) -> Raw:
    """A list of results of one function, called again and again with one value that the pickle has once."""
    function = f'c{module}\n{name}\n'.encode()
    return Raw(instructions(value) + b'r\xff\0\0\0' + b']' + (function + b'j\xff\0\0\0\x85Ra') * times)


def shared(value: Any, instruction: str, times: int) -> Raw:
    """A list of records that have one value as their arguments ('R') or their attributes ('b')."""
    each = b'h\6h\5R' if instruction == 'R' else b'h\6)Rh\5b'
    return Raw(instructions(value) + b'q\5' + instructions(SYSTEM) + b'q\6](' + each * times + b'e')


# Each would write the file MARKER, or fail loudly, if any of it ran.
CALLS = [
    call('os', 'system', 'touch MARKER'),
    call('posix', 'system', 'touch MARKER'),
    call('nt', 'system', 'touch MARKER'),
    call('subprocess', 'Popen', ['touch', 'MARKER']),
    call('subprocess', 'check_output', ['touch', 'MARKER']),
    call('builtins', 'eval', RUN),
    call('builtins', 'exec', RUN),
    call('builtins', 'compile', RUN, 'a', 'exec'),
    call('builtins', 'open', 'MARKER', 'w'),
    call('builtins', '__import__', 'os'),
    call('builtins', 'getattr', Name('os', 'path'), 'os'),
    call('builtins', 'getattr', call('builtins', 'getattr', Name('os', 'path'), 'os'), 'system'),
    call('__builtin__', 'eval', RUN),
    call('io', 'open', 'MARKER', 'w'),
    call('_io', 'FileIO', 'MARKER', 'w'),
    call('pty', 'spawn', 'touch MARKER'),
    call('runpy', 'run_path', 'MARKER'),
    call('pickle', 'loads', pickle.dumps(1)),
    call('importlib', 'import_module', 'antigravity'),
    call('webbrowser', 'open', 'http://localhost'),
    call('operator', 'attrgetter', 'system'),
    call('operator', 'methodcaller', 'system', 'touch MARKER'),
    call('functools', 'partial', SYSTEM, 'touch MARKER'),
    call('types', 'FunctionType', 1),
    call('copyreg', '__newobj__', SYSTEM, 'touch MARKER'),
    call('copyreg', 'add_extension', 'os', 'system', 1),
    call('ctypes', 'CDLL', 'libc.so.6'),
    call('_codecs', 'decode', b'61', 'hex'),
    call('codecs', 'encode', '61', 'hex'),
    call('numpy.testing._private.utils', 'runstring', RUN, {}),
    call('numpy.f2py.crackfortran', 'getlincoef', RUN, {}),
    call('numpy', 'load', 'MARKER'),
    call('numpy', 'ndarray', (10**12,)),
    call('numpy', 'zeros', (10**12,)),
    call('torch', 'load', 'MARKER'),
    call('torch.hub', 'load', 'a/b', 'c'),
    call('torch._utils', '_import_dotted_name', 'os.system'),
    call('torch.utils._config_module', 'ConfigModule.load_config', Name('a', 'b'), b''),
    call('torch.utils.cpp_extension', 'load_inline', 'a', ''),
    call('torch.jit.unsupported_tensor_ops', 'execWrapper', RUN, {}, {}),
    call('torch._tensor', '_rebuild_from_type_v2', SYSTEM, Name('builtins', 'str'), ('touch MARKER',), {}),
    call('torch._utils', '_rebuild_wrapper_subclass', SYSTEM),
    call('tresnet_jax.checkpoints.torch_file', 'load', 'MARKER'),
    Call(SYSTEM, ('touch MARKER',), {'a': 1}),
    Call(call('builtins', 'getattr', Name('os', 'path'), 'system'), ('touch MARKER',)),
    Call(call('functools', 'partial', SYSTEM, 'touch MARKER')),
    Call(call('types', 'CodeType'), (10**12,)),
    code(instructions(call('builtins', 'type', 'a')), instructions(('touch MARKER',)), 'NEWOBJ'),
    code(instructions(SYSTEM), instructions(('touch MARKER',)), 'NEWOBJ'),
    code(instructions(SYSTEM), instructions(()), instructions({'command': 'touch MARKER'}), 'NEWOBJ_EX'),
    code(instructions(Name('builtins', 'bytes')), instructions(()), instructions({'source': 10**12}), 'NEWOBJ_EX'),
    code('GLOBAL', b'os\nsystem\n', instructions(('touch MARKER',)), 'REDUCE'),
]


def name_of(value: Any) -> str:
    function = value.function if isinstance(value, Call) else None
    return function.name if isinstance(function, Name) else 'instructions'


@pytest.mark.parametrize('container', CONTAINERS)
@pytest.mark.parametrize('hostile', CALLS, ids=name_of)
def test_calls_are_only_recorded(tmp_path, monkeypatch, container, hostile):
    """The state dict beside them is read."""
    monkeypatch.chdir(tmp_path)
    root = load(write(tmp_path / 'file', container, {'hostile': hostile, 'class': SYSTEM, 'epoch': 3}))
    assert isinstance(root['hostile'], Record) and root['epoch'] == 3
    assert sorted(path.name for path in tmp_path.iterdir()) == ['file']


DTYPE = Call(Name('numpy', 'dtype'), ('f4', False, True), (3, '<', None, None, None, -1, -1, 0))
TENSOR = tensor(storage('0', 'FloatStorage', 24), (24,), (1,))


def array(shape: Any, data: Any = b'abcd', dtype: Any = DTYPE) -> Call:
    empty = (Name('numpy', 'ndarray'), (0,), b'b')
    return Call(Name('numpy.core.multiarray', '_reconstruct'), empty, (1, shape, dtype, False, data))


# name -> (a value or instructions, what the message says)
REFUSED: dict[str, tuple[Any, str]] = {
    'a call of text': (Call('os.system', ('touch MARKER',)), 'calls a value of type str'),
    'a call of a list': (Call([]), 'calls a value of type list'),
    'arguments in a list': (Call(SYSTEM, ['touch MARKER']), 'without a tuple of arguments'),
    'arguments by position': (
        code(instructions(SYSTEM), instructions(()), instructions([]), 'NEWOBJ_EX'),
        'without a tup',
    ),
    'attributes of a class': (build(SYSTEM), 'sets attributes of the class os.system'),
    'attributes of a list': (build([]), 'sets attributes of a value of type list'),
    'attributes of text': (build('a'), 'sets attributes of a value of type str'),
    'attributes of None': (build(None), 'sets attributes of a value of type NoneType'),
    'attributes of a set': (build(call('builtins', 'set')), 'sets attributes of a value of type set'),
    'attributes of a tuple': (build((1,)), 'sets attributes of a value of type tuple'),
    'INST': (code('MARK', instructions('touch MARKER'), 'INST', b'os\nsystem\n'), 'instruction INST'),
    'OBJ': (code('MARK', instructions(SYSTEM), instructions('touch MARKER'), 'OBJ'), 'instruction OBJ'),
    'EXT1': (code('EXT1', b'\1'), 'instruction EXT1'),
    'EXT2': (code('EXT2', b'\1\0'), 'instruction EXT2'),
    'EXT4': (code('EXT4', b'\1\0\0\0'), 'instruction EXT4'),
    'PERSID': (code('PERSID', b'storage\n'), 'instruction PERSID'),
    'DUP': (code(instructions([]), 'DUP'), 'instruction DUP'),
    'NEXT_BUFFER': (code('NEXT_BUFFER'), 'instruction NEXT_BUFFER'),
    'READONLY_BUFFER': (code(instructions(b'a'), 'READONLY_BUFFER'), 'instruction READONLY_BUFFER'),
    'an unknown instruction': (code(b'\xff'), 'damaged .*opcode'),
    'an unknown protocol': (code('PROTO', b'\x07'), 'unknown protocol 7'),
    'a name of nothing': (code('GLOBAL', b'\n\n'), 'odd characters: '),
    'a name of one part': (code('GLOBAL', b'os\n\n'), 'odd characters: os.'),
    'a name with a space': (code('GLOBAL', b'os system\nos\n'), 'odd characters: os.system os'),
    'a name with a newline': (Name('os\n', 'a'), r'odd characters: os\\n.a$'),
    'a name with an escape code': (Name('os', 'a\x1b[31m'), r'odd characters: os.a\\x1b\[31m$'),
    'a name of 1,000 letters': (Name('os', 'a' * 1000), r'odd characters: os.a{70,80}\.\.\.$'),
    'a name that is a number': (code(instructions(3), instructions('system'), 'STACK_GLOBAL'), 'other than text'),
    'a name that is a class': (code(instructions('os'), instructions(SYSTEM), 'STACK_GLOBAL'), 'other than text'),
    'a name that is bytes': (code(instructions(b'os'), instructions(b'system'), 'STACK_GLOBAL'), 'other than text'),
    'another codec': (call('_codecs', 'encode', '61', 'hex'), 'something other than text in Latin-1'),
    'a codec of a number': (call('_codecs', 'encode', 10**12, 'latin1'), 'something other than text in Latin-1'),
    'a codec of wide text': (call('_codecs', 'encode', '\u20ac', 'latin1'), "damaged .'latin-1' codec"),
    'bytes by number': (call('builtins', 'bytes', 10**12), 'something other than text in Latin-1'),
    'a bytearray by number': (call('builtins', 'bytearray', 10**12), 'something other than text in Latin-1'),
    'a list of text': (call('builtins', 'list', 'abc'), 'arguments that do not fit'),
    'a tuple of a record': (call('builtins', 'tuple', call('a', 'b')), 'arguments that do not fit'),
    'a complex number of text': (call('builtins', 'complex', '1', 2.0), 'arguments that do not fit'),
    'a dictionary of triples': (call('collections', 'OrderedDict', [[1, 2, 3]]), 'arguments that do not fit'),
    'a dictionary of keys that are lists': (
        call('collections', 'OrderedDict', [[[], 2]]),
        'unsuitable key, a value of type list',
    ),
    'an item of a class': (
        code(instructions(SYSTEM), 'NONE', 'NONE', 'SETITEM'),
        'sets an item of the class os.system',
    ),
    'an item of a list': (code(instructions([]), 'NONE', 'NONE', 'SETITEM'), 'sets an item of a value of type list'),
    'an odd number of items': (code('EMPTY_DICT', 'MARK', 'NONE', 'SETITEMS'), 'damaged'),
    'an element of a class': (code(instructions(SYSTEM), 'NONE', 'APPEND'), 'appends to the class os.system'),
    'an element of a dictionary': (code('EMPTY_DICT', 'NONE', 'APPEND'), 'appends to a value of type dict'),
    'a member of a list': (code('EMPTY_LIST', 'MARK', 'NONE', 'ADDITEMS'), 'adds to a value of type list'),
    'a key that is a list': (
        code('EMPTY_DICT', 'EMPTY_LIST', 'NONE', 'SETITEM'),
        'unsuitable key, a value of type list',
    ),
    'a key of more than 64 bits': ({2**64: 1}, 'unsuitable key, a value of type int'),
    'a key of 10,001 letters': ({'a' * 10_001: 1}, 'unsuitable key, a value of type str'),
    'a key that is a nested tuple': ({((1, 2), 3): 1}, 'unsuitable key, a value of type tuple'),
    'a key that is a long tuple': ({tuple(range(65)): 1}, 'unsuitable key, a value of type tuple'),
    'a key whose hash takes for ever': (
        code('EMPTY_DICT', 'NONE', b'q\0h\0\x86' * 60, 'NONE', 'SETITEM'),
        'key, a value of type tuple',
    ),
    'a member that is a set': (
        code('MARK', 'MARK', 'FROZENSET', 'FROZENSET'),
        'unsuitable key, a value of type frozenset',
    ),
    'an empty place of the memo': (code('BINGET', b'\x07'), 'a value that it does not store'),
    'an empty stack': (code('POP', 'POP'), 'a value is missing'),
    'TUPLE3 of two': (code('NONE', 'NONE', 'TUPLE3'), 'a value is missing'),
    'TUPLE1 below a mark': (code('NONE', 'MARK', 'TUPLE1'), 'a value is missing'),
    'TUPLE without a mark': (code('TUPLE'), 'a value is missing'),
    'nothing': (code(), 'a value is missing'),
    'text that is not UTF-8': (code('SHORT_BINUNICODE', b'\2\xff\xff'), 'damaged .*utf-8'),
    'an integer of 20,000 digits': (code('LONG', b'9' * 20_000 + b'L\n'), 'damaged '),
    'an integer that is text': (code('INT', b'a\x1b[31m\n'), r'damaged .*a\\'),
    'bytes beyond the file': (code('BINBYTES8', struct.pack('<Q', 2**40)), 'cut short|damaged'),
    'more bytes than there can be': (code('BINBYTES8', struct.pack('<Q', 2**63)), 'cut short|damaged'),
    'text beyond the file': (code('BINUNICODE', struct.pack('<I', 2**31)), 'cut short|damaged'),
    'a bytearray beyond the file': (code('BYTEARRAY8', struct.pack('<Q', 2**62)), 'cut short|damaged'),
    'an integer beyond the file': (code('LONG4', struct.pack('<i', 2**30)), 'cut short|damaged'),
    'an integer of negative length': (code('LONG4', struct.pack('<i', -5)), 'damaged'),
    'nested lists': (code(b'](' * 5000, b'e' * 5000), 'nests containers more than 500 deep'),
    'nested tuples': (code('NONE', b'\x85' * 100_000), 'nests containers more than 500 deep'),
    'nested dictionaries': (code(b'}K\1' * 5000, 'NONE', b's' * 5000), 'nests containers more than 500 deep'),
    'nested records': (code('NONE', b'q\0ca\nb\nh\0\x85R' * 1000), 'nests containers more than 500 deep'),
    'nested marks': (code(b'(' * 100_000), 'a value is missing'),
    'copies of a list': (copies(list(range(1000)), 6000, 'builtins', 'list'), 'more than 2,000,000 instructions'),
    'copies of attributes': (
        shared({key: None for key in range(10_000)}, 'b', 600),
        'more than 2,000,000 instructions',
    ),
    'copies of arguments': (shared((None,) * 10_000, 'R', 600), 'more than 2,000,000 instructions'),
    'copies of text': (copies('a' * 10**6, 20, '_codecs', 'encode'), 'copies more bytes than the file has'),
    'an array beyond its bytes': (array((10**12,)), 'with 4 bytes'),
    'an array of 100 dimensions': (array((1,) * 100), 'without a valid shape'),
    'an array of a shape in a list': (array([1]), 'without a valid shape'),
    'an array of negative sizes': (array((-1, -1)), 'without a valid shape'),
    'an array of large integers': (array((2**100_000,) * 64), 'without a valid shape'),
    'an array of a number': (array((1,), 10**12), 'without bytes'),
    'an array without a state': (Call(array(()).function, array(()).arguments, {'a': 1}), 'without a valid state'),
    'an array of odd axes': (call('numpy._core.numeric', '_frombuffer', bytes(8), DTYPE, (1, 2), 'K', (0, 5)), 'axes'),
    'an array of axes by name': (
        call('numpy._core.numeric', '_frombuffer', bytes(8), DTYPE, (1, 2), 'K', ('a', 5)),
        'fit',
    ),
    'a dtype of an odd byte order': (Call(DTYPE.function, ('f4',), (3, 'x')), 'without a byte order'),
    'a scalar of odd bytes': (call('numpy.core.multiarray', 'scalar', DTYPE, b'abc'), 'wrong number of bytes'),
    'a tensor without a storage': (tensor({'a': 1}, (2,), (1,)), 'without a storage'),
    'a tensor without a shape': (call('torch._utils', '_rebuild_tensor_v2', 1), 'arguments that do not fit'),
    'a tensor of text': (Call(Name('torch._utils', '_rebuild_tensor_v2'), 'abcdef'), 'without a tuple of arguments'),
}


@pytest.mark.parametrize('container', CONTAINERS)
@pytest.mark.parametrize('case', REFUSED)
def test_what_is_refused(tmp_path, monkeypatch, container, case):
    monkeypatch.chdir(tmp_path)
    value, message = REFUSED[case]
    assert re.search(message, refusal(write(tmp_path / 'file', container, value)))
    assert sorted(path.name for path in tmp_path.iterdir()) == ['file']


FLOATS = Name('torch', 'FloatStorage')
LIES = {
    'text': ('storage', 'unknown way'),
    'a number': (3, 'unknown way'),
    'a list': (['storage', FLOATS, '0', 'cpu', 24], 'unknown way'),
    'nothing': ((), 'unknown way'),
    'another kind': (('memory', FLOATS, '0', 'cpu', 24), 'unknown way'),
    'a module by text': (('module', 'os', None, None), 'unknown way'),
    'too few': (('storage', FLOATS, '0'), 'unknown way'),
    'a key by number': (('storage', FLOATS, 0, 'cpu', 24), 'unknown way'),
    'a size by text': (('storage', FLOATS, '0', 'cpu', '24'), 'unknown way'),
    'a storage class by text': (('storage', 'FloatStorage', '0', 'cpu', 24), 'unknown class, a value of type str'),
    'another storage class': (('storage', SYSTEM, '0', 'cpu', 24), 'unknown class, the class os.system'),
    'an unknown storage class': (
        ('storage', Name('torch', 'SystemStorage'), '0', 'cpu', 24),
        'unknown class, the class torch.System',
    ),
    'another module': (
        ('storage', Name('evil', 'FloatStorage'), '0', 'cpu', 24),
        'unknown class, the class evil.Float',
    ),
    'too many elements': (('storage', FLOATS, '0', 'cpu', 25), 'has 96 bytes, not 100|has fewer bytes than the 100'),
    'as many as there can be': (('storage', FLOATS, '0', 'cpu', 2**62), 'has 96 bytes, not|fewer bytes than'),
    'a negative number of elements': (('storage', FLOATS, '0', 'cpu', -1), 'has 96 bytes, not -4|without a valid size'),
    'a storage that is not there': (
        ('storage', FLOATS, '1\x1b', 'cpu', 24),
        r'no member archive/data/1\\x1b|has fewer bytes than the 96 that its tensors need in its storage 1\\x1b',
    ),
    'a storage outside of its folder': (('storage', FLOATS, '../data.pkl', 'cpu', 1), 'no member|has fewer'),
}


@pytest.mark.parametrize('container', ['zip', 'legacy'])
@pytest.mark.parametrize('case', LIES)
def test_persistent_ids_that_lie(tmp_path, container, case):
    identity, message = LIES[case]
    if container == 'legacy' and isinstance(identity, tuple) and len(identity) == 5:
        identity = (*identity, None)
    assert re.search(message, refusal(write(tmp_path / 'file', container, [TENSOR_OF[container], Outside(identity)])))


TENSOR_OF = {'zip': TENSOR, 'legacy': tensor(storage('0', 'FloatStorage', 24, None), (24,), (1,))}


def test_a_plain_pickle_has_no_storages_outside(tmp_path):
    assert 'refers to data outside of the pickle' in refusal(write(tmp_path / 'file', 'plain pickle', TENSOR))


@pytest.mark.parametrize('container', ['zip', 'legacy'])
@pytest.mark.parametrize(
    'shape, strides, offset, message',
    [
        ((25,), (1,), 0, 'has a tensor of shape (25,) that goes beyond its storage of 24 elements'),
        ((24,), (1,), 1, 'goes beyond'),
        ((2,), (24,), 0, 'goes beyond'),
        ((5, 5), (5, 1), 0, 'goes beyond'),
        ((), (), 24, 'goes beyond'),
        ((2,), (2**61,), 2**61, 'goes beyond'),
        ((2**40,), (0,), 0, 'repeats 24 elements too often'),
        ((2**20, 2**20), (0, 1), 0, 'goes beyond'),
        ((-1,), (1,), 0, 'out of range'),
        ((2,), (-1,), 1, 'out of range'),
        ((2,), (1,), -1, 'out of range'),
        ((2**70,), (1,), 0, 'out of range'),
        ((2.0,), (1,), 0, 'out of range'),
        ((True,), (1,), 0, 'out of range'),
        (('2',), (1,), 0, 'out of range'),
        ((2,), (1,), None, 'out of range'),
        ((2, 3), (1,), 0, 'without a valid shape and strides'),
        ([2], [1], 0, 'without a valid shape and strides'),
        ((1,) * 65, (1,) * 65, 0, 'without a valid shape and strides'),
        ((0, 2**62 - 1, 2**62 - 1), (1, 1, 1), 0, 'which is too large'),
    ],
)
def test_tensors_outside_of_their_storage(tmp_path, container, shape, strides, offset, message):
    own = TENSOR_OF[container].arguments[0]
    assert message in refusal(write(tmp_path / 'file', container, tensor(own, shape, strides, offset)))


NESTED = {
    'a pickle': (pickle.dumps(3), "has a storage that is not in torch's older format"),
    'no pickle': (b'PK\3\4', 'damaged'),
    'nothing': (b'', 'damaged'),
    'a number': (3, 'arguments that do not fit'),
    'a storage within it': (legacy(call('torch.storage', '_load_from_bytes', legacy(1))), 'without a storage'),
    'a call': (legacy(Call(SYSTEM, ('touch MARKER',))), 'without a storage'),
}


@pytest.mark.parametrize('case', NESTED)
def test_storages_within_a_plain_pickle(tmp_path, case):
    data, message = NESTED[case]
    value = tensor(call('torch.storage', '_load_from_bytes', data), (1,), (1,))
    assert message in refusal(write(tmp_path / 'file', 'plain pickle', value))


def test_copies_of_a_storage_within_a_plain_pickle(tmp_path):
    value = copies(legacy(b'a' * 10**6), 20, 'torch.storage', '_load_from_bytes')
    assert 'copies more bytes than the file has' in refusal(write(tmp_path / 'file', 'plain pickle', value))


def test_a_memo_of_high_numbers_takes_no_memory(tmp_path):
    value = code(
        'NONE', b'r\xff\xff\xff\xff', 'POP', instructions(['a']), b'r\xfe\xff\xff\x7f', b'j\xff\xff\xff\xff', 'APPEND'
    )
    assert load(write(tmp_path / 'file', 'plain pickle', value)) == ['a', None]


def test_shared_lists_are_not_copied(tmp_path):
    """A list of two times a list of two times ...: 2 ** 60 paths to 60 lists."""
    value = code('EMPTY_LIST', b'q\0' + b']q\1(h\0h\0eq\0' * 60)
    root = load(write(tmp_path / 'file', 'plain pickle', value))
    assert len(root) == 2 and root[0] is root[1]


def test_text_of_numpy_that_is_none(tmp_path):
    dtype = Call(Name('numpy', 'dtype'), ('U1', False, True), (3, '<', None, None, None, 4, 4, 8))
    scalar = call('numpy._core.multiarray', 'scalar', dtype, b'\0\0\x11\0')
    assert 'its pickle is damaged' in refusal(write(tmp_path / 'file', 'plain pickle', scalar))


def test_many_deep_containers(tmp_path):
    """The paths of 12,000 lists, 480 names each: memory for 1000 times the file."""
    value = Raw(b']' * 480 + b'](' + b']Na' * 12_000 + b'e' + b'a' * 479)
    assert 'has more than 2,000,000 instructions' in refusal(write(tmp_path / 'file', 'plain pickle', value))


@pytest.mark.parametrize('unit, most', [(b'}', 5), (b']', 5), (b'\x8f', 2), (b'U\2ab', 5), (b'N', 10)])
def test_containers_and_text_cost_more_than_other_values(unit, most):
    """Five million empty dictionaries are a file of 5 MB, and take 400 MB; texts of two letters take a gigabyte."""
    for count in (most, most + 1):
        stream = io.BytesIO(b'\x80\4](' + unit * count + b'e.')
        budget = Budget(size=0, instructions=16)
        if count == most:
            assert len(Unpickler(stream, {}, None, budget).load()) == most
        else:
            with pytest.raises(Unreadable, match='instructions'):
                Unpickler(stream, {}, None, budget).load()
