"""Sources of images: arrays, TensorFlow Datasets, slices of splits, and errors."""

import io
import json
import pickle
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.helpers.images import encode, noise_image, write_classes
from tests.helpers.sources import refuse
from tresnet_jax.data.real_labels import accepted_labels
from tresnet_jax.data.sources import check_channels, open_source
from tresnet_jax.errors import DataError, amount


def png(seed: int, mode: str = 'RGB') -> bytes:
    return encode(noise_image(10, 8, mode=mode, seed=seed))


def test_unknown_kinds():
    for data in ('photos', 'zip:photos', 'folder:', 'csv:', 'tfds:', 'embedded:mnist', ''):
        assert 'expected tfds:NAME, folder:DIR' in refuse(data)


@pytest.mark.parametrize('kind', ['folder', 'csv', 'wds', 'hfds', 'npz'])
def test_unknown_home_folders(kind):
    message = refuse(f'{kind}:~nobody-of-this-name/x')
    assert 'does not exist' in message or 'no such shard' in message


# Arrays


def save(path, **arrays):
    rng = np.random.default_rng(0)
    whole = {
        'x_train': rng.integers(0, 256, (6, 5, 4), np.uint8),
        'y_train': np.array([0, 1, 2, 0, 1, 2], np.uint8),
        'x_test': rng.integers(0, 256, (3, 5, 4, 1), np.uint8),
        'y_test': np.array([[2], [0], [1]]),
    }
    arrays = {key: value for key, value in (whole | arrays).items() if value is not None}
    np.savez(path, **arrays)
    return arrays


def test_npz(tmp_path):
    arrays = save(tmp_path / 'a.npz')
    train, test = (open_source(f'npz:{tmp_path}/a.npz', split) for split in ('train', None))
    assert train.class_names == test.class_names == ('0', '1', '2') and (len(train), len(test)) == (6, 3)
    assert train[4]['label'] == 1 and train[4]['image'].shape == (5, 4, 1) and train[4]['image'].dtype == np.uint8
    assert np.array_equal(train[4]['image'][..., 0], arrays['x_train'][4])
    assert [test[i]['label'] for i in range(3)] == [2, 0, 1]
    part = open_source(f'npz:{tmp_path}/a.npz', 'train[2:-1]')
    assert (
        len(part) == 3 and np.array_equal(part[0]['image'], train[2]['image']) and 'train[2:-1] 0' in part.describe(0)
    )


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        ({'y_train': np.arange(6) % 2 - 1}, 'y_train: a label is -1'),
        ({'y_train': np.zeros(6)}, r'y_train: expected (N,) integers, got (6,) float64'),
        ({'y_train': np.zeros(6, int), 'y_test': np.zeros(3, int)}, 'only one class'),
        ({'y_train': np.arange(5) % 3}, '6 images but 5 labels'),
        ({'x_train': np.zeros((6, 5, 4), np.float32)}, '(6, 5, 4) float32'),
        ({'x_train': np.zeros((6, 5, 4, 2, 1), np.uint8)}, '(6, 5, 4, 2, 1) uint8'),
        ({'x_train': np.zeros((0, 5, 4), np.uint8)}, 'no images'),
        ({'x_train': None}, "no split 'train'; it has test"),
        ({'x_train': np.array([{}] * 6)}, 'cannot be read'),
    ],
)  # fmt: skip
def test_wrong_npz(tmp_path, change, message):
    save(tmp_path / 'a.npz', **change)
    assert message in refuse(f'npz:{tmp_path}/a.npz')


def test_npz_with_other_classes_in_test(tmp_path):
    save(tmp_path / 'a.npz', y_test=np.array([0, 3, 9]))
    assert 'test has classes that train does not have: 3, 9' in refuse(f'npz:{tmp_path}/a.npz', 'test')


def test_files_that_are_not_npz(tmp_path):
    assert f'the file {tmp_path}/a.npz does not exist' in refuse(f'npz:{tmp_path}/a.npz')
    (tmp_path / 'a.npz').write_bytes(b'PK\3\4 and no more')
    assert 'cannot be read as a .npz' in refuse(f'npz:{tmp_path}/a.npz')
    np.save(tmp_path / 'b.npy', np.zeros(3))
    assert 'expected a .npz file, got a single array' in refuse(f'npz:{tmp_path}/b.npy')


@pytest.mark.parametrize('place, value', [(60, 0xFF), (6, 1)], ids=['damaged', 'encrypted'])
def test_npz_that_cannot_be_decompressed(place, value, tmp_path):
    """A block that zlib refuses; the flag of an encrypted member, here and in the directory at the end."""
    path = tmp_path / 'a.npz'
    images = np.random.default_rng(0).integers(0, 50, (40, 28, 28)).astype(np.uint8)
    np.savez_compressed(path, x_train=images, y_train=np.arange(40) % 10)
    data = bytearray(path.read_bytes())
    data[place : place + (20 if value > 1 else 1)] = bytes([value]) * (20 if value > 1 else 1)
    if value == 1:
        data[data.index(b'PK\1\2') + 8] = value
    path.write_bytes(data)
    assert 'cannot be read as a .npz file of plain arrays' in refuse(f'npz:{path}')


def test_embedded():
    train, test = (open_source('embedded:fashion_mnist', split) for split in ('train', None))
    assert (len(train), len(test), train.num_classes) == (2000, 500, 10)
    assert train.class_names[9] == 'Ankle boot' and train[0]['label'] == 9
    assert "no split 'val'; it has train, test" in refuse('embedded:fashion_mnist', 'val')


# TensorFlow Datasets


@pytest.fixture(scope='session')
def array_record(tmp_path_factory) -> Path:
    """Return the data_dir of a data set 'tiny' of 23 and 7 images, in 3 array_record files each."""
    import tensorflow_datasets as tfds

    class Tiny(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version('1.0.0')

        def _info(self):
            features = {
                'image': tfds.features.Image(),
                'mask': tfds.features.Image(shape=(None, None, 1)),  # this feature and the next are not read
                'objects': tfds.features.Sequence({'name': tfds.features.Text()}),
                'kind': tfds.features.ClassLabel(names=['cat', 'dog', 'elk']),
                'file_name': tfds.features.Text(),
            }
            features = tfds.features.FeaturesDict(features)
            return tfds.core.DatasetInfo(builder=self, features=features, supervised_keys=('image', 'kind'))

        def _split_generators(self, dl_manager):
            return {'train': self._generate_examples(0, 23), 'validation': self._generate_examples(100, 7)}

        def _generate_examples(self, seed, count):
            for i in range(count):
                images = {'image': io.BytesIO(png(seed + i)), 'mask': io.BytesIO(png(i, 'L'))}
                names = {'file_name': f'{seed + i}.png', 'objects': [{'name': 'tail'}] * (i % 2)}
                yield i, {**images, **names, 'kind': i % 3}

    data_dir = tmp_path_factory.mktemp('array_record')
    config = tfds.download.DownloadConfig(num_shards=3)
    Tiny(data_dir=str(data_dir), file_format='array_record').download_and_prepare(download_config=config)
    return data_dir


@pytest.fixture
def tfrecord(array_record, tmp_path) -> Path:
    """Return the data_dir of 'tiny' in TFRecord files of the same records, as TFDS would have written them."""
    from array_record.python.array_record_data_source import ArrayRecordDataSource
    from tensorboardX.record_writer import RecordWriter

    data_dir = described(array_record, tmp_path, lambda info: info | {'fileFormat': 'tfrecord'})
    for file in sorted((data_dir / 'tiny' / '1.0.0').glob('*.array_record-*')):
        writer = RecordWriter(str(file).replace('array_record', 'tfrecord'))
        with ArrayRecordDataSource([str(file)]) as records:
            for index in range(len(records)):
                writer.write(records[index])
        writer.close()
        file.unlink()
    return data_dir


def described(array_record: Path, tmp_path: Path, change) -> Path:
    """Copy the data set 'tiny', change its dataset_info.json, and return the new data_dir."""
    shutil.copytree(array_record / 'tiny', tmp_path / 'tiny')
    path = tmp_path / 'tiny' / '1.0.0' / 'dataset_info.json'
    path.write_text(json.dumps(change(json.loads(path.read_text()))))
    return tmp_path


def contents(source) -> list[tuple[bytes, int]]:
    return [(source[i]['image'], source[i]['label']) for i in range(len(source))]


def test_tfds(array_record):
    train = open_source('tfds:tiny', 'train', data_dir=array_record)
    assert train.class_names == ('cat', 'dog', 'elk') and len(train) == 23 and train.name == 'tfds:tiny train'
    assert sorted(contents(train)) == sorted((png(i), i % 3) for i in range(23)), 'images keep their encoding'
    for split in (None, 'validation'):
        val = open_source('tfds:tiny', split, data_dir=str(array_record))
        assert sorted(contents(val)) == sorted((png(100 + i), i % 3) for i in range(7))
    part = open_source('tfds:tiny:1.0.0', 'train[20:]+validation[:2]', data_dir=array_record)
    assert contents(part) == contents(train)[20:] + contents(val)[:2]
    assert all(png(int(part.file_name(i)[:-4])) == part[i]['image'] for i in range(5))
    with pytest.raises(DataError, match=r'ReaL labels belong to file names .* got 10\d\.png'):
        accepted_labels(val, [[0]])
    assert 'tensorflow' not in sys.modules


def test_tfds_with_any_number_of_labels(array_record):
    options = {'data_dir': array_record, 'target_format': 'indices'}
    kinds = open_source('tfds:tiny', 'train', target_key='kind', **options)
    assert kinds.class_names == ('cat', 'dog', 'elk') and len(kinds) == 23
    for i in range(23):
        record = kinds[i]
        np.testing.assert_array_equal(
            record['target'], np.eye(3)[[png(n) for n in range(23)].index(record['image']) % 3]
        )
    tails = open_source('tfds:tiny', 'train', target_key='objects/name', class_names=('ear', 'tail'), **options)
    assert sorted(tails[i]['target'].tolist() for i in range(23)) == [[0, 0]] * 12 + [[0, 1]] * 11
    assert tails.fingerprint() == kinds.fingerprint() and pickle.loads(pickle.dumps(tails))[0]['target'].sum() < 2
    assert 'has no class names; give them with --class-map' in refuse('tfds:tiny', target_key='objects/name', **options)
    assert 'name the labels with --target-key' in refuse('tfds:tiny', **options)
    vectors = options | {'target_format': 'multihot'}
    assert 'has no class names' in refuse('tfds:tiny', target_key='objects', **vectors)
    for key in ('objects/size', 'tail'):
        assert 'no such feature; it has' in refuse('tfds:tiny', target_key=key, **options)
    other = {'target_key': 'kind', 'class_names': ('dog', 'cat', 'elk')}
    assert 'class 0 is cat; expected dog' in refuse('tfds:tiny', **other, **options)
    unknown = open_source('tfds:tiny', 'train', target_key='objects/name', class_names=('ear', 'nose'), **options)
    with pytest.raises(DataError, match='not among the class names: tail|have different classes'):
        [unknown[i] for i in range(23)]


@pytest.mark.parametrize('split', ['train', 'train[3:]', 'train[5:9]', 'validation[:50%]+train[20:]', None])
def test_tfrecord(array_record, tfrecord, split):
    expected = open_source('tfds:tiny', split, data_dir=array_record)
    source = open_source('tfds:tiny', split, data_dir=tfrecord)
    assert (source.name, source.class_names) == (expected.name, expected.class_names)
    assert contents(source) == contents(expected)
    assert 'tensorflow' not in sys.modules


def test_fingerprints_of_tfds(array_record, tfrecord, tmp_path):
    def fingerprint(split, data_dir):
        return open_source('tfds:tiny', split, data_dir=data_dir).fingerprint()

    shutil.copytree(tmp_path / 'tiny', tmp_path / 'moved' / 'tiny')
    for data_dir in (array_record, tfrecord):
        before, part = fingerprint('train', data_dir), fingerprint('train[5:]', data_dir)
        assert before['names'] == part['names'] and before['records'] != part['records']
        assert before['names'] != fingerprint('validation', data_dir)['names']
    assert fingerprint('train', tmp_path / 'moved') == before
    first = sorted((tmp_path / 'moved' / 'tiny').glob('*/*train.tfrecord*'))[0]
    first.write_bytes(2 * first.read_bytes())  # no more records are read
    after = fingerprint('train', tmp_path / 'moved')
    assert {name for name in before if before[name] != after[name]} == {'sizes'}


def test_damaged_tfrecord(tfrecord):
    path = tfrecord / 'tiny' / '1.0.0' / 'tiny-train.tfrecord-00001-of-00003'
    path.write_bytes(path.read_bytes()[:-1])
    message = refuse('tfds:tiny', data_dir=tfrecord)
    assert f'{path}: truncated or damaged at byte' in message and 'copy or prepare it again' in message
    path.unlink()
    assert f'{path}: No such file or directory' in refuse('tfds:tiny', data_dir=tfrecord)


def test_wrong_tfds(array_record):
    def refuse_tfds(data, split):
        return refuse(data, split, data_dir=array_record)

    message = refuse_tfds('tfds:imagenet2012', 'train')
    assert 'not found among the prepared data sets' in message
    assert f'tfds build imagenet2012 --file_format=array_record --data_dir={array_record}' in message
    assert 'not found' in refuse_tfds('tfds:tiny:2.0.0', 'train')
    assert 'not found' in refuse_tfds('tfds:../x y', 'train')
    assert "no split 'test'" in refuse_tfds('tfds:tiny', 'test')
    assert 'it has train, validation' in refuse_tfds('tfds:tiny', 'test')
    assert "no split 'train[50:]'" in refuse_tfds('tfds:tiny', 'train[50:]')
    assert 'no split' in refuse_tfds('tfds:tiny', 'train[')


def test_tfds_of_an_unknown_format(array_record, tmp_path):
    data_dir = described(array_record, tmp_path, lambda info: info | {'fileFormat': 'riegeli'})
    message = refuse('tfds:tiny', 'train', data_dir=data_dir)
    assert 'prepared as riegeli' in message and '--file_format=array_record' in message


def test_tfds_with_other_features(array_record, tmp_path):
    def swap(info):
        return info | {'supervisedKeys': {'tuple': {'items': [{'featureKey': 'kind'}, {'featureKey': 'image'}]}}}

    data_dir = described(array_record, tmp_path, swap)
    assert 'expected images with one label each; its features are' in refuse('tfds:tiny', 'train', data_dir=data_dir)


# All sources


def test_sources_can_be_pickled(tmp_path, array_record, tfrecord):
    folder = tmp_path / 'images'
    write_classes(folder / 'train', {'a': 2, 'b': 3})
    (folder / 'a.csv').write_text('path,label\ntrain/a/00.png,a\ntrain/a/01.png,b\ntrain/b/02.png,c\n')
    np.savez(folder / 'a.npz', x_train=np.zeros((4, 2, 2), np.uint8), y_train=np.arange(4))
    for data, data_dir in (
        (f'folder:{folder}', None),
        (f'csv:{folder}/a.csv', None),
        (f'npz:{folder}/a.npz', None),
        ('tfds:tiny', array_record),
        ('tfds:tiny', tfrecord),
        ('embedded:fashion_mnist', None),
    ):
        source = open_source(data, 'train', data_dir=data_dir)
        again = pickle.loads(pickle.dumps(source))
        assert len(again) == len(source) and again.class_names == source.class_names
        assert again[2]['label'] == source[2]['label'] and np.array_equal(again[2]['image'], source[2]['image'])


@pytest.mark.parametrize(
    'shape, fitting', [((), (1, 3)), ((1,), (1, 3)), ((4,), (1, 3, 4)), ((2,), (2,)), ((7,), (7,))]
)
def test_channels_of_arrays(shape, fitting, tmp_path):
    """Grey, RGB and RGBA arrays can be grey or RGB images; others have their own number."""
    np.savez(tmp_path / 'a.npz', x_train=np.zeros((4, 2, 2, *shape), np.uint8), y_train=np.arange(4))
    source = open_source(f'npz:{tmp_path}/a.npz', 'train')
    number = (*shape, 1)[0]
    for channels in range(1, 9):
        if channels in fitting:
            check_channels(source, channels)
            continue
        with pytest.raises(DataError) as caught:
            check_channels(source, channels)
        message = f'{source.name}: the images have {amount(number, "channel")}, but the model takes {channels}; '
        assert str(caught.value) == f'{message}train with --in-chans {number}'


def test_channels_of_image_files(tmp_path):
    write_classes(tmp_path / 'train', {'a': 2, 'b': 2})
    source = open_source(f'folder:{tmp_path}', 'train')
    check_channels(source, 1)
    check_channels(source, 3)
    with pytest.raises(DataError, match='train: the model takes 4 channels; image files have 1 .grey. or 3 .RGB'):
        check_channels(source, 4)
    (tmp_path / 'train' / 'a' / '00.png').unlink()  # reported when it is read for use
    check_channels(source, 4)
