"""The training loop's step as the tools measure it: `benchmark.py` times it and `gpu_report.py` compiles it."""

from collections.abc import Callable
from typing import Any, NamedTuple

from tresnet_jax.models.base import Tree
from tresnet_jax.training.config import TrainConfig
from tresnet_jax.training.optim import create_optimizer
from tresnet_jax.training.schedules import create_schedule
from tresnet_jax.training.step import Batch, Metrics, TrainState, create_state, make_train_step

# The defaults of train.py except for the learning rate: SGD with Nesterov momentum, weight decay on kernels, label
# smoothing. The rate is constant and small, so that repeated steps on a few batches stay finite.
CONFIG = TrainConfig(sched='constant', warmup_epochs=0.0, lr=0.001)


class LoopStep(NamedTuple):
    """A training step and its initial state.

    Attributes:
        step: (state, batch) -> (state, metrics) on one device, for `training.step.over_devices`. A batch is
            {'image': (b, H, W, 3) uint8, 'label': (b,) int32}.
        start: (params, batch_stats) -> the state before the first step.
    """

    step: Callable[[TrainState, Batch], tuple[TrainState, Metrics]]
    start: Callable[[Tree, Tree], TrainState]


def loop_step(
    apply: Callable[..., Any],
    params: Tree,
    *,
    num_classes: int,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    config: TrainConfig = CONFIG,
) -> LoopStep:
    """Build the training loop's step for any model in functional form.

    Args:
        apply: as returned by `tresnet_jax.functional`; it computes in its own dtype.
        params: nested dicts of arrays or of their shapes; only the structure and the shapes are used.
        num_classes: classes of the model.
        mean, std: normalisation of the images, one value per channel, for values in [0, 1].
        config: options of the step and of the optimiser.
    """
    schedule = create_schedule(config, steps=1, steps_per_epoch=1.0)  # constant: the length does not matter
    optimizer = create_optimizer(config, schedule, params)

    def start(params: Tree, batch_stats: Tree) -> TrainState:
        return create_state(params, batch_stats, optimizer, config.model_ema)

    return LoopStep(make_train_step(apply, optimizer, config, num_classes=num_classes, mean=mean, std=std), start)
