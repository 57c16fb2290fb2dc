"""Learning rates over the steps of a run, as optax schedules: a step, from 0, to a rate."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from tresnet_jax.training.config import TrainConfig


def create_schedule(config: TrainConfig, steps: int, steps_per_epoch: float) -> optax.Schedule:
    """The schedule of a run.

    Args:
        config: `sched` and what belongs to it; epochs there become steps here.
        steps: of the whole run.
        steps_per_epoch: steps in an epoch.

    'cosine' and 'step' are timm's (``timm/scheduler``, updated at each step): a linear warm-up from `warmup_lr` lies
    over the beginning of the curve. 'one_cycle' is torch's ``OneCycleLR`` with cosine annealing (Smith,
    arXiv:1708.07120).
    """
    lr = config.peak_lr
    if config.sched == 'one_cycle':
        return one_cycle(lr, steps, config.pct_start, config.div_factor, config.final_div_factor)
    warmup = min(round(config.warmup_epochs * steps_per_epoch), steps)
    if config.sched == 'cosine':
        curve = _cosine(lr, config.min_lr, steps)
    elif config.sched == 'step':
        curve = _staircase(lr, config.decay_epochs * steps_per_epoch, config.decay_rate)
    else:
        curve = optax.constant_schedule(lr)
    return _with_warmup(curve, config.warmup_lr, lr, warmup)


def one_cycle(lr: float, steps: int, pct_start: float, div_factor: float, final_div_factor: float) -> optax.Schedule:
    """lr / div_factor -> lr in the first `pct_start` of the steps, -> lr / div_factor / final_div_factor at the last.

    torch's: the turning point need not be a whole step.
    """
    first, last = lr / div_factor, lr / div_factor / final_div_factor
    # A turning point before the first step, as torch computes it for a very short run, would divide by zero.
    up, end = max(pct_start * steps - 1, 1e-6), max(steps - 1, 1)

    def schedule(step):
        step = jnp.asarray(step, _float())
        rising = _anneal(first, lr, step / up)
        falling = _anneal(lr, last, jnp.minimum((step - up) / max(end - up, 1e-6), 1))
        return jnp.where(step <= up, rising, falling)

    return schedule


def _anneal(start: float, end: float, share: jax.Array) -> jax.Array:
    return end + (start - end) / 2 * (1 + jnp.cos(jnp.pi * share))


def _cosine(lr: float, end: float, steps: int) -> Callable:
    return lambda step: _anneal(lr, end, jnp.minimum(jnp.asarray(step, _float()) / steps, 1))


def _staircase(lr: float, length: float, rate: float) -> Callable:
    return lambda step: lr * rate ** jnp.floor(jnp.asarray(step, _float()) / length)


def _with_warmup(curve: Callable, start: float, lr: float, warmup: int) -> optax.Schedule:
    if warmup == 0:
        return curve

    def schedule(step):
        rising = start + (lr - start) / warmup * jnp.asarray(step, _float())
        return jnp.where(step < warmup, rising, curve(step))

    return schedule


def _float() -> jnp.dtype:
    """float64 where it is on."""
    return jax.dtypes.canonicalize_dtype(jnp.float64)
