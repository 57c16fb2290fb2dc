"""Nearest neighbours: the same as a sort of all similarities, in any number of shards."""

import numpy as np
import pytest

from tresnet_jax.training.nearest import nearest


def shards(sizes: tuple[int, ...], classes: int = 0) -> list[dict[str, np.ndarray]]:
    """Return shards of random features, whose indices have a gap after each shard."""
    rng, found, start = np.random.default_rng(0), [], 0
    for size in sizes:
        labels = rng.random((size, classes)) if classes else rng.integers(0, 5, size)
        features = 3 * rng.standard_normal((size, 6)).astype(np.float32)
        found.append({'features': features, 'labels': labels, 'indices': np.arange(start, start + size)})
        start += size + 1
    return found


@pytest.mark.parametrize('sizes', [(20,), (7, 1, 12), (2, 2, 2)])
@pytest.mark.parametrize('classes', [0, 3])
def test_neighbours_are_those_of_a_sort(sizes, classes):
    parts = shards(sizes, classes)
    features, labels, indices = (np.concatenate([part[key] for part in parts]) for key in parts[0])
    queries = features[[3, 0]] * np.array([[2.0], [0.5]])
    own = indices[[3, 0]]
    found = nearest(parts, queries, 5, own)
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    for row, (query, excluded) in enumerate(zip(queries, own, strict=True)):
        similarities = unit @ query / np.linalg.norm(query)
        order = [i for i in np.argsort(-similarities) if indices[i] != excluded][:5]
        assert found.indices[row].tolist() == indices[order].tolist()
        np.testing.assert_allclose(found.similarities[row], similarities[order], rtol=1e-5)
        np.testing.assert_array_equal(found.labels[row], labels[order])


def test_an_image_is_its_own_neighbour_unless_excluded():
    parts = shards((3, 4))
    found = nearest(parts, parts[1]['features'][:1], 2)
    assert found.indices[0, 0] == 4 and found.similarities[0, 0] == pytest.approx(1)
    assert nearest(parts, parts[1]['features'][:1], 2, np.array([-1])).indices[0, 0] == 4


def test_fewer_images_than_asked_for_and_features_of_zero():
    parts = shards((2, 1))
    parts[0]['features'][1] = 0
    found = nearest(parts, parts[0]['features'][:1], 9, np.array([0]))
    assert sorted(found.indices[0].tolist()) == [1, 3] and np.isfinite(found.similarities).all()
    assert nearest(parts, parts[0]['features'][:1], 9).indices.shape == (1, 3)
