"""Batches: the same for any number of processes, threads and workers; exact resuming; unreadable images."""

import dataclasses
import io
import json
import logging
import math
import os
import subprocess
import sys

import absl.flags
import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from orbax.checkpoint import v1 as ocp
from PIL import Image

from tests.helpers.closeness import assert_identical
from tests.helpers.images import encode, grey_image, noise_image
from tests.helpers.paths import ROOT
from tresnet_jax.data.arrays import ArraySource
from tresnet_jax.data.examples import EpochOrders, SpreadExamples, check_total, epoch_size
from tresnet_jax.data.pipeline import eval_dataset, to_devices, train_dataset
from tresnet_jax.data.transforms import create_transform
from tresnet_jax.errors import DataError

SIZE = 23  # images; not a multiple of any batch size here


def numbered(size: int = SIZE) -> ArraySource:
    """Return a source whose image i has grey level i everywhere and label i % 5."""
    images = np.arange(size, dtype=np.uint8)[:, None, None] * np.ones((4, 4), np.uint8)
    return ArraySource('numbered train', tuple('abcde'), images, np.arange(size) % 5, tuple(range(5)))


def noisy(image: Image.Image, rng: np.random.Generator) -> np.ndarray:
    """Keep the grey level in the first channel and put random numbers into the second."""
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
    """Return `count` batches, stacked."""
    batches = [next(iterator) for _ in range(count)]
    return {name: np.stack([np.asarray(batch[name]) for batch in batches]) for name in batches[0]}


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
    assert not any((a == b).all() for a in epochs for b in other), 'another seed gives other orders, in all epochs'


def test_batches_larger_than_the_data(train):
    index = take(train(batch_size=3 * SIZE), 2)['index']
    assert (np.sort(index.reshape(6, SIZE)) == np.arange(SIZE)).all()


def test_every_image_is_augmented_anew_each_time(train):
    drawn = take(train(), SIZE)['image'][..., 1].reshape(8 * SIZE, 16)
    assert len({tuple(x) for x in drawn}) == 8 * SIZE
    assert not (drawn == take(train(seed=2), SIZE)['image'][..., 1].reshape(8 * SIZE, 16)).all(1).any()


def repeated(size: int, repeats: float, batch_size: int, ranks: int, count: int) -> list[list[int]]:
    """Return the sorted positions of the order in each batch of timm's RepeatAugSampler, on `ranks` processes."""
    place = [math.floor(i / repeats) for i in range(math.ceil(size * repeats))]
    samples = size // 256 * 256 // ranks
    drawn = [place[rank::ranks][:samples] for rank in range(ranks)]
    part = batch_size // ranks
    return [sorted(sum((d[i * part : (i + 1) * part] for d in drawn), [])) for i in range(count)]


@pytest.mark.parametrize('repeats', [1, 1.5, 3, 4])
def test_repeated_augmentation(train, repeats):
    """Every batch has the images of timm's sampler; each copy has its own augmentation; copies are no neighbours."""
    size, batch = 600, 64
    whole = train(numbered(size), batch_size=batch, repeats=repeats)
    found = take(whole, 16)
    order = np.random.default_rng((1, 0)).permutation(size)
    for index, places in zip(found['index'][:8], repeated(size, repeats, batch, 8, 8), strict=True):
        assert sorted(index) == sorted(order[places])
    assert {*found['index'][8:].ravel()} != {*found['index'][:8].ravel()}, 'an epoch is 512 positions'
    assert np.unique(found['image'][..., 1].reshape(-1, 16), axis=0).shape[0] == 16 * batch
    if repeats > 1:
        pairs = found['index'].reshape(-1, 2)
        assert (pairs[:, 0] != pairs[:, 1]).all()
    restored = train(numbered(size), batch_size=batch, repeats=repeats, threads=1)
    restored.set_state({'batches': 11})
    assert_identical(take(restored, 5), {name: x[11:] for name, x in found.items()})
    assert epoch_size(600, repeats) == 512 and epoch_size(600) == 600 and epoch_size(200, repeats) == 200


@pytest.mark.parametrize('repeats', [1.5, 2, 2.5, 3, 4, 5])
def test_copies_are_no_neighbours(repeats):
    """In every batch of at least twice the copies; smaller ones can have an image beside itself."""
    orders, copies = EpochOrders(4096, 0, repeats), math.ceil(repeats)
    beside_itself = {}
    for batch in range(2, 50, 2):
        spread = SpreadExamples(orders.__getitem__, batch, copies)
        index = np.asarray([spread(slot) for slot in range(4096 // batch * batch)]).reshape(-1, 2)
        beside_itself[batch] = bool((index[:, 0] == index[:, 1]).any())
    assert not any(found for batch, found in beside_itself.items() if batch >= 2 * copies)
    assert any(beside_itself.values())


@pytest.mark.parametrize('processes', [2, 4, 8])
@pytest.mark.parametrize('repeats', [0, 3])
def test_any_number_of_processes_and_threads(train, processes, repeats):
    expected = take(train(threads=1, repeats=repeats), 7)
    parts = [take(train(shard=(p, processes), threads=1 + p, repeats=repeats), 7) for p in range(processes)]
    assert_identical(expected, {name: np.concatenate([part[name] for part in parts], axis=1) for name in expected})


@settings(max_examples=12, deadline=None, derandomize=True)
@given(stops=st.lists(st.integers(0, 6), min_size=1, max_size=4), devices=st.sampled_from([None, 1, 4]))
def test_restarts_at_any_point(stops, devices):
    """Each time in a new iterator, after more batches were built ahead."""

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
    whole.set_state({'batches': 1})  # back, in an iterator that is in use
    assert draw(whole, 2) == expected[1:3]
    whole.close()


def test_orbax_checkpoints(train, tmp_path):
    logging.getLogger('absl').setLevel(logging.ERROR)
    iterator = train()
    take(iterator, 5)
    with ocp.training.Checkpointer(tmp_path) as checkpointer:
        checkpointer.save_checkpointables(5, {'state': {'w': np.ones(3)}, 'data': iterator})
        expected = take(iterator, 3)
        restored = train(threads=1)
        checkpointer.load_checkpointables(5, {'state': {'w': np.zeros(3)}, 'data': restored})
    assert_identical(take(restored, 3), expected)


def evaluate(source, transform=None, **options) -> dict[str, np.ndarray]:
    options = {'batch_size': 8, 'threads': 3} | options
    batches = list(eval_dataset(source, transform or create_transform(4), **options))
    return {name: np.stack([batch[name] for batch in batches]) for name in batches[0]}


@pytest.mark.parametrize(('size', 'processes'), [(23, 1), (23, 4), (24, 2), (3, 8), (1, 1)])
def test_evaluation_has_every_image_once(size, processes):
    parts = [evaluate(numbered(size), shard=(p, processes)) for p in range(processes)]
    assert {part['mask'].shape for part in parts} == {(-(-size // 8), 8 // processes)}, 'the same for all processes'
    whole = {name: np.concatenate([part[name] for part in parts], axis=1) for name in parts[0]}
    whole = {name: x.reshape(-1, *x.shape[2:]) for name, x in whole.items()}
    assert {name: x.dtype for name, x in whole.items()} == {
        'image': np.uint8, 'label': np.int32, 'index': np.int32, 'mask': np.float32,
    }  # fmt: skip
    real, padding = slice(None, size), slice(size, None)
    assert (whole['index'][real] == np.arange(size)).all() and (whole['label'][real] == np.arange(size) % 5).all()
    assert (whole['mask'][real] == 1).all() and (whole['image'][real, ..., 0] == np.arange(size)[:, None, None]).all()
    assert (whole['mask'][padding] == 0).all() and (whole['index'][padding] == -1).all()
    assert (whole['image'][padding] == 0).all() and (whole['label'][padding] == 0).all()


def test_evaluation_restarts_and_resumes():
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
    """Images as bytes; reading a record that is an exception raises it."""

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


def test_jpegs_reach_the_transform_undecoded(train):
    """A transform can decode a large JPEG at a smaller size."""

    def draft(image, rng):
        image.draft('RGB', (40, 30))
        return np.asarray(image)

    jpeg = encode(grey_image(7, 160, 120), 'JPEG')
    batch = next(train(Encoded((jpeg,) * 2), draft, batch_size=2))
    assert batch['image'].shape == (2, 30, 40, 3)


def test_evaluation_batches_hold_the_crops_of_the_transform():
    jpeg = encode(noise_image(120, 90), 'JPEG')
    source = Encoded((jpeg,) * 2)
    transform = create_transform((32, 48), 'bicubic', crop_pct=0.9)
    crop = transform.crop_image(Image.open(io.BytesIO(jpeg)))
    assert crop.shape == (32, 48, 3) and crop.dtype == np.uint8
    assert np.array_equal(evaluate(source, transform)['image'][0, 0], crop)
    mean, std = (np.asarray(value, np.float32) for value in (transform.mean, transform.std))
    normal = (crop.astype(np.float32) / np.float32(255) - mean[None, None]) / std[None, None]
    assert np.array_equal(transform(Image.open(io.BytesIO(jpeg))), normal)


# Unreadable images

CUT = encode(grey_image(9, 64, 64), 'JPEG')[:-60]
THIN = encode(grey_image(9, 4000, 1))  # resized to a height of 457 pixels it is 1,828,000 pixels wide
BAD = {3: b'', 7: CUT, 8: b'no image', 15: PermissionError(13, 'Permission denied')}
REASONS = {
    3: 'the file is empty',
    7: 'image file is truncated',
    8: 'not an image, or of a kind that Pillow cannot read',
    15: 'Permission denied',
}


def damaged() -> Encoded:
    return Encoded(tuple(BAD.get(i, encode(grey_image(i))) for i in range(SIZE)))


def check_log(path) -> None:
    lines = sorted(path.read_text().splitlines())
    expected = sorted(f'image {i}: {reason}' for i, reason in REASONS.items())
    assert len(lines) == len(expected)
    assert all(line.startswith(start) for line, start in zip(lines, expected, strict=True))


def test_unreadable_images_in_training(train, tmp_path, caplog):
    log, options = tmp_path / 'unreadable.log', {'max_unreadable': 4 / SIZE}
    found = take(train(damaged(), log=log, **options), 2 * SIZE)
    good = take(train(Encoded(tuple(encode(grey_image(i)) for i in range(SIZE))), **options), 2 * SIZE)
    wanted, index = good['index'].ravel(), found['index'].ravel()
    assert {*index} == {*range(SIZE)} - {*BAD}
    bad = np.isin(wanted, [*BAD])
    assert (index[~bad] == wanted[~bad]).all(), 'the others keep their positions'
    following = [next(i for i in wanted[at:] if i not in BAD) for at in np.flatnonzero(bad)[:-1]]
    assert (index[bad][:-1] == following).all(), 'the next readable image replaces it'
    for name in ('image', 'label', 'index'):
        assert (found[name].reshape(bad.size, -1)[~bad] == good[name].reshape(bad.size, -1)[~bad]).all()
    check_log(log)
    assert caplog.text.count('an unreadable image is skipped') == 1 and str(log) in caplog.text
    take(train(damaged(), log=log, **options), SIZE)
    check_log(log)  # a restart adds no image twice

    parts = [take(train(damaged(), shard=(p, 4), **options), 2 * SIZE) for p in range(4)]
    assert_identical(found, {name: np.concatenate([part[name] for part in parts], axis=1) for name in found})


def test_unreadable_images_in_evaluation(tmp_path):
    found = evaluate(damaged(), max_unreadable=4 / SIZE, log=tmp_path / 'unreadable.log')
    found = {name: x.reshape(-1, *x.shape[2:])[:SIZE] for name, x in found.items()}
    assert [int(i) for i in np.flatnonzero(found['mask'] == 0)] == [*BAD] and (found['index'] == np.arange(SIZE)).all()
    assert all((found['image'][i] == (0 if i in BAD else i)).all() for i in range(SIZE))
    check_log(tmp_path / 'unreadable.log')


def test_too_many_unreadable_images(train):
    message = r'encoded train: 4 of 23 images cannot be read, more than the allowed share of 0.15 \(max_unreadable\)'
    with pytest.raises(DataError, match=message):
        take(train(damaged(), max_unreadable=0.15), 20)
    with pytest.raises(DataError, match=message):
        evaluate(damaged(), max_unreadable=0.15)
    nothing = Encoded((b'x',) * SIZE)
    with pytest.raises(DataError, match=r'5 images in a row cannot be read; the first is image \d+: not an image'):
        next(train(nothing, max_unreadable=0.1))
    with pytest.raises(DataError, match='images cannot be read'):
        evaluate(nothing)


def test_total():
    """The limit is the same for one process and for all together."""
    check_total(damaged(), 3, 0.15)
    with pytest.raises(DataError, match=r'^encoded train: 4 of 23 images cannot be read, more than the allowed share'):
        check_total(damaged(), 4, 0.15)


def test_images_that_the_transform_refuses():
    source = Encoded((encode(grey_image(1)), THIN, encode(grey_image(2))))
    found = evaluate(source, create_transform(400), max_unreadable=0.5)
    assert found['mask'][0, :4].tolist() == [1, 0, 1, 0]


def test_a_broken_transform_is_not_reported_as_a_damaged_image(train):
    def broken(image, rng):
        return image.no_such_thing()

    with pytest.raises(AttributeError, match='no_such_thing'):
        next(train(transform=broken))


@pytest.mark.parametrize('label', [-1, 2])
def test_labels_that_are_out_of_range(train, label):
    source = Encoded((encode(grey_image(1)),) * 3, (0, 1, label))
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
        with jax.transfer_guard('disallow'):  # the batch is already on its devices
            sums = step(batch)
        each = expected['image'][i].reshape(4, -1).sum(1) + expected['label'][i].reshape(4, -1).sum(1)
        assert (np.asarray(sums) == each).all()
    iterator.close()


def test_batches_that_cannot_be_divided(train):
    for options in ({'batch_size': 9, 'shard': (0, 2)}, {'batch_size': 0}, {'shard': (2, 2)}):
        with pytest.raises(DataError):
            train(**options)
    iterator = iter(to_devices(train_dataset(numbered(), noisy, batch_size=6, seed=1), jax.local_devices()))
    with pytest.raises(DataError, match='a batch of 6 images cannot be divided among 4 devices'):
        next(iterator)
    iterator.close()


# Worker processes


def test_workers_build_the_same_batches(train, tmp_path):
    options = {'source': damaged(), 'max_unreadable': 4 / SIZE}
    expected, flags_parsed = take(train(**options), 9), absl.flags.FLAGS.is_parsed()
    iterator = train(workers=2, log=tmp_path / 'unreadable.log', **options)
    iterator.set_state({'batches': 2})
    assert_identical(take(iterator, 7), {name: x[2:] for name, x in expected.items()})
    assert iterator.get_state() == {'batches': 9}
    check_log(tmp_path / 'unreadable.log')
    assert absl.flags.FLAGS.is_parsed() == flags_parsed, 'parsing flags is up to the program'


SCRIPT = """
import time
import absl.flags
from tresnet_jax.data.pipeline import train_dataset
from tresnet_jax.data.sources import open_source
from tresnet_jax.data.train_transforms import create_train_transform

if __name__ == '__main__':
    absl.flags.DEFINE_string('colour', 'red', 'A flag of the program.')
    source = open_source('embedded:fashion_mnist', 'train')
    iterator = iter(train_dataset(source, create_train_transform(28), batch_size=8, seed=0, workers=2))
    next(iterator)
    assert not absl.flags.FLAGS.is_parsed()
    assert absl.flags.FLAGS(['script.py', '--colour=blue'])[1:] == [] and absl.flags.FLAGS.colour == 'blue'
    print('ready', flush=True)
    time.sleep(600)
"""


@pytest.mark.slow
def test_workers_in_a_program_of_its_own(tmp_path):
    """They start without parsed flags, leave the program's flags to it, and end with it even if it is killed."""
    (tmp_path / 'script.py').write_text(SCRIPT)
    environment = os.environ | {'PYTHONPATH': str(ROOT)}
    process = subprocess.Popen([sys.executable, tmp_path / 'script.py'], stdout=subprocess.PIPE, env=environment)
    assert process.stdout is not None and process.stdout.readline() == b'ready\n'
    process.kill()
    process.communicate(timeout=60)  # ends when the workers, which inherited the pipe, have ended
