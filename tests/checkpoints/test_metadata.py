"""Metadata of our own files that is wrong: one line that names the file and the field, in every command."""

import json
import tracemalloc

import numpy as np
import pytest
import safetensors
import safetensors.numpy

import convert
import tresnet_jax
from convert.__main__ import main
from tests.helpers.paths import EMBEDDED

TRESNET = EMBEDDED / 'test_tresnet.fashion_mnist.safetensors'


@pytest.fixture(scope='module')
def ours(tmp_path_factory):
    """The tensors and the metadata of a file of ours."""
    path = tmp_path_factory.mktemp('ours') / 'flax.safetensors'
    assert main([str(TRESNET), str(path)]) == 0
    with safetensors.safe_open(path, 'np') as file:
        return file.get_tensors(), file.metadata()


def changed(metadata: dict[str, str], field: str, value) -> dict[str, str]:
    """Replace a field; text stays as it is, a function gets the decoded field, everything else becomes JSON."""
    if callable(value):
        value = value(json.loads(metadata[field]))
    return metadata | {field: value if isinstance(value, str) else json.dumps(value)}


NUMBER = 'body.conv1.bn.num_batches_tracked'
WRONG = [
    ('source_dtypes', lambda dtypes: dtypes | {'head.fc.bias': 'float7'}, "has 'float7' for 'head.fc.bias'; expected"),
    ('source_dtypes', lambda dtypes: dtypes | {'head.fc.bias': 'int32'}, "has 'int32' for 'head.fc.bias'; expected"),
    ('source_dtypes', lambda dtypes: dtypes | {'head.fc.bias': 'O'}, "has 'O' for 'head.fc.bias'; expected one of"),
    ('source_dtypes', lambda dtypes: dtypes | {'head.fc.bias': 7}, "has 7 for 'head.fc.bias'; expected one of float16"),
    ('source_dtypes', lambda dtypes: dtypes | {'head.fc.bias': ['float32']}, "has ['float32'] for 'head.fc.bias'"),
    ('source_dtypes', lambda dtypes: dtypes | {'head.fc.bias': None}, "has None for 'head.fc.bias'; expected one of"),
    ('source_dtypes', lambda dtypes: dtypes | {'nowhere': 'x' * 10_000}, "for 'nowhere'; expected one of float16, bf"),
    ('source_dtypes', lambda dtypes: list(dtypes.values()), 'must be a JSON object, got ['),
    ('source_dtypes', 'float32', 'is not JSON'),
    ('source_dtypes', '[' * 100_000, 'is not JSON'),
    ('num_batches_tracked', lambda counters: counters | {NUMBER: 1.5}, f"has 1.5 for '{NUMBER}'; expected an integer"),
    ('num_batches_tracked', lambda counters: counters | {NUMBER: '3'}, f"has '3' for '{NUMBER}'; expected an integer"),
    (
        'num_batches_tracked',
        lambda counters: counters | {NUMBER: True},
        f"has True for '{NUMBER}'; expected an integer",
    ),
    ('num_batches_tracked', lambda counters: counters | {NUMBER: 2**63}, f"for '{NUMBER}'; expected an integer of 64"),
    ('num_batches_tracked', lambda counters: counters | {NUMBER: [3]}, f"has [3] for '{NUMBER}'; expected an integer"),
    ('num_batches_tracked', 'NaN', 'must be a JSON object, got nan'),
    ('num_batches_tracked', '7', 'must be a JSON object, got 7'),
    ('abn_slope', 'steep', "must be a finite number, got 'steep'"),
    ('abn_slope', 'nan', "must be a finite number, got 'nan'"),
    ('abn_slope', '1e999', "must be a finite number, got '1e999'"),
    ('data_config', [224, 224], 'must be a JSON object, got [224, 224]'),
    ('data_config', {'input_size': 0}, 'cannot work: '),
    ('data_config', {'size': 32}, 'cannot work: '),
    ('data_config', {'std': [0, 0, 0]}, 'cannot work: '),
    ('data_config', {'mean': 'abc'}, 'cannot work: mean, std and crop_pct must be finite numbers'),
    ('data_config', '{"mean": [0, 0, NaN]}', 'cannot work: mean, std and crop_pct must be finite numbers'),
    ('data_config', {'mean': [10**400, 0, 0]}, 'cannot work: mean, std and crop_pct must be finite numbers'),
    ('data_config', {'crop_pct': 1e-320}, 'cannot work: an edge must be at most'),
    ('data_config', {'input_size': [3, 10**9, 32]}, 'cannot work: an edge must be at most'),
    ('data_config', {'std': [1, 1, '1']}, 'cannot work: mean, std and crop_pct must be finite numbers'),
    ('data_config', {'interpolation': ['bicubic']}, 'cannot work: '),
    ('label_names', {'0': 'cat'}, 'is not a list of names'),
    ('label_names', [1, 2], 'is not a list of names'),
    ('label_names', 'cat', 'is not JSON'),
    ('task', 'detection', "must be one of classification, multilabel, got 'detection'"),
]


@pytest.mark.parametrize('command', ['to torch', 'to flax', 'inspect'])
@pytest.mark.parametrize('field, value, message', WRONG, ids=lambda value: str(value)[:20])
def test_metadata_that_lies(command, field, value, message, ours, tmp_path, capsys):
    tensors, metadata = ours
    file, target = tmp_path / 'lies.safetensors', tmp_path / 'out.pth'
    safetensors.numpy.save_file(tensors, file, changed(metadata, field, value))
    if command == 'inspect':
        assert main(['inspect', str(file)]) == 2
    else:
        target = target if command == 'to torch' else tmp_path / 'out.safetensors'
        assert main([str(file), str(target), '--to', command.removeprefix('to ')]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f'error: {file}: metadata field {field!r} ') and message in error
    assert error.count('\n') == 1 and len(error) < 600
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize(
    'field', ['source_dtypes', 'num_batches_tracked', 'abn_slope', 'data_config', 'label_names', 'task']
)
@pytest.mark.parametrize('content', ['missing', 'empty'])
def test_fields_may_be_missing_or_empty(field, content, ours, tmp_path):
    tensors, metadata = ours
    metadata = dict(metadata)
    del metadata[field]
    file, target = tmp_path / 'a.safetensors', tmp_path / 'b.safetensors'
    safetensors.numpy.save_file(tensors, file, metadata | ({field: ''} if content == 'empty' else {}))
    assert main([str(file), str(target), '--to', 'torch']) == 0
    assert main(['inspect', str(file)]) == 0
    back = safetensors.numpy.load_file(target)
    assert any(key.endswith('num_batches_tracked') for key in back) == (field != 'num_batches_tracked')
    assert back['head.fc.bias'].dtype == (np.float32 if field == 'source_dtypes' else np.float16)


@pytest.mark.parametrize('architecture, message', [('5', "unknown architecture '5"), ('test_resnet', 'it looks like')])
def test_an_architecture_that_lies(architecture, message, ours, tmp_path, capsys):
    tensors, metadata = ours
    file = tmp_path / 'a.safetensors'
    safetensors.numpy.save_file(tensors, file, metadata | {'architecture': architecture})
    assert main([str(file), str(tmp_path / 'b.safetensors')]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f'error: {file}: ') and message in error
    assert main(['inspect', str(file)]) == 0  # by the shapes
    assert 'looks like  test_tresnet' in capsys.readouterr().out


@pytest.mark.parametrize(
    'field, text, message',
    [
        ('num_classes', '5', "is '5', but the tensors show 10"),
        ('num_classes', 'ten', "is 'ten', but the tensors show 10"),
        ('in_chans', '1', "is '1', but the tensors show 3"),
        ('architecture', 'tresnet_m', "is 'tresnet_m', but the tensors show test_tresnet"),
        ('label_names', '["cat", "dog"]', 'has 2 names, but the tensors have 10 classes'),
    ],
)
@pytest.mark.parametrize('options', [{}, {'num_classes': 4, 'in_chans': 1}])
def test_metadata_that_contradict_the_tensors(field, text, message, options, ours, tmp_path):
    """Also if the classifier or the first convolution is replaced."""
    tensors, metadata = ours
    file = tmp_path / 'a.safetensors'
    safetensors.numpy.save_file(tensors, file, metadata | {field: text})
    with pytest.raises(convert.ConversionError) as error:
        tresnet_jax.create_model('test_tresnet', checkpoint=file, **options)
    assert str(error.value) == f'{file}: metadata field {field!r} {message}'


def test_names_of_a_dropped_classifier_are_dropped(ours, tmp_path):
    """A new classifier of as many classes would get them."""
    tensors, metadata = ours
    file, body = tmp_path / 'a.safetensors', tmp_path / 'body.safetensors'
    safetensors.numpy.save_file(tensors, file, changed(metadata, 'label_names', list('abcdefghij')))
    assert convert.to_flax(convert.read(file))[2].label_names == tuple('abcdefghij')
    assert main([str(file), str(body), '--to', 'flax', '--drop-head']) == 0
    for path, count in ((file, 5), (body, 10)):
        model = tresnet_jax.create_model('test_tresnet', checkpoint=path, num_classes=count)
        assert model.pretrained_cfg.label_names is None
    assert tresnet_jax.create_model('test_tresnet', checkpoint=file).pretrained_cfg.label_names[9] == 'j'


@pytest.mark.parametrize(
    'counter, shown',
    [
        (np.zeros(3, np.int64), 'int64 of shape (3,)'),
        (np.zeros(0, np.int64), 'int64 of shape (0,)'),
        (np.array(np.nan), 'float64 of shape ()'),
        (np.array(np.inf, np.float32), 'float32 of shape ()'),
        (np.array(2**63, np.uint64), 'uint64 of shape ()'),
    ],
)
def test_a_counter_that_is_no_number(counter, shown, tmp_path, capsys):
    """In a file of timm's layout, where counters are tensors."""
    file, tensors = tmp_path / 'a.safetensors', safetensors.numpy.load_file(TRESNET)
    safetensors.numpy.save_file(tensors | {NUMBER: counter}, file)
    for command in (['inspect', str(file)], [str(file), str(tmp_path / 'b.safetensors')]):
        assert main(command) == 2
        expected = f'error: {file}: {NUMBER} counts batches; expected one integer, got {shown}\n'
        assert capsys.readouterr().err == expected


@pytest.mark.parametrize('counter', [np.array(3.0, np.float32), np.array([3]), np.array(3, np.uint8)])
def test_counters_in_other_forms(counter, tmp_path):
    tensors = safetensors.numpy.load_file(TRESNET) | {NUMBER: counter}
    checkpoint = convert.Checkpoint(tmp_path / 'a.safetensors', 'safetensors', tensors, {})
    assert convert.to_flax(checkpoint)[2].counters[NUMBER] == 3


def test_keys_of_a_file_of_ours(ours, tmp_path, capsys):
    tensors, metadata = ours
    file = tmp_path / 'a.safetensors'
    safetensors.numpy.save_file(tensors | {'opt_state.mu': np.zeros(3, np.float32)}, file, metadata)
    assert main([str(file), str(tmp_path / 'b.safetensors')]) == 2
    error = capsys.readouterr().err
    assert error == f"error: {file}: unexpected key 'opt_state.mu'; keys begin with params. or batch_stats.\n"


def test_the_name_of_an_architecture_that_is_enormous(ours, tmp_path):
    """Similar names are not searched for with all of it, which takes forty times its size in memory."""
    tensors, metadata = ours
    safetensors.numpy.save_file(tensors, tmp_path / 'x', metadata | {'architecture': '[[],' * 10**6})
    checkpoint = convert.read(tmp_path / 'x')
    tracemalloc.start()
    try:
        with pytest.raises(convert.ConversionError, match=r'unknown architecture ') as error:
            convert.to_flax(checkpoint)
        assert tracemalloc.get_traced_memory()[1] < 4 * 4 * 10**6 and len(str(error.value)) < 1000
    finally:
        tracemalloc.stop()
