"""scripts/benchmark.py compared with timm: the check passes, and fails if something is wrong."""

import csv
import dataclasses

import jax.numpy as jnp
import pytest
from benchmarking import command, jobs, torch_side
from benchmarking.checking import Checker
from benchmarking.contenders import CONTENDERS
from benchmarking.sides import Workload
from loop_step import CONFIG

from tests.helpers.benchmark_jobs import run_here
from tresnet_jax.checkpoints.write import save_safetensors

SMALL = [
    '--image-size', '32', '--batch-sizes', '4', '--train-batch-sizes', '4', '--rounds', '1', '--turn-seconds', '0',
    '--threads', '1', '--check', '--contenders',
]  # fmt: skip


@pytest.mark.parametrize(
    'model, whats',
    [('test_tresnet', ['inference']), pytest.param('test_resnet', ['inference', 'train'], marks=pytest.mark.slow)],
)
def test_a_model(monkeypatch, tmp_path, capsys, model, whats):
    run_here(monkeypatch)
    names = ['ours', 'ours-folded', 'timm-eager', 'timm-channels-last']
    flags = ['--models', model, '--what', *whats, '--out', str(tmp_path)]
    assert command.main([*SMALL, *names, *flags]) == 0
    out = capsys.readouterr().out
    wanted = [(what, name) for what in whats for name in names if (what, name) != ('train', 'ours-folded')]
    assert all(f'{model}: {name}, {what}: relative error' in out for what, name in wanted)
    assert out.count('relative error') == len(wanted) and 'differs' not in out
    with (tmp_path / 'benchmark.csv').open(newline='') as file:
        rows = {(row['what'], row['contender']): row for row in csv.DictReader(file)}
    assert list(rows) == wanted
    for what in whats:
        timm = min(float(rows[what, name]['median']) for name in names[2:])
        assert float(rows[what, 'ours']['ratio']) == pytest.approx(timm / float(rows[what, 'ours']['median']))
    assert (tmp_path / 'benchmark.png').is_file() and 'Ratios to timm' in (tmp_path / 'benchmark.md').read_text()


def test_disturbed_weights_are_found_and_nothing_is_timed(monkeypatch, tmp_path, capsys):
    run_here(monkeypatch)
    row = CONTENDERS['ours']

    def disturbed(workload):
        side = row.load(workload)
        side.params['layer3'][0]['conv2']['kernel'] *= jnp.float32(1.001)
        return side

    monkeypatch.setitem(CONTENDERS, 'ours', dataclasses.replace(row, load=disturbed))
    flags = ['ours', '--models', 'test_resnet', '--what', 'inference', 'build', '--out', str(tmp_path)]
    assert command.main([*SMALL, *flags]) == 1
    captured = capsys.readouterr()
    assert 'test_resnet: ours, inference: relative error' in captured.err and '<- differs' in captured.err
    assert 'Medians:' not in captured.out and not list(tmp_path.iterdir())


def test_another_training_is_found(monkeypatch, tmp_path):
    path = tmp_path / 'test_tresnet.safetensors'
    save_safetensors(path, command.draw_weights('test_tresnet'))
    workload = Workload('test_tresnet', str(path), 32, 'float32', 1)
    checker = Checker(workload, 4, ['inference', 'train'])
    side = jobs.load(CONTENDERS['timm-eager'], workload)
    assert [check.agrees for check in checker.compare('timm-eager', side)] == [True, True]
    monkeypatch.setattr(torch_side, 'CONFIG', dataclasses.replace(CONFIG, momentum=0.8))
    assert [check.agrees for check in checker.compare('timm-eager', side)] == [True, False]
