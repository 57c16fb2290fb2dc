"""The names and memory layouts of one leaf, timm's and Flax's: one table of leaf names, one rule of layout."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from tresnet_jax.models.base import Tree

# Paths are timm's; only the leaf's name differs.
TO_TORCH = {
    'kernel': 'weight',
    'scale': 'weight',
    'embedding': 'weight',
    'bias': 'bias',
    'mean': 'running_mean',
    'var': 'running_var',
    'in_proj_kernel': 'in_proj_weight',
}
STATISTICS = ('mean', 'var')
FLOATS = ('float16', 'bfloat16', 'float32', 'float64')  # dtypes that parameters and statistics may have


def flax_key_to_torch(key: str) -> str:
    """'layer1.0.conv1.kernel' -> 'layer1.0.conv1.weight'."""
    path, _, leaf = key.rpartition('.')
    name = TO_TORCH.get(leaf, leaf)
    return f'{path}.{name}' if path else name


def flax_to_torch_layout(key: str, value: np.ndarray) -> np.ndarray:
    """Return a view in torch's layout: HWIO -> OIHW for a convolution's kernel, in-out -> out-in for a linear one's."""
    if not key.endswith('kernel'):
        return value
    return value.transpose(3, 2, 0, 1) if value.ndim == 4 else value.T


def torch_to_flax_layout(key: str, value: np.ndarray) -> np.ndarray:
    """Invert `flax_to_torch_layout`; `key` is Flax's."""
    if not key.endswith('kernel'):
        return value
    return value.transpose(2, 3, 1, 0) if value.ndim == 4 else value.T


def flatten(tree: Mapping[Any, Any], prefix: str = '') -> dict[str, Any]:
    """Nested dicts -> {'layer1.0.conv1.kernel': leaf}."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        name = f'{prefix}{key}'
        flat.update(flatten(value, name + '.') if isinstance(value, Mapping) else {name: value})
    return flat


def unflatten(flat: Mapping[str, Any]) -> Tree:
    """Invert `flatten`; digits become list indices, as in the trees of Flax NNX."""
    tree: Tree = {}
    for name, value in flat.items():
        *path, leaf = [int(part) if part.isdigit() else part for part in name.split('.')]
        node = tree
        for part in path:
            node = node.setdefault(part, {})
        node[leaf] = value
    return tree


def split_collections(flat: Mapping[str, Any]) -> tuple[Tree, Tree]:
    """Split flat Flax names into the trees of parameters and of running statistics."""
    is_statistic = {key: key.rpartition('.')[2] in STATISTICS for key in flat}
    params = {key: value for key, value in flat.items() if not is_statistic[key]}
    stats = {key: value for key, value in flat.items() if is_statistic[key]}
    return unflatten(params), unflatten(stats)
