"""Twenty steps of training beside PyTorch: the same weights and batches, timm's optimisers, schedules and averages.

Everything in float64, on four devices with synchronised batch norm against one torch process.
"""

import dataclasses

import jax
import numpy as np
import pytest
import timm.optim
import timm.scheduler
import torch
from timm.utils import ModelEmaV3

import convert
import tresnet_jax
from tests.helpers.reference import ours, relative_error, state_of, timm_model
from tresnet_jax.training.config import TrainConfig
from tresnet_jax.training.devices import AXIS
from tresnet_jax.training.optim import create_optimizer, create_schedule
from tresnet_jax.training.step import create_state, make_train_step, over_devices, prepare

STEPS, BATCH, SIZE, CLASSES, DEVICES = 20, 16, 32, 5, 4
MEAN, STD = (0.4, 0.5, 0.6), (0.3, 0.25, 0.2)
PLAIN = TrainConfig(
    opt='momentum', lr=0.1, weight_decay=1e-2, sched='constant', warmup_epochs=0, smoothing=0.0, dtype='float64'
)
# What differs from PLAIN. The decay is larger than people use, so that an error in it shows.
RECIPES = {
    'plain': {},
    'nesterov, cosine, warm-up': {'opt': 'sgd', 'lr': 0.2, 'sched': 'cosine', 'warmup_epochs': 5, 'min_lr': 1e-3},
    'step': {'lr': 0.05, 'sched': 'step', 'decay_epochs': 7, 'decay_rate': 0.5},
    'one cycle': {'sched': 'one_cycle', 'lr': 0.3, 'pct_start': 0.3},
    'smoothing': {'smoothing': 0.1},
    'mixup, average': {'smoothing': 0.1, 'mixup': 0.4, 'model_ema': True, 'model_ema_decay': 0.8},
    'average, warm-up': {'model_ema': True, 'model_ema_decay': 0.8, 'model_ema_warmup': True},
    'clipping': {'clip_grad': 0.5},
    # Adam's steps are as long where a gradient is all but zero, and there rounding decides on the direction.
    'adamw': {'opt': 'adamw', 'lr': 0.01},
    # With a schedule, since it is timm's schedulers that scale the rates of the layers.
    'layer decay': {'layer_decay': 0.7, 'sched': 'step', 'decay_epochs': 7, 'decay_rate': 0.3},
    'frozen': {'freeze': ('stem', 'layer1')},
    'frozen backbone': {'freeze': ('backbone',), 'lr': 0.5},
}


def batches(steps: int = STEPS) -> list[dict[str, np.ndarray]]:
    """Images whose colour says a little of their class."""
    rng = np.random.default_rng(0)
    shades = rng.integers(0, 120, (CLASSES, 1, 1, 3))
    found = []
    for _ in range(steps):
        labels = rng.integers(0, CLASSES, BATCH).astype(np.int32)
        images = (shades[labels] + rng.integers(0, 136, (BATCH, SIZE, SIZE, 3))).astype(np.uint8)
        found.append({'image': images, 'label': labels})
    return found


def shares(batch: dict[str, np.ndarray], devices: int) -> dict[str, np.ndarray]:
    return {key: value.reshape(devices, -1, *value.shape[1:]) for key, value in batch.items()}


def our_training(name: str, model: torch.nn.Module, config: TrainConfig):
    mine = ours(model, name, dtype='float64', axis_name=AXIS)
    apply, params, batch_stats = tresnet_jax.functional(mine, config.freeze)
    schedule = create_schedule(config, STEPS, 1)
    optimizer = create_optimizer(config, schedule, params)
    step = over_devices(make_train_step(apply, optimizer, config, num_classes=CLASSES, mean=MEAN, std=STD))
    state = create_state(params, batch_stats, optimizer, config.model_ema)
    losses = []
    for batch in batches():
        state, metrics = step(state, shares(batch, DEVICES))
        losses.append(float(metrics['loss']))
    return state, losses


def seen_by_torch(config: TrainConfig, step: int, batch: dict[str, np.ndarray]) -> tuple[torch.Tensor, torch.Tensor]:
    """Images and targets as our step prepares them on each device; mixing is held against timm's in test_augment."""
    both = []
    # Compiled as in the step: a random number may have other last bits outside of it.
    prepared = jax.jit(lambda key, part: prepare(key, part, config, CLASSES, MEAN, STD))
    for device, share in enumerate(np.arange(BATCH).reshape(DEVICES, -1)):
        key = jax.random.fold_in(jax.random.fold_in(jax.random.key(config.seed), step), device)
        part = {name: value[share] for name, value in batch.items()}
        both.append(prepared(jax.random.split(key)[0], part))
    images, targets = (torch.from_numpy(np.concatenate(parts)) for parts in zip(*both, strict=True))
    return images.permute(0, 3, 1, 2), targets


def frozen_modules(model: torch.nn.Module, freeze: tuple[str, ...]) -> list[torch.nn.Module]:
    trunk = getattr(model, 'body', model)
    if 'backbone' in freeze:
        return [module for name, module in trunk.named_children() if name != 'fc']
    names = [n for part in freeze for n in (('conv1', 'bn1') if part == 'stem' else (part,))]
    return [getattr(trunk, n) for n in names if hasattr(trunk, n)]


def torch_optimizer(model: torch.nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    options = {'momentum': config.momentum} if config.opt in ('sgd', 'momentum') else {}
    return timm.optim.create_optimizer_v2(
        model,
        opt=config.opt,
        lr=config.peak_lr,
        weight_decay=config.weight_decay,
        layer_decay=config.layer_decay,
        **options,
    )


def rates(optimizer: torch.optim.Optimizer, config: TrainConfig):
    """Before each step: set the learning rate of timm's or torch's scheduler."""
    if config.sched == 'one_cycle':
        cycle = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, config.peak_lr, total_steps=STEPS, pct_start=config.pct_start, cycle_momentum=False,
            div_factor=config.div_factor, final_div_factor=config.final_div_factor,
        )  # fmt: skip
        return lambda step: cycle.step() if step else None
    common = {'warmup_t': int(config.warmup_epochs), 'warmup_lr_init': config.warmup_lr, 't_in_epochs': False}
    if config.sched == 'cosine':
        scheduler = timm.scheduler.CosineLRScheduler(optimizer, t_initial=STEPS, lr_min=config.min_lr, **common)
        return scheduler.step_update
    if config.sched == 'step':
        scheduler = timm.scheduler.StepLRScheduler(
            optimizer, decay_t=config.decay_epochs, decay_rate=config.decay_rate, **common
        )
        return scheduler.step_update
    return lambda step: None


def torch_training(model: torch.nn.Module, config: TrainConfig):
    model.train()
    frozen = frozen_modules(model, config.freeze)
    for module in frozen:
        module.eval().requires_grad_(False)
    optimizer = torch_optimizer(model, config)
    set_rate = rates(optimizer, config)
    average = ModelEmaV3(model, decay=config.model_ema_decay, use_warmup=config.model_ema_warmup)
    losses = []
    for step, batch in enumerate(batches()):
        set_rate(step)
        images, targets = seen_by_torch(config, step, batch)
        loss = torch.nn.functional.cross_entropy(model(images), targets)
        optimizer.zero_grad()
        loss.backward()
        if config.clip_grad:
            torch.nn.utils.clip_grad_norm_(model.parameters(), config.clip_grad)
        optimizer.step()
        average.update(model, step=step + 1)
        losses.append(loss.item())
    return average.module, losses


def errors(params, batch_stats, model: torch.nn.Module) -> dict[str, float]:
    found = convert.to_torch(params, batch_stats)
    wanted = {k: v for k, v in state_of(model).tensors.items() if not k.endswith('num_batches_tracked')}
    return {key: relative_error(found[key], value) for key, value in wanted.items()}


# What the optimiser does is held against torch's on a few small parameters in test_optimizer; here it is all together.
EVERY_DAY = [('test_tresnet', 'plain'), ('test_resnet', 'plain')]
CASES = [
    pytest.param(name, recipe, marks=[] if (name, recipe) in EVERY_DAY else pytest.mark.slow)
    for name in ('test_tresnet', 'test_resnet')
    for recipe in RECIPES
    if recipe != 'clipping'  # see test_optimizer: torch and optax clip a little differently
]


@pytest.fixture
def standard_promotion():
    """optax multiplies integers and floats, which the suite's strict promotion does not allow."""
    with jax.numpy_dtype_promotion('standard'):
        yield


@pytest.mark.usefixtures('x64', 'standard_promotion')
@pytest.mark.parametrize(('name', 'recipe'), CASES)
def test_twenty_steps(name, recipe, record_error):
    """Every parameter, statistic and average after twenty steps, and every loss on the way, within 1e-9."""
    config = dataclasses.replace(PLAIN, **RECIPES[recipe])
    torch.manual_seed(0)
    model = timm_model(name, num_classes=CLASSES).double()
    state, losses = our_training(name, model, config)
    average, expected = torch_training(model, config)

    assert abs(expected[-1] / expected[0] - 1) > 0.1, 'the weights hardly move'
    assert relative_error(np.array(losses), np.array(expected)) <= 1e-9
    found = errors(state.params, state.batch_stats, model)
    if config.model_ema:
        found |= {f'average of {key}': error for key, error in errors(**state.ema, model=average).items()}
    worst = max(found, key=found.get)
    record_error(name, '20 steps, f64', found[worst])
    assert found[worst] <= 1e-9, worst
