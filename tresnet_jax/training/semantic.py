"""Semantic softmax: a softmax for each level of a tree of classes; Ridnik et al., arXiv:2104.10972.

An image of a class also belongs to each class above it. The formulas are those of github.com/Alibaba-MIIL/ImageNet21K,
``src_files/semantic``. The authors leave out the deepest level, so its classes have no loss of their own.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from tresnet_jax.checkpoints import torch_file
from tresnet_jax.data.class_matching import other_order
from tresnet_jax.data.sources import Source
from tresnet_jax.errors import TrainingError, amount, shown
from tresnet_jax.files import read_json

LARGEST_WEIGHT = 20.0
EXPECTED = 'expected class_tree_list: for each class, a list of the class, its parent, and so on up to a root'


class SemanticTree(NamedTuple):
    """The levels of a tree of classes. The depth of a class is the number of classes above it.

    Attributes:
        levels: the classes of each depth that has several, without the deepest; int32.
        weights: factor of the loss of each level: the number of all classes divided by the number of classes at least
            as deep, at most LARGEST_WEIGHT.
        members: (pairs,) int32, classes; each appears once with itself and once with each class above it.
        above: (pairs,) int32, the class itself or the class above it.
        places: (classes, levels) int32, the position in each level of the class itself or of the class above it; -1 for
            none.
    """

    levels: tuple[np.ndarray, ...]
    weights: tuple[float, ...]
    members: np.ndarray
    above: np.ndarray
    places: np.ndarray


def semantic_tree(chains: Sequence[Sequence[int]]) -> SemanticTree:
    """Return the levels of a tree.

    Args:
        chains: for each class in the order of the labels, the class, its parent, and so on up to a root.

    Raises:
        ValueError: a chain is not of this form, or only the deepest level has several classes.
    """
    for label, chain in enumerate(chains):
        whole = isinstance(chain, Sequence) and all(type(each) is int and 0 <= each < len(chains) for each in chain)
        if not whole or not chain or chain[0] != label:
            raise ValueError(f'class {label} has {shown(str(chain)[:80])}')
    for label, chain in enumerate(chains):
        for place, each in enumerate(chain):
            # Only then is there one class above it at each level.
            if len(chains[each]) != len(chain) - place:
                up = amount(len(chain) - place - 1, 'class', 'classes')
                raise ValueError(f'class {each} has {up} above it in the list of class {label}, but not in its own')
    depths = np.asarray([len(chain) - 1 for chain in chains])
    found = [(depth, np.flatnonzero(depths == depth)) for depth in range(depths.max(initial=0))]
    kept = [(depth, classes.astype(np.int32)) for depth, classes in found if len(classes) > 1]
    if not kept:
        raise ValueError('no level but the deepest has several classes')
    places = np.full((len(chains), len(kept)), -1, np.int32)
    for level, (depth, classes) in enumerate(kept):
        deep = np.flatnonzero(depths >= depth)
        above = [chains[int(label)][int(depths[label]) - depth] for label in deep]
        places[deep, level] = np.searchsorted(classes, above)
    return SemanticTree(
        tuple(classes for _, classes in kept),
        tuple(min(len(chains) / int((depths >= depth).sum()), LARGEST_WEIGHT) for depth, _ in kept),
        np.repeat(np.arange(len(chains), dtype=np.int32), depths + 1),
        np.asarray([each for chain in chains for each in chain], np.int32),
        places,
    )


def semantic_losses(logits: jax.Array, targets: jax.Array, tree: SemanticTree, smoothing: float = 0.0) -> jax.Array:
    """Return the loss of each image: the sum over the levels of weighted cross entropies.

    Args:
        logits: (b, classes), floating point.
        targets: (b, classes), probabilities, hard or mixed, not smoothed.
        tree: the tree of the classes.
        smoothing: label smoothing among the classes of each level. An image without a class in a level has no loss
            there.
    """
    # The probability of a class is that of all classes below it, too.
    targets = jnp.zeros_like(targets).at[:, tree.above].add(targets[:, tree.members])
    losses = jnp.zeros_like(logits[:, 0])
    for classes, weight in zip(tree.levels, tree.weights, strict=True):
        wanted = targets[:, classes]
        wanted = wanted * (1 - smoothing) + wanted.sum(-1, keepdims=True) * (smoothing / len(classes))
        losses -= weight * (wanted * jax.nn.log_softmax(logits[:, classes])).sum(-1)
    return losses


def semantic_softmax(logits: jax.Array, targets: jax.Array, *, tree: SemanticTree, smoothing: float = 0.0) -> jax.Array:
    """Return the mean of `semantic_losses` over a batch."""
    return semantic_losses(logits, targets, tree, smoothing).mean()


def semantic_hits(logits: jax.Array, labels: jax.Array, tree: SemanticTree) -> tuple[jax.Array, jax.Array]:
    """Return for each image in how many levels the likeliest class is right, and how many levels have a right class.

    Args:
        logits: (b, classes).
        labels: (b,) int32.
        tree: the tree of the classes.
    """
    expected = jnp.asarray(tree.places)[labels]
    likeliest = [jax.lax.argmax(logits[:, classes], 1, jnp.int32) for classes in tree.levels]
    return (jnp.stack(likeliest, 1) == expected).sum(1), (expected >= 0).sum(1)


def read_semantic_tree(path: Path, num_classes: int, source: Source) -> SemanticTree:
    """Read a tree: JSON, or the authors' file ``imagenet21k_miil_tree.pth``.

    Args:
        path: the file, an object with class_tree_list (see `semantic_tree`) and maybe class_list, the names of the
            classes.
        num_classes: classes of the model.
        source: the training images, whose classes have the order of the labels.

    Raises:
        TrainingError, ConversionError: the file cannot be read, has no such tree, or one of other classes.
    """
    document: Any = read_json(path, TrainingError) if path.suffix.lower() == '.json' else torch_file.load(path)
    document = document if isinstance(document, dict) else {}
    chains, names = document.get('class_tree_list'), document.get('class_list')
    if not isinstance(chains, list) or not chains:
        raise TrainingError(f'{shown(path)}: {EXPECTED}')
    if len(chains) != num_classes:
        have = amount(len(chains), 'class', 'classes')
        raise TrainingError(f'{shown(path)}: has {have}, but the model has {num_classes:,}')
    if (other := other_order(source.class_names, names, source.name)) is not None:
        raise TrainingError(f'{shown(path)}: has another order of the classes: {other}')
    try:
        return semantic_tree(chains)
    except ValueError as error:
        raise TrainingError(f'{shown(path)}: {EXPECTED}; {error}') from None
