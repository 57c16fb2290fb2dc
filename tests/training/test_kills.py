"""kill -9 at random moments of one run: what is lost are the steps since the last save, and the end is the same."""

import collections
import dataclasses
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.helpers.forked_training import Trainings, forked_trainings
from tests.helpers.run_folders import end_of, last_step, new_run, steps_in
from tests.helpers.runs import TINY
from tresnet_jax.training.metrics import read_records

EVERY = 8  # steps between evaluations, of 6 steps in an epoch
# Everything random, and a moving average.
CONFIG = dataclasses.replace(TINY, devices=1, checkpoint_every=2, eval_every=EVERY / 6, log_every=1, keep_last=2)


@pytest.fixture(scope='module')
def trainings(tmp_path_factory) -> Iterator[Trainings]:
    with forked_trainings(tmp_path_factory.mktemp('trainings')) as found:
        yield found


def evaluating(workdir: Path) -> bool:
    """Return whether the last checkpoint is one to evaluate and has no metrics yet."""
    steps = steps_in(workdir)
    if not steps or steps[-1] % EVERY or steps_in(workdir, half=True):
        return False
    return not any(r['kind'] == 'eval' and r['step'] == steps[-1] for r in read_records(workdir))


def killed_and_resumed(trainings: Trainings, folder: Path, kills: int, steps: int) -> None:
    """Kill a run that many times, resume it, and compare it with one that was left alone."""
    config = dataclasses.replace(CONFIG, steps=steps)
    whole, run = (new_run(folder / name, config) for name in ('whole', 'run'))
    began = time.monotonic()
    undisturbed = trainings.start('--workdir', whole)
    undisturbed.wait_until(undisturbed.opened)
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
            process.wait_until(process.opened)
            had = steps_in(run)[-1:]
            if aim == 'any':
                time.sleep(rng.uniform(0, 0.1))
            elif aim == 'saving':
                process.wait_until(lambda: bool(steps_in(run, half=True)), 20)
            else:
                process.wait_until(lambda had=had: steps_in(run)[-1:] > had and evaluating(run), 20)
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
    assert end_of(run) == end_of(whole)
    assert not steps_in(run, half=True)
    if kills > 10:
        assert {*found} == {'saving', 'evaluating', 'resuming', 'training'}


def test_killed_three_times(trainings, tmp_path):
    killed_and_resumed(trainings, tmp_path, kills=3, steps=18)


@pytest.mark.slow
def test_killed_fifty_times(trainings, tmp_path):
    killed_and_resumed(trainings, tmp_path, kills=50, steps=280)
