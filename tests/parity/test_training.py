"""Twenty steps of training against PyTorch, from the same weights and with the same batches.

torch uses timm's optimisers, schedules and moving averages in one process. Ours runs on four devices with synchronised
batch norm. Both compute in float64.
"""

import dataclasses

import jax
import numpy as np
import pytest
import torch
from timm.utils import ModelEmaV3

import convert
import tresnet_jax
from convert.golden import timm_model
from tests.helpers.closeness import assert_close, errors
from tests.helpers.layouts import COUNTER
from tests.helpers.reference import ours, state_of
from tests.helpers.torch_optimizers import PLAIN, RECIPES, STEPS, rate_setter, torch_optimizer
from tresnet_jax.training.config import TrainConfig
from tresnet_jax.training.devices import AXIS, replicate
from tresnet_jax.training.optim import create_optimizer
from tresnet_jax.training.schedules import create_schedule
from tresnet_jax.training.step import augment, create_state, make_train_step, over_devices

BATCH, SIZE, CLASSES, DEVICES = 16, 32, 5, 4
MEAN, STD = (0.4, 0.5, 0.6), (0.3, 0.25, 0.2)


def batches(steps: int = STEPS) -> list[dict[str, np.ndarray]]:
    """Return batches of images whose colour depends a little on their class."""
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
    state = replicate(create_state(params, batch_stats, optimizer, config.model_ema), jax.devices()[:DEVICES])
    losses = []
    for batch in batches():
        state, metrics = step(state, shares(batch, DEVICES))
        losses.append(float(metrics['loss']))
    return state, losses


def seen_by_torch(config: TrainConfig, step: int, batch: dict[str, np.ndarray]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return images and targets as our step augments them; test_augment compares mixing with timm's."""
    batch_key, image_key = jax.random.split(jax.random.fold_in(jax.random.key(config.seed), step))
    image_keys = jax.numpy.stack([jax.random.split(jax.random.fold_in(image_key, i))[0] for i in range(BATCH)])
    # Compiled as in the step: the last bits of random numbers may differ otherwise.
    augmented = jax.jit(lambda *keys: augment(*keys, batch, config, CLASSES, MEAN, STD))(batch_key, image_keys)
    images, targets = (torch.from_numpy(np.array(x)) for x in augmented)
    return images.permute(0, 3, 1, 2), targets


def frozen_modules(model: torch.nn.Module, freeze: tuple[str, ...]) -> list[torch.nn.Module]:
    trunk = getattr(model, 'body', model)
    if 'backbone' in freeze:
        return [module for name, module in trunk.named_children() if name != 'fc']
    names = [n for part in freeze for n in (('conv1', 'bn1') if part == 'stem' else (part,))]
    return [getattr(trunk, n) for n in names if hasattr(trunk, n)]


def torch_training(model: torch.nn.Module, config: TrainConfig):
    model.train()
    frozen = frozen_modules(model, config.freeze)
    for module in frozen:
        module.eval().requires_grad_(False)
    optimizer = torch_optimizer(model, config)
    set_rate = rate_setter(optimizer, config)
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


def errors_of(params, batch_stats, model: torch.nn.Module) -> dict[str, float]:
    both = convert.to_torch(params, batch_stats), state_of(model).tensors
    return errors(*({key: value for key, value in tensors.items() if not key.endswith(COUNTER)} for tensors in both))


# test_optimizer compares every recipe on a few small parameters; here a whole network trains.
EVERY_DAY = [('test_tresnet', 'plain'), ('test_resnet', 'plain')]
CASES = [
    pytest.param(name, recipe, marks=[] if (name, recipe) in EVERY_DAY else pytest.mark.slow)
    for name in ('test_tresnet', 'test_resnet')
    for recipe in RECIPES
]


@pytest.mark.usefixtures('x64', 'standard_promotion', 'optimized')
@pytest.mark.parametrize(('name', 'recipe'), CASES)
def test_twenty_steps(name, recipe, record_error):
    """Every parameter, statistic and average after twenty steps and every loss agree within 1e-9."""
    config = dataclasses.replace(PLAIN, **RECIPES[recipe])
    torch.manual_seed(0)
    model = timm_model(name, num_classes=CLASSES).double()
    state, losses = our_training(name, model, config)
    average, expected = torch_training(model, config)

    assert abs(expected[-1] / expected[0] - 1) > 0.1, 'the weights hardly move'
    assert_close(np.array(losses), np.array(expected), 1e-9)
    found = errors_of(state.params, state.batch_stats, model)
    if config.model_ema:
        found |= {f'average of {key}': error for key, error in errors_of(**state.ema, model=average).items()}
    worst = max(found, key=found.get)
    record_error(name, '20 steps, f64', found[worst])
    assert found[worst] <= 1e-9, worst
