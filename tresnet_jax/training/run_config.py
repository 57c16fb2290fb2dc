"""The configuration in the folder of a run: config.json, and what may differ from it when the run resumes."""

import dataclasses
import json
import typing
from collections.abc import Sequence
from pathlib import Path

from tresnet_jax.errors import TrainingError, shown
from tresnet_jax.files import read_json, save_text
from tresnet_jax.options import faults, from_json
from tresnet_jax.training.config import TrainConfig
from tresnet_jax.training.preprocessing import FORMER_DEFAULTS, IMAGE_OPTIONS

CONFIG_FILE = 'config.json'
# Options whose None is replaced by the value of the data or the model when a run starts.
RESOLVED = ('num_classes', 'in_chans', 'abn_slope', *IMAGE_OPTIONS)
# Options that may change when a run resumes. They leave the weights unchanged, except for rounding. A run keeps the
# last values, because it is resumed by its folder alone.
CHANGEABLE = ('devices', 'log_every', 'eval_every', 'checkpoint_every', 'keep_last', 'keep_best', 'skip_nonfinite')
CHANGEABLE += ('stop_epoch', 'save_epochs', 'log_wandb', 'wandb_project', 'wandb_tags', 'wandb_resume_id')
CHANGEABLE += ('threads', 'workers', 'data_dir', 'val_batch_size', 'max_unreadable', 'kd_checkpoint')
# Options that may change when a run resumes with --accept-changes: the data.
ACCEPTABLE = ('data', 'train_split', 'val_split', 'val_fraction', 'max_value', 'input_key', 'target_key')
ACCEPTABLE += ('target_format', 'keep_unlabelled', 'class_stats', 'semantic_tree')


def changed_options(saved: TrainConfig, config: TrainConfig, free: Sequence[str]) -> list[str]:
    """Return the names of the options that differ from the saved ones of a run.

    Args:
        saved: the resolved configuration of the run.
        config: the configuration to resume it with. Options that are resolved may be open.
        free: names of options that may differ.
    """
    before, asked = dataclasses.asdict(saved), dataclasses.asdict(config)
    return [
        name
        for name, value in before.items()
        if asked[name] != value and name not in free and not (name in RESOLVED and asked[name] is None)
    ]


def with_resolved(config: TrainConfig, saved: TrainConfig) -> TrainConfig:
    """Return the configuration to resume a run with, where options RESOLVED that are None have the run's values.

    Args:
        config: the configuration to resume it with.
        saved: the resolved configuration of the run.
    """
    missing = [name for name in RESOLVED if getattr(config, name) is None]
    return dataclasses.replace(config, **{name: getattr(saved, name) for name in missing})


def save_config(config: TrainConfig, workdir: Path) -> None:
    """Write config.json to the folder of a run.

    Raises:
        ConversionError: the file cannot be written.
    """
    text = json.dumps(dataclasses.asdict(config), indent=2, default=str) + '\n'
    save_text(workdir / CONFIG_FILE, text)


def load_config(workdir: Path) -> TrainConfig:
    """Read config.json from the folder of a run.

    Raises:
        TrainingError: the file is missing or not JSON, or has an unknown key or a value that its option does not take.
    """
    path = workdir / CONFIG_FILE
    try:
        values = read_json(path, TrainingError)
    except TrainingError as error:
        what = str(error).removeprefix(f'{shown(path)}: ')
        raise TrainingError(f'{path}: not the configuration of a run ({what})') from error
    if not isinstance(values, dict):
        raise TrainingError(f'{path}: expected a JSON object, got {type(values).__name__}')
    kinds = typing.get_type_hints(TrainConfig)
    unknown = sorted(values.keys() - kinds.keys())
    if unknown:
        raise TrainingError(f'{path}: unknown keys {", ".join(map(repr, unknown))}; expected fields of TrainConfig')
    config = TrainConfig(**from_json(kinds, FORMER_DEFAULTS | values))
    for name, what in faults(config):
        raise TrainingError(shown(f'{path}: {name} {what}'))
    return config
