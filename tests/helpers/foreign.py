"""Key lists of other libraries, seeded weights under their names, and which outputs of them are stored."""

import functools
import gzip
import json
import re
from collections.abc import Mapping
from typing import NamedTuple, TypeVar

import numpy as np

from convert.foreign import LIBRARIES
from convert.golden import seeded_weights
from tests.helpers.paths import FILES

T = TypeVar('T')
BY_NAME = {library.name: library for library in LIBRARIES}
FOLDER = FILES / 'foreign'
SIZES = (224, 200, 225)  # of the images: sides that halve evenly to 7, that do not, and odd ones
KEPT = 512  # values of each output


class Entry(NamedTuple):
    """One tensor: its name in the library, its shape there, and timm's key; None for one that timm does not have."""

    name: str
    shape: tuple[int, ...]
    timm: str | None


@functools.cache
def key_lists() -> dict[str, dict[str, list[Entry]]]:
    """Return library -> instance -> its tensors, as the libraries themselves name them.

    'small' has bottleneck blocks, 2, 1, 1 and 1 in the stages, and the counters of batch norm; 'small_basic' has basic
    blocks, as many; 'resnet50d' is the whole network.
    """
    lists = json.loads(gzip.decompress((FOLDER / 'keys.json.gz').read_bytes()))
    return {
        library: {name: [Entry(key, tuple(shape), timm) for key, shape, timm in rows] for name, rows in lists.items()}
        for library, lists in lists.items()
    }


def small_weights(library: str) -> dict[str, np.ndarray]:
    """Return float32 weights of a library's small instance, under its names and in its layouts, with seed 0."""
    return seeded_weights({entry.name: entry.shape for entry in key_lists()[library]['small']}, 0)


def images(size: int) -> np.ndarray:
    """Return a standard normal image, (1, 3, size, size), float64."""
    return np.random.default_rng(size).standard_normal((1, 3, size, size))


def kept(output: np.ndarray) -> np.ndarray:
    """Return at most `KEPT` values of an output in torch's layout, at equal distances."""
    return output.reshape(-1)[np.linspace(0, output.size - 1, min(KEPT, output.size)).astype(int)]


def stored_outputs(library: str) -> dict[str, np.ndarray] | None:
    """Return 'SIZE.features.1' to 'SIZE.features.4' and 'SIZE.logits', as far as the library was run; else None."""
    path = FOLDER / f'{library.replace(" ", "_")}.npz'
    return dict(np.load(path)) if path.exists() else None


def as_in(name: str, tensors: Mapping[str, T]) -> dict[str, T]:
    """Return tensors under timm's names as a library names them; a classifier only if the library's layout has one."""
    library, named, counts = BY_NAME[name], {}, block_counts(tensors)
    owners: dict[str, str] = {}
    for theirs, timm in library.layers.items():
        owners.setdefault(timm, theirs)
    leaves = {timm: theirs for theirs, timm in library.leaves}
    for key, tensor in tensors.items():
        owner, _, leaf = key.rpartition('.')
        if owner != 'fc':
            named[f'{owners[owner]}.{leaves.get(leaf, leaf)}'] = tensor
        elif library.classifier:
            named[f'{library.classifier}.{leaf}'] = tensor

    def one_count(match: re.Match[str]) -> str:
        return f'blocks.{sum(counts[: int(match[1])]) + int(match[2])}.'

    def letters(match: re.Match[str]) -> str:
        block = ord(match[2]) - ord('a')
        many = counts[int(match[1]) - 2] > 10
        return f'res{match[1]}{f"b{block}" if many and block else match[2]}.'

    if name == 'PaddleClas':
        return {re.sub(r'^blocks\.(\d)\.(\d+)\.', one_count, key): tensor for key, tensor in named.items()}
    if name == 'PaddleDetection':
        return {re.sub(r'(?<=\.)res(\d)(.)\.', letters, key): tensor for key, tensor in named.items()}
    return named


def block_counts(tensors: Mapping[str, T]) -> list[int]:
    """Return the number of blocks of each stage of a state dict under timm's names."""
    return [len({key.split('.')[1] for key in tensors if key.startswith(f'layer{stage}.')}) for stage in range(1, 5)]
