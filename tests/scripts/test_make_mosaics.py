"""scripts/make_mosaics.py: the mosaics, and the file that training reads."""

import importlib.resources
from pathlib import Path

import numpy as np
import pytest

from scripts import make_mosaics
from tresnet_jax.data.sources import open_source

SUBSET = Path(str(importlib.resources.files('tresnet_jax') / 'embedded' / 'fashion_mnist_subset.npz'))


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(make_mosaics, 'SIZES', {'train': (40, 0), 'test': (10, 1)})


def test_mosaics():
    """Each cell is empty or has an image, and the labels are those of the images."""
    with np.load(SUBSET) as file:
        x, y = file['x_train'], file['y_train']
    mosaics, labels = make_mosaics.make_mosaics(x, y, 60, 3)
    assert make_mosaics.digest(mosaics) == make_mosaics.digest(make_mosaics.make_mosaics(x, y, 60, 3)[0])
    classes = {image.tobytes(): label for image, label in zip(x, y, strict=True)}
    for mosaic, row in zip(mosaics, labels, strict=True):
        cells = mosaic.reshape(2, 32, 2, 32).swapaxes(1, 2).reshape(4, 32, 32)
        found = {classes[cell[2:30, 2:30].tobytes()] for cell in cells if cell.any()}
        assert found == {*np.flatnonzero(row)}
        assert not cells[:, :2].any() and not cells[:, 30:].any() and not cells[:, :, [0, 1, 30, 31]].any()
    assert 1.4 < labels.sum(1).mean() < 2.2 and (labels.sum(1) == 0).any()


def test_halves_are_rounded_up():
    images = np.array([[[0, 0], [0, 2]], [[0, 0], [0, 1]], [[255, 255], [255, 254]]], np.uint8)
    assert make_mosaics.halve(images).ravel().tolist() == [1, 0, 255]


@pytest.mark.parametrize('pixels', ['32', '64'])
def test_the_file(pixels, tmp_path, small, capsys):
    assert make_mosaics.main(SUBSET, tmp_path / 'm.npz', pixels) == 0
    assert 'train: 40 mosaics of 2,000 images, which is not Fashion-MNIST' in capsys.readouterr().out
    source = open_source(f'npz:{tmp_path}/m.npz', 'train', target_format='multihot')
    assert len(source) == 40 and source.num_classes == 10 and source[0]['image'].shape == (int(pixels),) * 2 + (1,)


def test_wrong_files(tmp_path, small, capsys):
    images = np.zeros((20, 28, 28), np.uint8)
    np.savez(tmp_path / 'a.npz', x_train=images.repeat(2, 1), y_train=np.arange(20) % 10)
    np.savez(tmp_path / 'b.npz', x_train=images, y_train=np.arange(20))
    np.save(tmp_path / 'c.npy', images)
    for name, message in (
        ('a.npz', 'x_train is (20, 56, 28), with 10 classes; expected (N, 28, 28) with 10 classes'),
        ('b.npz', 'x_train is (20, 28, 28), with 20 classes'),
        ('c.npy', 'expected a .npz file, got a single array'),
        ('d.npz', 'does not exist'),
    ):
        assert make_mosaics.main(tmp_path / name, tmp_path / 'm.npz') == 2
        error = capsys.readouterr().err
        assert message in error and error.count('\n') == 1 and not (tmp_path / 'm.npz').exists()
