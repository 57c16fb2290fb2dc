"""Whatever a file holds, it is read, or one plain line says why it is not. `make fuzz` tries many more of them."""

import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import convert
from convert.inspect import inspect
from tests.helpers.pickle_files import CODES, Call, Name, Raw, legacy, storage, stream, tensor
from tresnet_jax.checkpoints import config_file, metadata
from tresnet_jax.checkpoints import read as reading
from tresnet_jax.checkpoints.run import stored_label_names, stored_metrics, stored_network
from tresnet_jax.checkpoints.shards import read_index
from tresnet_jax.checkpoints.torch_file import load
from tresnet_jax.errors import UNSHOWABLE

quick = settings(
    max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture,
        HealthCheck.too_slow]
)  # fmt: skip

NUMBERS = st.sampled_from(
    [0, 1, -1, 3, 24, 2**31, 2**62, 2**63, 2**64, -(2**63), 10**400, 0.5, 1e300, float('inf'), float('nan')]
)
TEXTS = st.sampled_from(
    ['', 'a', 'float32', 'float8', '1', 'nan', '[]', 'test_resnet', 'avg', '\x1b[31m', '\x9b1m', 'a\nb', '\0',
        '\ud800', '\u202e', '../a']
) | st.text(max_size=5)  # fmt: skip
ANYTHING = st.recursive(
    st.none() | st.booleans() | NUMBERS | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=6,
)


def outcome(function: Callable[[Any], Any], argument: Any, start: str = '') -> Any:
    """The result of a reader; None if it refuses, with one plain line that begins with the file."""
    try:
        return function(argument)
    except convert.ConversionError as error:
        message = str(error)
        assert message.startswith(start) and len(message) < 2000 + len(start)
        assert not UNSHOWABLE.search(message.replace('\n  ', '')), repr(message)
        return None


def written(path: Path, document: Any) -> Path:
    path.write_bytes(json.dumps(document).encode('utf-8', 'surrogatepass'))
    return path


def with_header(path: Path, header: bytes, data: bytes, length: int | None = None) -> Path:
    path.write_bytes((len(header) if length is None else length).to_bytes(8, 'little') + header + data)
    return path


DTYPES = (
    st.sampled_from(['F32', 'F16', 'BF16', 'F64', 'I64', 'BOOL', 'F8_E4M3', 'F8_E8M0', 'F4', 'C64', 'F128', '\x1b[1m'])
    | TEXTS
)
ENTRY = st.fixed_dictionaries(
    {
        'dtype': DTYPES,
        'shape': st.lists(NUMBERS, max_size=3) | ANYTHING,
        'data_offsets': st.lists(st.sampled_from([0, 4, 8, 24, -4, 2**63]), min_size=1, max_size=3) | ANYTHING,
    }
)


@quick
@given(
    st.dictionaries(TEXTS | st.just('__metadata__'), ENTRY | ANYTHING, max_size=3),
    st.sampled_from([None, None, None, None, 0, 7, 10**8, 2**63, 2**64 - 1]),
    st.sampled_from([b'', b'}', b'{"a":' * 200, b'\xff']),
)
def test_headers_of_safetensors(tmp_path, header, length, more):
    data = json.dumps(header).encode('utf-8', 'surrogatepass') + more
    path = with_header(tmp_path / 'a.safetensors', data, bytes(24), length)
    outcome(convert.read, path, f'{path}: ')
    outcome(inspect, path, f'{path}: ')


@pytest.mark.parametrize(
    'dtype, bits', [('F8_E4M3', 8), ('F8_E5M2', 8), ('F8_E8M0', 8), ('F8_E4M3FNUZ', 8), ('F6_E2M3', 6), ('F4', 4)]
)
def test_dtypes_of_safetensors_that_numpy_lacks(tmp_path, dtype, bits):
    header = {'a': {'dtype': dtype, 'shape': [8], 'data_offsets': [0, bits]}}
    path = with_header(tmp_path / 'a.safetensors', json.dumps(header).encode(), bytes(bits))
    with pytest.raises(
        convert.ConversionError, match=r'[^\n]*(lacks.*float[84]_.*float32|Dtype not understood)[^\n]*$'
    ):
        convert.read(path)


def test_a_flood_of_tensors_in_safetensors(tmp_path, monkeypatch):
    monkeypatch.setattr(reading, 'MOST_TENSORS', 2)
    for count in (2, 3):
        header = {f'a{number}': {'dtype': 'F32', 'shape': [0], 'data_offsets': [0, 0]} for number in range(count)}
        path = with_header(tmp_path / 'a.safetensors', json.dumps(header).encode(), b'')
        if count == 2:
            assert len(convert.read(path).tensors) == 2
        else:
            with pytest.raises(convert.ConversionError, match='has 3 tensors; expected at most 2$'):
                convert.read(path)


FIELDS = {
    'source_dtypes': metadata.source_dtypes,
    'num_batches_tracked': metadata.counters,
    'abn_slope': metadata.abn_slope,
    'global_pool': metadata.global_pool,
    'output_stride': metadata.output_stride,
    'data_config': metadata.data_config,
    'label_names': metadata.label_names,
    'task': metadata.task,
}
ENTRIES = st.sampled_from(
    ['layer1.0.conv1.weight', 'input_size', 'mean', 'std', 'crop_pct', 'interpolation', 'crop_mode', 'a']
)


@quick
@given(
    st.sampled_from(sorted(FIELDS)),
    TEXTS | ANYTHING.map(json.dumps) | st.dictionaries(ENTRIES, ANYTHING, max_size=4).map(json.dumps),
)
def test_our_metadata(field, text):
    checkpoint = convert.Checkpoint(Path('a.safetensors'), 'safetensors', {}, {field: text})
    outcome(FIELDS[field], checkpoint, f"a.safetensors: metadata field '{field}' ")


@pytest.mark.parametrize('field', ['source_dtypes', 'data_config', 'label_names'])
def test_our_metadata_is_parsed_up_to_a_size(field):
    """JSON of small parts takes thirty times its size in memory."""
    checkpoint = convert.Checkpoint(Path('a.safetensors'), 'safetensors', {}, {field: '[' + '[],' * 4_000_000 + '1]'})
    with pytest.raises(
        convert.ConversionError, match=f"a.safetensors: metadata field '{field}' has 12,000,003 characters; expected at"
    ):
        FIELDS[field](checkpoint)


STORAGES = st.sampled_from(['FloatStorage', 'HalfStorage', 'ByteStorage', 'LongStorage', 'QInt8Storage', 'OddStorage'])
KEYS = st.sampled_from(['0', '0', '1', '../../secret', '\x1b[1m'])
INTEGERS = st.sampled_from([0, 1, 2, 4, 6, 24, -1, 2**31, 2**62, 2**64])
TENSORS = st.builds(
    lambda key, kind, count, shape, strides, offset, views: tensor(storage(key, kind, count, *views), shape, strides,
        offset),
    KEYS, STORAGES, INTEGERS | st.just(24), st.lists(INTEGERS, max_size=3).map(tuple), st.lists(INTEGERS,
        max_size=3).map(tuple), INTEGERS,
    st.sampled_from([(), (None,), (('1', 0, 24),), (('1', 2**62, -1),)]),
)  # fmt: skip
FUNCTIONS = st.sampled_from(
    [Name(*name.rsplit('.', 1)) for name in (
        'os.system', 'builtins.eval', 'builtins.getattr', 'subprocess.Popen', 'numpy.dtype',
        'numpy.core.multiarray._reconstruct',
        'numpy.core.multiarray.scalar', 'collections.OrderedDict', 'torch._utils._rebuild_tensor_v2',
        'torch._utils._rebuild_parameter',
        'torch.storage._load_from_bytes', 'torch._tensor._rebuild_from_type_v2', '_codecs.encode',
        'builtins.bytearray', 'argparse.Namespace',
    )]
)  # fmt: skip
PLAIN = (
    st.none() | st.integers() | st.floats() | st.text(st.characters(codec='utf-8'), max_size=4) | st.binary(max_size=4)
)
VALUES = st.recursive(
    PLAIN | TENSORS | FUNCTIONS,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(st.sampled_from(['state_dict', 'conv1.0.weight', 'args', 'a']), inner, max_size=3)
        | st.builds(Call, FUNCTIONS, st.lists(inner, max_size=3).map(tuple), st.just(()) | inner)
    ),
    max_leaves=8,
)
INSTRUCTIONS = st.lists(
    st.sampled_from(sorted(CODES.values())) | st.sampled_from([b'K\1', b'X\1\0\0\0a', b'cos\nsystem\n', b'h\0', b'q\0',
        b'(', b'}', b']']), max_size=20
).map(b''.join)  # fmt: skip
PICKLES = VALUES.map(stream) | INSTRUCTIONS.map(lambda code: b'\x80\2' + code + b'.')


def damaged(draw: Any, data: bytes) -> bytes:
    """The data, mostly with a byte changed, a part removed, or the end cut off."""
    place = draw(st.integers(0, max(0, len(data) - 1)))
    match draw(st.sampled_from(['whole', 'whole', 'byte', 'part', 'cut'])):
        case 'byte':
            return data[:place] + bytes([draw(st.integers(0, 255))]) + data[place + 1 :]
        case 'part':
            return data[:place] + data[place + draw(st.integers(1, 30)) :]
        case 'cut':
            return data[:place]
    return data


@st.composite
def zip_files(draw) -> bytes:
    file = io.BytesIO()
    names = st.sampled_from(
        ['a/data/0', 'a/data/1', '../evil', '/etc/passwd', 'a\\b', 'a/byteorder', 'b/data.pkl', 'a\x1b[1m', 'c.npy']
    )
    with zipfile.ZipFile(file, 'w', draw(st.sampled_from([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED]))) as archive:
        archive.writestr('a/data.pkl', draw(PICKLES))
        for name in draw(st.lists(names, max_size=3, unique=True)):
            archive.writestr(name, draw(st.sampled_from([bytes(96), b'', b'little', stream(3)])))
    return damaged(draw, file.getvalue())


@st.composite
def legacy_files(draw) -> bytes:
    return damaged(
        draw, legacy(Raw(draw(PICKLES)), draw(st.sampled_from([{}, {'0': (24, bytes(96))}, {'0': (2**62, b'')}])))
    )


@quick
@given(zip_files() | legacy_files() | PICKLES)
def test_files_of_torch(tmp_path, monkeypatch, data):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / 'a.pth'
    path.write_bytes(data)
    outcome(load, path, f'{path}: ')
    outcome(inspect, path, f'{path}: ')
    assert [file.name for file in tmp_path.iterdir()] == ['a.pth']


DESCRIPTION = {
    'format': 'tresnet_jax', 'format_version': 1, 'architecture': 'test_resnet', 'head': 'linear', 'in_chans': 3,
    'global_pool': '',
    'output_stride': None, 'label_names': ['a'], 'num_of_groups': 3, 'data_config': {}, 'task': 'classification',
}  # fmt: skip


@quick
@given(
    ANYTHING
    | st.dictionaries(st.sampled_from(sorted(DESCRIPTION)), ANYTHING, max_size=2).map(lambda wrong: DESCRIPTION | wrong)
)
def test_descriptions_of_runs(tmp_path, document):
    (tmp_path / 'checkpoints/3').mkdir(parents=True, exist_ok=True)
    path = written(tmp_path / 'model.json', document)
    outcome(stored_network, tmp_path, f'{path}: ')
    outcome(stored_label_names, tmp_path, f'{path}: ')


@quick
@given(ANYTHING | st.dictionaries(TEXTS, ANYTHING, max_size=2))
def test_metrics_of_runs(tmp_path, document):
    path = tmp_path / 'checkpoints/3/metrics/metrics'
    path.parent.mkdir(parents=True, exist_ok=True)
    outcome(stored_metrics, tmp_path, f'{written(path, document)}: ')


ARGUMENTS = st.sampled_from(
    [
        'in_chans',
        'num_classes',
        'global_pool',
        'drop_rate',
        'output_stride',
        'head',
        'out_indices',
        'features_only',
        'a',
    ]
)
IMAGES = st.sampled_from(
    ['input_size', 'mean', 'std', 'crop_pct', 'interpolation', 'crop_mode', 'num_classes', 'tag', 'label_names']
)
TOP = st.sampled_from(
    ['num_classes', 'label_names', 'label_descriptions', 'id2label', 'task', 'problem_type', 'model_type', 'backbone',
        'backbone_config',
     'encoder_name', 'depths', 'global_pool', 'architectures']
)  # fmt: skip
CONFIGS = st.builds(
    lambda top, arguments, images: {'architecture': 'test_resnet', 'model_args': arguments,
        'pretrained_cfg': images} | top,
    st.dictionaries(TOP, ANYTHING, max_size=2), st.dictionaries(ARGUMENTS, ANYTHING, max_size=2) | ANYTHING,
    st.dictionaries(IMAGES, ANYTHING, max_size=2) | ANYTHING,
)  # fmt: skip


@quick
@given(CONFIGS | ANYTHING)
def test_configurations_of_the_hub(tmp_path, document):
    path = written(tmp_path / 'config.json', document)
    saved = outcome(lambda file: config_file.parse(config_file.load(file), file), path, f'{path}: ')
    if saved is not None:
        config_file.images(saved)


PLACES = st.sampled_from(
    [
        'a.safetensors',
        '../secret',
        '/etc/passwd',
        '..',
        '.',
        'a/../../b',
        '..\\a',
        'a\0b',
        '-rf',
        'c' * 300,
        'b.index.json',
    ]
)


@quick
@given(st.dictionaries(TEXTS, PLACES | ANYTHING, max_size=3).map(lambda places: {'weight_map': places}) | ANYTHING)
def test_indices_name_files_of_their_folder(tmp_path, document):
    (tmp_path / 'a.safetensors').touch()
    path = written(tmp_path / 'model.safetensors.index.json', document)
    files = outcome(read_index, path, f'{path}: ')
    assert files is None or list(files) == [tmp_path / 'a.safetensors']
