"""`predict.py`: classify images and print their class names and probabilities."""

import dataclasses
import json
import sys
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np

from tresnet_jax.cli.common import Progress, fail, parse, quiet_libraries
from tresnet_jax.cli.image_files import (
    ImageFileFlags,
    find_files,
    is_multilabel,
    load_classifier,
    run_on_files,
    with_values_of_run,
)
from tresnet_jax.cli.outputs import check_plot
from tresnet_jax.compilation_cache import use_compilation_cache
from tresnet_jax.data.images import load_image
from tresnet_jax.data.transforms import EvalTransform, create_transform, resolve_data_config
from tresnet_jax.labels import class_names, class_synsets
from tresnet_jax.options import POSITIVE, SHARE, flag
from tresnet_jax.plotting import contact_sheet
from tresnet_jax.program_cache import cached_jit
from tresnet_jax.variants import MULTILABEL

SHEET_IMAGES = 100
SHEET_PIXELS = 200
SHEET_CLASSES = 3


@dataclasses.dataclass(frozen=True)
class PredictArguments(ImageFileFlags):
    """Classify images.

    Standard error shows a progress bar on a terminal, and one line every 30 seconds elsewhere.

    Exit codes: 0, all images are classified; 1, some could not be read; 2, nothing was done; 130, interrupted.
    """

    topk: Annotated[int | None, POSITIVE, flag('N', '5, or with any number of classes per image all')] = None
    """Number of classes to print per image, the likeliest first."""

    threshold: Annotated[float | None, SHARE, flag('SHARE', '0.5')] = None
    """Smallest probability of a class to print, with any number of classes per image."""

    json: bool = False
    """Print one JSON document instead of lines."""

    plot: Annotated[Path | None, flag('OUT.png', 'none')] = None
    """Also write a PNG file that shows the first 100 images with their classes."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code. Wrong usage and ``--help`` raise SystemExit."""
    arguments = parse(PredictArguments, argv)
    quiet_libraries()
    use_compilation_cache()
    with warnings.catch_warnings():
        # Pillow warns about large images and damaged metadata; both are harmless, and the warnings would break the line
        # of the bar.
        warnings.filterwarnings('ignore', module=r'PIL\.')
        try:
            arguments = with_values_of_run(arguments)
            if arguments.plot:
                check_plot('--plot', arguments.plot)
            paths = find_files(arguments)
            results = _predict_all(arguments, load_classifier(arguments), paths)
            sys.stdout.flush()
            if arguments.plot and (good := [result for result in results if 'classes' in result][:SHEET_IMAGES]):
                _plot(good, arguments.plot, arguments.max_value)
        except (ValueError, OSError, KeyboardInterrupt) as error:
            return fail(error)
    return 1 if any('error' in result for result in results) else 0


def predict(
    model: Any,
    transform: EvalTransform,
    paths: Sequence[Path],
    batch_size: int,
    max_value: float | None = None,
    multilabel: bool = False,
) -> Iterator[np.ndarray | str]:
    """Return the class probabilities of each image in order, or one line that says why it cannot be read.

    Args:
        model: a classifier.
        transform: as `create_transform` returns it.
        paths: image files.
        batch_size: images per batch. Every batch has this size, padded if needed, so the model compiles once.
        max_value: white in grey images of more than 8 bits; see `load_image`.
        multilabel: an image has any number of classes, each with its own probability.

    Returns:
        An iterator of (num_classes,) float32 that sum to 1 unless `multilabel`, or a str.
    """
    classify = cached_jit(model, probabilities, multilabel=multilabel)
    return run_on_files(classify, transform, paths, batch_size, max_value)


def probabilities(model: Any, images: jax.Array, *, multilabel: bool) -> jax.Array:
    """Return the probability of each class, (B, num_classes) float32."""
    return (jax.nn.sigmoid if multilabel else jax.nn.softmax)(model(images).astype(jnp.float32))


def top(probabilities: np.ndarray, k: int) -> list[int]:
    """Return the indices of the k likeliest classes, the likeliest first; ties keep the order of the classes."""
    return np.argsort(-probabilities, kind='stable')[:k].tolist()


def _predict_all(arguments: PredictArguments, model: Any, paths: list[Path]) -> list[dict[str, Any]]:
    """Classify all images. Print lines as batches finish, or one JSON document at the end; return its images."""
    data_config = resolve_data_config(model, use_test_size=arguments.test_size)
    multilabel = is_multilabel(arguments, model)
    if arguments.threshold is not None and not multilabel:
        raise ValueError(
            f'--threshold is for any number of classes per image, and {arguments.model} predicts one; leave out '
            f'--threshold, or give --task {MULTILABEL}'
        )
    threshold = 0.5 if arguments.threshold is None else arguments.threshold
    count = arguments.topk or (model.num_classes if multilabel else 5)
    names, synsets = class_names(model), class_synsets(model)
    results: list[dict[str, Any]] = []
    with Progress(len(paths), 'images') as progress:
        transform = create_transform(**data_config)
        outcomes = predict(model, transform, paths, arguments.batch_size, arguments.max_value, multilabel)
        for path, outcome in zip(paths, outcomes, strict=True):
            if isinstance(outcome, str):
                results.append({'path': str(path), 'error': outcome})
                progress.write(outcome, error=True)
            else:
                found = [index for index in top(outcome, count) if not multilabel or outcome[index] >= threshold]
                classes = [_describe(index, outcome, names, synsets) for index in found]
                results.append({'path': str(path), 'classes': classes})
                if not arguments.json:
                    lines = [f'  {c["name"]} {c["probability"]:.4f}' for c in classes] or ['  no class']
                    progress.write('\n'.join([str(path), *lines]))
            progress.update(len(results))
    if arguments.json:
        weights = {'model': arguments.model, 'checkpoint': arguments.checkpoint and str(arguments.checkpoint)}
        print(json.dumps({**weights, 'data_config': data_config, 'pictures': results}, indent=2))
    return results


def _describe(
    index: int, probabilities: np.ndarray, names: Sequence[str] | None, synsets: Sequence[str] | None
) -> dict[str, Any]:
    """Return one class as in the JSON document. The name of a class without a name is its index."""
    return {
        'index': index,
        'name': names[index] if names else str(index),
        'synset': synsets[index] if synsets else None,
        'probability': float(probabilities[index]),
    }


def _plot(results: Sequence[dict[str, Any]], path: Path, max_value: float | None) -> None:
    """Write the contact sheet. Images are read again, so that only thumbnails are held in memory."""
    images, captions = [], []
    for result in results:
        image = load_image(result['path'], max_value=max_value)
        image.thumbnail((SHEET_PIXELS, SHEET_PIXELS))
        images.append(image)
        likeliest = result['classes'][:SHEET_CLASSES]
        captions.append('\n'.join(f'{c["name"][:30]} {c["probability"]:.2f}' for c in likeliest))
    contact_sheet(images, captions, path)
