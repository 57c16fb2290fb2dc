"""Runs with any number of classes per image: trained, resumed, evaluated, predicted, embedded and converted."""

import dataclasses
import json

import jax
import numpy as np
import pytest
import safetensors.numpy
from PIL import Image

import convert
import tresnet_jax
from convert.__main__ import main as converter
from tests.helpers.closeness import assert_identical
from tests.helpers.runs import TINY
from tresnet_jax.checkpoints.run import MODEL_FILE, load_weights
from tresnet_jax.cli import embed, evaluate, predict
from tresnet_jax.data.sources import open_source
from tresnet_jax.errors import TrainingError
from tresnet_jax.training import loop
from tresnet_jax.training.config import TrainConfig
from tresnet_jax.training.metrics import read_records
from tresnet_jax.training.multilabel import average_precisions

NAMES = ('bag', 'coat', 'shirt')

pytestmark = pytest.mark.usefixtures('programs')


@pytest.fixture(scope='module')
def config(tmp_path_factory) -> TrainConfig:
    """Runs of four steps on soft targets, mixed, with a moving average."""
    folder = tmp_path_factory.mktemp('data')
    rng = np.random.default_rng(0)
    y = np.round(rng.random((48, 3)), 2).astype(np.float32)
    images = (rng.integers(0, 90, (48, 32, 32, 3)) + 160 * y[:, None, None]).astype(np.uint8)
    np.savez(folder / 'a.npz', x_train=images[:32], y_train=y[:32], x_test=images[32:], y_test=y[32:] > 0.5)
    (folder / 'names.txt').write_text('\n'.join(NAMES))
    return dataclasses.replace(
        TINY, data=f'npz:{folder}/a.npz', train_split='train', val_split=None, task='multilabel', lr=0.02,
        target_format='multihot', class_map=folder / 'names.txt', loss='asl', loss_pos_weight='neg_pos', cutmix=1.0,
        smoothing=0.1, reprob=0.0, drop_path=0.0, steps=4, eval_every=1.0, checkpoint_every=3, log_every=1,
        multilabel_threshold=0.4,
    )  # fmt: skip


@pytest.fixture(scope='module')
def run(config, tmp_path_factory):
    """A finished run."""
    folder = tmp_path_factory.mktemp('run')
    result = loop.train(config, folder)
    assert result.finished and result.evaluation.count == 16
    return folder


def test_records(run, config, capsys):
    train, last = ([r for r in read_records(run) if r['kind'] == kind] for kind in ('train', 'eval'))
    assert [set(r) & {'top1', 'top5', 'map'} for r in train] == [set()] * 4
    assert all(np.isfinite(r['loss']) for r in train)
    assert {'map', 'micro_f1', 'macro_f1', 'sample_f1', 'loss', 'count', 'ema_map'} <= set(last[-1])
    assert [r['step'] for r in last] == [2, 4]
    best = max(last, key=lambda r: r['ema_map'])
    found = load_weights(run)
    assert (found.metric, found.rating) == ('map', max(r['ema_map'] for r in last)) and best['ema_map'] == found.rating
    description = json.loads((run / MODEL_FILE).read_text())
    assert description['task'] == 'multilabel' and description['label_names'] == list(NAMES)


def test_resumed_to_the_bit(run, config, tmp_path):
    loop.train(dataclasses.replace(config, stop_epoch=1.5), tmp_path)
    assert loop.train(config, tmp_path).finished
    assert_identical(*(load_weights(folder, 'latest').params for folder in (tmp_path, run)))
    assert [r['map'] for r in read_records(run) if r['kind'] == 'eval'][-1] == [
        r['map'] for r in read_records(tmp_path) if r['kind'] == 'eval'
    ][-1]


def test_the_metric_is_that_of_the_model(run, config, capsys, tmp_path):
    """evaluate.py gives the mean average precision of the outputs of the model that the run holds."""
    flags = ['--batch-size', '12', '--devices', '4', '--json', '--report', str(tmp_path)]
    assert evaluate.main(['--checkpoint', str(run), *flags]) == 0
    document = json.loads(capsys.readouterr().out)
    model = tresnet_jax.create_model('test_resnet', checkpoint=run)
    transform = tresnet_jax.create_transform(**tresnet_jax.resolve_data_config(model))
    source = open_source(config.data, None, target_format='multihot')
    records = [source[i] for i in range(16)]
    logits = np.asarray(model(np.stack([transform(Image.fromarray(record['image'])) for record in records])))
    expected = average_precisions(logits, np.stack([record['target'] for record in records]) > 0.5)
    np.testing.assert_allclose(list(document['average_precisions'].values()), expected, rtol=1e-5)
    assert document['map'] == pytest.approx(expected.mean()) and [*document['average_precisions']] == list(NAMES)
    assert document['map'] == pytest.approx(load_weights(run).rating)
    assert document['threshold'] == config.multilabel_threshold
    rows = (tmp_path / 'classes.csv').read_text().splitlines()[1:]
    assert [row.split(',')[1] for row in rows] == list(NAMES)
    np.testing.assert_allclose([float(row.split(',')[3]) for row in rows], expected, atol=1e-5)
    assert evaluate.main(['--checkpoint', str(run), '--batch-size', '16', '--check']) == 2
    assert '--check: for one class per image' in capsys.readouterr().err


def test_predicted(run, config, tmp_path, capsys):
    Image.new('RGB', (32, 32), (200, 90, 90)).save(tmp_path / 'a.png')
    argv = [str(tmp_path / 'a.png'), '--model', 'test_resnet', '--checkpoint', str(run), '--json']

    def classes(*flags: str) -> list[dict]:
        assert predict.main([*argv, *flags]) == 0
        return json.loads(capsys.readouterr().out)['pictures'][0]['classes']

    every = classes('--threshold', '0')
    assert sorted(c['name'] for c in every) == list(NAMES) and every == sorted(every, key=lambda c: -c['probability'])
    model = tresnet_jax.create_model('test_resnet', checkpoint=run)
    transform = tresnet_jax.create_transform(**tresnet_jax.resolve_data_config(model))
    logits = model(transform(Image.open(tmp_path / 'a.png'))[None])
    found = {c['name']: c['probability'] for c in every}
    np.testing.assert_allclose([found[name] for name in NAMES], jax.nn.sigmoid(logits)[0], rtol=1e-4)
    middle = str((every[0]['probability'] + every[1]['probability']) / 2)
    assert classes('--threshold', middle) == every[:1] and classes('--threshold', '1') == []
    assert classes('--threshold', '0', '--topk', '2') == every[:2]
    assert predict.main([*argv[:-1], '--threshold', '1']) == 0 and '  no class\n' in capsys.readouterr().out
    assert predict.main([*argv, '--task', 'classification', '--threshold', '0.5']) == 2
    assert '--threshold is for any number of classes' in capsys.readouterr().err


def test_embedded(run, tmp_path):
    assert embed.main(['--checkpoint', str(run), '--split', 'test', '--batch-size', '16', '--out', str(tmp_path)]) == 0
    (file,) = tmp_path.glob('*.safetensors')
    found = safetensors.numpy.load_file(file)
    assert found['features'].shape[0] == 16 and found['labels'].shape == (16, 3)
    source = open_source(json.loads((run / 'config.json').read_text())['data'], 'test', target_format='multihot')
    np.testing.assert_array_equal(found['labels'], [source[i]['target'] for i in found['indices']])


def test_the_task_travels(run, tmp_path, capsys):
    """To a Flax file, to config.json, and back."""
    file = tmp_path / 'flax.safetensors'
    assert converter([str(run), str(file), '--to', 'flax']) == 0
    assert '  any number of classes per image\n' in capsys.readouterr().out
    assert converter(['inspect', str(file)]) == 0 and 'task        multilabel' in capsys.readouterr().out
    assert convert.read(file).metadata['task'] == 'multilabel'
    tresnet_jax.save_pretrained(tresnet_jax.create_model('test_resnet', checkpoint=file), tmp_path / 'hub')
    assert json.loads((tmp_path / 'hub' / 'config.json').read_text())['task'] == 'multilabel'
    for model in (
        tresnet_jax.create_model('test_resnet', checkpoint=run),
        tresnet_jax.create_model('test_resnet', checkpoint=file),
        tresnet_jax.create_model(f'local-dir:{tmp_path}/hub', pretrained=True),
        tresnet_jax.create_model('test_resnet', checkpoint=tmp_path / 'hub' / 'model.safetensors'),
    ):
        assert model.pretrained_cfg.task == 'multilabel' and tresnet_jax.class_names(model) == NAMES


def test_weights_need_counts(config, tmp_path):
    stats = tmp_path / 'stats.json'
    stats.write_text('{"num_samples": 3, "pos_counts": [1, 2]}')
    with pytest.raises(TrainingError, match='--loss-pos-weight neg_pos: needs counts of the 3 classes'):
        loop.train(dataclasses.replace(config, class_stats=stats), tmp_path / 'run')
