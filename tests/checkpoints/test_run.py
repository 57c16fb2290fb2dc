"""The folder of a training run through the converter, without torch."""

import dataclasses
import json
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import safetensors
import safetensors.numpy

import convert
import tresnet_jax
from convert.__main__ import main
from convert.inspect import inspect
from tests.helpers import paths
from tests.helpers.closeness import assert_identical
from tests.helpers.runs import CONFIG, make_run
from tresnet_jax.checkpoints.names import flatten
from tresnet_jax.checkpoints.run import MODEL_FILE, save_description, stored_label_names, stored_network
from tresnet_jax.cli import predict
from tresnet_jax.factory import embedded_path
from tresnet_jax.labels import class_synsets
from tresnet_jax.training.run_config import save_config
from tresnet_jax.variants import PRETRAINED, RESNETD

EMBEDDED = embedded_path(PRETRAINED['test_resnet.fashion_mnist'])
DATA_CONFIG = {
    'input_size': (3, 32, 32),
    'interpolation': 'bilinear',
    'mean': (0.4, 0.5, 0.6),
    'std': (0.25, 0.5, 0.75),
    'crop_pct': 0.9,
    'crop_mode': 'center',
}


@pytest.fixture(scope='module')
def run(tmp_path_factory):
    """A run with checkpoints of step 3, the best, 5, and 7, which was not evaluated; and its state at step 3."""
    folder = tmp_path_factory.mktemp('runs') / 'run'
    return folder, make_run(folder, devices=2)


def file(path: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    with safetensors.safe_open(path, 'np') as opened:
        return opened.get_tensors(), opened.metadata()


def named(params, batch_stats, factor: float = 1) -> dict[str, np.ndarray]:
    """Return the arrays of two trees by name, each times `factor`."""
    arrays = flatten({'params': params, 'batch_stats': batch_stats})
    return {name: value * value.dtype.type(factor) for name, value in arrays.items()}


@pytest.mark.parametrize(
    'options, step, factor',
    [({}, 3, 1), ({'step': 'best'}, 3, 1), ({'step': 5}, 5, 2), ({'step': 'latest'}, 7, 3)],
)
@pytest.mark.parametrize('ema', [True, False])
def test_which_weights_are_read(run, options, step, factor, ema):
    folder, state = run
    checkpoint = convert.read(folder, ema=ema, **options)
    trees = state.ema if ema else {'params': state.params, 'batch_stats': state.batch_stats}
    assert_identical(checkpoint.tensors, named(**trees, factor=factor))
    assert (checkpoint.container, checkpoint.wrapper) == ('run', 'ema' if ema else None)
    assert checkpoint.has_ema and checkpoint.training['step'] == step
    assert checkpoint.training.get('top1') == {3: 0.5, 5: 0.25}.get(step)


def test_to_torch_and_back(run, tmp_path, capsys):
    folder, _ = run
    target = tmp_path / 'timm.safetensors'
    assert main([str(folder), str(target), '--to', 'torch']) == 0
    tensors, _ = file(target)
    counters = {key: tensors.pop(key) for key in list(tensors) if key.endswith('num_batches_tracked')}
    embedded = {key: value.astype(np.float32) for key, value in file(EMBEDDED)[0].items() if 'num_batches' not in key}
    assert_identical(tensors, embedded)
    assert len(counters) == 15 and {(int(c), c.dtype.name) for c in counters.values()} == {(3, 'int64')}
    printed = capsys.readouterr().out
    assert 'took the moving average of step 3, top-1 50.00%' in printed
    assert '32 x 32, bilinear, crop 0.9, mean 0.4 0.5 0.6, std 0.25 0.5 0.75' in printed


def test_to_flax_keeps_what_the_run_knew(run, tmp_path):
    folder, state = run
    target = tmp_path / 'flax.safetensors'
    assert main([str(folder), str(target), '--to', 'flax', '--no-ema', '--step', 'latest']) == 0
    tensors, metadata = file(target)
    assert_identical(tensors, named(state.params, state.batch_stats, 3))
    assert (metadata['architecture'], metadata['tag'], metadata['num_classes']) == ('test_resnet', '', '10')
    assert (metadata['in_chans'], metadata['abn_slope'], metadata['source']) == ('3', '', 'run')
    assert set(json.loads(metadata['num_batches_tracked']).values()) == {7}
    model = tresnet_jax.create_model('test_resnet', checkpoint=target)
    assert tresnet_jax.resolve_data_config(model) == DATA_CONFIG


def test_create_model(run):
    folder, state = run
    model = tresnet_jax.create_model('test_resnet', checkpoint=folder)
    assert tresnet_jax.resolve_data_config(model) == tresnet_jax.resolve_data_config(model, True) == DATA_CONFIG
    _, params, batch_stats = tresnet_jax.functional(model)
    assert_identical(flatten({'params': params, 'batch_stats': batch_stats}), named(**state.ema))
    assert model.pretrained_cfg.accuracies == () and not model.pretrained_cfg.embedded
    smaller = tresnet_jax.create_model('test_resnet', checkpoint=folder, num_classes=3)
    assert smaller.num_classes == 3 and tresnet_jax.resolve_data_config(smaller) == DATA_CONFIG


def test_predict_prepares_images_as_the_run_did(run, tmp_path, capsys):
    image = paths.EMBEDDED / 'pictures' / '8_bag.png'
    assert predict.main([str(image), '--model', 'test_resnet', '--checkpoint', str(run[0]), '--json']) == 0
    document = json.loads(capsys.readouterr().out)
    assert document['data_config'] == json.loads(json.dumps(DATA_CONFIG))
    assert document['pictures'][0]['classes'][0]['index'] == 8


def test_inspect(run):
    found = inspect(run[0])
    assert (found.container, found.wrapper, found.layout, found.ema) == ('run', 'ema', 'flax', True)
    assert (found.architecture, found.exact, found.tags, found.num_classes) == ('test_resnet', True, (), 10)
    assert found.training == {'step': 3, 'top1': 0.5}
    assert (found.parameters, found.sha256) == (373_658, '')
    assert 'run' in str(found)


def test_a_run_without_averages_and_with_another_slope(tmp_path):
    config = dataclasses.replace(CONFIG, model='test_tresnet', abn_slope=1e-6, model_ema=False)
    state = make_run(tmp_path, config, {1: None})
    checkpoint = convert.read(tmp_path)
    assert (checkpoint.wrapper, checkpoint.has_ema, checkpoint.metadata['abn_slope']) == (None, False, '1e-06')
    assert_identical(checkpoint.tensors, named(state.params, state.batch_stats))
    assert tresnet_jax.create_model('test_tresnet', checkpoint=tmp_path).abn_slope == 1e-6


def test_the_tag_that_training_began_with_is_gone(run, tmp_path):
    """A fine-tuned resnet has other classes than its tag, and none of its figures."""
    folder = shutil.copytree(run[0], tmp_path / 'run')
    save_config(dataclasses.replace(CONFIG, model='test_resnet.r160_in1k', pretrained=True), folder)
    _, _, report = convert.to_flax(convert.read(folder))
    assert (report.architecture, report.tag, report.num_classes) == ('test_resnet', None, 10)


def test_another_process_with_one_device(run, tmp_path):
    """What two devices saved is read where there is one; and a file is read without Orbax."""
    code = (
        'import sys, convert, convert.__main__\n'
        f'convert.read({str(EMBEDDED)!r})\n'
        "assert not {'orbax', 'grain'} & {name.partition('.')[0] for name in sys.modules}\n"
        f'sys.exit(convert.__main__.main([{str(run[0])!r}, {str(tmp_path / "a.safetensors")!r}]))\n'
    )
    result = subprocess.run([sys.executable, '-W', 'error', '-c', code], capture_output=True, text=True)
    assert (result.returncode, result.stderr) == (0, '')
    assert (tmp_path / 'a.safetensors').exists()


def no_description(folder: Path) -> None:
    (folder / MODEL_FILE).unlink()
    (folder / 'config.json').unlink()


def not_an_object(folder: Path) -> None:
    (folder / MODEL_FILE).write_text('[1, 2]')


def no_checkpoints(folder: Path) -> None:
    shutil.rmtree(folder / 'checkpoints')


def nothing_saved_yet(folder: Path) -> None:
    no_checkpoints(folder)
    (folder / 'checkpoints').mkdir()


def damaged(folder: Path) -> None:
    for path in (folder / 'checkpoints' / '3' / 'state').rglob('*'):
        if path.is_file():
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def lost(folder: Path) -> None:
    shutil.rmtree(folder / 'checkpoints' / '3' / 'state')


def another_architecture(folder: Path) -> None:
    description = json.loads((folder / MODEL_FILE).read_text())
    (folder / MODEL_FILE).write_text(json.dumps(description | {'architecture': 'test_tresnet'}))


@pytest.mark.parametrize(
    'harm, message',
    [
        (no_description, 'config.json: cannot be read as JSON: No such file'),
        (not_an_object, 'model.json: expected a JSON object, got list'),
        (no_checkpoints, 'not a file; give the checkpoint itself, or the folder of a training run that has saved one'),
        (nothing_saved_yet, 'holds no checkpoint yet'),
        (damaged, 'checkpoints/3: cannot be read'),
        (lost, 'checkpoints/3: cannot be read'),
        (another_architecture, 'does not fit test_tresnet; it looks like test_resnet'),
    ],
)
def test_what_cannot_be_read_is_said(run, tmp_path, capsys, harm, message):
    folder = shutil.copytree(run[0], tmp_path / 'run')
    harm(folder)
    assert main([str(folder), str(tmp_path / 'out.safetensors')]) == 2
    printed = capsys.readouterr()
    assert message in printed.err and printed.err.startswith('error: ') and 'Traceback' not in printed.err
    assert sorted(path.name for path in tmp_path.iterdir()) == ['run']


def test_steps(run, tmp_path, capsys):
    target = str(tmp_path / 'out.safetensors')
    assert main([str(run[0]), target, '--step', '4']) == 2
    assert 'holds no checkpoint of step 4; choose one of 3, 5, 7' in capsys.readouterr().err
    assert main([str(EMBEDDED), target, '--step', '4']) == 2
    assert '--step (step) is for the folder of a training run' in capsys.readouterr().err


def test_without_orbax(run, monkeypatch):
    monkeypatch.setitem(sys.modules, 'orbax.checkpoint', None)
    with pytest.raises(convert.ConversionError, match=r"pip install 'tresnet_jax\[train\]'"):
        convert.read(run[0])


@pytest.mark.parametrize('config', ['{"input_size": 0}', '{"size": 32}', '{"std": [0, 0, 0]}'])
def test_a_data_config_that_cannot_work(config):
    checkpoint = convert.read(EMBEDDED)
    params, batch_stats, report = convert.to_flax(checkpoint)
    tensors = {f'params.{key}': value for key, value in flatten(params).items()}
    tensors |= {f'batch_stats.{key}': value for key, value in flatten(batch_stats).items()}
    metadata = {'format': 'tresnet_jax', 'architecture': 'test_resnet', 'data_config': config}
    with pytest.raises(convert.ConversionError, match="a.safetensors: metadata field 'data_config' cannot work"):
        convert.to_flax(convert.Checkpoint(Path('a.safetensors'), 'safetensors', tensors, metadata))


def test_label_names_go_with_the_weights(run, tmp_path, capsys):
    """From the run through our file and a saved model; a classifier of another size has none."""
    folder = tmp_path / 'run'
    shutil.copytree(run[0], folder)
    names = tuple(f'kind {i}' for i in range(10))
    description = json.loads((folder / MODEL_FILE).read_text()) | {'label_names': names}
    (folder / MODEL_FILE).write_text(json.dumps(description))
    model = tresnet_jax.create_model('test_resnet', checkpoint=folder)
    assert tresnet_jax.class_names(model) == names
    assert tresnet_jax.class_names(tresnet_jax.create_model('test_resnet', checkpoint=folder, num_classes=4)) is None

    assert main([str(folder), str(tmp_path / 'weights.safetensors'), '--to', 'flax']) == 0
    again = tresnet_jax.create_model('test_resnet', checkpoint=tmp_path / 'weights.safetensors')
    assert tresnet_jax.class_names(again) == names
    tresnet_jax.save_pretrained(again, tmp_path / 'saved')
    saved = tresnet_jax.create_model(f'local-dir:{tmp_path / "saved"}', pretrained=True)
    assert tresnet_jax.class_names(saved) == names

    image = paths.EMBEDDED / 'pictures' / '9_ankle_boot.png'
    capsys.readouterr()
    assert predict.main([str(image), '--model', 'test_resnet', '--checkpoint', str(folder), '--topk', '1']) == 0
    assert 'kind ' in capsys.readouterr().out

    (folder / MODEL_FILE).write_text(json.dumps(description | {'label_names': {'0': 'kind'}}))
    with pytest.raises(convert.ConversionError, match="run: metadata field 'label_names' is not a list of names"):
        tresnet_jax.create_model('test_resnet', checkpoint=folder)


def test_synsets_as_label_names():
    row = dataclasses.replace(
        PRETRAINED['test_resnet.fashion_mnist'], num_classes=2, label_names=('n01440764', 'n03394916')
    )
    assert class_synsets(row) == row.label_names
    assert class_synsets(dataclasses.replace(row, label_names=('n01440764', 'horn'))) is None


def test_class_names_that_are_not_utf8(tmp_path):
    """Names of folders, in the order of the labels: stored losslessly, in a file that is UTF-8 all the same."""
    names = ('caf\u00e9', b'caf\xe9'.decode('utf-8', 'surrogateescape'))
    config = SimpleNamespace(family=RESNETD)
    model = SimpleNamespace(
        architecture='test_resnet', num_classes=2, in_chans=3, abn_slope=None, global_pool='avg', output_stride=32,
        config=config, head_options={},
    )  # fmt: skip
    save_description(tmp_path, model, DATA_CONFIG, names)
    assert 'caf\u00e9' in (tmp_path / MODEL_FILE).read_text(encoding='utf-8')
    assert stored_label_names(tmp_path) is None, 'a run without a checkpoint may start again with other data'
    (tmp_path / 'checkpoints' / '3').mkdir(parents=True)
    assert stored_label_names(tmp_path) == names


@pytest.mark.parametrize(
    'field, value', [('architecture', ['x' * 1000]), ('num_of_groups', '5'), ('decoder_embedding', 8.5)]
)
def test_a_network_that_model_json_cannot_describe(tmp_path, field, value):
    (tmp_path / 'model.json').write_text(
        json.dumps({'architecture': 'test_resnet', 'head': 'ml_decoder', field: value})
    )
    with pytest.raises(convert.ConversionError, match=f'model.json: {field} is .*; expected') as error:
        stored_network(tmp_path)
    assert len(str(error.value)) < len(str(tmp_path)) + 400
