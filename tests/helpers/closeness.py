"""How close two results are: relative errors of arrays and of trees of arrays, and equality."""

from typing import Any

import jax
import numpy as np

from convert import verify


def relative_error(got: Any, expected: Any) -> float:
    """Return max|got - expected| / max|expected|, computed in float64.

    Raises:
        AssertionError: the shapes differ, or a value is not finite.
    """
    got, expected = np.asarray(got), np.asarray(expected)
    assert got.shape == expected.shape, f'the shape is {got.shape}, expected {expected.shape}'
    got, expected = got.astype(np.float64), expected.astype(np.float64)
    assert np.isfinite(got).all(), 'the result is not finite'
    assert np.isfinite(expected).all(), 'the reference is not finite'
    return verify.relative_error(got, expected)


def errors(got: Any, expected: Any) -> dict[str, float]:
    """Return the relative error of each leaf of two trees by its path; an array is a tree of one leaf, named ''.

    Raises:
        AssertionError: the trees have different structures or no leaves, or `relative_error` raises.
    """
    return {path: relative_error(a, b) for path, a, b in _pairs(got, expected)}


def assert_close(got: Any, expected: Any, tolerance: float) -> float:
    """Assert that the relative error of each leaf is at most `tolerance`; return the largest one."""
    largest = sorted(errors(got, expected).items(), key=lambda item: -item[1])[:3]
    named = ', '.join(f'{path} {error:.1e}'.lstrip() for path, error in largest)
    assert largest[0][1] <= tolerance, f'largest relative errors: {named}; allowed is {tolerance:.1e}'
    return largest[0][1]


def assert_identical(got: Any, expected: Any) -> None:
    """Assert that two trees have the same structure, and each leaf the same shape, dtype and values."""
    for path, a, b in _pairs(got, expected):
        a, b = np.asarray(a), np.asarray(b)
        assert (a.shape, a.dtype) == (b.shape, b.dtype), f'{path}: {a.shape} {a.dtype}, expected {b.shape} {b.dtype}'
        np.testing.assert_array_equal(a, b, err_msg=path)


def _pairs(got: Any, expected: Any) -> list[tuple[str, Any, Any]]:
    """Return the path and both leaves of each place of two trees."""
    structures = jax.tree.structure(got), jax.tree.structure(expected)
    assert structures[0] == structures[1], f'the structure is {structures[0]}, expected {structures[1]}'
    leaves = jax.tree_util.tree_leaves_with_path(expected)
    assert leaves, 'there is nothing to compare'
    paths = [jax.tree_util.keystr(path, simple=True, separator='.') for path, _ in leaves]
    return list(zip(paths, jax.tree.leaves(got), (leaf for _, leaf in leaves), strict=True))
