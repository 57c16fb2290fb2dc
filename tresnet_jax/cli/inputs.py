"""Inputs of evaluate and embed: load a model and the images to run it on."""

import dataclasses
from pathlib import Path
from typing import Annotated, Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from tresnet_jax.checkpoints.run import MODEL_FILE, is_run, stored_label_names, stored_network
from tresnet_jax.data.class_matching import ClassMatch, match_classes
from tresnet_jax.data.images import warn_narrow_range
from tresnet_jax.data.pipeline import eval_dataset, to_devices
from tresnet_jax.data.sources import Source, check_channels, open_source
from tresnet_jax.data.transforms import OPTIONS, create_transform, height_width, resolve_data_config
from tresnet_jax.errors import TrainingError
from tresnet_jax.factory import create_model
from tresnet_jax.hub.client import split_source
from tresnet_jax.labels import class_names, class_synsets
from tresnet_jax.models.base import ImageModel
from tresnet_jax.options import NOT_NEGATIVE, POSITIVE, SHARE, check_options, flag
from tresnet_jax.training.config import TrainConfig
from tresnet_jax.training.devices import local_devices, set_up
from tresnet_jax.training.hosts import Hosts
from tresnet_jax.training.run_config import load_config
from tresnet_jax.variants import CLASSIFICATION, MULTILABEL, split_name


@dataclasses.dataclass(frozen=True)
class InputFlags:
    """The model, the images, and how they are processed."""

    model: Annotated[str | None, flag('NAME', 'that of the run')] = None
    """Architecture, with a tag to select pretrained weights."""
    pretrained: bool = False
    """Load the pretrained weights of the tag."""
    checkpoint: Annotated[Path | None, flag('FILE', 'none')] = None
    """Load the weights of this file or training run."""
    data: Annotated[str | None, flag('DATA', 'the data of the run')] = None
    """tfds:NAME, folder:DIR, csv:FILE, wds:PATTERN, hfds:NAME, npz:FILE, coco:DIR or embedded:fashion_mnist."""
    data_dir: Annotated[Path | None, flag('DIR', "that of the run, or TFDS's own")] = None
    """Folder of TensorFlow Datasets, or the folder that relative paths start from."""
    split: Annotated[str | None, flag('SPLIT', 'validation, or else test')] = None
    """Split, or a part of one: 'validation[:1000]'. For folder:DIR, also the name of a folder in DIR; for
    wds:PATTERN, also shards."""
    input_key: Annotated[str | None, flag('KEY', 'that of the run, or the only image')] = None
    """For wds:PATTERN, the extensions of the images: 'jpg;png'. For hfds:NAME, their column."""
    target_key: Annotated[str | None, flag('KEY', 'that of the run, or cls or label')] = None
    """For wds:PATTERN, the field of json that is the label. For hfds:NAME, the column of the labels. With --task
    multilabel also for csv:FILE and tfds:NAME; a path of names, or several, separated by commas, one per class."""
    task: Annotated[
        Literal['classification', 'multilabel'] | None, flag('{classification,multilabel}', 'that of the weights')
    ] = None
    """One class per image, or any number of classes."""
    target_format: Annotated[
        Literal['indices', 'multihot'] | None, flag('{indices,multihot}', 'that of the run, or indices')
    ] = None
    """For --task multilabel: a list of the classes of an image, or one number from 0 to 1 for each class."""
    keep_unlabelled: bool = False
    """For coco:DIR, keep the images without annotations."""
    max_value: Annotated[float | None, POSITIVE, flag('WHITE', 'that of the run, or 65535 in 16 bits')] = None
    """Value of white in grey images of more than 8 bits: 4095 for 12 bits in 16-bit files."""
    test_size: bool = False
    """Use the image size and crop of the best published accuracy."""
    image_size: Annotated[
        int | tuple[int, int] | None, POSITIVE, flag('PIXELS | HEIGHT WIDTH', 'that of the tag or the run')
    ] = None
    """Edge of the square images in pixels, or height and width."""
    crop_pct: Annotated[float | None, POSITIVE, flag('SHARE', 'that of the tag or the run')] = None
    """Edge of the crop over the edge of the resized image."""
    crop_mode: Annotated[
        Literal['center', 'squash', 'border'] | None, flag('{center,squash,border}', 'that of the tag or the run')
    ] = None
    """How images that are not square are prepared: cut, squashed, or with a border."""
    interpolation: Annotated[str | None, flag('FILTER', 'that of the tag or the run')] = None
    """Filter for resizing images."""
    mean: Annotated[tuple[float, ...] | None, flag('MEAN ...', 'that of the tag or the run')] = None
    """Mean of each channel, or one for all, for values in [0, 1]."""
    std: Annotated[tuple[float, ...] | None, POSITIVE, flag('STD ...', 'that of the tag or the run')] = None
    """Standard deviation of each channel, or one for all, for values in [0, 1]."""
    batch_size: Annotated[int, POSITIVE] = 256
    """Images per step, over all devices and hosts."""
    dtype: Annotated[Literal['float32', 'bfloat16', 'float64'] | None, flag('DTYPE', 'that of the run, or float32')] = (
        None
    )
    """Compute dtype: float32, bfloat16 or float64."""
    threads: Annotated[int, POSITIVE] = 8
    """Decoding threads in each process."""
    workers: Annotated[int, NOT_NEGATIVE] = 0
    """Decoding processes; 0: decode in threads of this process."""
    max_unreadable: Annotated[float, SHARE] = 0.01
    """Largest share of unreadable images, which are skipped."""
    devices: Annotated[int | None, POSITIVE, flag('N', 'all')] = None
    """Devices of this host to use; on a CPU, the number of virtual devices."""


@dataclasses.dataclass(frozen=True)
class Inputs:
    """The model and the images that `InputFlags` select.

    Attributes:
        name: the name of the model, for messages.
        named: whether the weights are those of the tag in `model.pretrained_cfg`.
        model: in evaluation mode.
        source: the images.
        own: whether the images are from the data set that the run was trained on.
        semantic: whether the run was trained with the semantic softmax.
        data_config: how images are preprocessed, as `resolve_data_config` returns it.
        max_value: white in grey images of more than 8 bits; see `load_image`.
        multilabel_threshold: probability from which a class counts as predicted in F1: that of the run, or 0.5.
        devices: the devices of this host that take part.
        dtype: dtype of everything around the network: float64 for a float64 model, else float32.
    """

    name: str
    named: bool
    model: ImageModel
    source: Source
    own: bool
    semantic: bool
    data_config: dict[str, Any]
    max_value: float | None
    multilabel_threshold: float
    devices: list[Any]
    dtype: Any


def load_inputs(
    flags: InputFlags,
    hosts: Hosts,
    *,
    split: str | None = None,
    num_classes: int | None = None,
    unlabelled: bool = False,
) -> Inputs:
    """Configure devices and hosts, open the data and load the model. Call this before JAX is used.

    Args:
        flags, hosts: from the command line.
        split: the split if neither the flags nor the run name one; None: validation, or test.
        num_classes: None: keep the classifier; 0: remove it.
        unlabelled: also accept images without labels: a folder without class folders, wds and hfds without labels;
            all labels are 0 then.

    Raises:
        TrainingError: a flag is missing or contradicts another.
        DataError, ValueError: as `open_source` and `create_model`.
    """
    folder = flags.checkpoint if flags.checkpoint is not None and flags.checkpoint.is_dir() else None
    of_run = folder is not None and (is_run(folder) or (folder / MODEL_FILE).exists())
    run = load_config(folder) if folder is not None and of_run else None
    name = flags.model or (_name_of(run, folder) if run and folder else None)
    if name is None and folder is not None:
        raise TrainingError(f'{folder}: not the folder of a training run; which model? give --model NAME')
    if name is None:
        raise TrainingError('which model? give --model NAME, or --checkpoint RUN')
    _check(flags, name, run)

    dtype = flags.dtype or (run.dtype if run else 'float32')
    set_up(hosts, devices=flags.devices, x64=dtype == 'float64')
    devices = local_devices(flags.devices)
    device_count = len(devices) * jax.process_count()
    if flags.batch_size % device_count:
        raise TrainingError(f'--batch-size {flags.batch_size} must be a multiple of {device_count} devices')
    model = create_model(
        name, pretrained=flags.pretrained, checkpoint=flags.checkpoint, num_classes=num_classes, dtype=jnp.dtype(dtype)
    )
    assert model.pretrained_cfg is not None
    # Embedding does not use the labels, so they need not be those of the model's task.
    source = _open(flags, run, split, unlabelled, CLASSIFICATION if unlabelled else model.pretrained_cfg.task)
    max_value = flags.max_value if flags.max_value is not None or run is None else run.max_value
    if max_value is None and jax.process_index() == 0:
        warn_narrow_range(lambda index: source[index]['image'], len(source), source.name)
    check_channels(source, model.in_chans)
    data_config = _data_config(flags, model)
    return Inputs(
        name=model.pretrained_cfg.name if flags.pretrained else name,
        named=run is None and (flags.pretrained or (not split_source(name) and split_name(name)[1] is not None)),
        model=model,
        source=source,
        own=run is not None and flags.data in (None, run.data),
        semantic=run is not None and run.loss_name == 'semantic',
        data_config=data_config,
        max_value=max_value,
        multilabel_threshold=(run or TrainConfig()).multilabel_threshold,
        devices=devices,
        dtype=jnp.dtype(jnp.float64 if dtype == 'float64' else jnp.float32),
    )


def _data_config(flags: InputFlags, model: ImageModel) -> dict[str, Any]:
    """Return how images are preprocessed: as the flags say, and otherwise as the weights expect.

    Raises:
        TrainingError: the flags do not suit one another or the model.
    """
    given = {name: value for name in OPTIONS if (value := getattr(flags, name)) is not None}
    if flags.image_size is not None:
        given['input_size'] = (model.in_chans, *height_width(flags.image_size, '--image-size'))
    try:
        return create_transform(**resolve_data_config(model, use_test_size=flags.test_size) | given).data_config
    except ValueError as error:
        raise TrainingError(f'evaluation images: {error}') from None


def input_batches(inputs: Inputs, flags: InputFlags, log: Path | None = None) -> Any:
    """Return every image once, in order, as batches on the devices; padding of the last batch has mask 0.

    Args:
        inputs, flags: of `load_inputs`.
        log: file that lists unreadable images.
    """
    dataset = eval_dataset(
        inputs.source,
        create_transform(**inputs.data_config),
        batch_size=flags.batch_size,
        shard=(jax.process_index(), jax.process_count()),
        threads=flags.threads,
        workers=flags.workers,
        max_unreadable=flags.max_unreadable,
        log=log,
        max_value=inputs.max_value,
    )
    return to_devices(dataset, inputs.devices)


def match_inputs(inputs: Inputs) -> ClassMatch:
    """Find the classes of the data among those of the model, as `match_classes` does.

    The labels of a run's own data are those of the run.

    Raises:
        DataError: a class is not found, or the classes can be matched in two ways.
    """
    source, model = inputs.source, inputs.model
    if inputs.own:
        places = np.arange(source.num_classes, dtype=np.int32)
        return ClassMatch(places, 'order', f'the {source.num_classes} classes of the run')
    names, synsets = class_names(model), class_synsets(model)
    return match_classes(source.class_names, names, synsets, model.num_classes, source.name, inputs.name)


def _check(flags: InputFlags, name: str, run: TrainConfig | None) -> None:
    """Raise TrainingError if a flag is missing, contradicts another or is out of range."""
    check_options(flags, TrainingError)
    if flags.pretrained == (flags.checkpoint is not None):
        raise TrainingError(f'which weights of {name}? give either --pretrained or --checkpoint')
    if flags.data is None and run is None:
        raise TrainingError('which images? give --data')


def _name_of(run: TrainConfig, folder: Path) -> str:
    """Return the architecture of a run. The model's name is that of the weights that training started from.

    A folder or a repository in that name can be gone; runs of 0.1.0's development need it, as they do not describe
    themselves.
    """
    stated = stored_network(folder).get('name')
    return stated or (run.model if split_source(run.model) else split_name(run.model)[0])


def _open(
    flags: InputFlags, run: TrainConfig | None, split: str | None, unlabelled: bool, task: str = CLASSIFICATION
) -> Source:
    """Open the selected split. Default: the split a run was evaluated on; all of a data set without splits.

    Args:
        flags, run, split, unlabelled: as in `load_inputs`.
        task: the task for other data than that of the run, if the flags do not give one.

    Raises:
        DataError: as `open_source`.
        TrainingError: a flag is for another task.
    """
    own = run is not None and flags.data in (None, run.data)
    task = flags.task or (run.task if run is not None and own else task)
    form = flags.target_format or (run.target_format if run is not None and own else 'indices')
    if flags.target_format and task != MULTILABEL:
        raise TrainingError(f'--target-format {form} is for --task {MULTILABEL}')
    options: dict[str, Any] = {
        'data_dir': flags.data_dir or (run.data_dir if run else None),
        'input_key': flags.input_key,
        'target_key': flags.target_key,
        'target_format': form if task == MULTILABEL else None,
        'keep_unlabelled': flags.keep_unlabelled or bool(run is not None and own and run.keep_unlabelled),
    }
    if run is not None and own:
        options |= {name: options[name] or getattr(run, name) for name in ('input_key', 'target_key')}
        asked = flags.split or split or run.val_split
        assert flags.checkpoint is not None
        names = stored_label_names(flags.checkpoint)
        return open_source(run.data, asked, val_fraction=run.val_fraction, class_names=names, **options)
    assert flags.data is not None
    return open_source(flags.data, flags.split or split, for_evaluation=True, unlabelled=unlabelled, **options)
