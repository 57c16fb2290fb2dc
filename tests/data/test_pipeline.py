"""Batches: the same for any number of processes, threads and workers, resumed exactly, with unreadable images."""

import dataclasses
import io
import json
import logging
import os
import subprocess
import sys

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from orbax.checkpoint import v1 as ocp
from PIL import Image

from tests.helpers.paths import ROOT
from tresnet_jax.data.arrays import ArraySource
from tresnet_jax.data.images import decode, load_image
from tresnet_jax.data.pipeline import eval_dataset, to_devices, train_dataset
from tresnet_jax.data.transforms import create_transform
from tresnet_jax.errors import DataError

SIZE = 23  # images, no multiple of any batch size here


def numbered(size: int = SIZE) -> ArraySource:
    """Image i is all grey of level i, its label i % 5."""
    images = np.arange(size, dtype=np.uint8)[:, None, None] * np.ones((4, 4), np.uint8)
    return ArraySource('numbered train', tuple('abcde'), images, np.arange(size) % 5)


def noisy(image: Image.Image, rng: np.random.Generator) -> np.ndarray:
    """The grey level in the first channel, and what was drawn for this image in the second."""
    pixels = np.array(image)
    pixels[..., 1] = rng.integers(256, size=pixels.shape[:2])
    return pixels


@pytest.fixture
def train():
    """train(**options) -> an iterator over batches, closed at the end."""
    iterators = []

    def make(source=None, transform=noisy, **options):
        options = {'batch_size': 8, 'seed': 1, 'threads': 3} | options
        iterators.append(iter(train_dataset(source or numbered(), transform, **options)))
        return iterators[-1]

    yield make
    for iterator in iterators:
        iterator.close()


def take(iterator, count: int) -> dict[str, np.ndarray]:
    """So many batches, stacked."""
    batches = [next(iterator) for _ in range(count)]
    return {name: np.stack([np.asarray(batch[name]) for batch in batches]) for name in batches[0]}


def assert_equal(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> None:
    assert a.keys() == b.keys()
    for name in a:
        np.testing.assert_array_equal(a[name], b[name])


def test_a_batch(train):
    batch = next(train())
    assert {name: (x.shape, x.dtype) for name, x in batch.items()} == {
        'image': ((8, 4, 4, 3), np.uint8),
        'label': ((8,), np.int32),
        'index': ((8,), np.int32),
    }
    assert (batch['image'][..., 0] == batch['index'][:, None, None]).all()
    assert (batch['label'] == batch['index'] % 5).all()


def test_each_epoch_has_every_image_once_in_a_new_order(train):
    epochs = take(train(), SIZE)['index'].reshape(8, SIZE)
    assert (np.sort(epochs) == np.arange(SIZE)).all()
    assert len({tuple(epoch) for epoch in epochs}) == 8
    other = take(train(seed=2), SIZE)['index'].reshape(8, SIZE)
    assert not any((a == b).all() for a in epochs for b in other), 'another seed is another order, in all epochs'


def test_more_in_a_batch_than_there_are_images(train):
    index = take(train(batch_size=3 * SIZE), 2)['index']
    assert (np.sort(index.reshape(6, SIZE)) == np.arange(SIZE)).all()


def test_every_image_has_its_own_augmentation_each_time(train):
    drawn = take(train(), SIZE)['image'][..., 1].reshape(8 * SIZE, 16)
    assert len({tuple(x) for x in drawn}) == 8 * SIZE
    assert not (drawn == take(train(seed=2), SIZE)['image'][..., 1].reshape(8 * SIZE, 16)).all(1).any()


@pytest.mark.parametrize('processes', [2, 4, 8])
def test_any_number_of_processes_and_threads(train, processes):
    expected = take(train(threads=1), 7)
    parts = [take(train(shard=(p, processes), threads=1 + p), 7) for p in range(processes)]
    assert_equal(expected, {name: np.concatenate([part[name] for part in parts], axis=1) for name in expected})


@settings(max_examples=12, deadline=None, derandomize=True)
@given(stops=st.lists(st.integers(0, 6), min_size=1, max_size=4), devices=st.sampled_from([None, 1, 4]))
def test_restarts_at_any_point(stops, devices):
    """Each time with a new iterator, after others were made ahead."""

    def start():
        dataset = train_dataset(numbered(), noisy, batch_size=8, seed=3, threads=2)
        return iter(dataset if devices is None else to_devices(dataset, jax.local_devices()[:devices]))

    def draw(iterator, count):
        return [np.asarray(next(iterator)['image']).tobytes() for _ in range(count)]

    whole = start()
    expected = draw(whole, sum(stops) + 3)
    found, state = [], None
    for count in [*stops, 3]:
        iterator = start()
        if state is not None:
            iterator.set_state(json.loads(state))
        found += draw(iterator, count)
        assert iterator.get_state() == {'batches': len(found)}
        state = json.dumps(iterator.get_state())
        iterator.close()
    assert found == expected
    whole.set_state({'batches': 1})  # and back in one that runs
    assert draw(whole, 2) == expected[1:3]
    whole.close()


def test_a_checkpoint_of_orbax(train, tmp_path):
    logging.getLogger('absl').setLevel(logging.ERROR)
    iterator = train()
    take(iterator, 5)
    with ocp.training.Checkpointer(tmp_path) as checkpointer:
        checkpointer.save_checkpointables(5, {'state': {'w': np.ones(3)}, 'data': iterator})
        expected = take(iterator, 3)
        restored = train(threads=1)
        checkpointer.load_checkpointables(5, {'state': {'w': np.zeros(3)}, 'data': restored})
    assert_equal(take(restored, 3), expected)


def evaluate(source, transform=None, **options) -> dict[str, np.ndarray]:
    options = {'batch_size': 8, 'threads': 3} | options
    batches = list(eval_dataset(source, transform or create_transform(4), **options))
    return {name: np.stack([batch[name] for batch in batches]) for name in batches[0]}


@pytest.mark.parametrize(('size', 'processes'), [(23, 1), (23, 4), (24, 2), (3, 8), (1, 1)])
def test_evaluation_has_every_image_once(size, processes):
    parts = [evaluate(numbered(size), shard=(p, processes)) for p in range(processes)]
    assert {part['mask'].shape for part in parts} == {(-(-size // 8), 8 // processes)}, 'as many batches everywhere'
    whole = {name: np.concatenate([part[name] for part in parts], axis=1) for name in parts[0]}
    whole = {name: x.reshape(-1, *x.shape[2:]) for name, x in whole.items()}
    assert {name: x.dtype for name, x in whole.items()} == {
        'image': np.uint8, 'label': np.int32, 'index': np.int32, 'mask': np.float32,
    }  # fmt: skip
    real, added = slice(None, size), slice(size, None)
    assert (whole['index'][real] == np.arange(size)).all() and (whole['label'][real] == np.arange(size) % 5).all()
    assert (whole['mask'][real] == 1).all() and (whole['image'][real, ..., 0] == np.arange(size)[:, None, None]).all()
    assert (whole['mask'][added] == 0).all() and (whole['index'][added] == -1).all()
    assert (whole['image'][added] == 0).all() and (whole['label'][added] == 0).all()


def test_evaluation_begins_anew_and_can_be_resumed():
    dataset = eval_dataset(numbered(), create_transform(4), batch_size=8)
    for _ in range(2):
        assert [batch['index'][0] for batch in dataset] == [0, 8, 16]
    for taken in range(4):
        iterator = iter(dataset)
        iterator.set_state({'batches': taken})
        assert [batch['index'][0] for batch in iterator] == [0, 8, 16][taken:]
        iterator.close()


# Images


@dataclasses.dataclass(frozen=True)
class Encoded:
    """Images as bytes; what is an error is raised when it is read."""

    records: tuple[bytes | Exception, ...]
    labels: tuple[int, ...] = ()
    name: str = 'encoded train'
    class_names: tuple[str, ...] = ('a', 'b')
    num_classes: int = 2

    def __len__(self):
        return len(self.records)

    def __getitem__(self, index):
        if isinstance(record := self.records[index], Exception):
            raise record
        return {'image': record, 'label': self.labels[index] if self.labels else index % 2}

    def describe(self, index):
        return f'image {index}'


def encoded(level: int, suffix: str = 'png', mode: str = 'RGB', size: tuple[int, int] = (6, 5), **options) -> bytes:
    file = io.BytesIO()
    Image.new('RGB', size, (level, level, level)).convert(mode).save(file, suffix, **options)
    return file.getvalue()


def image(mode: str) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (24, 36, 3), np.uint8)).convert(mode)


@pytest.mark.parametrize(
    ('mode', 'suffix'),
    [('RGB', 'jpeg'), ('L', 'jpeg'), ('CMYK', 'jpeg'), ('L', 'png'), ('LA', 'png'), ('P', 'png'), ('RGBA', 'png'),
     ('I;16', 'png'), ('P', 'gif'), ('RGBA', 'webp')],
)  # fmt: skip
def test_encoded_images_are_read_as_files_are(tmp_path, mode, suffix):
    path = tmp_path / f'image.{suffix}'
    image('L').point(lambda x: x * 256, 'I').convert('I;16').save(path) if mode == 'I;16' else image(mode).save(path)
    decoded = decode(path.read_bytes())
    assert decoded.mode == 'RGB' and np.array_equal(np.asarray(decoded), np.asarray(load_image(path)))
    assert np.asarray(decoded).std() > 10


def test_encoded_images_are_turned_upright(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    image('RGB').save(tmp_path / 'a.jpg', exif=exif)
    decoded = decode((tmp_path / 'a.jpg').read_bytes())
    assert decoded.size == (24, 36) and np.array_equal(np.asarray(decoded), np.asarray(load_image(tmp_path / 'a.jpg')))


@pytest.mark.parametrize('shape', [(3, 4), (3, 4, 1), (3, 4, 3), (3, 4, 4)])
def test_arrays_become_images(shape):
    pixels = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    decoded = decode(pixels)
    expected = np.broadcast_to(pixels.reshape(3, 4, -1)[..., :3], (3, 4, 3))
    assert decoded.mode == 'RGB' and np.array_equal(np.asarray(decoded), expected)


def test_jpegs_reach_the_transform_undecoded(train):
    """So that it can have a large one decoded smaller."""

    def draft(image, rng):
        image.draft('RGB', (40, 30))
        return np.asarray(image)

    batch = next(train(Encoded((encoded(7, 'jpeg', size=(160, 120)),) * 2), draft, batch_size=2))
    assert batch['image'].shape == (2, 30, 40, 3)


def test_evaluation_sees_what_the_transform_makes():
    jpeg = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (90, 120, 3), np.uint8)).save(jpeg, 'jpeg')
    source = Encoded((jpeg.getvalue(),) * 2)
    transform = create_transform((32, 48), 'bicubic', crop_pct=0.9)
    crop = transform.crop_image(Image.open(jpeg))
    assert crop.shape == (32, 48, 3) and crop.dtype == np.uint8
    assert np.array_equal(evaluate(source, transform)['image'][0, 0], crop)
    mean, std = (np.asarray(value, np.float32) for value in (transform.mean, transform.std))
    normal = (crop.astype(np.float32) / np.float32(255) - mean[None, None]) / std[None, None]
    assert np.array_equal(transform(Image.open(jpeg)), normal)


# What cannot be read

CUT = encoded(9, 'jpeg', size=(64, 64))[:-60]
THIN = encoded(9, size=(4000, 1))  # a 4000 x 1 image as a square of 400 pixels is 160,000 pixels wide
BAD = {3: b'', 7: CUT, 8: b'no image', 15: PermissionError(13, 'Permission denied')}
REASONS = {
    3: 'the file is empty',
    7: 'image file is truncated',
    8: 'not an image, or of a kind that Pillow cannot read',
    15: 'Permission denied',
}


def damaged() -> Encoded:
    return Encoded(tuple(BAD.get(i, encoded(i)) for i in range(SIZE)))


def check_log(path) -> None:
    lines = sorted(path.read_text().splitlines())
    expected = sorted(f'image {i}: {reason}' for i, reason in REASONS.items())
    assert len(lines) == len(expected)
    assert all(line.startswith(start) for line, start in zip(lines, expected, strict=True))


def test_unreadable_images_in_training(train, tmp_path, caplog):
    log, options = tmp_path / 'unreadable.log', {'max_unreadable': 4 / SIZE}
    found = take(train(damaged(), log=log, **options), 2 * SIZE)
    good = take(train(Encoded(tuple(map(encoded, range(SIZE)))), **options), 2 * SIZE)
    wanted, index = good['index'].ravel(), found['index'].ravel()
    assert {*index} == {*range(SIZE)} - {*BAD}
    bad = np.isin(wanted, [*BAD])
    assert (index[~bad] == wanted[~bad]).all(), 'the others stay where they were'
    following = [next(i for i in wanted[at:] if i not in BAD) for at in np.flatnonzero(bad)[:-1]]
    assert (index[bad][:-1] == following).all(), 'the next one that can be read takes the place'
    for name in ('image', 'label', 'index'):
        assert (found[name].reshape(bad.size, -1)[~bad] == good[name].reshape(bad.size, -1)[~bad]).all()
    check_log(log)
    assert caplog.text.count('an image that cannot be read is left out') == 1 and str(log) in caplog.text
    take(train(damaged(), log=log, **options), SIZE)
    check_log(log)  # after a restart none is named again

    parts = [take(train(damaged(), shard=(p, 4), **options), 2 * SIZE) for p in range(4)]
    assert_equal(found, {name: np.concatenate([part[name] for part in parts], axis=1) for name in found})


def test_unreadable_images_in_evaluation(tmp_path):
    found = evaluate(damaged(), max_unreadable=4 / SIZE, log=tmp_path / 'unreadable.log')
    found = {name: x.reshape(-1, *x.shape[2:])[:SIZE] for name, x in found.items()}
    assert [int(i) for i in np.flatnonzero(found['mask'] == 0)] == [*BAD] and (found['index'] == np.arange(SIZE)).all()
    assert all((found['image'][i] == (0 if i in BAD else i)).all() for i in range(SIZE))
    check_log(tmp_path / 'unreadable.log')


def test_too_many_unreadable_images(train):
    message = r'encoded train: 4 of 23 images cannot be read, more than the share of 0.15 .*\(max_unreadable\)'
    with pytest.raises(DataError, match=message):
        take(train(damaged(), max_unreadable=0.15), 20)
    with pytest.raises(DataError, match=message):
        evaluate(damaged(), max_unreadable=0.15)
    nothing = Encoded((b'x',) * SIZE)
    with pytest.raises(DataError, match=r'5 images in a row cannot be read, the first is image \d+: not an image'):
        next(train(nothing, max_unreadable=0.1))
    with pytest.raises(DataError, match='images cannot be read'):
        evaluate(nothing)


def test_images_that_the_transform_refuses():
    found = evaluate(Encoded((encoded(1), THIN, encoded(2))), create_transform(400), max_unreadable=0.5)
    assert found['mask'][0, :4].tolist() == [1, 0, 1, 0]


def test_a_broken_transform_is_not_taken_for_a_damaged_image(train):
    def broken(image, rng):
        return image.no_such_thing()

    with pytest.raises(AttributeError, match='no_such_thing'):
        next(train(transform=broken))


@pytest.mark.parametrize('label', [-1, 2])
def test_labels_that_are_out_of_range(train, label):
    source = Encoded((encoded(1),) * 3, (0, 1, label))
    with pytest.raises(DataError, match=f'image 2 has label {label}; expected 0 to 1'):
        next(train(source))
    with pytest.raises(DataError, match=f'image 2 has label {label}'):
        evaluate(source)


# Devices


def test_batches_on_devices(train):
    expected = take(train(), 6)
    dataset = to_devices(train_dataset(numbered(), noisy, batch_size=8, seed=1), jax.local_devices())
    iterator = iter(dataset)
    step = jax.pmap(lambda batch: batch['image'].astype('int32').sum() + batch['label'].sum(), axis_name='batch')
    for i in range(6):
        batch = next(iterator)
        assert batch['image'].shape == (4, 2, 4, 4, 3) and batch['image'].dtype == np.uint8
        assert [shard.device for shard in batch['image'].addressable_shards] == jax.local_devices()
        with jax.transfer_guard('disallow'):  # nothing is moved again
            sums = step(batch)
        each = expected['image'][i].reshape(4, -1).sum(1) + expected['label'][i].reshape(4, -1).sum(1)
        assert (np.asarray(sums) == each).all()
    iterator.close()


def test_batches_that_cannot_be_shared_out(train):
    for options in ({'batch_size': 9, 'shard': (0, 2)}, {'batch_size': 0}, {'shard': (2, 2)}):
        with pytest.raises(DataError):
            train(**options)
    iterator = iter(to_devices(train_dataset(numbered(), noisy, batch_size=6, seed=1), jax.local_devices()))
    with pytest.raises(DataError, match='6 images of a batch cannot be shared out over 4 devices'):
        next(iterator)
    iterator.close()


# Worker processes


def test_workers_give_the_same(train, tmp_path):
    options = {'source': damaged(), 'max_unreadable': 4 / SIZE}
    expected = take(train(**options), 9)
    iterator = train(workers=2, log=tmp_path / 'unreadable.log', **options)
    iterator.set_state({'batches': 2})
    assert_equal(take(iterator, 7), {name: x[2:] for name, x in expected.items()})
    assert iterator.get_state() == {'batches': 9}
    check_log(tmp_path / 'unreadable.log')


SCRIPT = """
import time
from tresnet_jax.training.augment import create_train_transform
from tresnet_jax.training.pipeline import train_dataset
from tresnet_jax.training.sources import open_source

if __name__ == '__main__':
    source = open_source('embedded:fashion_mnist', 'train')
    iterator = iter(train_dataset(source, create_train_transform(28), batch_size=8, seed=0, workers=2))
    next(iterator)
    print('ready', flush=True)
    time.sleep(600)
"""


@pytest.mark.slow
def test_workers_end_with_the_process_that_started_them(tmp_path):
    (tmp_path / 'script.py').write_text(SCRIPT)
    environment = os.environ | {'PYTHONPATH': str(ROOT)}
    process = subprocess.Popen([sys.executable, tmp_path / 'script.py'], stdout=subprocess.PIPE, env=environment)
    assert process.stdout is not None and process.stdout.readline() == b'ready\n'
    process.kill()
    process.communicate(timeout=60)  # the workers have the other end of the pipe too
