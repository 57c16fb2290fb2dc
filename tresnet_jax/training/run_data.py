"""The data of a run: its two splits, and the numbers of steps that follow from them."""

from typing import Any, NamedTuple

import jax

from tresnet_jax.data.examples import epoch_size
from tresnet_jax.data.images import warn_narrow_range
from tresnet_jax.data.label_values import read_class_map
from tresnet_jax.data.sources import Source, open_source
from tresnet_jax.errors import DataError, TrainingError, amount
from tresnet_jax.options import flag_name
from tresnet_jax.training.config import TrainConfig
from tresnet_jax.training.schedules import run_steps


class RunData(NamedTuple):
    """The two splits of a run, and the numbers of steps that follow from them.

    Attributes:
        train, val: the splits.
        steps_per_epoch: steps in an epoch.
        steps: steps of the schedule.
        end: the step after which the run stops: `steps`, or earlier with `stop_epoch`.
        eval_steps: steps between evaluations.
        milestones: steps whose checkpoints are kept.
        mixing_steps: step after which images are no longer mixed; None: all are.
    """

    train: Source
    val: Source
    steps_per_epoch: float
    steps: int
    end: int
    eval_steps: int
    milestones: frozenset[int]
    mixing_steps: int | None

    def evaluates_at(self, step: int) -> bool:
        """Return whether to evaluate after a step. The final evaluation replaces one that would fall just before it."""
        if step == self.end or step in self.milestones:
            return True
        return step % self.eval_steps == 0 and self.end - step > self.eval_steps // 2


def source_options(config: TrainConfig) -> dict[str, Any]:
    """Return the arguments of `open_source` that both splits of a run have."""
    names = ('data_dir', 'val_fraction', 'input_key', 'target_key', 'keep_unlabelled')
    target_format = config.target_format if config.multilabel else None
    return {name: getattr(config, name) for name in names} | {'target_format': target_format}


def open_data(config: TrainConfig, names: tuple[str, ...] | None) -> RunData:
    """Open the training and the evaluation split. Raises DataError if they are missing or unusable.

    Args:
        config: the configuration.
        names: the class names in the order of the labels, if the run has stored them. If the data has other classes,
            it is opened with its own.
    """
    options = source_options(config)
    stored = names
    if stored is None and config.class_map is not None:
        names = read_class_map(config.class_map)
    try:
        train_source = open_source(config.data, config.train_split, class_names=names, **options)
    except DataError:
        if stored is None:
            raise
        train_source = open_source(config.data, config.train_split, **options)
    if stored is None and config.class_map is not None and train_source.class_names != names:
        raise DataError(f'{config.data}: has classes of its own; leave out --class-map')
    val_source = open_source(config.data, config.val_split, class_names=train_source.class_names, **options)
    if config.max_value is None and jax.process_index() == 0:
        warn_narrow_range(lambda index: train_source[index]['image'], len(train_source), train_source.name)
    images = config.num_samples or epoch_size(len(train_source), config.aug_repeats)
    steps_per_epoch = images / config.batch_size
    steps = run_steps(config, steps_per_epoch)
    eval_steps = max(1, round(config.eval_every * steps_per_epoch))
    end = _step_of(config.stop_epoch, 'stop_epoch', steps, steps_per_epoch) if config.stop_epoch else steps
    milestones = frozenset(_step_of(epoch, 'save_epochs', steps, steps_per_epoch) for epoch in config.save_epochs)
    mixing_steps = round(config.mixup_off_epoch * steps_per_epoch) if config.mixup_off_epoch else None
    return RunData(train_source, val_source, steps_per_epoch, steps, end, eval_steps, milestones, mixing_steps)


def _step_of(epoch: float, option: str, steps: int, steps_per_epoch: float) -> int:
    """Return the last step of an epoch. Raises TrainingError if the schedule has fewer epochs."""
    step = max(1, round(epoch * steps_per_epoch))
    if step > steps:
        epochs = f'{steps / steps_per_epoch:.4g} epochs'
        raise TrainingError(f'{flag_name(option)} {epoch:g}: the schedule has only {amount(steps, "step")} ({epochs})')
    return step


def opening(config: TrainConfig, data: RunData, step: int, local: int) -> str:
    """Return the first line of a run; `local` is the number of devices of this host."""
    begun = f'resumes at step {step:,} of' if step else 'begins:'
    schedule = f', schedule of {amount(data.steps, "step")}' if data.end < data.steps else ''
    processes = f' in {jax.process_count()} processes' if jax.process_count() > 1 else ''
    return (
        f'{config.model}: trains on {amount(len(data.train), "image")} of {data.train.name}, evaluates on '
        f'{len(data.val):,} of {data.val.name}, {amount(data.train.num_classes, "class", "classes")}; '
        f'{begun} {amount(data.end, "step")} of {amount(config.batch_size, "image")} '
        f'({data.end / data.steps_per_epoch:.2f} epochs{schedule}) on '
        f'{amount(local * jax.process_count(), f"{jax.devices()[0].device_kind} device")}{processes}'
    )
