"""Make mosaics of Fashion-MNIST: images with any number of labels, small enough to train on in a minute.

    python scripts/make_mosaics.py fashion_mnist.npz mosaics.npz --pixels 32
    python scripts/train.py --recipe fashion_mosaics --data npz:mosaics.npz --workdir RUN

A mosaic has up to four images, each present with probability 1/2, and their labels. The file has 10,000 mosaics of
training images and 2,000 of test images, which are the same on every machine: `DIGESTS` are those of Fashion-MNIST
(Xiao et al., arXiv:1708.07747).
"""

import hashlib
import sys
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import tyro

from tresnet_jax.cli.common import fail, program_name
from tresnet_jax.data.arrays import ArraySource, open_npz
from tresnet_jax.errors import DataError
from tresnet_jax.files import written_beside

IMAGE, MARGIN = 28, 2  # edge of an image, and pixels around it
CELL = IMAGE + 2 * MARGIN  # a mosaic has 2 x 2 cells
CLASSES = 10
SIZES = {'train': (10_000, 0), 'test': (2_000, 1)}  # mosaics, and the seed
DIGESTS = {  # first digits of the SHA-256 of images of 64 and 32 pixels, and of labels
    'train': {64: 'a046017cab34f105', 32: '4b840c77ab96285d', 'labels': '6d93cb0af475472f'},
    'test': {64: 'e84a215ab77a7020', 32: '3d40b723d3822689', 'labels': '0fdd68f53bd8b53d'},
}


def make_mosaics(images: np.ndarray, labels: np.ndarray, count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return mosaics and their labels.

    Args:
        images: (N, 28, 28) uint8.
        labels: (N,), 0 to 9.
        count: number of mosaics.
        seed: of the random numbers.

    Returns:
        (count, 64, 64) uint8, and (count, 10) uint8, 1 for a label.
    """
    rng = np.random.default_rng(seed)
    chosen = rng.integers(0, len(images), (count, 4))
    there = rng.random((count, 4)) < 0.5
    mosaics = np.zeros((count, 2 * CELL, 2 * CELL), np.uint8)
    targets = np.zeros((count, CLASSES), np.uint8)
    for cell in range(4):
        row, column = (CELL * place + MARGIN for place in divmod(cell, 2))
        kept = np.flatnonzero(there[:, cell])
        found = chosen[kept, cell]
        mosaics[kept, row : row + IMAGE, column : column + IMAGE] = images[found]
        targets[kept, labels[found]] = 1
    return mosaics, targets


def halve(images: np.ndarray) -> np.ndarray:
    """Return images of half the size: the rounded mean of 2 x 2 pixels."""
    count, height, width = images.shape
    means = images.reshape(count, height // 2, 2, width // 2, 2).mean((2, 4))
    return np.floor(means + 0.5).astype(np.uint8)


def digest(array: np.ndarray) -> str:
    """Return the first 16 digits of the SHA-256 of an array."""
    return hashlib.sha256(array.tobytes()).hexdigest()[:16]


def main(
    source: Annotated[Path, tyro.conf.Positional],
    out: Annotated[Path, tyro.conf.Positional],
    pixels: Literal['32', '64'] = '32',
) -> int:
    """Write mosaics as a .npz file for ``--data npz:OUT --target-format multihot``.

    Args:
        source: Fashion-MNIST with x_train, y_train, x_test and y_test; a part of it gives other mosaics.
        out: the .npz file.
        pixels: edge of the mosaics.
    """
    try:
        arrays = {}
        for split, (count, seed) in SIZES.items():
            x, y = read_split(source, split)
            images, labels = make_mosaics(x, y, count, seed)
            images = halve(images) if pixels == '32' else images
            same = (digest(images), digest(labels)) == (DIGESTS[split][int(pixels)], DIGESTS[split]['labels'])
            print(f'{split}: {count:,} mosaics of {len(x):,} images' + ('' if same else ', which is not Fashion-MNIST'))
            arrays |= {f'x_{split}': images, f'y_{split}': labels}
        with written_beside(out) as beside, beside.open('wb') as file:
            np.savez_compressed(file, **arrays)
    except ValueError as error:
        return fail(error)
    return 0


def read_split(path: Path, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the images and labels of a split. Raises DataError if the file has none of this form."""
    source = open_npz(path, split, str(path))
    assert isinstance(source, ArraySource)  # one label per image
    if source.images.ndim != 3 or source.images.shape[1:] != (IMAGE, IMAGE) or source.num_classes != CLASSES:
        raise DataError(
            f'{path}: x_{split} is {source.images.shape}, with {source.num_classes} classes; expected '
            f'(N, {IMAGE}, {IMAGE}) with {CLASSES} classes'
        )
    return source.images, source.labels


if __name__ == '__main__':
    sys.exit(tyro.cli(main, prog=program_name()))
