"""The converter without torch: strictness, errors, and files that are whole or not there."""

import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

import convert
import tresnet_jax
from convert.__main__ import main
from tests.helpers.paths import EMBEDDED
from tresnet_jax.checkpoints.names import flatten, unflatten

RESNET = EMBEDDED / 'test_resnet.fashion_mnist.safetensors'
TRESNET = EMBEDDED / 'test_tresnet.fashion_mnist.safetensors'


def tensors(path: Path = RESNET) -> dict[str, np.ndarray]:
    return safetensors.numpy.load_file(path)


def as_checkpoint(state: dict[str, np.ndarray]) -> convert.Checkpoint:
    return convert.Checkpoint(Path('a.safetensors'), 'safetensors', state, {})


@pytest.fixture
def run(tmp_path, capsys):
    """Run the command line in a folder with an existing target; after a failure that must be as it was."""
    target = tmp_path / 'out.safetensors'
    target.write_bytes(b'was here')

    def command(source: Path, *options: str, to: Path = target) -> str:
        before = sorted(tmp_path.iterdir())
        assert main([str(source), str(to), *options]) == 2
        assert target.read_bytes() == b'was here'
        assert sorted(tmp_path.iterdir()) == before, 'a file was left behind'
        captured = capsys.readouterr()
        assert 'Traceback' not in captured.err and captured.err.startswith('error: ')
        return captured.err

    return command


def save(path: Path, state: dict[str, np.ndarray]) -> Path:
    safetensors.numpy.save_file(state, path)
    return path


def test_missing_unexpected_and_misshapen_are_all_listed(tmp_path, run):
    state = tensors()
    del state['bn1.weight'], state['layer1.0.conv1.weight']
    state['layer9.0.weight'] = np.zeros((2, 3), np.float32)
    state['conv1.0.weight'] = np.zeros((16, 3, 5, 5), np.float32)
    message = run(save(tmp_path / 'bad.safetensors', state), '--model', 'test_resnet')
    assert 'missing from the file (2):\n  bn1.weight (32,)\n  layer1.0.conv1.weight (32, 32, 3, 3)\n' in message
    assert 'unexpected in the file (1):\n  layer9.0.weight (2, 3)\n' in message
    assert 'conv1.0.weight: (16, 3, 5, 5) in the file, expected (16, 3, 3, 3)' in message


@pytest.mark.parametrize('key', ['fc.weight', 'fc.bias', 'bn1.running_var', 'layer3.0.conv2.weight'])
def test_every_missing_tensor_stops_it(key):
    state = tensors()
    del state[key]
    with pytest.raises(convert.ConversionError, match=key.replace('.', r'\.')):
        convert.to_flax(as_checkpoint(state), 'test_resnet')


def test_wrong_architecture_names_the_right_one(run):
    assert 'it looks like test_tresnet' in run(TRESNET, '--model', 'test_resnet')
    assert 'it looks like test_tresnet' in run(TRESNET, '--model', 'tresnet_m')


def test_not_a_network_of_ours(tmp_path, run):
    file = save(tmp_path / 'a.safetensors', {'conv1.weight': np.zeros((64, 3, 7, 7), np.float32)})
    assert "a plain ResNet's stem" in run(file)


@pytest.mark.parametrize(
    'content, message',
    [
        (None, 'no such file'),
        (b'', 'is empty'),
        (b'hello, this is no checkpoint at all', 'a text file, not a checkpoint'),
        (RESNET.read_bytes()[:5000], 'cannot be read as safetensors'),
        (RESNET.read_bytes()[:-10], 'cannot be read as safetensors'),
    ],
)
def test_bad_files(tmp_path, run, content, message):
    file = tmp_path / 'bad.safetensors'
    if content is not None:
        file.write_bytes(content)
    assert message in run(file)


def test_a_file_of_another_kind(tmp_path, run):
    (tmp_path / 'notes.pth').write_text('these are notes')
    assert 'notes.pth: a text file, not a checkpoint: these are notes' in run(tmp_path / 'notes.pth')
    assert 'not a file' in run(tmp_path)


def test_unknown_names(run):
    assert 'did you mean' in run(RESNET, '--model', 'resnet51d')
    assert 'unknown tag' in run(RESNET, '--model', 'test_resnet.nothing')


def test_a_slope_for_a_network_without_leaky_relus(run):
    assert 'is for TResNet' in run(RESNET, '--abn-slope', '1e-6')


def test_bad_targets(tmp_path, run):
    assert 'does not exist; make it first' in run(RESNET, to=tmp_path / 'no' / 'where.safetensors')
    assert 'name it' in run(RESNET, to=tmp_path / 'out.msgpack')
    assert 'unknown suffix' in run(RESNET, '--to', 'torch', to=tmp_path / 'out.npz')
    (tmp_path / 'folder.safetensors').mkdir()
    assert 'is a folder' in run(RESNET, to=tmp_path / 'folder.safetensors')


def test_integers_are_no_weights(tmp_path, run):
    state = tensors()
    state['bn1.weight'] = state['bn1.weight'].astype(np.int32)
    assert 'bn1.weight has dtype int32' in run(save(tmp_path / 'a.safetensors', state))


def test_metadata_that_is_not_json(tmp_path, run):
    main([str(RESNET), str(tmp_path / 'flax.safetensors')])
    state = tensors(tmp_path / 'flax.safetensors')
    metadata = {'format': 'tresnet_jax', 'architecture': 'test_resnet', 'source_dtypes': '{'}
    safetensors.numpy.save_file(state, tmp_path / 'bad.safetensors', metadata)
    assert 'not JSON' in run(tmp_path / 'bad.safetensors')


def test_torch_is_asked_for_by_name_where_it_is_missing(tmp_path):
    """Without torch, files of torch are read; only writing one names the pip command."""
    with (tmp_path / 'a.pth').open('wb') as file:
        pickle.dump(tensors(), file)
    code = (
        'import sys\n'
        'class NoTorch:\n'
        '    def find_spec(self, name, *_):\n'
        '        if name == "torch": raise ImportError(name)\n'
        'sys.meta_path.insert(0, NoTorch())\n'
        'from convert.__main__ import main\n'
        f'assert main([{str(tmp_path / "a.pth")!r}, {str(tmp_path / "b.safetensors")!r}]) == 0\n'
        f'assert main([{str(RESNET)!r}, {str(tmp_path / "b.safetensors")!r}]) == 0\n'
        f'assert main([{str(RESNET)!r}, {str(tmp_path / "b.pth")!r}, "--to", "torch"]) == 2\n'
    )
    result = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert result.stderr.count('pip install torch') == 1


def test_a_write_that_fails_leaves_the_old_file(tmp_path, monkeypatch):
    target = tmp_path / 'out.safetensors'
    target.write_bytes(b'was here')

    def fail(tensors, path, metadata=None):
        Path(path).write_bytes(b'half')
        raise OSError('No space left on device')

    monkeypatch.setattr(safetensors.numpy, 'save_file', fail)
    with pytest.raises(convert.ConversionError, match='No space left'):
        convert.save_torch(target, {'a': np.zeros(3)})
    assert target.read_bytes() == b'was here' and sorted(tmp_path.iterdir()) == [target]


def test_what_is_written_is_what_was_given(tmp_path):
    """safetensors writes memory as it lies: a transposed view must come out transposed, a scalar a scalar."""
    array = np.arange(6.0).reshape(2, 3).T
    convert.save_torch(tmp_path / 'a.safetensors', {'a': array, 'n': np.array(3)})
    back = tensors(tmp_path / 'a.safetensors')
    np.testing.assert_array_equal(back['a'], array)
    assert back['n'].shape == ()
    mode = (tmp_path / 'a.safetensors').stat().st_mode & 0o777
    (tmp_path / 'plain').write_bytes(b'')
    assert mode == (tmp_path / 'plain').stat().st_mode & 0o777


def test_names_of_tensors_and_files_are_shown_on_one_line(tmp_path):
    hostile = '\x1b[31m\n' + 'x' * 10**5
    state = tensors() | {f'layer1.{hostile}': np.zeros(1, np.float32)}
    with pytest.raises(convert.ConversionError, match=r'\\x1b\[31m\\nx') as error:
        convert.to_flax(as_checkpoint(state), 'test_resnet')
    assert len(str(error.value)) < 1000
    source = save(tmp_path / b'caf\xe9.safetensors'.decode('utf-8', 'surrogateescape'), tensors())
    convert.save_flax(tmp_path / 'flax.safetensors', *convert.to_flax(convert.read(source)))
    assert convert.read(tmp_path / 'flax.safetensors').metadata['source'] == r'caf\xe9.safetensors'


def test_the_report_says_what_was_done(tmp_path, capsys):
    assert main([str(RESNET), str(tmp_path / 'out.safetensors'), '--model', 'test_resnet.fashion_mnist']) == 0
    out = capsys.readouterr().out
    for part in ('timm layout of test_resnet.fashion_mnist', '10 classes', '77 tensors (float16)', '373,658 parameters',
                 '15 counters', 'flax layout', ' MB, '):  # fmt: skip
        assert part in out, part


def test_dropping_and_adapting_are_reported():
    params, _, report = convert.to_flax(convert.read(RESNET), num_classes=4, in_chans=1)
    assert [key for key, _ in report.dropped] == ['fc.bias', 'fc.weight']
    assert report.adapted == (('conv1.0.weight', '3 input channels to 1'),)
    assert 'test_resnet, 0 classes, 1 channel\n' in str(report)
    assert 'fc' not in params and params['conv1'][0]['kernel'].shape == (3, 3, 1, 16)
    assert 'dropped fc.weight: the file has 10 classes, 4 were requested' in str(report)


@pytest.mark.parametrize('path', [RESNET, TRESNET], ids=['resnet', 'tresnet'])
def test_a_flax_file_opens_as_a_model(path, tmp_path):
    name = path.name.removesuffix('.safetensors')
    main([str(path), str(tmp_path / 'flax.safetensors'), '--model', name])
    assert convert.read(tmp_path / 'flax.safetensors').metadata['tag'] == 'fashion_mnist'
    direct, through = (tresnet_jax.create_model(name, checkpoint=p) for p in (path, tmp_path / 'flax.safetensors'))
    a, b = convert.to_torch(direct), convert.to_torch(through)
    assert a.keys() == b.keys()
    for key in a:
        np.testing.assert_array_equal(a[key], b[key])


def test_trees_flatten_and_come_back():
    params, stats, _ = convert.to_flax(convert.read(RESNET))
    assert unflatten(flatten(params)) == params
    assert set(params['layer1']) == {0} and set(stats['conv1']) == {1, 4}
