"""Learning rates as functions of the step: timm's schedules, and torch's one-cycle schedule.

timm evaluates a schedule at the number of the epoch, or of the update with ``--sched-on-updates``. Here that number,
`t`, is derived from the step, so a schedule is a function of the step alone.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from tresnet_jax.errors import TrainingError
from tresnet_jax.training.config import TrainConfig

Curve = Callable[[jax.Array], jax.Array]

ENDS_WITH_COOLDOWN = ('cosine', 'poly', 'wsd')  # the schedules that fall to min_lr


def run_steps(config: TrainConfig, steps_per_epoch: float) -> int:
    """Return the number of steps of a whole run: `steps`, or `epochs` with the warm-up and cooldown that timm adds."""
    if config.steps is not None:
        return config.steps
    return max(1, round((config.epochs + _added_epochs(config)) * steps_per_epoch))


def create_schedule(config: TrainConfig, steps: int, steps_per_epoch: float) -> optax.Schedule:
    """Return the learning rate as a function of the step.

    Args:
        config: sched, the learning rate, and the options of the schedule; its epochs are converted to steps, or the
            step to whole epochs without `sched_on_updates`.
        steps: number of steps of the whole run, as `run_steps` returns it.
        steps_per_epoch: number of steps in an epoch.

    Raises:
        TrainingError: the decay of 'wsd' is longer than the schedule.
    """
    lr = config.peak_lr
    if config.sched == 'one_cycle':
        return one_cycle(lr, steps, config.pct_start, config.div_factor, config.final_div_factor)
    added = _added_epochs(config)
    if config.sched_on_updates:
        unit = steps_per_epoch
        warmup = min(round(config.warmup_epochs * unit), steps)
        length = max(steps - round(added * unit), 1)
    else:
        unit = 1.0
        warmup = config.warmup_epochs
        length = config.epochs if config.steps is None else max(steps / steps_per_epoch - added, 1.0)
    # The warm-up replaces the first part of the curve, or precedes it; that of 'wsd' always precedes it.
    if config.sched == 'wsd' and not config.warmup_prefix:
        length -= warmup
    delay = warmup if config.warmup_prefix or config.sched == 'wsd' else 0
    curve = _curve(config, lr, length, unit)

    def schedule(step):
        t = jnp.asarray(step, _float())
        if not config.sched_on_updates:
            t = jnp.floor(t / steps_per_epoch)
        rate = curve(jnp.maximum(t - delay, 0) if delay else t)
        if not warmup:
            return rate
        return jnp.where(t < warmup, config.warmup_lr + (lr - config.warmup_lr) / warmup * t, rate)

    return schedule


def _added_epochs(config: TrainConfig) -> float:
    """Return the epochs that timm adds to `epochs`: a warm-up that precedes the schedule, and the cooldown after it."""
    if config.sched == 'one_cycle':
        return 0.0
    warmup = config.warmup_epochs if config.warmup_prefix else 0.0
    return warmup + (config.cooldown_epochs if config.sched in ENDS_WITH_COOLDOWN else 0.0)


def _curve(config: TrainConfig, lr: float, length: float, unit: float) -> Curve:
    """Return the schedule without its warm-up, as a function of t.

    Args:
        config: sched and the options of the schedule.
        lr: the learning rate at t = 0.
        length: the value of t at the end, before the cooldown.
        unit: the value of t after one epoch.
    """
    if config.sched == 'cosine':
        return lambda t: _anneal(lr, config.min_lr, _share(t, length, config.lr_k_decay))
    if config.sched == 'poly':
        power = config.decay_rate  # as in timm
        return lambda t: config.min_lr + (lr - config.min_lr) * (1 - _share(t, length, config.lr_k_decay)) ** power
    if config.sched == 'step':
        decay = (90.0 if config.decay_epochs is None else config.decay_epochs) * unit
        return lambda t: lr * config.decay_rate ** jnp.floor(t / decay)
    if config.sched == 'multistep':
        milestones = jnp.asarray([milestone * unit for milestone in config.decay_milestones], _float())
        # timm decays one epoch or update before each milestone.
        return lambda t: lr * config.decay_rate ** jnp.sum(milestones <= t + 1).astype(_float())
    if config.sched == 'wsd':
        return _warmup_stable_decay(config, lr, length, unit)
    return lambda t: jnp.full_like(t, lr)


def _warmup_stable_decay(config: TrainConfig, lr: float, length: float, unit: float) -> Curve:
    """Stay at `lr`, and fall to `min_lr` in the last part of `length` (arXiv:2404.06395, arXiv:2405.18392)."""
    asked = 0.2 if config.decay_epochs is None else config.decay_epochs
    decay = round(asked * length if asked < 1 else asked * unit)
    if not 0 < decay <= length:
        unit_name = 'steps' if config.sched_on_updates else 'epochs'
        raise TrainingError(
            f'--decay-epochs {asked:g} are {decay} of the {length:g} {unit_name} after the warm-up; the decay of '
            '--sched wsd must be at least 1 and at most all of them'
        )

    def curve(t):
        share = jnp.clip((t - (length - decay)) / decay, 0, 1)
        return config.min_lr + (lr - config.min_lr) * DECAYS[config.lr_decay_fn](share)

    return curve


# The fall from 1 to 0 over a share of time from 0 to 1.
DECAYS: dict[str, Curve] = {
    '1-sqrt': lambda share: 1 - jnp.sqrt(share),
    'linear': lambda share: 1 - share,
    'cosine': lambda share: _anneal(1, 0, share),
    'power': lambda share: 1 - share**0.5,
    'exp': lambda share: (0.1**share - 0.1) / 0.9,
}


def one_cycle(lr: float, steps: int, pct_start: float, div_factor: float, final_div_factor: float) -> optax.Schedule:
    """Return torch's ``OneCycleLR`` with cosine annealing (Smith, arXiv:1708.07120), at each step.

    The learning rate rises from lr / div_factor to lr in the first `pct_start` of the steps, and falls to
    lr / div_factor / final_div_factor at the last step. As in torch, the peak may lie between two steps.
    """
    first, last = lr / div_factor, lr / div_factor / final_div_factor
    up, end = pct_start * steps - 1, steps - 1  # the peak of a very short run is before its first step

    def schedule(step):
        step = jnp.asarray(step, _float())
        rising = _anneal(first, lr, step / (up if up > 0 else 1))
        falling = _anneal(lr, last, jnp.minimum((step - up) / (end - up if end > up else 1), 1))
        return jnp.where(step <= up, rising, falling)

    return schedule


def _share(t: jax.Array, length: float, k: float) -> jax.Array:
    """Return (t / length)^k, at most 1 (k-decay, arXiv:2004.05909)."""
    share = jnp.minimum(t / length, 1)
    return share if k == 1 else share**k


def _anneal(start: float, end: float, share: jax.Array) -> jax.Array:
    """Interpolate from `start` (share 0) to `end` (share 1) along half a cosine."""
    return end + (start - end) / 2 * (1 + jnp.cos(jnp.pi * share))


def _float() -> jnp.dtype:
    """Return float64 if it is enabled, else float32."""
    return jax.dtypes.canonicalize_dtype(jnp.float64)
