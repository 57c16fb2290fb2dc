"""The folder of a training run: model.json, which describes the model, and the weights of its checkpoints.

Nothing else is needed to use the weights; the training configuration is not read.
"""

import dataclasses
import json
import os
import reprlib
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from tresnet_jax.checkpoints.checkpoint import COUNTER, FLAX_FORMAT, METRICS, Checkpoint
from tresnet_jax.checkpoints.digests import check_digests
from tresnet_jax.checkpoints.names import flatten, flax_key_to_torch, unflatten
from tresnet_jax.checkpoints.run_arrays import find_arrays, read_arrays
from tresnet_jax.checkpoints.shards import checkpoint_files
from tresnet_jax.errors import ConversionError, reason, shown
from tresnet_jax.files import LARGEST_JSON, read_json, save_text
from tresnet_jax.formats import CHECKPOINT
from tresnet_jax.labels import are_names
from tresnet_jax.models.base import ImageModel, Tree
from tresnet_jax.variants import ARCHITECTURES, CLASSIFICATION, split_name

MODEL_FILE = 'model.json'
CHECKPOINTS = 'checkpoints'  # the folder of Orbax's checkpoints in a run
PROJECTION = 'kd_projection'  # parameters of training alone, beside those of the model; see training/distillation.py
STATE_PART = 'state'  # the folder in a checkpoint in which Orbax writes the training state
DATA_PART = 'd'  # the folders in which Orbax writes arrays
METRICS_PART = 'metrics/metrics'  # the file in a checkpoint in which Orbax writes and reads its metrics

# Runs of 0.1.0's development have no model.json; these two files hold the same information.
OLDER_CONFIG_FILE, OLDER_NAMES_FILE = 'config.json', 'label_names.json'


def save_description(
    workdir: Path,
    model: ImageModel,
    data_config: dict[str, Any],
    label_names: Sequence[str] | None,
    task: str = CLASSIFICATION,
) -> None:
    """Write model.json, with the same fields as the metadata of our safetensors files.

    Args:
        workdir: folder of the run.
        model: the model that is trained.
        data_config: how images are prepared for evaluation, the arguments of `create_transform`.
        label_names: one per class in the order of the outputs, or None if they are unknown.
        task: what the outputs are, one of `variants.TASKS`.

    Raises:
        ConversionError: the file cannot be written.
    """
    description = {
        **CHECKPOINT.fields(),
        'architecture': model.architecture,
        'tag': '',  # training changed the weights of the tag
        'num_classes': model.num_classes,
        **model.head_options,
        'in_chans': model.in_chans,
        'global_pool': '' if model.global_pool == model.config.family.default_pool else model.global_pool,
        'output_stride': None if model.output_stride == 32 else model.output_stride,
        'abn_slope': None if model.abn_slope == model.config.family.default_slope else model.abn_slope,
        'data_config': data_config,
        'label_names': list(label_names or ()),
        'task': task,
    }
    text = json.dumps(description, indent=1, ensure_ascii=False) + '\n'
    # Names of folders that are not UTF-8 hold surrogates, which JSON can only escape.
    save_text(workdir / MODEL_FILE, text.encode('utf-8', 'backslashreplace').decode('utf-8'))


def is_run(folder: Path) -> bool:
    """Return whether a folder is that of a run; Lightning also has a folder `checkpoints`, with files in it."""
    return (folder / CHECKPOINTS).is_dir() and not checkpoint_files(folder / CHECKPOINTS)


def has_checkpoint(workdir: Path) -> bool:
    """Return whether a folder holds a run with a complete checkpoint."""
    folder = workdir / CHECKPOINTS
    return folder.is_dir() and any(path.name.isdecimal() for path in folder.iterdir())


def stored_network(workdir: Path) -> dict[str, Any]:
    """Return the arguments of `create_model` for the network of a run, wherever its weights came from.

    Raises:
        ConversionError: the description of the run cannot be read.
    """
    file = workdir / MODEL_FILE
    if not file.exists():
        return {}
    description = _read_description(file)
    name, pool, stride = (description.get(key) or None for key in ('architecture', 'global_pool', 'output_stride'))
    if not isinstance(name, str) or name not in ARCHITECTURES:
        raise ConversionError(
            f'{file}: architecture is {reprlib.repr(name)}; expected one of {", ".join(ARCHITECTURES)}'
        )
    numbers = ('in_chans', 'num_of_groups', 'decoder_embedding')
    stated = {key: description[key] for key in ('head', *numbers) if key in description}
    for key in numbers:
        if type(stated.get(key, 0)) is not int:
            raise ConversionError(f'{file}: {key} is {reprlib.repr(stated[key])}; expected an integer')
    return {'name': name, 'global_pool': pool, 'output_stride': stride, **stated}


def stored_label_names(workdir: Path) -> tuple[str, ...] | None:
    """Return the class names of a run in the order of its outputs; None if it has none, or no checkpoint yet.

    Raises:
        ConversionError: the description of the run cannot be read.
    """
    if not has_checkpoint(workdir):
        return None
    for file, key in ((workdir / MODEL_FILE, 'label_names'), (workdir / OLDER_NAMES_FILE, None)):
        if file.exists():
            names = _read_description(file).get(key) if key else read_json(file)
            if not are_names(names or []):
                raise ConversionError(f'{file}: expected a list of names')
            return tuple(names or ()) or None
    return None


def read_run(path: Path, *, ema: bool = True, step: int | Literal['best', 'latest'] = 'best') -> Checkpoint:
    """Read the weights of one checkpoint of a run, and the run's description.

    Args:
        path: folder of the run.
        ema: use the moving average if the run has one.
        step: see `load_weights`.

    Raises:
        ConversionError: Orbax is not installed, the description is missing or not ours, or the checkpoint does not
            exist or cannot be read.
    """
    file = path / MODEL_FILE
    description = _read_description(file) if file.exists() else _older_description(path)
    weights = load_weights(path, step, ema=ema)
    training: dict[str, str | int | float] = {'step': weights.step}
    if weights.rating is not None:
        training[weights.metric] = weights.rating
    params, stats = flatten(weights.params), flatten(weights.batch_stats)
    # torch counts batches in each batch norm; in a run every batch norm has seen one batch per step.
    norms = [flax_key_to_torch(key).removesuffix('running_var') for key in stats if key.endswith('.var')]
    metadata = {key: _as_metadata(value) for key, value in description.items()}
    return Checkpoint(
        path,
        'run',
        {f'params.{key}': value for key, value in params.items()}
        | {f'batch_stats.{key}': value for key, value in stats.items()},
        metadata | {'format': FLAX_FORMAT, COUNTER: json.dumps({norm + COUNTER: weights.step for norm in norms})},
        'ema' if weights.averaged else None,
        weights.has_ema,
        training,
    )


def check_version(workdir: Path) -> None:
    """Check that this release can read a run, if the folder holds one.

    Raises:
        ConversionError: the run is of a newer release, or its description is damaged.
    """
    if (workdir / MODEL_FILE).exists():
        _read_description(workdir / MODEL_FILE)


def _read_description(file: Path) -> dict[str, Any]:
    """Return the content of model.json. Raises ConversionError if it is damaged or of a newer release."""
    description = _read_object(file)
    CHECKPOINT.check(file, description)
    return description


def _as_metadata(value: Any) -> str:
    """Return a value of model.json as text, as safetensors metadata holds it."""
    if isinstance(value, str):
        return value
    return '' if value is None else json.dumps(value)


def _older_description(path: Path) -> dict[str, Any]:
    """Return the description of a run without model.json, from its training configuration."""
    config_file, names_file = path / OLDER_CONFIG_FILE, path / OLDER_NAMES_FILE
    config = _read_object(config_file)
    try:
        size = config['image_size']
        # The name of a model from the hub does not reveal the architecture; its shapes do.
        architecture = '' if ':' in config['model'] else split_name(config['model'])[0]
        data_config = {
            'input_size': (3, size, size),
            'crop_mode': 'center',
            **{name: config[name] for name in ('interpolation', 'mean', 'std', 'crop_pct')},
        }
    except KeyError as error:
        raise ConversionError(f'{config_file}: not the configuration of a run: {error} is missing') from None
    except (TypeError, ValueError) as error:
        raise ConversionError(f'{config_file}: {reason(error)}') from None
    names = read_json(names_file) if names_file.exists() else []
    if not are_names(names):
        raise ConversionError(f'{names_file}: expected a list of names')
    return {
        'architecture': architecture,
        'num_classes': config.get('num_classes'),
        'in_chans': 3,
        'abn_slope': None if config.get('abn_slope') == 1e-3 else config.get('abn_slope'),
        'data_config': data_config,
        'label_names': names,
    }


def _read_object(path: Path) -> dict[str, Any]:
    document = read_json(path)
    if not isinstance(document, dict):
        raise ConversionError(f'{path}: expected a JSON object, got {type(document).__name__}')
    return document


@dataclasses.dataclass(frozen=True)
class Weights:
    """The weights of a run at one step, as NumPy arrays.

    Attributes:
        step: number of training steps.
        metric: the metric that picks the best checkpoint, one of METRICS.
        rating: its value at that step, from 0 to 1; None if the step was not evaluated.
        params, batch_stats: the model's trees.
        averaged: whether the weights are the moving average.
        has_ema: whether the run keeps a moving average.
    """

    step: int
    metric: str
    rating: float | None
    params: Tree
    batch_stats: Tree
    averaged: bool
    has_ema: bool


def rated_steps(workdir: Path) -> tuple[str, dict[int, float | None]]:
    """Return the metric of a run, and its value for each checkpoint by step; None if the step was not evaluated.

    Raises:
        ConversionError: Orbax is not installed, or the folder holds no checkpoint or cannot be read.
    """
    ocp = _orbax(workdir)
    folder = workdir / CHECKPOINTS
    if not folder.is_dir():
        raise ConversionError(f'{workdir}: has no {CHECKPOINTS}/; give the folder of a training run')
    _check_files(folder)
    rated = stored_metrics(workdir)
    try:
        with ocp.training.Checkpointer(str(folder.absolute())) as checkpointer:
            metrics = {c.step: rated.get(c.step, {}) for c in checkpointer.checkpoints}
    except Exception as error:  # Orbax wraps the file system's errors in many classes
        raise ConversionError(f'{folder}: cannot be read: {reason(error)}') from error
    if not metrics:
        raise ConversionError(f'{folder}: holds no checkpoint yet')
    metric = next((name for name in METRICS if any(name in values for values in metrics.values())), 'top1')
    return metric, {step: values.get(metric) for step, values in metrics.items()}


def stored_metrics(workdir: Path) -> dict[int, dict[str, float]]:
    """Return the metrics of each checkpoint that was evaluated, by step.

    Raises:
        ConversionError: the file of a checkpoint is damaged.
    """
    files = (workdir / CHECKPOINTS).glob(f'*/{METRICS_PART}')
    return {int(file.parents[1].name): _read_metrics(file) for file in files if file.parents[1].name.isdecimal()}


def _read_metrics(file: Path) -> dict[str, float]:
    """Return the metrics in a file. Raises ConversionError if it is damaged."""
    remedy = f'delete the folder {file.parent}, and the checkpoint counts as one that was not evaluated'
    try:
        document = read_json(file, remedy=remedy)
        return {name: float(value) for name, value in document.items()}
    except ConversionError:
        if not os.path.lexists(file):  # a run that is still training deleted the checkpoint meanwhile
            return {}
        raise
    except (ValueError, TypeError, AttributeError, OverflowError) as error:
        raise ConversionError(f'{file}: expected a JSON object of numbers ({reason(error)}); {remedy}') from error


def _check_files(folder: Path) -> None:
    """Check the files of a run's checkpoints, because Orbax blocks on a pipe and loads files of any size.

    Raises:
        ConversionError: a file is not a regular one; or it is large, and not among those that hold the weights.
    """
    for root, _, names in os.walk(folder):
        for name in names:
            file = Path(root, name)
            try:
                status = file.stat()
            except OSError as error:
                if not file.is_symlink():  # a run that is still training deleted the checkpoint meanwhile
                    continue
                raise ConversionError(f'{shown(file)}: cannot be read: {reason(error)}') from error
            if not stat.S_ISREG(status.st_mode):
                raise ConversionError(f'{shown(file)}: not a regular file; copy the run again')
            if status.st_size > LARGEST_JSON and file.parent.name != DATA_PART:
                raise ConversionError(
                    f'{shown(file)}: too large; expected at most {LARGEST_JSON // 2**20} MiB; copy the run again'
                )


def _orbax(workdir: Path) -> Any:
    """Return Orbax. Raises ConversionError if it is not installed."""
    try:
        from orbax.checkpoint import v1 as ocp
    except ImportError as error:
        raise ConversionError(
            f"{workdir}: reading a training run needs pip install 'tresnet_jax[train]' ({reason(error)})"
        ) from None
    return ocp


def load_weights(workdir: Path, which: int | Literal['best', 'latest'] = 'best', *, ema: bool = True) -> Weights:
    """Load the weights of a run, whatever devices it trained on.

    Loading does not disturb a run that is still training.

    Args:
        workdir: folder of the run.
        which: a step, 'latest', or 'best' for the best metric, or for the latest if no checkpoint was evaluated.
        ema: use the moving average if the run has one.

    Raises:
        ConversionError: Orbax is not installed, or the checkpoint does not exist or cannot be read.
    """
    metric, found = rated_steps(workdir)
    folder = workdir / CHECKPOINTS
    step = _choose(found, which)
    if step not in found:
        steps = ', '.join(map(str, sorted(found)))
        raise ConversionError(f'{folder}: holds no checkpoint of step {step}; choose one of {steps}')
    path = folder.absolute() / str(step)
    try:
        stored = find_arrays(path / STATE_PART)
        has_ema = any(name.startswith('ema.') for name in stored)
        averaged = ema and has_ema
        prefix = 'ema.' if averaged else ''
        wanted = {
            name.removeprefix(prefix): spec
            for name, spec in stored.items()
            if name.startswith((f'{prefix}params.', f'{prefix}batch_stats.'))
        }
        arrays = read_arrays(path / STATE_PART, wanted)
        check_digests(path, {prefix + name: values for name, values in arrays.items()})
        state = unflatten(arrays)
        params, batch_stats = state['params'], state['batch_stats']
    except Exception as error:  # TensorStore's classes; KeyError or ours if the state is not a run's
        raise ConversionError(f'{path}: cannot be read: {reason(error)}') from error
    params.pop(PROJECTION, None)
    return Weights(step, metric, found[step], params, batch_stats, averaged, has_ema)


def _choose(found: dict[int, float | None], which: int | str) -> int:
    """Return the requested step, given the rating of each step."""
    if isinstance(which, int):
        return which
    rated = {step: rating for step, rating in found.items() if which == 'best' and rating is not None}
    return max(rated, key=lambda step: (rated[step], step)) if rated else max(found)
