"""The same images give the same batches, whatever holds them; shards for hosts, resuming, and worker processes."""

import csv

import numpy as np
import pytest

from tests.helpers.images import encode, noise_image
from tests.helpers.tar_files import image_members, write_tar
from tresnet_jax.data.arrays import ArraySource
from tresnet_jax.data.pipeline import train_dataset
from tresnet_jax.data.sources import Source, open_source

LABELS = [0, 0, 1, 1, 1, 2, 2]  # in the order of their classes, as folders and CSV files sort them
BATCH = 4


class Crop:
    """A transform that depends on the random numbers; it can be pickled."""

    def __call__(self, image, rng):
        return np.asarray(image.crop((0, 0, 4, 4))) ^ rng.integers(0, 256, (4, 4, 3), np.uint8)


def write(kind: str, root) -> Source:
    """Write the images as one kind of data and open them."""
    images = [noise_image(5, 4, seed=number) for number in range(len(LABELS))]
    if kind == 'arrays':
        pixels = np.stack([np.asarray(image) for image in images])
        return ArraySource('arrays', tuple('012'), pixels, np.asarray(LABELS), (0, 1, 2))
    if kind == 'wds':
        for shard, part in enumerate((slice(0, 3), slice(3, 7))):
            write_tar(root / f'train-{shard}.tar', image_members(LABELS[part], first=part.start))
        return open_source(f'wds:{root}', 'train')
    if kind == 'hfds':
        import datasets

        rows = [{'bytes': encode(image), 'path': None} for image in images]
        table = datasets.Dataset.from_dict({'image': rows, 'label': LABELS})
        datasets.DatasetDict(train=table).save_to_disk(str(root / 'saved'))
        return open_source(f'hfds:{root}/saved', 'train')
    for number, (label, image) in enumerate(zip(LABELS, images, strict=True)):
        path = root / 'train' / str(label) / f'{number}.png'
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode(image))
    if kind == 'folder':
        return open_source(f'folder:{root}', 'train')
    with (root / 'all.csv').open('w', newline='') as file:
        csv.writer(file).writerows(
            [('path', 'label'), *((f'train/{label}/{number}.png', label) for number, label in enumerate(LABELS))]
        )
    return open_source(f'csv:{root}/all.csv', None, for_evaluation=True)


def batches(source: Source, count: int = 4, skip: int = 0, **options) -> list[dict[str, np.ndarray]]:
    """Return batches of training after the first `skip`, as a resumed run gets them."""
    iterator = iter(train_dataset(source, Crop(), batch_size=BATCH, seed=3, threads=2, **options))
    iterator.set_state({'batches': skip})
    try:
        return [next(iterator) for _ in range(count)]
    finally:
        iterator.close()


def assert_same(found: list[dict[str, np.ndarray]], expected: list[dict[str, np.ndarray]]) -> None:
    for ours, wanted in zip(found, expected, strict=True):
        assert ours.keys() == wanted.keys()
        assert all(np.array_equal(ours[name], wanted[name]) for name in wanted)


@pytest.mark.parametrize('kind', ['folder', 'csv', 'wds', 'hfds'])
def test_batches(kind, tmp_path, monkeypatch):
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
    expected = batches(write('arrays', tmp_path))
    source = write(kind, tmp_path)
    assert_same(batches(source), expected)
    assert_same(batches(source, count=2, skip=2), expected[2:])
    for process in (0, 1):
        part = slice(process * BATCH // 2, (process + 1) * BATCH // 2)
        shares = [{name: values[part] for name, values in batch.items()} for batch in expected]
        assert_same(batches(source, shard=(process, 2)), shares)


@pytest.mark.slow
@pytest.mark.parametrize('kind', ['wds', 'hfds'])
def test_worker_processes(kind, tmp_path, monkeypatch):
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
    source = write(kind, tmp_path)
    assert_same(batches(source, workers=2), batches(source))
