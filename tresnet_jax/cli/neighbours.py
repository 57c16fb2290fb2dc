"""`embed.py --sheet`: a contact sheet of images next to their nearest neighbours in a folder of features."""

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import jax
import numpy as np
import safetensors
import safetensors.numpy
from PIL import Image

from tresnet_jax.cli.inputs import Inputs
from tresnet_jax.cli.thumbnails import CAPTION, short_name, thumbnail, thumbnail_of
from tresnet_jax.data.images import MODES, load_image
from tresnet_jax.data.transforms import create_transform
from tresnet_jax.errors import TrainingError, amount, reason
from tresnet_jax.folding import fold_batchnorm
from tresnet_jax.models.functional import functional
from tresnet_jax.plotting import contact_sheet
from tresnet_jax.training.multilabel import POSITIVE_FROM
from tresnet_jax.training.nearest import nearest

QUERIES = 8  # images of the data whose neighbours are shown if none are given


def write_sheet(path: Path, folder: Path, inputs: Inputs, queries: Sequence[Path], k: int) -> str:
    """Write a row for each query: the image, and its k nearest neighbours with labels and similarities.

    Args:
        path: the PNG file.
        folder: the features of all images of `inputs`, as `embed` writes them.
        inputs: the model and the data.
        queries: image files; none: images of the data, evenly spaced, which are not their own neighbours.
        k: number of neighbours.

    Returns:
        A one-line summary.

    Raises:
        TrainingError: the features cannot be read, or there are none.
        ImageError: (a ValueError) a query cannot be read.
        ConversionError: the file cannot be written.
    """
    files = sorted(folder.glob('features-*.safetensors'))
    if queries:
        if inputs.model.in_chans not in MODES:
            channels = amount(inputs.model.in_chans, 'channel')
            raise TrainingError(f'{inputs.name}: takes {channels}; image files have 1 (grey) or 3 (RGB)')
        transform = create_transform(**inputs.data_config)
        asked = [load_image(query, max_value=inputs.max_value) for query in queries]
        apply, *variables = functional(fold_batchnorm(inputs.model))
        run = jax.jit(lambda x: apply(*variables, x))
        features = np.concatenate([np.asarray(run(transform(image)[None])) for image in asked])
        images = [thumbnail(image) for image in asked]
        captions, excluded = [short_name(str(query)) for query in queries], None
    else:
        features, labels, excluded = _evenly_spaced(files)
        images = [thumbnail_of(inputs.source, int(index), inputs.max_value) for index in excluded]
        captions = [
            f'{short_name(inputs.source.describe(int(index)))}\n{_label(inputs, label)}'
            for index, label in zip(excluded, labels, strict=True)
        ]
    found = nearest(map(_shard, files), features, k, excluded)
    panels: list[Image.Image] = []
    texts: list[str] = []
    for row, (image, caption) in enumerate(zip(images, captions, strict=True)):
        panels.append(image)
        texts.append(caption)
        for index, similarity, label in zip(*(values[row] for values in found), strict=True):
            panels.append(thumbnail_of(inputs.source, int(index), inputs.max_value))
            texts.append(f'{_label(inputs, label)}\n{similarity:.3f}'.strip())
    columns = 1 + found.indices.shape[1]
    contact_sheet(panels, texts, path, columns=columns, framed=range(0, len(panels), columns))
    return f'{path}: {amount(len(images), "image")} and {amount(columns - 1, "neighbour")} of each'


@contextlib.contextmanager
def _named(path: Path) -> Iterator[None]:
    """Raise TrainingError if a file of features cannot be read."""
    try:
        yield
    except (OSError, safetensors.SafetensorError) as error:
        raise TrainingError(f'{path}: cannot be read: {reason(error)}; delete it and run again') from error


def _shard(path: Path) -> dict[str, np.ndarray]:
    with _named(path):
        return safetensors.numpy.load_file(path)


def _length(path: Path) -> int:
    """Return the number of images in a file, from its header."""
    with _named(path), safetensors.safe_open(path, 'numpy') as file:
        return file.get_slice('indices').get_shape()[0]


def _evenly_spaced(files: Sequence[Path]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return features, labels and indices of some images. Files without any of these are not loaded."""
    counts = [_length(path) for path in files]
    if not sum(counts):
        raise TrainingError(f'{files[0].parent}: has no features, so there are no neighbours to show')
    wanted = np.unique(np.linspace(0, sum(counts) - 1, QUERIES).round().astype(int))
    found, start = [], 0
    for path, count in zip(files, counts, strict=True):
        rows = wanted[(wanted >= start) & (wanted < start + count)] - start
        if len(rows):
            shard = _shard(path)
            found.append([shard[name][rows] for name in ('features', 'labels', 'indices')])
        start += count
    features, labels, indices = (np.concatenate(parts) for parts in zip(*found, strict=True))
    return features, labels, indices


def _label(inputs: Inputs, label: np.ndarray) -> str:
    """Return the name of a label, or with any number of classes per image their names."""
    names = inputs.source.class_names
    chosen = np.flatnonzero(label >= POSITIVE_FROM) if label.ndim else [int(label)]
    return ', '.join(names[index] for index in chosen if index < len(names))[:CAPTION]
