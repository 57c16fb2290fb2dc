"""State dicts for tests of checkpoints that need no torch."""

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy

from tests.helpers.paths import EMBEDDED
from tresnet_jax.checkpoints.checkpoint import COUNTER

State = dict[str, np.ndarray]
RESNET, TRESNET = (
    safetensors.numpy.load_file(EMBEDDED / f'{name}.fashion_mnist.safetensors')
    for name in ('test_resnet', 'test_tresnet')
)
RAW = {key: np.asarray(2 * value, value.dtype) for key, value in RESNET.items()}  # other weights of the same network


def prefixed(state: State, prefix: str) -> State:
    """Return a state dict with a prefix before each name."""
    return {prefix + key: value for key, value in state.items()}


def without(state: State, *starts: str) -> State:
    """Return a state dict without the names that begin with one of `starts`."""
    return {key: value for key, value in state.items() if not key.startswith(starts)}


def body(state: State) -> State:
    """Return a state dict without its classifier."""
    return without(state, 'fc.', 'head.')


def renamed(state: State, old: str, new: str) -> State:
    """Return a state dict with a part of each name replaced."""
    return {key.replace(old, new): value for key, value in state.items()}


def counted(state: State) -> State:
    """Return a state dict after thop, which adds two counters to every module."""
    owners = dict.fromkeys(['', *(key.rpartition('.')[0] for key in state)])
    counters = (f'{owner}.{name}'.strip('.') for owner in owners for name in ('total_ops', 'total_params'))
    return state | {key: np.zeros(1) for key in counters}


def inserted(state: State, segment: str, depth: int) -> State:
    """Return a state dict with a segment after the first `depth` segments of each name."""
    names = (key.split('.') for key in state)
    return {'.'.join([*name[:depth], segment, *name[depth:]]): state['.'.join(name)] for name in names}


def nested(state: State) -> dict[str, Any]:
    """Return a state dict with a dictionary for each module."""
    tree: dict[str, Any] = {}
    for key, value in state.items():
        *path, leaf = key.split('.')
        node = tree
        for part in path:
            node = node.setdefault(part, {})
        node[leaf] = value
    return tree


def linear(classes: int, features: int = 96) -> State:
    """Return a seeded linear layer; test_resnet has 96 features."""
    rng = np.random.default_rng(classes)
    return {
        'weight': rng.standard_normal((classes, features)).astype(np.float32),
        'bias': rng.standard_normal(classes).astype(np.float32),
    }


def saved(folder: Path, tree: Any, name: str = 'a.pth') -> Path:
    """Write a pickle and return its path."""
    with (folder / name).open('wb') as file:
        pickle.dump(tree, file)
    return folder / name


def assert_is(state: State, expected: State) -> None:
    """Assert that a state dict has the expected values, whatever the dtype and without counters."""
    expected = {key: value for key, value in expected.items() if not key.endswith(COUNTER)}
    assert state.keys() == expected.keys()
    for key, value in expected.items():
        wanted = value.astype(state[key].dtype)
        np.testing.assert_array_equal(state[key].astype(np.float64), wanted.astype(np.float64), err_msg=key)
