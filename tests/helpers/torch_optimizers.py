"""Training configurations, and timm's and torch's optimisers and schedules for them."""

# pyright: reportPrivateImportUsage=false
# timm does not mark what it exports.

from collections.abc import Callable
from typing import Any

import timm.optim
import timm.scheduler
import torch

from tresnet_jax.training.config import TrainConfig

STEPS = 20
PLAIN = TrainConfig(
    opt='momentum', lr=0.1, weight_decay=1e-2, sched='constant', warmup_epochs=0, smoothing=0.0, dtype='float64'
)
# The fields that differ from PLAIN. The decay is larger than usual, so that an error in it shows.
RECIPES: dict[str, dict[str, Any]] = {
    'plain': {},
    'nesterov, cosine, warm-up': {'opt': 'sgd', 'lr': 0.2, 'sched': 'cosine', 'warmup_epochs': 5, 'min_lr': 1e-3},
    'step': {'lr': 0.05, 'sched': 'step', 'decay_epochs': 7, 'decay_rate': 0.5},
    'one cycle': {'sched': 'one_cycle', 'lr': 0.3, 'pct_start': 0.3},
    'smoothing': {'smoothing': 0.1},
    'mixup, average': {'smoothing': 0.1, 'mixup': 0.4, 'model_ema': True, 'model_ema_decay': 0.8},
    'average, warm-up': {'model_ema': True, 'model_ema_decay': 0.8, 'model_ema_warmup': True},
    'clipping': {'clip_grad': 0.5},
    # Adam's steps are as long where a gradient is almost zero, and rounding decides their direction there.
    'adamw': {'opt': 'adamw', 'lr': 0.01},
    # With a schedule, because timm's schedulers scale the rates of the layers.
    'layer decay': {'layer_decay': 0.7, 'sched': 'step', 'decay_epochs': 7, 'decay_rate': 0.3},
    'frozen': {'freeze': ('stem', 'layer1')},
    'frozen backbone': {'freeze': ('backbone',), 'lr': 0.5},
}


def torch_optimizer(model: torch.nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """Return timm's optimiser for a configuration."""
    options: dict[str, Any] = {'momentum': config.momentum} if config.opt in ('sgd', 'momentum') else {}
    return timm.optim.create_optimizer_v2(
        model,
        opt=config.opt,
        lr=config.peak_lr,
        weight_decay=config.weight_decay,
        layer_decay=config.layer_decay,
        **options,
    )


def rate_setter(optimizer: torch.optim.Optimizer, config: TrainConfig) -> Callable[[int], object]:
    """Return a function that sets the learning rate before a step, by timm's or torch's scheduler."""
    if config.sched == 'one_cycle':
        cycle = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, config.peak_lr, total_steps=STEPS, pct_start=config.pct_start, cycle_momentum=False,
            div_factor=config.div_factor, final_div_factor=config.final_div_factor,
        )  # fmt: skip
        return lambda step: cycle.step() if step else None
    warmup = {'warmup_t': int(config.warmup_epochs), 'warmup_lr_init': config.warmup_lr, 't_in_epochs': False}
    if config.sched == 'cosine':
        scheduler = timm.scheduler.CosineLRScheduler(optimizer, t_initial=STEPS, lr_min=config.min_lr, **warmup)
        return scheduler.step_update
    if config.sched == 'step':
        assert config.decay_epochs is not None
        scheduler = timm.scheduler.StepLRScheduler(
            optimizer, decay_t=config.decay_epochs, decay_rate=config.decay_rate, **warmup
        )
        return scheduler.step_update
    return lambda step: None
