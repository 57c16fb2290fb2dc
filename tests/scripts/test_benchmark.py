"""scripts/benchmark.py: turns, ratios and files from made-up times; timing ours alone; bad input."""

import csv
import dataclasses
import gc
import os
import subprocess
import sys

import numpy as np
import pytest
from benchmarking import command, jobs, measures, processes, results, turns
from benchmarking.contenders import CONTENDERS, MEASURES, Contender
from benchmarking.inputs import random_inputs
from benchmarking.jax_side import JaxSide
from benchmarking.results import Measurement
from benchmarking.sides import CLASSES, MEAN, STD, Workload
from largest_batch import largest_that_fits
from loop_step import CONFIG

from tests.helpers.benchmark_jobs import run_here
from tresnet_jax.checkpoints.write import save_safetensors

SMALL = [
    '--models', 'test_resnet', '--image-size', '32', '--batch-sizes', '2', '--train-batch-sizes', '2',
    '--rounds', '2', '--fresh-rounds', '1', '--turn-seconds', '0.001',
]  # fmt: skip


def test_turns():
    log = []

    def contender(name):
        return lambda: log.append((name, gc.isenabled())) or len(log)

    assert gc.isenabled()
    found = turns.take_turns({'a': contender('a'), 'b': contender('b')}, 2)
    assert gc.isenabled()
    assert [name for name, _ in log] == ['a', 'b', 'b', 'a', 'a', 'b']
    assert not any(enabled for _, enabled in log)
    assert found == {'a': [4, 5], 'b': [3, 6]}, 'the first round is not counted'


def test_a_turn_is_filled_with_calls(monkeypatch):
    now, calls = [0.0], []

    def call():
        # The call that compiles and the first call of a turn take longer.
        now[0] += 5.0 if len(calls) in (0, 2) else 0.1
        calls.append(now[0])

    monkeypatch.setattr(turns.time, 'perf_counter', lambda: now[0])
    turn = turns.timed(call, 0.35)
    assert len(calls) == 2
    assert turn() == pytest.approx(0.1)
    assert len(calls) == 2 + 1 + 4
    once = turns.timed(call, 0.05)
    calls.clear()
    assert once() == pytest.approx(0.1) and len(calls) == 2, 'one long call is timed, after one that is not'


def test_spread():
    assert turns.spread([4.0, 1.0, 3.0, 2.0, 5.0]) == pytest.approx((4.5 - 1.5) / 3)
    assert turns.spread([7.0]) == 0


MADE_UP = [
    Measurement('test_resnet', 'inference', 8, 'ours', (0.1, 0.2, 0.4)),
    Measurement('test_resnet', 'inference', 8, 'timm-eager', (0.3, 0.3, 0.3)),
    Measurement('test_resnet', 'inference', 8, 'timm-channels-last', (0.1, 0.1, 0.4)),
    Measurement('test_resnet', 'inference', 1, 'ours', (0.05, 0.05, 0.05)),
    Measurement('test_resnet', 'largest_batch, train', 0, 'ours', (300.0,)),
    Measurement('test_resnet', 'largest_batch, train', 0, 'timm-eager', (100.0,)),
    Measurement('test_resnet', 'largest_batch, train', 0, 'timm-channels-last', (200.0,)),
    Measurement('test_resnet', 'memory, train', 8, 'ours', (2e9,)),
    Measurement('test_resnet', 'memory, train', 8, 'timm-eager', (1e9,)),
]


def test_ratios_and_spreads():
    rows = {(row.what, row.batch, row.contender): row for row in results.result_rows(MADE_UP)}
    ours = rows['inference', 8, 'ours']
    # timm's better median is that of channels_last, 0.1 s. The ratios of the rounds to ours are 1, 0.5, 1.
    assert ours.ratio == pytest.approx(0.5)
    assert ours.ratio_spread == pytest.approx((1.0 - 0.5) / 1.0)
    assert (ours.unit, ours.median, ours.rounds) == ('ms', pytest.approx(200.0), 3)
    assert ours.spread == pytest.approx((0.4 - 0.1) / 0.2)
    assert ours.images_per_second == pytest.approx(8 / 0.2)
    assert rows['inference', 8, 'timm-eager'].ratio == pytest.approx(0.1 / 0.3)
    assert rows['inference', 8, 'timm-channels-last'].ratio == 1
    assert rows['inference', 1, 'ours'].ratio is None
    largest = rows['largest_batch, train', 0, 'ours']
    assert (largest.ratio, largest.images_per_second) == (pytest.approx(1.5), None)
    memory = rows['memory, train', 8, 'ours']
    assert (memory.ratio, memory.unit, memory.median) == (pytest.approx(0.5), 'MB', pytest.approx(2000.0))


def test_files(tmp_path):
    rows = results.result_rows(MADE_UP)
    results.write_files(tmp_path, rows, results.results_page(rows, 'about'), 'title')
    assert (tmp_path / 'benchmark.png').read_bytes().startswith(b'\x89PNG')
    with (tmp_path / 'benchmark.csv').open(newline='') as file:
        read = list(csv.DictReader(file))
    assert list(read[0]) == [
        'model', 'what', 'batch', 'contender', 'unit', 'median', 'spread', 'images_per_second', 'ratio',
        'ratio_spread', 'rounds',
    ]  # fmt: skip
    assert len(read) == len(MADE_UP) and read[3]['ratio'] == ''
    text = (tmp_path / 'benchmark.md').read_text()
    assert text.startswith('about\n')
    assert '2000 MB' in text
    lines = [line.strip('| ').split(' | ') for line in text.splitlines() if line.startswith('|')]
    assert lines[0] == ['model', 'what', 'batch', 'ours', 'timm-eager', 'timm-channels-last', 'timm']
    assert lines[2] == [
        'test_resnet', 'inference', '8', '200 ms ± 150%', '300 ms ± 0%', '100 ms ± 300%', '100 ms ± 300%',
    ]  # fmt: skip
    assert ['test_resnet', 'largest_batch, train', '', '1.50'] in lines


def test_without_timm_there_are_no_ratios(tmp_path):
    rows = results.result_rows([m for m in MADE_UP if m.contender == 'ours'])
    text = results.results_page(rows, 'about')
    assert 'timm' not in text and 'Images per second' in text
    results.write_files(tmp_path, rows, text, 'title')
    assert not (tmp_path / 'benchmark.png').exists()


@pytest.mark.parametrize('limit', [0, 1, 5, 8, 63, 64, 100, 1000, 5000])
def test_largest_batch(limit):
    asked = []

    def fits(batch):
        asked.append(batch)
        return batch <= limit

    found = largest_that_fits(fits)
    assert limit - limit / 32 <= found <= limit
    assert len(asked) == len(set(asked)) < 20


@pytest.fixture
def here(monkeypatch) -> None:
    run_here(monkeypatch)


def test_ours_alone(here, tmp_path, capsys):
    flags = [*SMALL, '--contenders', 'ours', 'ours-folded', '--what', 'inference']
    assert command.main([*flags, '--out', str(tmp_path)]) == 0
    with (tmp_path / 'benchmark.csv').open(newline='') as file:
        read = list(csv.DictReader(file))
    assert [(row['what'], row['batch'], row['contender']) for row in read] == [
        ('inference', '2', 'ours'),
        ('inference', '2', 'ours-folded'),
    ]
    assert all(float(row['median']) > 0 for row in read)
    assert {row['rounds'] for row in read} == {'2'}
    out = capsys.readouterr().out
    assert out == (tmp_path / 'benchmark.md').read_text() + '\n'
    assert out.startswith('32 px, float32, on cpu\n')


@pytest.fixture(scope='module')
def side(tmp_path_factory):
    """Our side with seeded weights, and its workload."""
    path = tmp_path_factory.mktemp('weights') / 'test_resnet.safetensors'
    save_safetensors(path, command.draw_weights('test_resnet'))
    workload = Workload('test_resnet', str(path), 32, 'float32', 1)
    return jobs.load(CONTENDERS['ours'], workload), workload


def test_every_call_takes_another_batch(side):
    side, workload = side
    images, labels = random_inputs(workload, 'inference', 2, jobs.BATCHES)
    assert images.shape == (3, 2, 32, 32, 3) and labels.shape == (3, 2)
    call = side.inference(images)
    first, second, third, again = (call() for _ in range(4))
    assert first.shape == (2, 1000) and first.dtype == np.float32
    assert not np.allclose(first, second) and not np.allclose(second, third) and np.array_equal(first, again)


def test_a_training_step_is_that_of_the_loop():
    """Three steps of a linear model on two batches, against the update written in NumPy."""
    rng = np.random.default_rng(0)
    kernel = rng.standard_normal((3, CLASSES), np.float32)
    bias = np.linspace(-1, 1, CLASSES, dtype=np.float32)

    def apply(params, batch_stats, x, train=False, rngs=None):
        logits = x.mean((1, 2)) @ params['fc']['kernel'] + params['fc']['bias'][None]
        return (logits, batch_stats) if train else logits

    side = JaxSide(apply, {'fc': {'kernel': kernel, 'bias': bias}}, {}, 'float32')
    images, labels = random_inputs(Workload('', '', 4, 'float32', 1), 'train', 2, 2)
    assert images.dtype == np.uint8
    training = side.training(images, labels)
    losses = [training.step() for _ in range(3)]

    weights = [kernel.astype(np.float64), bias.astype(np.float64)]
    traces, expected = [0.0, 0.0], []
    for i in (0, 1, 0):
        x = ((images[i] / 255 - MEAN) / STD).mean((1, 2))
        logits = x @ weights[0] + weights[1]
        logs = logits - np.log(np.exp(logits).sum(1, keepdims=True))
        targets = np.eye(CLASSES)[labels[i]] * (1 - CONFIG.label_smoothing) + CONFIG.label_smoothing / CLASSES
        expected.append(-(targets * logs).sum(1).mean())
        delta = (np.exp(logs) - targets) / len(x)
        gradients = [x.T @ delta + CONFIG.weight_decay * weights[0], delta.sum(0)]
        for j, gradient in enumerate(gradients):
            traces[j] = gradient + CONFIG.momentum * traces[j]
            weights[j] = weights[j] - CONFIG.peak_lr * (gradient + CONFIG.momentum * traces[j])
    np.testing.assert_allclose(losses, expected, rtol=1e-6)
    last = ((images[1] / 255 - MEAN) / STD).mean((1, 2)) @ weights[0] + weights[1]
    np.testing.assert_allclose(training.logits(images[1]), last, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(side.params['fc']['kernel'], kernel)  # a run works on a copy


def test_start_reports_times_and_the_growth_of_memory(side, monkeypatch):
    peaks = iter([1000, 5000])
    monkeypatch.setattr(jobs, 'peak_resident', lambda: next(peaks))
    found = jobs.start(dataclasses.asdict(side[1]), 'ours-folded', 'inference', 1)
    assert list(found) == ['build', 'first_call', 'memory']
    assert found['build'] > 0 and found['first_call'] > 0 and found['memory'] == 4000


def test_a_contender_that_fails(here, monkeypatch, tmp_path, capsys):
    class Fake:
        def __init__(self, name):
            self.name = name

        def inference(self, images):
            if self.name == 'ours-folded':
                raise RuntimeError('no luck\nwith more lines')
            return lambda: images

    for name in ('ours', 'ours-folded'):
        row = dataclasses.replace(CONTENDERS[name], load=lambda workload, name=name: Fake(name))
        monkeypatch.setitem(CONTENDERS, name, row)
    flags = [*SMALL, '--contenders', 'ours', 'ours-folded', '--what', 'inference', '--batch-sizes', '1', '2']
    assert command.main(flags) == 1
    captured = capsys.readouterr()
    assert captured.err == 'error: test_resnet: ours-folded was left out: RuntimeError: no luck with more lines\n'
    assert all(f'| test_resnet | inference | {batch} |' in captured.out for batch in (1, 2))


@pytest.fixture
def bench(monkeypatch, tmp_path):
    """A bench with fake processes, and the list of their arguments."""
    asked = []

    def run(job, arguments, threads, environment):
        asked.append((arguments['contender'], arguments['what'], arguments['batch'], environment))
        if arguments['contender'] == 'timm-eager':
            raise processes.JobError('broken')
        if arguments['batch'] > 100:
            raise processes.JobError('RESOURCE_EXHAUSTED: too much', out_of_memory=True)
        return {'build': len(asked), 'first_call': 10 * len(asked), 'memory': 100 * arguments['batch']}

    monkeypatch.setattr(measures, 'in_new_process', run)
    monkeypatch.setattr(turns.gc, 'collect', lambda: 0)
    rows = [CONTENDERS[name] for name in ('ours', 'ours-folded', 'ours-cached', 'timm-eager')]
    return measures.Bench(Workload('test_resnet', '', 32, 'float32', 1), rows, None, tmp_path), asked


def test_from_the_start(bench):
    bench, asked = bench
    found = bench.from_the_start(['build', 'first_call'], 4, 1)
    # All take part in the warm-up round; timm fails there and has no second turn.
    ours = ['ours', 'ours-folded', 'ours-cached']
    assert [name for name, *_ in asked] == [*ours, 'timm-eager', *ours[1:], 'ours']
    assert [(m.what, m.batch, m.contender, m.values) for m in found] == [
        ('build', 0, 'ours', (7,)),
        ('build', 0, 'ours-folded', (5,)),
        ('first_call', 4, 'ours', (70,)),
        ('first_call', 4, 'ours-folded', (50,)),
        ('first_call', 4, 'ours-cached', (60,)),
    ]
    assert bench.failures == [('timm-eager', 'broken')]
    caches = {name: environment['JAX_ENABLE_COMPILATION_CACHE'] for name, *_, environment in asked}
    assert (caches['ours'], caches['ours-cached']) == ('false', 'true')


def test_a_program_on_disk(side, tmp_path):
    """The first process writes the program of `ours-cached`, the second one reads it."""
    bench = measures.Bench(side[1], [CONTENDERS['ours-cached']], None, tmp_path)
    (found,) = bench.from_the_start(['first_call'], 2, 1)
    assert len(found.values) == 1 and found.values[0] > 0 and not bench.failures
    assert len([*(tmp_path / 'programs').glob('test_resnet-*.stablehlo')]) == 1


def test_memory_and_largest_batch(bench):
    bench, asked = bench
    assert [(m.what, m.batch, m.contender, m.values) for m in bench.memory('train', 8)] == [
        ('memory, train', 8, 'ours', (800,))
    ]
    assert bench.failures == [('timm-eager', 'broken')]
    found = bench.largest_batch('inference')
    assert [(m.what, m.contender) for m in found] == [
        ('largest_batch, inference', 'ours'),
        ('largest_batch, inference', 'ours-folded'),
    ]
    assert all(97 <= m.values[0] <= 100 for m in found)


def test_a_process_of_its_own():
    found = processes.in_new_process('devices', {'contenders': ['ours', 'nobody'], 'threads': 1}, 1, {})
    assert found == {'devices': {'ours': 'cpu'}, 'failures': [['nobody', "KeyError: 'nobody'"]]}


def test_a_process_that_hangs():
    with pytest.raises(processes.JobError, match='^its process was stopped after 1 s$'):
        processes.in_new_process('pause', {}, None, {}, 'signal', limit=1)


def test_errors_of_a_process_are_reported(monkeypatch, tmp_path):
    def run(command, **options):
        processes.main(*command[3:6], command[6])
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(processes.subprocess, 'run', run)
    with pytest.raises(processes.JobError, match='^AttributeError: .*no_job') as caught:
        processes.in_new_process('no_job', {}, None, {})
    assert not caught.value.out_of_memory
    killed = subprocess.CompletedProcess([], -9)
    monkeypatch.setattr(processes.subprocess, 'run', lambda command, **options: killed)
    with pytest.raises(processes.JobError, match='exit code -9') as caught:
        processes.in_new_process('devices', {}, None, {})
    assert caught.value.out_of_memory, 'the system kills a process that takes too much memory'


@pytest.mark.parametrize(
    'message, out',
    [
        ('RESOURCE_EXHAUSTED: Out of memory while trying to allocate 12 bytes.', True),
        ('CUDA out of memory. Tried to allocate 2.00 GiB.', True),
        ('shapes do not fit', False),
    ],
)
def test_out_of_memory(message, out):
    assert processes.failure(RuntimeError(f'{message}\nmore')) == (f'RuntimeError: {message} more', out)


@pytest.mark.parametrize(
    'flags, says',
    [
        (['--models', 'resnet51d'], 'did you mean resnet50d'),
        (['--models', 'test_tresnet', '--image-size', '33'], 'multiples of 4'),
        (['--contenders', 'them'], "unknown contender 'them'"),
        (['--contenders', 'ours', 'jaxnn'], 'jaxnn: nowhere is not installed'),
        (['--check'], 'pip install timm'),
        (['--rounds', '0'], '--rounds must be positive'),
        (['--batch-sizes', '4', '-1'], '--batch-sizes must be positive'),
        (['--threads', '0'], '--threads must be 1 to'),
        (['--what', 'largest_batch'], 'requires a GPU'),
        (['--out', 'pyproject.toml'], 'pyproject.toml'),
    ],
)
def test_bad_input(here, monkeypatch, capsys, flags, says):
    for name in ('jaxnn', 'timm-eager', 'timm-channels-last'):
        monkeypatch.setitem(CONTENDERS, name, dataclasses.replace(CONTENDERS[name], package='nowhere'))
    assert command.main([*SMALL, *flags]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith('error: ') and says in captured.err
    assert captured.err.count('\n') == 1 and not captured.out


def test_default_contenders(monkeypatch):
    for name, row in [*CONTENDERS.items()]:
        if not name.startswith('ours'):
            monkeypatch.setitem(CONTENDERS, name, dataclasses.replace(row, package='nowhere'))
    everyone = [row.name for row in command.choose_contenders(command.BenchmarkArguments())]
    assert everyone == ['ours', 'ours-folded', 'ours-winograd', 'ours-cached']
    named = command.BenchmarkArguments(contenders=('ours-remat', 'ours'))
    assert [row.name for row in command.choose_contenders(named)] == ['ours', 'ours-remat']


def test_rows_of_the_table():
    for name, row in CONTENDERS.items():
        assert isinstance(row, Contender) and row.name == name
        assert set(row.measures) <= set(MEASURES)
    peers = {name: {a for a in ('resnet18d', 'resnet26d', 'resnet50d', 'tresnet_m') if CONTENDERS[name].has(a)}
             for name in ('jaxnn', 'jax-resnet', 'keras-hub')}  # fmt: skip
    assert peers == {
        'jaxnn': {'resnet18d', 'resnet26d', 'resnet50d'},
        'jax-resnet': {'resnet18d', 'resnet50d'},
        'keras-hub': {'resnet26d', 'resnet50d'},
    }


def test_drawing_weights_does_not_start_jax():
    """It would take most of a GPU's memory, before the processes that measure start."""
    code = "from benchmarking.command import draw_weights; draw_weights('test_tresnet')"
    environment = os.environ | {'PYTHONPATH': os.pathsep.join(sys.path), 'JAX_PLATFORMS': 'absent'}
    done = subprocess.run([sys.executable, '-c', code], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_weights_have_timms_names():
    drawn = command.draw_weights('test_tresnet')
    assert drawn['body.conv1.conv.weight'].shape == (16, 48, 3, 3)
    assert (drawn['body.conv1.bn.weight'] < 0).any() and np.ptp(drawn['body.conv1.bn.running_var']) > 0.1
