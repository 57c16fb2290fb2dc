"""Digests of the arrays in a checkpoint of a run. Orbax itself does not notice bits that changed on the disk."""

import concurrent.futures
import hashlib
from pathlib import Path
from typing import Any

import jax
import numpy as np

from tresnet_jax.files import read_json

METADATA_PART = '_CHECKPOINT_METADATA'  # the file of a checkpoint in which Orbax writes our metadata
CUSTOM, DIGESTS = 'custom_metadata', 'digests'  # its keys


def digests(tree: Any) -> dict[str, str]:
    """Return the digest of each array of a tree by its path, such as 'params.layer1.0.conv1.kernel'.

    Args:
        tree: NumPy arrays, or JAX arrays that every device holds whole.
    """
    paths, leaves = zip(*jax.tree.flatten_with_path(tree)[0], strict=True)
    with concurrent.futures.ThreadPoolExecutor() as pool:
        found = pool.map(_digest, leaves)
        names = (jax.tree_util.keystr(path, simple=True, separator='.') for path in paths)
        return dict(zip(names, found, strict=True))


def _digest(leaf: Any) -> str:
    values = leaf.addressable_data(0) if isinstance(leaf, jax.Array) else leaf
    content = np.ascontiguousarray(values).view(np.uint8)
    return hashlib.blake2b(content.data, digest_size=16).hexdigest()


def check_digests(folder: Path, tree: Any) -> None:
    """Compare arrays of a checkpoint with the digests in it. Checkpoints of older releases have none.

    Args:
        folder: the folder of the checkpoint.
        tree: the arrays, or some of them, in the structure of the state.

    Raises:
        ConversionError: the digests cannot be read.
        ValueError: an array has no digest, or a different one.
    """
    document = read_json(folder / METADATA_PART)
    custom = document.get(CUSTOM) if isinstance(document, dict) else None
    if not isinstance(custom, dict) or DIGESTS not in custom:
        return
    stored = custom[DIGESTS]
    for name, digest in digests(tree).items():
        if not isinstance(stored, dict) or stored.get(name) != digest:
            raise ValueError(f'{name} is not what was saved; the files are damaged')
