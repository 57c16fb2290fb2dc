"""The nearest neighbours of images by the cosine similarity of their features."""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np


class Neighbours(NamedTuple):
    """The nearest images of each query, the nearest first; equally near ones in the order of the shards.

    Attributes:
        indices: (Q, k), positions in the data set. k is smaller than asked for if there are not as many images.
        similarities: (Q, k), from -1 to 1.
        labels: (Q, k), or (Q, k, classes) with any number of classes per image.
    """

    indices: np.ndarray
    similarities: np.ndarray
    labels: np.ndarray


def nearest(
    shards: Iterable[Mapping[str, np.ndarray]], queries: np.ndarray, k: int, excluded: np.ndarray | None = None
) -> Neighbours:
    """Search all shards; one of them is in memory at a time.

    Args:
        shards: `features` (n, F), `labels` and `indices` (n,), as `embed` writes them. At least one.
        queries: (Q, F).
        k: number of neighbours.
        excluded: (Q,), an index for each query that is not its neighbour, such as its own; -1 for none.
    """
    queries = _normalised(queries)
    best: Neighbours | None = None
    for shard in shards:
        similarities = queries @ _normalised(shard['features']).T
        indices = np.broadcast_to(shard['indices'], similarities.shape)
        labels = np.broadcast_to(shard['labels'], (len(queries), *shard['labels'].shape))
        if excluded is not None:
            similarities[indices == np.asarray(excluded)[:, None]] = -np.inf
        found = _nearest(Neighbours(indices, similarities, labels), k)  # before the labels of all images are copied
        if best is not None:
            found = _nearest(Neighbours(*(np.concatenate(pair, 1) for pair in zip(best, found, strict=True))), k)
        best = found
    assert best is not None
    kept = int(np.isfinite(best.similarities).all(0).sum())  # an excluded image is the last one
    return Neighbours(*(values[:, :kept] for values in best))


def _nearest(found: Neighbours, k: int) -> Neighbours:
    order = np.argsort(-found.similarities, 1, kind='stable')[:, :k]
    rows = np.arange(len(order))[:, None]
    return Neighbours(*(values[rows, order] for values in found))


def _normalised(features: np.ndarray) -> np.ndarray:
    """Return float32 rows of length 1; a row of zeros stays zero."""
    features = features.astype(np.float32)
    return features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), np.finfo(np.float32).tiny)
