"""The command line of ``scripts/predict.py``: images in, class names and probabilities out."""

import dataclasses
import json
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
import tqdm
import tyro
from PIL import Image

from tresnet_jax.cli.common import fail
from tresnet_jax.compilation_cache import use_compilation_cache
from tresnet_jax.data.images import find_images, load_image
from tresnet_jax.data.transforms import create_transform, resolve_data_config
from tresnet_jax.errors import ImageError
from tresnet_jax.factory import create_model
from tresnet_jax.folding import fold_batchnorm
from tresnet_jax.labels import class_names, class_synsets
from tresnet_jax.plotting import contact_sheet

SHEET_IMAGES = 100
SHEET_PIXELS = 200
SHEET_CLASSES = 3
BAR = '{l_bar}{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}, {rate_noinv_fmt}]'


@dataclasses.dataclass(frozen=True)
class Config:
    """What is in these images, according to a classifier.

    Exit codes: 0, all images done; 1, some could not be read; 2, nothing was done.
    """

    images: tyro.conf.Positional[tuple[Path, ...]]
    """Image files, and folders to search for them at any depth."""

    model: Annotated[str, tyro.conf.arg(metavar='NAME')]
    """Architecture, or architecture and tag: resnet50d, resnet50d.a1_in1k."""

    checkpoint: Annotated[Path | None, tyro.conf.arg(metavar='FILE')] = None
    """Weights of the model, in any format the converter reads, or the folder of a training run; without it, those of
    the tag."""

    topk: int = 5
    """How many classes to name, the likeliest first."""

    batch_size: int = 32
    """Images that go through the model at a time."""

    test_size: bool = False
    """Use the larger images that the best published accuracy was measured with."""

    json: bool = False
    """Print one JSON document instead of lines."""

    plot: Annotated[Path | None, tyro.conf.arg(metavar='OUT.png')] = None
    """Also write a PNG file that shows the first 100 images with their classes."""


def predict(
    model: Any, transform: Callable[[Image.Image], np.ndarray], paths: Sequence[Path], batch_size: int
) -> Iterator[np.ndarray | str]:
    """The probabilities of each image, in order, as batches are done; or one line why it cannot be read.

    Args:
        model: (batch, height, width, 3) float32 -> (batch, num_classes) logits, a pytree for `jax.jit`.
        transform: see `create_transform`.
        paths: of the images.
        batch_size: images at a time; every batch has this size, so that there is one compilation.

    Yields:
        (num_classes,) float32, which add up to 1; or a str.
    """
    classify = jax.jit(lambda m, x: jax.nn.softmax(m(x).astype(jnp.float32), axis=-1))
    batch_size = min(batch_size, len(paths))
    # Pillow decodes and resizes in C, beside the interpreter lock.
    with ThreadPoolExecutor(min(batch_size, os.cpu_count() or 1)) as pool:
        for start in range(0, len(paths), batch_size):
            batch = paths[start : start + batch_size]
            read = list(pool.map(lambda path: _read(path, transform), batch))
            good = [x for x in read if isinstance(x, np.ndarray)]
            padding = [np.zeros_like(x) for x in good[:1]] * (batch_size - len(good))
            rows = iter(np.asarray(classify(model, np.stack(good + padding))) if good else ())
            yield from (x if isinstance(x, str) else next(rows) for x in read)


def _read(path: Path, transform: Callable[[Image.Image], np.ndarray]) -> np.ndarray | str:
    """The transformed image, or one line why there is none."""
    try:
        return transform(load_image(path))
    except ImageError as error:
        return str(error)
    except ValueError as error:
        return f'{path}: {error}'


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code; wrong usage and ``--help`` raise SystemExit."""
    config = tyro.cli(Config, args=argv, config=(tyro.conf.FlagCreatePairsOff,))
    with warnings.catch_warnings():
        # About large images and damaged metadata: they do no harm, and would break the progress bar's line.
        warnings.filterwarnings('ignore', module=r'PIL\.')
        use_compilation_cache()
        try:
            paths = _check(config)
            pretrained = config.checkpoint is None
            model = create_model(config.model, pretrained=pretrained, checkpoint=config.checkpoint)
            if model.in_chans != 3 or not model.num_classes:
                what = f'{model.in_chans} channels and {model.num_classes} classes'
                raise ValueError(f'{config.checkpoint}: a model of {what} cannot classify colour images')
            model = fold_batchnorm(model)
        except (ValueError, OSError) as error:
            return fail(error)
        try:
            results = _run(config, model, paths)
            sys.stdout.flush()
        except BrokenPipeError:  # The reader, such as `head`, has seen enough.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 1
        if config.plot and (good := [result for result in results if 'classes' in result][:SHEET_IMAGES]):
            try:
                _plot(good, config.plot)
            except (ValueError, OSError) as error:
                return fail(error)
    return 1 if any('error' in result for result in results) else 0


def _check(config: Config) -> list[Path]:
    """The images that are asked for; raises ValueError for what would fail only after minutes of work."""
    if config.topk < 1 or config.batch_size < 1:
        raise ValueError('--topk and --batch-size must be positive')
    if config.checkpoint and not config.checkpoint.exists():
        raise ValueError(f'--checkpoint {config.checkpoint}: no such file')
    if config.plot:
        folder = config.plot.parent
        if config.plot.is_dir() or not folder.is_dir() or not os.access(folder, os.W_OK):
            raise ValueError(f'--plot {config.plot}: cannot be written there')
    paths = find_images(config.images)
    if not paths:
        raise ValueError(f'no images in {", ".join(map(str, config.images)) or "the arguments"}')
    return paths


def _run(config: Config, model: Any, paths: list[Path]) -> list[dict[str, Any]]:
    """Predict, and print lines as batches are done or one JSON document at the end; returns its images."""
    data_config = resolve_data_config(model, use_test_size=config.test_size)
    names, synsets = class_names(model), class_synsets(model)
    results: list[dict[str, Any]] = []
    with tqdm.tqdm(total=len(paths), unit=' images', bar_format=BAR) as bar:
        outcomes = predict(model, create_transform(**data_config), paths, config.batch_size)
        for path, outcome in zip(paths, outcomes, strict=True):
            if isinstance(outcome, str):
                results.append({'path': str(path), 'error': outcome})
                bar.write(outcome, file=sys.stderr)
            else:
                classes = [_describe(index, outcome, names, synsets) for index in top(outcome, config.topk)]
                results.append({'path': str(path), 'classes': classes})
                if not config.json:
                    lines = [f'  {c["name"]} {c["probability"]:.4f}' for c in classes]
                    bar.write('\n'.join([str(path), *lines]))
            bar.update()
    if config.json:
        weights = {'model': config.model, 'checkpoint': config.checkpoint and str(config.checkpoint)}
        print(json.dumps({**weights, 'data_config': data_config, 'pictures': results}, indent=2))
    return results


def top(probabilities: np.ndarray, k: int) -> list[int]:
    """The k likeliest classes, the likeliest first; of equally likely ones the first comes first."""
    return np.argsort(-probabilities, kind='stable')[:k].tolist()


def _describe(
    index: int, probabilities: np.ndarray, names: Sequence[str] | None, synsets: Sequence[str] | None
) -> dict[str, Any]:
    """One class as the JSON document has it; classes without names are called by their number."""
    return {
        'index': index,
        'name': names[index] if names else str(index),
        'synset': synsets[index] if synsets else None,
        'probability': float(probabilities[index]),
    }


def _plot(results: Sequence[dict[str, Any]], path: Path) -> None:
    """Write the sheet; images are read again, so that no more than thumbnails are held."""
    images, captions = [], []
    for result in results:
        image = load_image(result['path'])
        image.thumbnail((SHEET_PIXELS, SHEET_PIXELS))
        images.append(image)
        likeliest = result['classes'][:SHEET_CLASSES]
        captions.append('\n'.join(f'{c["name"][:30]} {c["probability"]:.2f}' for c in likeliest))
    contact_sheet(images, captions, path)
