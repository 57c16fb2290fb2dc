"""Which part of a network a parameter belongs to: what is frozen, and how far from the classifier a block is."""

from collections.abc import Sequence
from typing import Any

import jax

from tresnet_jax.model import PARTS, Tree, part_attributes


def keys_of(path: Sequence[Any]) -> tuple[str, ...]:
    """A path of jax.tree_util as plain names: ('layer1', '0', 'conv1', 'kernel'), without TResNet's 'body'."""
    names = tuple(str(entry.key) for entry in path)
    return names[1:] if names[0] == 'body' else names


def part_of(path: Sequence[Any]) -> str:
    """The part a parameter belongs to: stem, layer1 to layer4, head."""
    first = keys_of(path)[0]
    return next((part for part in PARTS[:-1] if first in part_attributes(part)), 'head')


def is_frozen(path: Sequence[Any], frozen: Sequence[str]) -> bool:
    """Whether a parameter belongs to one of the parts; 'backbone' is all but the head."""
    part = part_of(path)
    return part in frozen or ('backbone' in frozen and part != 'head')


def layer_scales(params: Tree, decay: float) -> Tree:
    """Factors on the learning rate, one a parameter: 1 for the head, `decay` for the last block, and so on to the stem.

    timm's ``param_groups_layer_decay``: the stem, each block and the head are a layer each.
    """
    leaves = jax.tree_util.tree_leaves_with_path(params)
    layers = sorted({_layer(path) for path, _ in leaves})
    depth = {layer: len(layers) - 1 - i for i, layer in enumerate(layers)}
    return jax.tree_util.tree_map_with_path(lambda path, _: decay ** depth[_layer(path)], params)


def _layer(path: Sequence[Any]) -> tuple[int, int]:
    """The stage and the block in it."""
    part, names = part_of(path), keys_of(path)
    return PARTS.index(part), int(names[1]) if part.startswith('layer') else 0
