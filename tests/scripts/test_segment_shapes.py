"""The segmentation example: its images, its score, and that it learns."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import segment_shapes
from segment_shapes import CLASSES, SegmentArguments, draw_shapes, intersection_over_union, main, train

# A few seconds. Background everywhere has a mean IoU of 0.2.
SHORT = SegmentArguments(steps=80, batch_size=8, image_size=48, out_indices=(0, 1, 2))


def mean_iou(network, size: int) -> np.ndarray:
    images, classes = draw_shapes(np.random.default_rng(7), 64, size)
    predicted = np.asarray(jax.jit(lambda network, x: network(x).argmax(-1))(network, jnp.asarray(images)))
    return intersection_over_union(predicted, classes)


@pytest.fixture
def standard():
    """JAX's own promotion of types, which optax's Adam relies on."""
    with jax.numpy_dtype_promotion('standard'):
        yield


def test_it_learns(optimized, standard, capsys):
    found = mean_iou(train(SHORT), 48)
    assert found.mean() > 0.3 and found.min() > 0.1
    assert 'step 50: loss' in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize(
    'changes',
    [
        {'image_size': 64, 'batch_size': 16, 'out_indices': (0, 1, 2, 3)},
        {'output_stride': 8, 'out_indices': (0, 1, 4)},
        {'output_stride': 16, 'out_indices': (0, 1, 4)},
        {'model': 'test_tresnet.fashion_mnist', 'out_indices': (1, 2, 3)},
    ],
)
def test_it_learns_well(optimized, standard, changes):
    arguments = dataclasses.replace(SHORT, steps=300, **changes)
    assert mean_iou(train(arguments), arguments.image_size).mean() > 0.45


def test_images_and_classes():
    images, classes = draw_shapes(np.random.default_rng(0), 40, 32)
    assert (images.shape, images.dtype, classes.shape, classes.dtype) == (
        (40, 32, 32, 3),
        'float32',
        (40, 32, 32),
        'int32',
    )
    assert set(np.unique(classes)) == set(range(len(CLASSES)))
    share = (classes == 0).mean()
    assert 0.5 < share < 0.95
    again = draw_shapes(np.random.default_rng(0), 40, 32)
    np.testing.assert_array_equal(again[0], images)


def test_intersection_over_union():
    classes, predicted = np.array([[0, 0, 1, 1, 2]]), np.array([[0, 1, 1, 1, 0]])
    np.testing.assert_allclose(intersection_over_union(predicted, classes), [1 / 3, 2 / 3, 0, 0])


def test_the_command_line(monkeypatch, tmp_path, capsys):
    """Prints the IoU of each class and writes the sheet; wrong flags are one line."""

    class Background:
        def __call__(self, x):
            return jax.nn.one_hot(jnp.zeros(x.shape[:3], int), len(CLASSES))

    jax.tree_util.register_static(Background)
    monkeypatch.setattr(segment_shapes, 'train', lambda arguments: Background())
    assert main(['--sheet', str(tmp_path / 'sheet.png')]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(': ')[0] for line in lines] == [*(f'IoU of {name}' for name in CLASSES), 'mean IoU']
    assert lines[1] == 'IoU of circle: 0.000' and (tmp_path / 'sheet.png').stat().st_size > 1000
    assert main(['--steps', '0']) == 2
    assert capsys.readouterr().err == 'error: --steps must be positive, got 0\n'
