"""ReaL labels of ImageNet's validation images (Beyer et al., arXiv:2006.07159): none, one or several classes each."""

import re
from pathlib import Path

import numpy as np

from tresnet_jax.data.sources import Source
from tresnet_jax.data.tfds import TfdsSource
from tresnet_jax.errors import DataError, shown
from tresnet_jax.files import read_json

NAME = 'ILSVRC2012_val_00000001.JPEG'
_NUMBER = re.compile(r'ILSVRC2012_val_(\d{8})(?:_n\d{8})?\.(?:jpe?g|png|webp)', re.IGNORECASE)


def read_real_labels(path: Path, num_classes: int) -> list[list[int]]:
    """Read a file of ReaL labels: a list with a list of class indices for each validation image.

    Raises:
        DataError: the file cannot be read, or has another structure.
    """
    labels = read_json(path, DataError)
    what = f'{shown(path)}: expected a list of lists of class indices from 0 to {num_classes - 1}'
    if not isinstance(labels, list) or not labels:
        raise DataError(f'{what}, got {"an empty list" if labels == [] else type(labels).__name__}')
    for number, each in enumerate(labels, 1):
        if not isinstance(each, list) or not all(type(label) is int and 0 <= label < num_classes for label in each):
            raise DataError(f'{what}; number {number} is {shown(str(each)[:100])}')
    return labels


def accepted_labels(source: Source, labels: list[list[int]]) -> np.ndarray:
    """Return the ReaL labels of each image of a source, by the number in its file name.

    Args:
        source: images of ImageNet's validation split.
        labels: as `read_real_labels` returns them; entry i is that of image i + 1.

    Returns:
        (images, most labels of an image) int32, padded with -1.

    Raises:
        DataError: an image has another name, a number that has no entry, or that of another image.
    """
    found: list[list[int]] = []
    seen: dict[int, str] = {}
    for index in range(len(source)):
        name = source.file_name(index) if isinstance(source, TfdsSource) else source.describe(index)
        match = _NUMBER.search(name.rpartition('/')[2])
        number = int(match[1]) if match else 0
        if not 1 <= number <= len(labels):
            raise DataError(
                f'{source.name}: ReaL labels belong to file names such as {NAME}, up to number {len(labels)}; got '
                f'{shown(name)}'
            )
        if number in seen:
            raise DataError(f'{source.name}: {shown(seen[number])} and {shown(name)} are the same image')
        seen[number] = name
        found.append(labels[number - 1])
    accepted = np.full((len(found), max(1, *map(len, found))), -1, np.int32)
    for index, each in enumerate(found):
        accepted[index, : len(each)] = each
    return accepted
