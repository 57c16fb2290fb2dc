"""Means of checkpoints: in float64, of files and of the best steps of runs, refused unless they fit together."""

import json
import shutil

import numpy as np
import pytest
import safetensors.numpy

import convert
from convert import average as averaging
from convert.__main__ import main
from tests.helpers.runs import make_run
from tests.helpers.states import RESNET, TRESNET, State, without
from tresnet_jax.checkpoints.run import MODEL_FILE, rated_steps

PLAIN: State = {key: np.asarray(value, np.float32) for key, value in RESNET.items() if not key.endswith('tracked')}


def write(path, state: State, count: int = 0, **metadata: str):
    """Write a state dict as safetensors, with counters of batches."""
    counters = {
        key.replace('running_var', 'num_batches_tracked'): np.array(count) for key in state if 'running_v' in key
    }
    safetensors.numpy.save_file(state | counters, path, metadata or None)
    return path


def filled(value: float, dtype: str = 'float32') -> State:
    return {key: np.full_like(x, value, dtype) for key, x in PLAIN.items()}


@pytest.fixture(scope='module')
def run(tmp_path_factory):
    """A run with checkpoints 3, 5 and 7, of which 7 was not evaluated. The n-th holds n times the weights."""
    folder = tmp_path_factory.mktemp('run')
    make_run(folder)
    return folder


def average(*arguments) -> int:
    return main(['average', *map(str, arguments)])


def test_files(tmp_path, capsys):
    """In float64: in float32, 1e8 + 1 - 1e8 is 0. Running statistics too; counters stay whole, and are the largest."""
    files = [write(tmp_path / f'{i}.safetensors', filled(x), i) for i, x in enumerate((1e8, 1.0, -1e8))]
    target = tmp_path / 'mean.safetensors'
    assert average(*files, '--output', target, '--to', 'torch') == 0
    assert [*map(str, files)] == capsys.readouterr().out.splitlines()[:3]
    for key, value in safetensors.numpy.load_file(target).items():
        if key.endswith('num_batches_tracked'):
            assert value.dtype == np.int64 and value == 2
        else:
            assert value.dtype == np.float32 and (value == np.float32(1 / 3)).all()
    assert average(*files, '--output', tmp_path / 'flax.safetensors') == 0
    params, stats, report = convert.to_flax(convert.read(tmp_path / 'flax.safetensors'))
    assert report.architecture == 'test_resnet' and set(report.counters.values()) == {2}
    assert params['fc']['bias'].dtype == np.float32 and (stats['bn1']['var'] == np.float32(1 / 3)).all()


def test_one_of_several_networks_of_each_file(tmp_path, capsys):
    files = []
    for number, teacher in enumerate((2.0, 4.0)):
        both = {f'student.{key}': x for key, x in filled(1).items()}
        both |= {f'teacher.{key}': x for key, x in filled(teacher).items()}
        files.append(write(tmp_path / f'{number}.safetensors', both))
    target = tmp_path / 'mean.safetensors'
    assert average(*files, '--output', target) == 2
    assert 'choose one of its networks with --key' in capsys.readouterr().err and not target.exists()
    assert average(*files, '--output', target, '--key', ':teacher') == 0
    assert (convert.read(target).tensors['params.fc.bias'] == 3).all()


def test_runs(run, tmp_path, capsys):
    """The best checkpoints by their metric, or the given ones."""
    target = tmp_path / 'mean.safetensors'
    one = convert.to_flax(convert.read(run, step=3))[0]['conv1'][0]['kernel']
    for flags, factor, steps in (((), 1.5, (3, 5)), (('--steps', 5, 7), 2.5, (5, 7))):
        assert average(run, '--output', target, *flags) == 0
        assert capsys.readouterr().out.splitlines()[:2] == [f'{run}, step {step}' for step in steps]
        params, _, report = convert.to_flax(convert.read(target))
        np.testing.assert_allclose(params['conv1'][0]['kernel'], factor * one, rtol=1e-6)
        assert report.data_config == convert.to_flax(convert.read(run))[2].data_config
    assert average(run, '--output', target, '--no-ema') == 0
    params, _, _ = convert.to_flax(convert.read(target))
    np.testing.assert_allclose(params['conv1'][0]['kernel'], 0.75 * one, rtol=1e-6)  # those are half of the averages


def test_refused(run, tmp_path, monkeypatch, capsys):
    """In one line, and nothing is written."""
    a = write(tmp_path / 'a.safetensors', PLAIN)
    nan = write(tmp_path / 'nan.safetensors', PLAIN | {'fc.bias': np.full(10, np.nan, np.float32)})
    other = write(tmp_path / 'other.safetensors', {key: np.asarray(x, np.float32) for key, x in TRESNET.items()})
    wide = {'fc.weight': np.zeros((3, 96), np.float32), 'fc.bias': np.zeros(3, np.float32)}
    three = write(tmp_path / 'three.safetensors', PLAIN | wide)
    headless = write(tmp_path / 'headless.safetensors', without(PLAIN, 'fc.'))
    description = json.loads((run / MODEL_FILE).read_text())
    for name in ('cats', 'dogs'):
        shutil.copytree(run, tmp_path / name)
        (tmp_path / name / MODEL_FILE).write_text(json.dumps(description | {'label_names': [*'abcdefghi', name]}))
    monkeypatch.setattr(averaging, "rated_steps", lambda path: (
        rated_steps(path)[0], dict.fromkeys(rated_steps(path)[1]) if path.name == 'cats' else rated_steps(path)[1]
    ))  # fmt: skip
    target = tmp_path / 'mean.safetensors'
    for sources, message in (
        ((a,), 'one checkpoint alone cannot be averaged'),
        ((a, a), 'a.safetensors: is given twice'),
        ((a, other), 'other.safetensors: is a test_tresnet, '),
        ((a, three), 'three.safetensors: num_classes is 3, but 10 in'),
        ((a, headless), 'headless.safetensors: num_classes is 0, but 10 in'),
        ((a, nan), 'nan.safetensors: fc.bias has values that are not finite'),
        ((a, tmp_path / 'missing.pth'), 'missing.pth'),
        ((run, '--n', '1'), ', step 3: one checkpoint alone cannot be averaged'),
        ((run, '--steps', '3', '4'), 'holds no checkpoint of step 4; it has 3, 5, 7'),
        ((tmp_path / 'cats',), 'no checkpoint was evaluated; choose --steps of 3, 5, 7'),
        ((a, '--steps', '3'), '--steps selects checkpoints of training runs'),
        ((tmp_path / 'cats', tmp_path / 'dogs', '--steps', '3'), 'dogs, step 3: label_names is'),
    ):
        assert average(*sources, '--output', target) == 2
        lines = capsys.readouterr().err.strip().splitlines()
        assert len(lines) == 1 and message in lines[0], lines
    assert not target.exists()
