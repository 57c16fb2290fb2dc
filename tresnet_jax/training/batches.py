"""The batches of a run, on its devices, and how its images are preprocessed: the data part of a configuration."""

import dataclasses
import math
from pathlib import Path
from typing import Any

import jax

from tresnet_jax.data.pipeline import eval_dataset, to_devices, train_dataset
from tresnet_jax.data.sources import Source
from tresnet_jax.data.train_transforms import TrainTransform, create_train_transform
from tresnet_jax.data.transforms import OPTIONS, EvalTransform, create_transform
from tresnet_jax.errors import TrainingError, amount
from tresnet_jax.options import LARGEST_INT, as_flag
from tresnet_jax.training.batch_augment import minmax_edges
from tresnet_jax.training.config import TrainConfig
from tresnet_jax.training.preprocessing import FORMER_DEFAULTS

UNREADABLE_FILE = 'unreadable.log'


def train_transform(config: TrainConfig) -> TrainTransform:
    """Return the host's part of the augmentation. The options IMAGE_OPTIONS must be set."""
    assert config.mean is not None
    return create_train_transform(
        (config.channels, *config.height_width),
        crop=config.crop if config.train_crop_mode == 'rrc' else config.train_crop_mode,
        scale=config.scale,
        ratio=config.ratio,
        padding=config.padding,
        interpolation=config.train_interpolation,
        hflip=config.hflip,
        vflip=config.vflip,
        color_jitter=config.color_jitter,
        auto_augment=config.aa,
        mean=config.mean,
        draft=config.draft,
    )


def eval_data_config(config: TrainConfig) -> dict[str, Any]:
    """Return how images are preprocessed for evaluation: the arguments of `create_transform`.

    The options IMAGE_OPTIONS must be set.
    """
    values = {name: getattr(config, name) for name in OPTIONS}
    assert None not in values.values()
    return {'input_size': (config.channels, *config.height_width), **values}


def eval_transform(config: TrainConfig) -> EvalTransform:
    """Return the evaluation transform. The options IMAGE_OPTIONS must be set."""
    return create_transform(**eval_data_config(config))


def check_transforms(config: TrainConfig) -> None:
    """Raise TrainingError if an option of the augmentation or the preprocessing is invalid, before a run starts.

    If the number of channels is open, it is not compared with those of `mean` and `std`. Options that are open are not
    compared with others.
    """
    missing = {name: value for name, value in FORMER_DEFAULTS.items() if getattr(config, name) is None}
    channels, resolved = config.channels, dataclasses.replace(config, **missing)
    for name in ('mean', 'std'):
        values = getattr(config, name)
        if values is None or len(values) not in (1, channels):
            resolved = dataclasses.replace(resolved, **{name: (0.5,)})
            if values is not None and config.in_chans is not None:
                numbers = 'one number' if channels == 1 else f'one or {channels} numbers'
                raise TrainingError(
                    f'{as_flag(name, values)}: expected {numbers} for images of {amount(channels, "channel")}'
                )
    for what, create in (('training', train_transform), ('evaluation', eval_transform)):
        try:
            create(resolved)
        except ValueError as error:
            raise TrainingError(f'{what} images: {error}') from None
    if config.train_crop_mode != 'rrc' and config.crop != 'resized':
        raise TrainingError(f'--train-crop-mode {config.train_crop_mode} and --crop {config.crop}: give one of them')
    if config.cutmix_minmax is not None:
        try:
            for length in (LARGEST_INT,) if config.image_size is None else config.height_width:
                minmax_edges(length, config.cutmix_minmax)
        except ValueError as error:
            raise TrainingError(f'training images: {error}') from None
    if 0 < config.aug_repeats < 1:
        raise TrainingError(f'--aug-repeats must be 0 or at least 1, got {config.aug_repeats:g}')
    copies = math.ceil(config.aug_repeats)
    if config.mixes and copies > 1 and config.batch_size < 2 * copies:
        raise TrainingError(
            f'--batch-size must be at least {2 * copies}, twice --aug-repeats {config.aug_repeats:g}, got '
            f'{config.batch_size}: in smaller batches, --mixup and --cutmix would mix an image with itself'
        )


def train_batches(config: TrainConfig, source: Source, devices: list[Any], workdir: Path) -> Any:
    """Return the endless training batches of this process, on its devices.

    The batch contract is in step.py. Unreadable images are listed in `workdir`/unreadable.log.
    """
    dataset = train_dataset(
        source,
        train_transform(config),
        batch_size=config.batch_size,
        seed=config.seed,
        shard=(jax.process_index(), jax.process_count()),
        threads=config.threads,
        workers=config.workers,
        max_unreadable=config.max_unreadable,
        log=workdir / UNREADABLE_FILE,
        max_value=config.max_value,
        repeats=config.aug_repeats,
        channels=config.channels,
    )
    return to_devices(dataset, devices)


def eval_batches(config: TrainConfig, source: Source, devices: list[Any], workdir: Path) -> Any:
    """Return the evaluation batches of this process, on its devices: over all processes, every image once.

    The batch contract is in step.py. Unreadable images are listed in `workdir`/unreadable.log.
    """
    dataset = eval_dataset(
        source,
        eval_transform(config),
        batch_size=config.val_batch_size or config.batch_size,
        shard=(jax.process_index(), jax.process_count()),
        threads=config.threads,
        workers=config.workers,
        max_unreadable=config.max_unreadable,
        log=workdir / UNREADABLE_FILE,
        max_value=config.max_value,
    )
    return to_devices(dataset, devices)
