"""Tensors of torch and arrays of NumPy as their pickles describe them: checked at once, read on demand."""

import dataclasses
import math
import mmap
import re
import sys
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np

from tresnet_jax.checkpoints.pickles import Budget, Pending, checked_key
from tresnet_jax.checkpoints.records import Global, Leaf, Record, Unreadable, described, printable

MOST_DIMENSIONS = 64  # NumPy's limit
MOST_EXPANDED = 2**24  # elements of a tensor that has more elements than its storage, by strides of 0

DTYPES = {
    f'torch.{name}': np.dtype(getattr(ml_dtypes, name, name))
    for name in (
        *('float64', 'float32', 'float16', 'bfloat16'),
        *('float8_e5m2', 'float8_e4m3fn', 'float8_e5m2fnuz', 'float8_e4m3fnuz', 'float8_e8m0fnu'),
        *('int64', 'int32', 'int16', 'int8', 'uint64', 'uint32', 'uint16', 'uint8', 'bool', 'complex128', 'complex64'),
    )
}
STORAGES = {
    'Double': 'float64',
    'Float': 'float32',
    'Half': 'float16',
    'BFloat16': 'bfloat16',
    'Long': 'int64',
    'Int': 'int32',
    'Short': 'int16',
    'Char': 'int8',
    'Byte': 'uint8',
    'Bool': 'bool',
    'ComplexDouble': 'complex128',
    'ComplexFloat': 'complex64',
}
QUANTISED = {'QInt8': 1, 'QUInt8': 1, 'QInt32': 4, 'QUInt4x2': 1, 'QUInt2x4': 1}  # bytes of an element
UNTYPED = ('torch.storage.UntypedStorage', 'torch.UntypedStorage', 'torch.storage._UntypedStorage')
STORAGE = re.compile(r'torch\.(?:cuda\.)?(\w+)Storage')
# What NumPy calls numbers and text in files: a kind and the bytes, or characters, of an element.
DTYPE = re.compile(r'b1|[iu][1248]|f[248]|c8|c16|[SU][1-9]\d{0,5}')


@dataclasses.dataclass(frozen=True, eq=False, slots=True)
class Storage(Leaf):
    """The bytes that tensors are views of.

    Attributes:
        dtype: the dtype of the elements. None: NumPy has no such dtype (quantised tensors).
        size: the number of bytes.
        read: function that returns these bytes and, possibly, more bytes after them.
        byteorder: 'little' or 'big'.
    """

    dtype: np.dtype | None
    size: int
    read: Callable[[], memoryview]
    byteorder: str = 'little'


@dataclasses.dataclass(frozen=True, eq=False, slots=True)
class StoredTensor(Leaf):
    """A tensor or array of a file; `numpy` reads it.

    Attributes:
        storage: the bytes.
        dtype: NumPy's dtype, in the byte order of this machine; bfloat16 and the 8-bit floats are those of ml_dtypes.
        shape: the stored shape.
        strides: the distance of neighbours along each axis, in elements.
        offset: the distance of the first element from the beginning of the storage, in elements.
    """

    storage: Storage
    dtype: np.dtype
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    offset: int

    def numpy(self) -> np.ndarray:
        """Return the values: a read-only, possibly unaligned view of the mapped file.

        Compressed values, and those of another byte order, are a copy.

        Raises:
            ConversionError: the bytes are compressed and damaged.
        """
        if 0 in self.shape:
            return np.empty(self.shape, self.dtype)
        data = self.storage.read()
        if self.storage.byteorder != sys.byteorder:
            unit = {'c': self.dtype.itemsize // 2, 'S': 1, 'U': 4}.get(self.dtype.kind, self.dtype.itemsize)
            data = np.frombuffer(data[: self.storage.size // unit * unit], f'u{unit}').byteswap().data
        size = self.dtype.itemsize
        return np.ndarray(self.shape, self.dtype, data, self.offset * size, [stride * size for stride in self.strides])


def release(array: np.ndarray) -> None:
    """Drop an array's part of a mapped file from memory, where the system can; it is read again if used again.

    Otherwise a converted checkpoint counts as memory of the process, in addition to what it was converted to.
    """
    file: Any = array
    while isinstance(file, np.ndarray):
        file = file.base
    if not isinstance(file, mmap.mmap) or not hasattr(mmap, 'MADV_DONTNEED'):  # as on Windows
        return
    first, end = np.lib.array_utils.byte_bounds(array)
    first, end = (place - np.frombuffer(file, np.uint8).ctypes.data for place in (first, end))
    # Whole pages only, and those of the neighbours with them: all are only read.
    start = first // mmap.PAGESIZE * mmap.PAGESIZE
    file.madvise(mmap.MADV_DONTNEED, start, end - start)


def view(storage: Any, dtype: np.dtype, offset: Any, shape: Any, strides: Any) -> StoredTensor:
    """Return a tensor whose elements all lie within its storage.

    Args:
        offset, strides: in elements.

    Raises:
        Unreadable: an element lies outside, or an argument has another type.
    """
    if type(shape) is not tuple or type(strides) is not tuple or not len(shape) == len(strides) <= MOST_DIMENSIONS:
        raise Unreadable('has a tensor without a valid shape and strides')
    if not all(type(number) is int and 0 <= number < 2**62 for number in (offset, *shape, *strides)):
        raise Unreadable('has a tensor whose shape, strides or offset are out of range')
    if type(storage) is not Storage:
        raise Unreadable('has a tensor without a storage')
    count, available = math.prod(shape), storage.size // dtype.itemsize
    if count == 0:
        try:
            np.empty(shape, dtype)  # takes no memory
        except ValueError:
            raise Unreadable(f'has a tensor of shape {printable(shape, 80)}, which is too large') from None
    elif offset + sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True)) >= available:
        raise Unreadable(
            f'has a tensor of shape {printable(shape, 80)} that goes beyond its storage of {available} elements'
        )
    elif count > max(available, MOST_EXPANDED):
        raise Unreadable(f'has a tensor of shape {printable(shape, 80)} that repeats {available} elements too often')
    return StoredTensor(storage, dtype, shape, strides, offset)


def element_type(kind: Any) -> tuple[np.dtype | None, int]:
    """Return the dtype of a class of storages, None for one that NumPy lacks, and the bytes of an element.

    Raises:
        Unreadable: the value is not a storage class.
    """
    name = kind.name if type(kind) is Global else ''
    if name in UNTYPED:
        return np.dtype('uint8'), 1
    short = match[1] if (match := STORAGE.fullmatch(name)) else ''
    if short in STORAGES:
        dtype = DTYPES[f'torch.{STORAGES[short]}']
        return dtype, dtype.itemsize
    if short in QUANTISED:
        return None, QUANTISED[short]
    raise Unreadable(f'has a storage of an unknown class, {described(kind)}')


def functions(budget: Budget) -> dict[str, Callable[..., Any]]:
    """Return the functions that pickles of torch and NumPy may call, by the names in the pickle.

    Args:
        budget: pays for the text that is encoded.
    """

    def encode(text: Any, encoding: Any = 'latin1') -> bytes:
        """`bytes` and `_codecs.encode` of protocol 2, which has no bytes of its own."""
        if isinstance(text, bytes | bytearray):
            return bytes(text)
        if not isinstance(text, str) or encoding not in ('latin1', 'latin-1'):
            raise Unreadable('its pickle encodes something other than text in Latin-1')
        budget.spend(size=len(text))
        return text.encode('latin1')

    return {
        '_codecs.encode': encode,
        'builtins.bytes': lambda *arguments: encode(*arguments) if arguments else b'',
        'builtins.bytearray': lambda *arguments: encode(*arguments) if arguments else b'',
        **CONTAINERS,
        **NUMPY,
        **TENSORS,
        'torch._tensor._rebuild_from_type': _rebuild_from_type,
        'torch._tensor._rebuild_from_type_v2': _rebuild_from_type,
        'torch.tensor._rebuild_from_type': _rebuild_from_type,
    }


def _dictionary(pairs: Any = ()) -> dict:
    if type(pairs) is dict:
        return dict(pairs)
    if type(pairs) not in (list, tuple) or not all(type(pair) in (list, tuple) and len(pair) == 2 for pair in pairs):
        raise TypeError
    return {checked_key(key): value for key, value in pairs}


def _sequence(kind: type) -> Callable[..., Any]:
    """Return a function that makes a list, tuple or set of another one."""

    def make(items: Any = ()) -> Any:
        if type(items) not in (list, tuple, set, frozenset):
            raise TypeError
        return kind(map(checked_key, items) if issubclass(kind, set | frozenset) else items)

    return make


def _complex(real: Any, imaginary: Any) -> complex:
    if not isinstance(real, float) or not isinstance(imaginary, float):
        raise TypeError
    return complex(real, imaginary)


def _reconstructor(kind: Any, base: Any, state: Any) -> Record:
    """`copyreg._reconstructor`: an object of protocols 0 and 1."""
    if type(kind) is not Global:
        raise TypeError
    return Record(kind.name, () if state is None else (state,))


CONTAINERS: dict[str, Callable[..., Any]] = {
    'builtins.dict': _dictionary,
    'collections.OrderedDict': _dictionary,
    'collections.Counter': _dictionary,
    'collections.defaultdict': lambda factory=None: {},
    'builtins.list': _sequence(list),
    'builtins.tuple': _sequence(tuple),
    'builtins.set': _sequence(set),
    'builtins.frozenset': _sequence(frozenset),
    'torch.Size': _sequence(tuple),
    'builtins.complex': _complex,
    'copyreg._reconstructor': _reconstructor,
}


def _dtype(name: Any, align: Any = False, copy: Any = True) -> Pending:
    """`numpy.dtype`, whose byte order follows in a BUILD instruction; a record, unless it is of numbers or text."""
    dtype = None
    if isinstance(name, str) and DTYPE.fullmatch(name):
        dtype = np.dtype(name)
    elif type(name) is Global and name.name.startswith('ml_dtypes.'):
        dtype = DTYPES.get(name.name.replace('ml_dtypes.', 'torch.'))

    def finish(state: Any) -> Any:
        if dtype is None:
            return Record('numpy.dtype', (name, align, copy), state=state)
        order = state[1] if type(state) is tuple and len(state) > 1 else None
        if order not in ('<', '>', '|', '='):
            raise Unreadable('has a NumPy dtype without a byte order')
        return dtype.newbyteorder(order) if order in '<>' and dtype.kind != 'V' else dtype

    return Pending(finish)


def _array(data: Any, dtype: np.dtype, shape: Any, strides: Any) -> StoredTensor:
    if isinstance(data, str):
        data = data.encode('latin1')  # Python 2 wrote bytes like text
    if not isinstance(data, bytes | bytearray):
        raise Unreadable('has a NumPy array without bytes')
    if len(data) != math.prod(shape) * dtype.itemsize:
        raise Unreadable(f'has a NumPy array of shape {printable(shape, 80)} with {len(data)} bytes')
    big = dtype.byteorder == '>' or dtype.byteorder == '=' and sys.byteorder == 'big'
    native = dtype.newbyteorder('=') if dtype.kind != 'V' else dtype
    storage = Storage(native, len(data), lambda: memoryview(data), 'big' if big else 'little')
    return view(storage, native, 0, shape, strides)


def contiguous(shape: Any, fortran: bool = False) -> tuple[int, ...]:
    """Return the strides, in elements, of an array in C or Fortran order.

    Raises:
        Unreadable: the shape is not one.
    """
    is_shape = type(shape) is tuple and len(shape) <= MOST_DIMENSIONS
    if not is_shape or not all(type(n) is int and 0 <= n < 2**62 for n in shape):
        raise Unreadable('has an array without a valid shape')
    if fortran:
        return tuple(math.prod(shape[:axis]) for axis in range(len(shape)))
    return tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape)))


def _reconstruct(subtype: Any, shape: Any, kind: Any) -> Pending:
    """An empty array, which the next BUILD instruction fills."""

    def finish(state: Any) -> Any:
        if type(state) is not tuple or len(state) not in (4, 5):
            raise Unreadable('has a NumPy array without a valid state')
        shape, dtype, fortran, data = state[-4:]
        if not isinstance(dtype, np.dtype) or type(data) is list:  # objects, dates, records with fields
            return Record('numpy.ndarray', state=state)
        return _array(data, dtype, shape, contiguous(shape, fortran is True))

    return Pending(finish)


def _from_buffer(data: Any, dtype: Any, shape: Any, order: Any, axes: Any = None) -> Any:
    """An array of protocol 5."""
    if not isinstance(dtype, np.dtype):
        return Record('numpy.ndarray', (data, dtype, shape, order, axes))
    strides = contiguous(shape, order == 'F')
    if axes is not None:
        if type(axes) is not tuple or sorted(axes) != list(range(len(shape))):
            raise Unreadable('has a NumPy array without a valid order of axes')
        shape, strides = tuple(shape[axis] for axis in axes), tuple(strides[axis] for axis in axes)
    return _array(data, dtype, shape, strides)


def _scalar(dtype: Any, data: Any = None) -> Any:
    """A NumPy scalar as Python's number or text."""
    if isinstance(data, str):
        data = data.encode('latin1')
    if not isinstance(dtype, np.dtype) or not isinstance(data, bytes):
        return Record('numpy.generic', (dtype, data))
    if len(data) != dtype.itemsize:
        raise Unreadable('has a NumPy scalar with the wrong number of bytes')
    return np.frombuffer(data, dtype)[0].item()


NUMPY: dict[str, Callable[..., Any]] = {
    'numpy.dtype': _dtype,
    'numpy._core.multiarray._reconstruct': _reconstruct,
    'numpy._core.multiarray.scalar': _scalar,
    'numpy._core.numeric._frombuffer': _from_buffer,
}


def _rebuild_tensor(storage: Any, offset: Any, shape: Any, strides: Any, *others: Any) -> Any:
    """`_rebuild_tensor` and `_rebuild_tensor_v2`: requires_grad, hooks and, in newer files, metadata follow."""
    if type(storage) is not Storage:
        raise Unreadable('has a tensor without a storage')
    metadata = others[2] if len(others) > 2 else None
    if storage.dtype is None or metadata:  # quantised; or a view that is conjugated or negated
        return Record('torch._utils._rebuild_tensor_v2', (storage, offset, shape, strides, *others))
    return view(storage, storage.dtype, offset, shape, strides)


def _rebuild_tensor_v3(
    storage: Any, offset: Any, shape: Any, strides: Any, grad: Any, hooks: Any, dtype: Any, metadata: Any = None
) -> Any:
    """A tensor of a dtype without a class of storages."""
    numpy_dtype = DTYPES.get(dtype.name) if type(dtype) is Global else None
    if numpy_dtype is None or metadata:
        return Record('torch._utils._rebuild_tensor_v3', (storage, offset, shape, strides, grad, hooks, dtype))
    return view(storage, numpy_dtype, offset, shape, strides)


def _data_of(data: Any, *others: Any) -> Any:
    """A parameter, a buffer or a tensor of another device: the plain tensor."""
    return data


TENSORS: dict[str, Callable[..., Any]] = {
    'torch._utils._rebuild_tensor': _rebuild_tensor,
    'torch._utils._rebuild_tensor_v2': _rebuild_tensor,
    'torch._utils._rebuild_tensor_v3': _rebuild_tensor_v3,
    'torch._utils._rebuild_parameter': _data_of,
    'torch._utils._rebuild_parameter_with_state': _data_of,
    'torch._utils._rebuild_device_tensor_from_cpu_tensor': _data_of,
    'torch._utils._rebuild_device_tensor_from_numpy': _data_of,
    'torch._utils._rebuild_xla_tensor': _data_of,
    'torch.autograd.variable.Variable': _data_of,
    'torch.nn.parameter.Buffer': _data_of,
    'torch.nn.parameter.Parameter': _data_of,
}


def _rebuild_from_type(function: Any, kind: Any, arguments: Any, state: Any) -> Any:
    """A subclass of torch.Tensor: the plain tensor; a record of the subclass if it wraps other tensors."""
    if type(function) is not Global or type(kind) is not Global:
        raise TypeError
    if function.name not in TENSORS:
        return Record(kind.name, (function, arguments, state))
    return TENSORS[function.name](*arguments)
