"""kill -9 at random moments of one run: what is lost are the steps since the last save, and the end is the same."""

import collections
import dataclasses
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.helpers.forked_training import Training, Trainings, forked_trainings
from tests.helpers.runs import TINY
from tresnet_jax.checkpoints.digests import CUSTOM, DIGESTS, METADATA_PART
from tresnet_jax.checkpoints.run import CHECKPOINTS
from tresnet_jax.training.metrics import read_records
from tresnet_jax.training.run_config import save_config

EVERY = 8  # steps between evaluations, of 6 steps in an epoch
# Everything random, and a moving average.
CONFIG = dataclasses.replace(TINY, devices=1, checkpoint_every=2, eval_every=EVERY / 6, log_every=1, keep_last=2)


@pytest.fixture(scope='module')
def trainings(tmp_path_factory) -> Iterator[Trainings]:
    with forked_trainings(tmp_path_factory.mktemp('trainings')) as found:
        yield found


def new_run(folder: Path, steps: int) -> Path:
    folder.mkdir()
    save_config(dataclasses.replace(CONFIG, steps=steps), folder)
    return folder


def steps_in(workdir: Path, half: bool = False) -> list[int]:
    """Return the steps of the complete checkpoints, or of those that are being written."""
    folder = workdir / CHECKPOINTS
    names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    return sorted(int(name.split('.')[0]) for name in names if name.isdecimal() is not half)


def end_of(workdir: Path, step: int) -> tuple[dict, list]:
    """Return the digests of the state at a step, and all metrics of the run that do not depend on time."""
    metadata = json.loads((workdir / CHECKPOINTS / str(step) / METADATA_PART).read_text())
    timeless = dict.fromkeys(('time', 'images_per_second', 'wait'))
    return metadata[CUSTOM][DIGESTS], [record | timeless for record in read_records(workdir)]


def evaluating(workdir: Path) -> bool:
    """Return whether the last checkpoint is one to evaluate and has no metrics yet."""
    steps = steps_in(workdir)
    if not steps or steps[-1] % EVERY or steps_in(workdir, half=True):
        return False
    return not any(r['kind'] == 'eval' and r['step'] == steps[-1] for r in read_records(workdir))


def wait_until(process: Training, condition: Callable[[], bool], seconds: float) -> None:
    until = time.monotonic() + seconds
    while not condition() and time.monotonic() < until and process.poll() is None:
        time.sleep(0.001)


def last_step(workdir: Path) -> int:
    return max((record['step'] for record in read_records(workdir)), default=0)


def killed_and_resumed(trainings: Trainings, folder: Path, kills: int, steps: int) -> None:
    """Kill a run that many times, resume it, and compare it with one that was left alone."""
    whole, run = new_run(folder / 'whole', steps), new_run(folder / 'run', steps)
    began = time.monotonic()
    undisturbed = trainings.start('--workdir', whole)
    wait_until(undisturbed, undisturbed.opened, 300)
    opening = time.monotonic() - began

    rng = np.random.default_rng(0)
    found: collections.Counter[str] = collections.Counter()
    lost: list[int] = []
    for number in range(kills):
        process = trainings.start('--workdir', run)
        aim = ('saving', 'evaluating', 'any', 'resuming')[number % 4]
        if aim == 'resuming':
            time.sleep(rng.uniform(0, opening))
        else:
            wait_until(process, process.opened, 300)
            had = steps_in(run)[-1:]
            if aim == 'any':
                time.sleep(rng.uniform(0, 0.3))
            elif aim == 'saving':
                wait_until(process, lambda: bool(steps_in(run, half=True)), 20)
            else:
                wait_until(process, lambda had=had: steps_in(run)[-1:] > had and evaluating(run), 20)
        process.kill()
        code = process.wait()
        assert code in (-9, 0), process.output()
        assert code == -9, f'the run has ended after {number} kills'
        assert 'Traceback' not in process.output() and 'error: ' not in process.output()
        kind = 'saving' if steps_in(run, half=True) else 'evaluating' if evaluating(run) else 'training'
        found[kind if process.opened() else 'resuming'] += 1
        lost.append(last_step(run) - (steps_in(run)[-1:] or [0])[0])

    process = trainings.start('--workdir', run)
    for each in (process, undisturbed):
        assert each.wait(1500) == 0, each.output()
    print(f'{kills} kills: {dict(found)}; steps lost: {dict(sorted(collections.Counter(lost).items()))}')
    assert max(lost) <= 2 * CONFIG.checkpoint_every, 'those since the save before the one under way'
    assert end_of(run, steps) == end_of(whole, steps)
    assert not steps_in(run, half=True)
    if kills > 10:
        assert {*found} == {'saving', 'evaluating', 'resuming', 'training'}


def test_killed_five_times(trainings, tmp_path):
    killed_and_resumed(trainings, tmp_path, kills=5, steps=24)


@pytest.mark.slow
def test_killed_fifty_times(trainings, tmp_path):
    killed_and_resumed(trainings, tmp_path, kills=50, steps=280)
