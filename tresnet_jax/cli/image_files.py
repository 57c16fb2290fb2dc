"""Inputs of predict and explain: image files, and a model that classifies them."""

import dataclasses
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import jax
import numpy as np
import tyro

from tresnet_jax.checkpoints.run import CHECKPOINTS, stored_network
from tresnet_jax.data.images import MODES, load_image, warn_narrow_range
from tresnet_jax.data.transforms import EvalTransform
from tresnet_jax.data.walk import find_images
from tresnet_jax.errors import ImageError, amount
from tresnet_jax.factory import create_model
from tresnet_jax.folding import fold_batchnorm
from tresnet_jax.options import POSITIVE, check_options, flag
from tresnet_jax.training.run_config import CONFIG_FILE, load_config
from tresnet_jax.variants import MULTILABEL


@dataclasses.dataclass(frozen=True)
class ImageFileFlags:
    """The images, the model, and how images are processed."""

    images: tyro.conf.Positional[tuple[Path, ...]]
    """Image files, and folders that are searched at any depth."""

    model: Annotated[str | None, flag('NAME', 'that of the run')] = None
    """Architecture, or architecture and tag: resnet50d, resnet50d.a1_in1k."""

    checkpoint: Annotated[Path | None, flag('FILE', 'the pretrained weights of the tag')] = None
    """Weights of the model: a file that create_model reads, or the folder of a training run."""

    task: Annotated[
        Literal['classification', 'multilabel'] | None, flag('{classification,multilabel}', 'that of the weights')
    ] = None
    """One class per image, or any number of classes, each with its own probability."""

    batch_size: Annotated[int, POSITIVE] = 32
    """Images per call of the model."""

    test_size: bool = False
    """Use the image size and crop of the best published accuracy."""

    max_value: Annotated[float | None, POSITIVE, flag('WHITE', 'that of the run, or 65535 in 16 bits')] = None
    """Value of white in grey images of more than 8 bits: 4095 for 12 bits in 16-bit files."""


Flags = TypeVar('Flags', bound=ImageFileFlags)


def with_values_of_run(flags: Flags) -> Flags:
    """Return the flags with `model` and `max_value` of the run, if the weights are those of one, unless they are given.

    Raises:
        ValueError: the model is unknown.
    """
    folder = flags.checkpoint
    if folder is not None and (folder / CHECKPOINTS).is_dir():
        model = flags.model or stored_network(folder).get('name')
        white = flags.max_value
        if white is None and (folder / CONFIG_FILE).exists():
            white = load_config(folder).max_value
        flags = dataclasses.replace(flags, model=model, max_value=white)
    if flags.model is None:
        raise ValueError('which model? give --model NAME, or --checkpoint RUN')
    return flags


def find_files(flags: ImageFileFlags) -> list[Path]:
    """Return the image files, after a check of all flags. Call `with_values_of_run` before.

    Raises:
        ValueError: a flag is wrong, or there is no image.
    """
    check_options(flags, ValueError)
    if flags.checkpoint and not flags.checkpoint.exists():
        raise ValueError(f'--checkpoint {flags.checkpoint}: no such file')
    paths = find_images(flags.images)
    if not paths:
        raise ValueError(f'no images in {", ".join(map(str, flags.images)) or "the arguments"}')
    if flags.max_value is None:
        warn_narrow_range(lambda index: paths[index], len(paths), 'the given images')
    return paths


def load_classifier(flags: ImageFileFlags) -> Any:
    """Load the model and fold its batch norm.

    Raises:
        ValueError: it cannot classify grey or RGB images.
    """
    assert flags.model is not None  # by `with_values_of_run`
    model = create_model(flags.model, pretrained=flags.checkpoint is None, checkpoint=flags.checkpoint)
    if model.in_chans not in MODES or not model.num_classes:
        what = f'{amount(model.in_chans, "channel")} and {amount(model.num_classes, "class", "classes")}'
        raise ValueError(
            f'{flags.checkpoint or flags.model}: a model with {what} cannot classify image files, which have 1 channel '
            '(grey) or 3 (RGB)'
        )
    return fold_batchnorm(model)


def is_multilabel(flags: ImageFileFlags, model: Any) -> bool:
    """Return whether an image has any number of classes, by the flag or else by the weights."""
    return (flags.task or model.pretrained_cfg.task) == MULTILABEL


def read_image(path: Path, transform: EvalTransform, max_value: float | None) -> np.ndarray | str:
    """Return the transformed image, or one line that says why it cannot be read."""
    try:
        return transform(load_image(path, max_value=max_value, channels=transform.channels))
    except ImageError as error:
        return str(error)
    except ValueError as error:
        return f'{path}: {error}'


def run_on_files(
    run: Callable[[np.ndarray], Any],
    transform: EvalTransform,
    paths: Sequence[Path],
    batch_size: int,
    max_value: float | None = None,
) -> Iterator[Any]:
    """Yield the results of each image in order, or one line that says why it cannot be read.

    Args:
        run: takes images (batch, H, W, C), float32; returns a tree of arrays (batch, ...).
        transform: as `create_transform` returns it.
        paths: image files.
        batch_size: images per batch. Every batch has this size, padded if needed, so that `run` compiles once.
        max_value: white in grey images of more than 8 bits; see `load_image`.

    Yields:
        A tree of NumPy arrays (...), or a str.
    """
    batch_size = min(batch_size, len(paths))
    # Pillow releases the interpreter lock while it decodes and resizes.
    with ThreadPoolExecutor(min(batch_size, os.cpu_count() or 1)) as pool:
        for start in range(0, len(paths), batch_size):
            batch = paths[start : start + batch_size]
            read = list(pool.map(lambda path: read_image(path, transform, max_value), batch))
            good = [x for x in read if isinstance(x, np.ndarray)]
            padding = [np.zeros_like(x) for x in good[:1]] * (batch_size - len(good))
            results = jax.tree.map(np.asarray, run(np.stack(good + padding))) if good else None
            places = iter(range(len(good)))
            for x in read:
                yield x if isinstance(x, str) else _row(results, next(places))


def _row(tree: Any, index: int) -> Any:
    return jax.tree.map(lambda array: array[index], tree)
