"""A trained model and the images to put through it: what evaluating and embedding have in common."""

import dataclasses
from pathlib import Path
from typing import Annotated, Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from tresnet_jax.data.folders import SPLITS, FolderSource
from tresnet_jax.data.images import find_images
from tresnet_jax.data.pipeline import eval_dataset, to_devices
from tresnet_jax.data.sources import Source, open_source
from tresnet_jax.data.transforms import create_transform, resolve_data_config
from tresnet_jax.errors import DataError, TrainingError
from tresnet_jax.factory import create_model
from tresnet_jax.hub.client import split_source
from tresnet_jax.labels import SYNSET, class_synsets
from tresnet_jax.models.base import ImageModel
from tresnet_jax.training.config import TrainConfig, load_config
from tresnet_jax.training.devices import Hosts, local_devices, set_up
from tresnet_jax.variants import split_name


@dataclasses.dataclass(frozen=True)
class Flags:
    """Which model, which images, and how they go through it."""

    model: Annotated[str | None, tyro.conf.arg(metavar='NAME')] = None
    """Architecture, with a tag if its weights are wanted; not needed for a run."""
    pretrained: bool = False
    """Take the weights of the tag."""
    checkpoint: Path | None = None
    """Take the weights of this file, or of the folder of a training run."""
    data: str | None = None
    """tfds:NAME, folder:DIR, npz:FILE or embedded:fashion_mnist; of a run its own when left out."""
    data_dir: Path | None = None
    """Where TensorFlow Datasets keeps its data; None is its own default."""
    split: str | None = None
    """A split, or a part of it: 'validation[:1000]'."""
    test_size: bool = False
    """Take the size and crop that the best published accuracy was measured with."""
    image_size: int | None = None
    """Edge of the square images in pixels; None is the tag's or the run's."""
    crop_pct: float | None = None
    """Edge of the crop over the edge of the resized image; None is the tag's or the run's."""
    batch_size: int = 256
    """Images in a step, over all devices and hosts."""
    dtype: Literal['float32', 'bfloat16', 'float64'] | None = None
    """Of the computation; None is float32, or the run's."""
    threads: int = 8
    """Threads that decode, in each process."""
    workers: int = 0
    """Processes that decode; 0 leaves it to the threads."""
    max_unreadable: float = 0.01
    """The share of images that may be unreadable; they are left out."""
    devices: int | None = None
    """How many devices of this host; None is all. On the CPU, that many virtual ones."""


@dataclasses.dataclass(frozen=True)
class Subject:
    """What `Flags` come to.

    Attributes:
        name: of the model, for people.
        named: whether its weights are those of the tag in `model.pretrained_cfg`.
        model: in evaluation mode.
        source: the images.
        own: whether they are of the data that the run was trained on.
        data_config: how the images are prepared, as `resolve_data_config` says it.
        devices: of this host.
        dtype: of what lies around the network: float64, or float32.
    """

    name: str
    named: bool
    model: ImageModel
    source: Source
    own: bool
    data_config: dict[str, Any]
    devices: list[Any]
    dtype: Any


def prepare(
    flags: Flags, hosts: Hosts, *, split: str | None = None, num_classes: int | None = None, flat: bool = False
) -> Subject:
    """Settle devices and hosts, open the data, load the model. To be called before JAX is used.

    Args:
        flags, hosts: from the command line.
        split: which one where nobody says; None is validation, or test.
        num_classes: None keeps the classifier, 0 takes it away.
        flat: take a folder of images without class folders too; all labels are 0 then.

    Raises:
        TrainingError: flags that are missing or contradict each other.
        DataError, ValueError: what `open_source` and `create_model` raise.
    """
    run = load_config(flags.checkpoint) if flags.checkpoint is not None and flags.checkpoint.is_dir() else None
    name = flags.model or (_name_of(run) if run else None)
    if name is None:
        raise TrainingError('which model? give --model NAME, or --checkpoint RUN')
    if flags.pretrained == (flags.checkpoint is not None):
        raise TrainingError(f'which weights of {name}? give either --pretrained or --checkpoint')
    if flags.data is None and run is None:
        raise TrainingError('which images? give --data')
    for flag in ('image_size', 'crop_pct', 'batch_size', 'threads', 'devices'):
        value = getattr(flags, flag)
        if value is not None and value <= 0:
            raise TrainingError(f'--{flag.replace("_", "-")} must be positive, got {value}')

    dtype = flags.dtype or (run.dtype if run else 'float32')
    set_up(hosts, devices=flags.devices, x64=dtype == 'float64')
    devices = local_devices(flags.devices)
    everywhere = len(devices) * jax.process_count()
    if flags.batch_size % everywhere:
        raise TrainingError(f'--batch-size {flags.batch_size} must be a multiple of {everywhere} devices')
    source = _open(flags, run, split, flat)
    model = create_model(
        name, pretrained=flags.pretrained, checkpoint=flags.checkpoint, num_classes=num_classes, dtype=jnp.dtype(dtype)
    )
    if model.in_chans != 3:
        raise TrainingError(f'{name}: takes {model.in_chans} channels; the images have 3')
    data_config = resolve_data_config(model, use_test_size=flags.test_size)
    if flags.image_size is not None:
        data_config['input_size'] = (3, flags.image_size, flags.image_size)
    if flags.crop_pct is not None:
        data_config['crop_pct'] = flags.crop_pct
    assert model.pretrained_cfg is not None
    return Subject(
        name=model.pretrained_cfg.name if flags.pretrained else name,
        named=run is None and (flags.pretrained or (not split_source(name) and split_name(name)[1] is not None)),
        model=model,
        source=source,
        own=run is not None and flags.data in (None, run.data),
        data_config=data_config,
        devices=devices,
        dtype=jnp.dtype(jnp.float64 if dtype == 'float64' else jnp.float32),
    )


def batches_of(subject: Subject, flags: Flags, log: Path | None = None) -> Any:
    """The images once, in order, as batches on the devices; what was added to the last one has mask 0.

    Images that cannot be read are named in `log`.
    """
    dataset = eval_dataset(
        subject.source,
        create_transform(**subject.data_config),
        batch_size=flags.batch_size,
        shard=(jax.process_index(), jax.process_count()),
        threads=flags.threads,
        workers=flags.workers,
        max_unreadable=flags.max_unreadable,
        log=log,
    )
    return to_devices(dataset, subject.devices)


def class_places(subject: Subject) -> np.ndarray | None:
    """For each class of the data its place among the model's; None where both have the same in the same order.

    Classes that are called by WordNet synsets, such as 'n02111889', are found by their names among the model's, so
    that part of ImageNet is enough. ImageNet of TFDS has the model's order, which that confirms.

    Raises:
        DataError: the data has classes that the model does not know, or another number of them.
    """
    source, model = subject.source, subject.model
    if subject.own:
        return None
    synsets = class_synsets(model)
    if synsets and all(map(SYNSET.fullmatch, source.class_names)):
        places = {synset: place for place, synset in enumerate(synsets)}
        unknown = [name for name in source.class_names if name not in places]
        if unknown:
            raise DataError(
                f'{source.name}: {subject.name} does not know {len(unknown)} of {source.num_classes} classes: '
                f'{", ".join(unknown[:5])}'
            )
        return np.asarray([places[name] for name in source.class_names], np.int32)
    if source.num_classes != model.num_classes:
        raise DataError(
            f'{source.name}: has {source.num_classes} classes, {subject.name} {model.num_classes}. Some of the '
            'classes of ImageNet will do if they are called by their synsets: folders n02111889 and so on'
        )
    return None


def _name_of(run: TrainConfig) -> str:
    """The architecture: a tag stood for the weights before training."""
    return run.model if split_source(run.model) else split_name(run.model)[0]


def _open(flags: Flags, run: TrainConfig | None, split: str | None, flat: bool) -> Source:
    """The split that is asked for: a run's own is the one it was evaluated on, and a folder without splits is whole."""
    data_dir = flags.data_dir or (run.data_dir if run else None)
    if run is not None and flags.data in (None, run.data):
        asked = flags.split or split or run.val_split
        return open_source(run.data, asked, data_dir=data_dir, val_fraction=run.val_fraction)
    assert flags.data is not None
    kind, _, folder = flags.data.partition(':')
    root = (data_dir or Path()) / Path(folder).expanduser()
    whole = kind == 'folder' and not any((root / name).is_dir() for name in SPLITS)
    if whole and flat and root.is_dir() and not any(path.is_dir() for path in root.iterdir()):
        return _flat(root, flags.data)
    asked = flags.split or split or ('train' if whole else None)
    return open_source(flags.data, asked, data_dir=data_dir, val_fraction=0.0 if whole else 0.1)


def _flat(root: Path, where: str) -> FolderSource:
    """A folder with nothing but images in it."""
    files = tuple(path.name for path in find_images([root]))
    if not files:
        raise DataError(f'{where}: no images in {root}')
    return FolderSource(where, ('',), root, files, np.zeros(len(files), np.int32))
