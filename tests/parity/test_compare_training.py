"""scripts/compare_training.py: timm's model trained with the configuration of a run."""

import dataclasses
import json

import numpy as np
import pytest

from scripts import compare_training
from tresnet_jax.training.config import TrainConfig
from tresnet_jax.training.run_config import save_config

CONFIG = TrainConfig(
    model='test_tresnet', data='embedded:fashion_mnist', train_split='train[:64]', val_split='test[:40]',
    num_classes=10, image_size=32, batch_size=16, val_batch_size=16, steps=7, eval_every=1.0, crop='pad', lr=0.1,
    opt='sgd', sched='one_cycle', mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5), interpolation='bicubic', crop_pct=0.875,
    crop_mode='center', threads=2,
)  # fmt: skip
OURS = [(4, 0.1), (7, 0.2)]


def run_folder(folder, **changes):
    """Write the folder of a run with its evaluations."""
    folder.mkdir()
    save_config(dataclasses.replace(CONFIG, **changes), folder)
    rows = [{'kind': 'eval', 'step': step, 'top1': top1} for step, top1 in OURS]
    (folder / 'metrics.jsonl').write_text(''.join(json.dumps(row) + '\n' for row in rows))
    return folder


def test_both_are_evaluated_at_the_same_steps(tmp_path, capsys):
    out = tmp_path / 'comparison'
    assert compare_training.main([run_folder(tmp_path / 'run')], seeds=[0, 1], out=out) == 0
    found = json.loads(out.with_suffix('.json').read_text())
    assert found['ours'] == {'0': [list(row) for row in OURS]}
    assert list(found['timm']) == ['0', '1']
    for rows in found['timm'].values():
        assert [step for step, _ in rows] == [4, 7]
        assert all(40 * top1 == round(40 * top1) for _, top1 in rows)  # of 40: padding does not count
    assert out.with_suffix('.png').stat().st_size > 1000
    said = capsys.readouterr().out
    assert 'tresnet_jax: 20.00 %, mean 20.00 %' in said and '\ntimm: ' in said
    assert found['dtypes'] == {'ours': 'float32', 'timm': 'float32'}


def test_another_dtype_is_named(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(compare_training, 'train_timm', lambda config: [(4, 0.5), (7, 0.5)])
    out = tmp_path / 'comparison'
    assert compare_training.main([run_folder(tmp_path / 'run', dtype='bfloat16')], seeds=[0], out=out) == 0
    said = capsys.readouterr().out
    assert 'tresnet_jax in bfloat16: 20.00 %' in said and 'timm in float32: 50.00 %' in said
    assert json.loads(out.with_suffix('.json').read_text())['dtypes'] == {'ours': 'bfloat16', 'timm': 'float32'}


def test_timm_learns(tmp_path):
    """It memorises eight images, and the same seed gives the same result twice."""
    config = dataclasses.replace(
        CONFIG, train_split='train[:8]', val_split='train[:8]', batch_size=8, steps=60, hflip=0.0
    )
    config = dataclasses.replace(config, padding=0, eval_every=60.0)
    first, second = (compare_training.train_timm(config) for _ in range(2))
    assert first == second == [(60, 1.0)]


@pytest.mark.parametrize('changes', [{'loss': 'asl', 'asl_focal_gradient': False}, {'eval_metric': 'macro_f1'}])
def test_any_number_of_labels(changes, tmp_path):
    """timm learns two colours, each of which is a label."""
    labels = np.array([[a, b] for a in (0, 1) for b in (0, 1)] * 4, np.uint8)
    colours = np.concatenate([200 * labels, 0 * labels[:, :1]], 1)[:, None, None].repeat(32, 1).repeat(32, 2)
    np.savez(tmp_path / 'a.npz', x_train=colours, y_train=labels, x_test=colours, y_test=labels)
    config = dataclasses.replace(
        CONFIG, data=f'npz:{tmp_path}/a.npz', train_split='train', val_split='test', task='multilabel', num_classes=2,
        target_format='multihot', steps=40, eval_every=40.0, opt='adamw', lr=3e-3, padding=0, hflip=0.0, **changes,
    )  # fmt: skip
    assert compare_training.train_timm(config) == [(40, 1.0)]


def test_the_final_evaluation_replaces_one_just_before_it():
    """As in a run: the one after step 8 is left out."""
    config = dataclasses.replace(CONFIG, train_split='train[:32]', batch_size=8, val_split='test[:8]', steps=9)
    assert [step for step, _ in compare_training.train_timm(config)] == [4, 9]


def test_runs_without_evaluations_and_unlike_runs(tmp_path, capsys):
    """They are refused before timm's model trains."""
    first, other = run_folder(tmp_path / 'a'), run_folder(tmp_path / 'b', seed=1, lr=0.2)
    assert compare_training.main([first, other], seeds=[0], out=tmp_path / 'comparison') == 2
    assert 'the runs differ in lr; give runs that differ in the seed alone' in capsys.readouterr().err
    (first / 'metrics.jsonl').unlink()
    assert compare_training.main([first], seeds=[0], out=tmp_path / 'comparison') == 2
    assert 'metrics.jsonl: no evaluation with top1' in capsys.readouterr().err


@pytest.mark.parametrize(
    'changes',
    [
        {'mixup': 0.2},
        {'sched': 'cosine'},
        {'opt': 'lion'},
        {'model_ema': True},
        {'drop_path': 0.1},
        {'cutmix_minmax': (0.2, 0.8)},
        {'abn_slope': 1e-6},
    ],
)
def test_unsupported_configurations(changes, tmp_path, capsys):
    assert compare_training.main([run_folder(tmp_path / 'run', **changes)], seeds=[0], out=tmp_path / 'comparison') == 2
    assert 'cannot be compared; use SGD or AdamW, one_cycle and none of loss_pos_weight' in capsys.readouterr().err
    assert not (tmp_path / 'comparison.json').exists()
