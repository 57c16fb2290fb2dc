"""Training as processes that are killed, run out of disk, or are several. Part of ``make test-all``."""

import dataclasses
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from tests.helpers.closeness import assert_close, assert_identical
from tests.helpers.paths import ROOT
from tests.helpers.processes import free_port
from tests.helpers.runs import TINY
from tresnet_jax.checkpoints.run import CHECKPOINTS, load_weights
from tresnet_jax.training.config import TrainConfig
from tresnet_jax.training.metrics import read_records
from tresnet_jax.training.run_config import save_config

pytestmark = pytest.mark.slow

CONFIG = dataclasses.replace(TINY, steps=12, checkpoint_every=1, eval_every=1.0, keep_last=3)


@pytest.fixture(scope='module')
def environment(tmp_path_factory) -> dict[str, str]:
    """Programs are compiled once for all processes."""
    found = dict(os.environ) | {'JAX_COMPILATION_CACHE_DIR': str(tmp_path_factory.mktemp('compiled'))}
    found |= {'JAX_ENABLE_COMPILATION_CACHE': 'true'}
    return found | {'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0', 'JAX_PLATFORMS': 'cpu', 'PYTHONPATH': str(ROOT)}


def start(environment, workdir: Path, *flags: str, limit: int | None = None) -> subprocess.Popen:
    """train.py on the configuration in a folder; `limit` is the largest file in bytes."""
    command = [sys.executable, str(ROOT / 'scripts' / 'train.py'), '--workdir', str(workdir), *flags]
    if limit is not None:  # set by a process in between: a forked one that runs Python first is not safe beside JAX
        code = 'import os, resource, sys; n = int(sys.argv[1]); resource.setrlimit(resource.RLIMIT_FSIZE, (n, n)); '
        command = [sys.executable, '-c', code + 'os.execv(sys.argv[2], sys.argv[2:])', str(limit), *command]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(process: subprocess.Popen, code: int = 0) -> tuple[str, str]:
    out, err = process.communicate(timeout=600)
    assert process.returncode == code, err
    return out, err


def finish_all(processes: list[subprocess.Popen]) -> list[str]:
    """Return what each printed. If one fails, the message has what all said."""
    said = [process.communicate(timeout=600) for process in processes]
    assert [process.returncode for process in processes] == [0] * len(processes), said
    return [out for out, _ in said]


def new_run(folder: Path, config: TrainConfig = CONFIG) -> Path:
    folder.mkdir()
    save_config(config, folder)
    return folder


def weights(workdir: Path) -> list[np.ndarray]:
    saved = load_weights(workdir, 'latest', ema=True)
    return jax.tree.leaves((saved.params, saved.batch_stats))


def whole_checkpoints(workdir: Path) -> list[int]:
    folder = workdir / CHECKPOINTS
    return sorted(int(p.name) for p in folder.iterdir() if p.name.isdecimal()) if folder.is_dir() else []


def wait_for(process: subprocess.Popen, condition) -> None:
    """Poll closely: a save of a small state takes some ten milliseconds."""
    until = time.monotonic() + 300
    while not condition():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < until
        time.sleep(0.001)


@pytest.fixture(scope='module')
def uninterrupted(environment, tmp_path_factory) -> Path:
    workdir = new_run(tmp_path_factory.mktemp('whole') / 'run')
    out, _ = finish(start(environment, workdir))
    assert 'done: ' in out
    return workdir


def test_ended_in_the_middle_of_a_save(environment, uninterrupted, tmp_path):
    """While a checkpoint is being written. After kill -9 the next start takes the one before; the end is the same."""
    workdir = new_run(tmp_path / 'run')
    for at_least, number in ((1, signal.SIGKILL), (4, signal.SIGTERM), (7, signal.SIGKILL)):
        process = start(environment, workdir)

        def half_written(at_least=at_least):
            names = [p.name for p in (workdir / CHECKPOINTS).glob('*')] if (workdir / CHECKPOINTS).is_dir() else []
            half = [name for name in names if 'tmp' in name and not name.isdecimal()]
            return any(int(name.split('.')[0]) > at_least for name in half)

        wait_for(process, half_written)
        process.send_signal(number)
        out, _ = process.communicate(timeout=600)
        if number == signal.SIGTERM:
            assert process.returncode == 0 and f'saved at step {whole_checkpoints(workdir)[-1]}; to resume' in out
    out, _ = finish(start(environment, workdir))
    assert 'resumes at step' in out
    assert_identical(weights(workdir), weights(uninterrupted))
    assert all(path.name.isdecimal() for path in (workdir / CHECKPOINTS).iterdir())


def test_killed_at_random(environment, uninterrupted, tmp_path):
    """kill -9 some time after a checkpoint: at most the steps since it are lost."""
    workdir = new_run(tmp_path / 'run')
    rng = np.random.default_rng(0)
    for _ in range(3):
        had = whole_checkpoints(workdir)[-1:] or [0]
        process = start(environment, workdir)
        wait_for(process, lambda had=had: whole_checkpoints(workdir)[-1:] > had)
        time.sleep(rng.uniform(0, 0.5))
        process.kill()
        process.communicate()
        if whole_checkpoints(workdir)[-1] == CONFIG.steps:
            break
    finish(start(environment, workdir))
    assert_identical(weights(workdir), weights(uninterrupted))
    steps = [(r['kind'], r['step']) for r in read_records(workdir)]
    assert len(steps) == len(set(steps))


def evaluations(workdir: Path) -> list[dict]:
    return [r | {'time': 0} for r in read_records(workdir) if r['kind'] == 'eval']


def test_ended_in_the_evaluation(environment, tmp_path):
    """SIGTERM, kill -9: nothing is lost, and the metrics are those of an undisturbed run."""
    config = dataclasses.replace(CONFIG, steps=6, eval_every=1.0, val_split='test', val_batch_size=2, devices=1)
    whole, workdir = (new_run(tmp_path / name, config) for name in ('whole', 'run'))
    finish(start(environment, whole))
    process = start(environment, workdir)
    wait_for(process, lambda: whole_checkpoints(workdir)[-1:] == [6])
    process.send_signal(signal.SIGTERM)
    out, _ = finish(process)
    assert 'interrupted and saved at step 6; to resume' in out and not evaluations(workdir)

    process = start(environment, workdir)
    while 'resumes at step 6' not in process.stdout.readline():
        assert process.poll() is None
    time.sleep(0.2)
    process.kill()
    process.communicate()
    assert not evaluations(workdir)
    finish(start(environment, workdir))
    assert evaluations(workdir) == evaluations(whole) != []
    assert_identical(weights(workdir), weights(whole))
    assert load_weights(workdir).rating == load_weights(whole).rating == evaluations(whole)[-1]['ema_top1']


def test_full_disk(environment, uninterrupted, tmp_path):
    """Training stops with one line that names the last good checkpoint, which is whole; with space it continues."""
    workdir = new_run(tmp_path / 'run')
    process = start(environment, workdir)
    wait_for(process, lambda: len(whole_checkpoints(workdir)) >= 2)
    process.send_signal(signal.SIGTERM)
    out, _ = finish(process)
    assert 'interrupted and saved at step' in out
    good = whole_checkpoints(workdir)[-1]
    _, err = finish(start(environment, workdir, limit=60_000), code=2)
    line = err.strip().splitlines()[-1]
    assert line.startswith('error: ') and 'cannot be written' in line and f'last good checkpoint is step {good}' in line
    assert whole_checkpoints(workdir)[-1] == good
    finish(start(environment, workdir))
    assert_identical(weights(workdir), weights(uninterrupted))


def several(environment, workdir: Path, count: int = 2) -> list[subprocess.Popen]:
    flags = ('--devices', '2', '--coordinator', f'127.0.0.1:{free_port()}', '--num-processes', str(count))
    return [start(environment, workdir, *flags, '--process-id', str(i)) for i in range(count)]


def test_two_processes_of_two_devices_are_four_devices(environment, tmp_path):
    """The same trajectory to 1e-9 in float64; after SIGTERM to one of them, both save, and resume later."""
    everything = {'cutmix': 1.0, 'cutout': 0.3, 'drop': 0.2, 'accumulate': 2}  # beside mixup, erasing and drop path
    config = dataclasses.replace(CONFIG, dtype='float64', devices=4, checkpoint_every=100, **everything)
    one, two = (new_run(tmp_path / name, config) for name in ('one', 'two'))
    finish(start(environment, one))
    processes = several(environment, two)
    wait_for(processes[0], lambda: any(r['step'] >= 2 for r in read_records(two)))
    processes[1].send_signal(signal.SIGTERM)
    outs = finish_all(processes)
    assert 'interrupted and saved at step' in outs[0] and 'step' not in outs[1]  # the first speaks for all
    assert whole_checkpoints(two)[-1] < config.steps
    finish_all(several(environment, two))
    assert_close(weights(two), weights(one), 1e-9)
    evaluations = [[r['top1'] for r in read_records(folder) if r['kind'] == 'eval'][-1] for folder in (one, two)]
    assert evaluations[0] == evaluations[1]


def test_a_process_that_is_missing(environment, tmp_path):
    """A run whose other host never comes ends with one line."""
    workdir = new_run(tmp_path / 'run')
    flags = ('--coordinator', f'127.0.0.1:{free_port()}', '--num-processes', '2')
    _, err = finish(start(environment, workdir, *flags), code=2)
    assert '--process-id' in err.strip().splitlines()[-1]
