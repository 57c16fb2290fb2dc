"""Every schedule against timm's and torch's: the learning rate of each step, per update and per epoch."""

import dataclasses
from typing import Any

import numpy as np
import pytest
import timm.scheduler
import torch

from tresnet_jax.errors import TrainingError
from tresnet_jax.training.config import TrainConfig
from tresnet_jax.training.schedules import DECAYS, create_schedule, run_steps

EPOCHS, UPDATES = 12, 7  # updates in an epoch
PLAIN = TrainConfig(lr=0.3, epochs=EPOCHS, warmup_epochs=0, warmup_lr=1e-3, min_lr=0.01)
CASES: dict[str, dict[str, Any]] = {
    'cosine': {},
    'cosine, warm-up': {'warmup_epochs': 3},
    'cosine, warm-up before, cooldown': {'warmup_epochs': 3, 'warmup_prefix': True, 'cooldown_epochs': 2},
    'cosine, k': {'warmup_epochs': 3, 'lr_k_decay': 1.5},
    'poly': {'sched': 'poly', 'decay_rate': 0.7, 'warmup_epochs': 2},
    'poly, k, cooldown': {'sched': 'poly', 'decay_rate': 2.0, 'lr_k_decay': 0.5, 'cooldown_epochs': 2},
    'step': {'sched': 'step', 'decay_epochs': 2.5, 'decay_rate': 0.5, 'warmup_epochs': 3},
    'step, warm-up before': {'sched': 'step', 'decay_epochs': 4, 'warmup_epochs': 3, 'warmup_prefix': True},
    'multistep': {'sched': 'multistep', 'decay_milestones': (3, 7), 'warmup_epochs': 2},
    'multistep, warm-up before': {
        'sched': 'multistep', 'decay_milestones': (3, 7, 9), 'warmup_epochs': 2, 'warmup_prefix': True,
    },
    'constant': {'sched': 'constant', 'warmup_epochs': 4},
    'wsd': {'sched': 'wsd', 'warmup_epochs': 2},
    'wsd, no warm-up, cooldown': {'sched': 'wsd', 'decay_epochs': 5, 'cooldown_epochs': 1},
    'wsd, warm-up before': {'sched': 'wsd', 'decay_epochs': 0.5, 'warmup_epochs': 2, 'warmup_prefix': True},
    **{f'wsd, {fn}': {'sched': 'wsd', 'lr_decay_fn': fn, 'decay_epochs': 6} for fn in sorted(DECAYS)},
}  # fmt: skip


def timm_rates(config: TrainConfig) -> list[float]:
    """Return the learning rate of each update of a run as timm's train.py sets it."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=config.peak_lr)
    options = dataclasses.asdict(config)
    names = ('sched', 'decay_rate', 'min_lr', 'warmup_lr', 'warmup_prefix', 'decay_milestones')
    found = timm.scheduler.create_scheduler_v2(
        optimizer,
        num_epochs=EPOCHS,
        decay_epochs=config.decay_epochs,
        warmup_epochs=int(config.warmup_epochs),
        cooldown_epochs=int(config.cooldown_epochs),
        k_decay=config.lr_k_decay,
        decay_fn=config.lr_decay_fn,
        step_on_epochs=not config.sched_on_updates,
        updates_per_epoch=UPDATES,
        **{name: options[name] for name in names},
    )
    scheduler, epochs = found
    assert scheduler is not None
    rates = []
    for epoch in range(epochs):
        for update in range(UPDATES):
            rates.append(optimizer.param_groups[0]['lr'])
            scheduler.step_update(epoch * UPDATES + update + 1)
        scheduler.step(epoch + 1)
    return rates


@pytest.mark.usefixtures('x64', 'standard_promotion')
@pytest.mark.parametrize('on_updates', [True, False], ids=['per update', 'per epoch'])
@pytest.mark.parametrize('case', CASES)
def test_schedule(case, on_updates):
    config = dataclasses.replace(PLAIN, **CASES[case], sched_on_updates=on_updates)
    expected = timm_rates(config)
    steps = run_steps(config, UPDATES)
    assert steps == len(expected)
    schedule = create_schedule(config, steps, UPDATES)
    np.testing.assert_allclose([float(schedule(step)) for step in range(steps)], expected, rtol=1e-13)


@pytest.mark.usefixtures('x64', 'standard_promotion')
@pytest.mark.parametrize('pct_start', [0.0, 0.3, 1.0])
def test_one_cycle(pct_start):
    """torch's, at each step, whatever `sched_on_updates` says."""
    config = dataclasses.replace(PLAIN, sched='one_cycle', pct_start=pct_start, sched_on_updates=False)
    steps = EPOCHS * UPDATES
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    theirs = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, config.peak_lr, total_steps=steps, pct_start=pct_start, cycle_momentum=False,
        div_factor=config.div_factor, final_div_factor=config.final_div_factor,
    )  # fmt: skip
    schedule = create_schedule(config, steps, UPDATES)
    for step in range(steps):
        assert float(schedule(step)) == pytest.approx(optimizer.param_groups[0]['lr'], rel=1e-12, abs=1e-12)
        optimizer.step()
        if step + 1 < steps:
            theirs.step()


@pytest.mark.parametrize('decay, warmup', [(13, 0), (11, 2), (0.01, 0)])
def test_a_decay_that_does_not_fit(decay, warmup):
    config = dataclasses.replace(PLAIN, sched='wsd', decay_epochs=decay, warmup_epochs=warmup, sched_on_updates=False)
    with pytest.raises(TrainingError, match='the decay of --sched wsd must be at least 1 and at most all of them'):
        create_schedule(config, EPOCHS * UPDATES, UPDATES)


def test_steps_instead_of_epochs():
    """The number of steps includes what timm adds, so the schedule is that much shorter."""
    config = dataclasses.replace(PLAIN, steps=100, cooldown_epochs=2)
    assert run_steps(config, UPDATES) == 100
    for on_updates in (True, False):
        schedule = create_schedule(dataclasses.replace(config, sched_on_updates=on_updates), 100, UPDATES)
        assert float(schedule(0)) == pytest.approx(0.3) and float(schedule(99)) == pytest.approx(0.01)
        assert float(schedule(80)) > 0.0101 and float(schedule(88 + 3)) == pytest.approx(0.01)
