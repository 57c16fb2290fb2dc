"""Faults around a run, on its command line: what it says, what it leaves, and that it resumes to the same end."""

import dataclasses
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.helpers.forked_training import Training, Trainings, forked_trainings
from tests.helpers.paths import ROOT
from tests.helpers.run_folders import end_of, last_step, new_run, steps_in
from tests.helpers.runs import TINY
from tresnet_jax.checkpoints.run import CHECKPOINTS
from tresnet_jax.training.metrics import read_records

pytestmark = pytest.mark.slow

CONFIG = dataclasses.replace(
    TINY, devices=1, steps=24, checkpoint_every=2, eval_every=8 / 6, log_every=1, keep_last=3, warmup_epochs=0
)
# Root may write everywhere; without these two capabilities, permissions hold for it, too.
OBEYS = """
import ctypes
libc, header, data = ctypes.CDLL(None), (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
libc.capget(header, data)
data[0], data[1] = data[0] & ~6, data[1] & ~6
libc.capset(header, data)
"""
# The clock goes back a day, and twice forward by five minutes. By hours, Orbax would give up a save.
STEPPING = """
import itertools, time
real, calls = time.time, itertools.count()
time.time = lambda: real() + (0, -86_400, -86_100, -85_800)[min(next(calls) // 300, 3)]
"""


@pytest.fixture(scope='module')
def trainings(tmp_path_factory) -> Iterator[Trainings]:
    with forked_trainings(tmp_path_factory.mktemp('trainings')) as found:
        yield found


@pytest.fixture(scope='module')
def whole(trainings, tmp_path_factory) -> Path:
    """A run that nothing happened to."""
    run = new_run(tmp_path_factory.mktemp('whole') / 'run', CONFIG)
    process = trainings.start('--workdir', run)
    assert process.wait() == 0, process.output()
    return run


def error_of(process: Training) -> str:
    """Return the one line of a process that ends with an error."""
    assert process.wait() == 2, process.output()
    lines = process.output().splitlines()
    errors = [line for line in lines if line.startswith('error: ')]
    assert len(errors) == 1 and lines[-1] == errors[0] and 'Traceback' not in process.output(), process.output()
    return errors[0]


def finish(trainings: Trainings, run: Path, whole: Path) -> None:
    """Resume a run, and compare its end with that of an undisturbed one."""
    process = trainings.start('--workdir', run)
    assert process.wait() == 0, process.output()
    assert '; resumes at step ' in process.output()
    assert end_of(run) == end_of(whole)


def test_read_only_folder(trainings, whole, tmp_path):
    """From some step on, and from the start."""
    run = new_run(tmp_path / 'run', CONFIG)
    process = trainings.start('--workdir', run, code=OBEYS)
    assert process.wait_until(lambda: steps_in(run)), process.output()
    folders = [run, run / CHECKPOINTS, run / 'tensorboard']
    for folder in folders:
        folder.chmod(0o555)
    try:
        line = error_of(process)
        assert f'{run}/{CHECKPOINTS}: the checkpoint of step ' in line and 'ermission denied' in line
        assert f'the last good checkpoint is step {steps_in(run)[-1]}. Free disk space or fix permissions' in line
        line = error_of(trainings.start('--workdir', run, code=OBEYS))
        assert line.startswith(f'error: {run}') and line.endswith(': Permission denied')
    finally:
        for folder in folders:
            folder.chmod(0o755)
    finish(trainings, run, whole)


def test_folder_that_goes_and_comes_back(trainings, whole, tmp_path):
    run, away = new_run(tmp_path / 'run', CONFIG), tmp_path / 'away'
    process = trainings.start('--workdir', run)
    assert process.wait_until(lambda: steps_in(run)), process.output()
    run.rename(away)
    line = error_of(process)
    assert 'the folder has gone' in line and 'Start the run again when it is back' in line or 'does not exist' in line
    assert len(steps_in(run)) <= 1, 'a save that was under way'
    shutil.rmtree(run, ignore_errors=True)
    away.rename(run)
    finish(trainings, run, whole)


def test_clock_that_jumps(trainings, whole, tmp_path):
    """Also between two processes of a run."""
    run = new_run(tmp_path / 'run', CONFIG)
    process = trainings.start('--workdir', run, code=STEPPING)
    assert process.wait_until(lambda: last_step(run) > 10), process.output()
    process.kill(signal.SIGTERM)
    assert process.wait() == 0 and 'interrupted and saved at step' in process.output()
    times = [record['time'] for record in read_records(run)]
    assert (np.abs(np.diff(times)) > 200).any(), 'the clock has jumped'
    finish(trainings, run, whole)


def test_sigterm_while_a_save_is_under_way(trainings, whole, tmp_path):
    """The save is completed, and the last step is saved, too."""
    run = new_run(tmp_path / 'run', CONFIG)
    process = trainings.start('--workdir', run)
    assert process.wait_until(lambda: steps_in(run, half=True)), process.output()
    process.kill(signal.SIGTERM)
    assert process.wait() == 0, process.output()
    assert f'interrupted and saved at step {steps_in(run)[-1]}; to resume' in process.output()
    assert steps_in(run)[-1] == last_step(run) and not steps_in(run, half=True)
    finish(trainings, run, whole)


FULL_DISK = """
set -e
mount -t tmpfs -o size=8m tmpfs "$1"
cp -r "$2" "$1/run"
code=0; "${@:4}" "$1/run" || code=$?
echo "code $code"; ls "$1/run/checkpoints"
mount -o remount,size=100m "$1"
"${@:4}" "$1/run"
cp -r "$1/run" "$3"
"""


def can_mount(folder: Path) -> bool:
    command = ['unshare', '--mount', 'mount', '-t', 'tmpfs', 'tmpfs', str(folder)]
    return shutil.which('unshare') is not None and subprocess.run(command, capture_output=True).returncode == 0


def test_full_disk(trainings, whole, tmp_path):
    """A file system of 8 MB, in which two checkpoints do not fit; with more space, the run continues."""
    mount, new, end = tmp_path / 'mount', new_run(tmp_path / 'new', CONFIG), tmp_path / 'end'
    mount.mkdir()
    if not can_mount(mount):
        pytest.skip('this system lets nobody mount file systems')
    train = [sys.executable, str(ROOT / 'scripts' / 'train.py'), '--workdir']
    command = ['unshare', '--mount', 'bash', '-c', FULL_DISK, 'bash', *map(str, (mount, new, end)), *train]
    done = subprocess.run(command, env=trainings.environment, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr
    assert 'code 2\n' in done.stdout and 'Traceback' not in done.stderr
    errors = [line for line in done.stderr.splitlines() if line.startswith('error: ')]
    assert len(errors) == 1 and 'No space left on device' in errors[0] and 'Free disk space' in errors[0]
    assert '; resumes at step ' in done.stdout
    assert end_of(end) == end_of(whole)


def test_images_that_change(trainings, tmp_path):
    """Cut, replaced by something else, removed: named and skipped. The next start asks whether that was meant."""
    rng = np.random.default_rng(0)
    photos = tmp_path / 'photos'
    for name in ('a', 'b'):
        for part, count in (('train', 24), ('val', 4)):
            folder = photos / part / name
            folder.mkdir(parents=True)
            for number in range(count):
                Image.fromarray(rng.integers(0, 255, (40, 40, 3), np.uint8)).save(folder / f'{number}.png')
    data = {'data': f'folder:{photos}', 'train_split': 'train', 'val_split': None, 'max_unreadable': 0.1}
    run = new_run(tmp_path / 'run', dataclasses.replace(CONFIG, steps=400, eval_every=1000.0, **data))
    process = trainings.start('--workdir', run)
    assert process.wait_until(lambda: last_step(run) >= 3), process.output()
    cut, other, gone = (photos / 'train' / name for name in ('a/3.png', 'a/7.png', 'b/5.png'))
    os.truncate(cut, 900)
    other.write_text('no image')
    gone.unlink()
    assert process.wait_until(lambda: last_step(run) >= 60), process.output()
    process.kill(signal.SIGTERM)
    assert process.wait() == 0, process.output()
    log = (run / 'unreadable.log').read_text().splitlines()
    assert len(log) == 3 and {line.partition(': ')[0] for line in log} == {str(cut), str(other), str(gone)}
    line = error_of(trainings.start('--workdir', run))
    assert 'the run began with something else: 47 training images instead of 48' in line and '--accept-changes' in line
    process = trainings.start('--workdir', run, '--accept-changes', '--stop-epoch', '21')
    assert process.wait() == 0, process.output()
    assert 'accepted: 47 training images instead of 48' in process.output()
