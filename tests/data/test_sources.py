"""Sources of images: folders, arrays, TensorFlow Datasets; splits, slices of splits, and errors."""

import io
import json
import pickle
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.helpers.images import encode, noise_image, write_classes
from tresnet_jax.data.sources import open_source
from tresnet_jax.errors import DataError


def png(seed: int, mode: str = 'RGB') -> bytes:
    return encode(noise_image(10, 8, mode=mode, seed=seed))


def refuse(data: str, split: str | None = 'train', **options) -> str:
    """Return the error of opening a source, after checking that it is one line that names the data."""
    with pytest.raises(DataError) as caught:
        open_source(data, split, **options)
    message = str(caught.value)
    assert '\n' not in message and data in message
    return message


def test_unknown_kinds():
    for data in ('photos', 'wds:photos', 'folder:', 'tfds:', 'embedded:mnist', ''):
        assert 'expected tfds:NAME, folder:DIR' in refuse(data)


# Folders


@pytest.fixture
def folder(tmp_path):
    write_classes(tmp_path / 'train', {'a': 2, 'b': 3, 'c d': 4})  # 00.png to 08.png
    write_classes(tmp_path / 'val', {'c d': 2, 'a': 1, 'b': 1}, seed=50)
    return tmp_path


def test_folder_with_splits(folder):
    source = open_source(f'folder:{folder}', 'train')
    assert source.class_names == ('a', 'b', 'c d') and source.num_classes == 3 and len(source) == 9
    assert [source[i]['label'] for i in range(9)] == [0, 0, 1, 1, 1, 2, 2, 2, 2]
    assert source[3]['image'] == (folder / 'train' / 'b' / '03.png').read_bytes()
    assert source.describe(3) == str(folder / 'train' / 'b' / '03.png')
    for split in (None, 'val', 'validation'):
        val = open_source(f'folder:{folder}', split)
        assert len(val) == 4 and val[0]['image'] == (folder / 'val' / 'a' / '02.png').read_bytes()


def test_folder_relative_to_data_dir(folder):
    source = open_source(f'folder:{folder.name}', 'train', data_dir=folder.parent)
    assert len(source) == 9 and source[0]['label'] == 0


def test_folder_has_images_at_any_depth_and_no_other_files(folder):
    deep = folder / 'train' / 'a' / 'deep' / 'er'
    deep.mkdir(parents=True)
    (deep / '9.JPEG').write_bytes(b'x')
    for name in ('._1.png', 'notes.txt', 'png'):
        (deep / name).touch()
    (folder / 'train' / '.cache').mkdir()
    (folder / 'train' / 'loose.png').touch()
    source = open_source(f'folder:{folder}', 'train')
    assert len(source) == 10 and source.class_names == ('a', 'b', 'c d')
    assert source[2] == {'image': b'x', 'label': 0}


def test_a_folder_without_splits_is_divided(tmp_path):
    write_classes(tmp_path, {'a': 10, 'b': 20, 'train': 1})  # a class may have the name of a split
    train = open_source(f'folder:{tmp_path}', 'train', val_fraction=0.3)
    val = open_source(f'folder:{tmp_path}', None, val_fraction=0.3)
    assert train.class_names == val.class_names == ('a', 'b', 'train')
    labels = [np.bincount([source[i]['label'] for i in range(len(source))], minlength=3) for source in (train, val)]
    assert [x.tolist() for x in labels] == [[7, 14, 1], [3, 6, 0]]
    names = [[source.describe(i) for i in range(len(source))] for source in (train, val)]
    assert len({*names[0], *names[1]}) == 31 and names[0] == sorted(names[0])
    assert [n for n in names[1] if '/a/' in n] != sorted(str(p) for p in (tmp_path / 'a').iterdir())[:3]
    again = open_source(f'folder:{tmp_path}', 'validation', val_fraction=0.3)
    assert [again.describe(i) for i in range(len(again))] == names[1]
    assert len(open_source(f'folder:{tmp_path}', 'train', val_fraction=0)) == 31
    assert 'no images for validation' in refuse(f'folder:{tmp_path}', 'validation', val_fraction=0)


def test_slices_of_folders_contain_all_classes(tmp_path):
    write_classes(tmp_path / 'train', {'a': 40, 'b': 40})
    parts = [open_source(f'folder:{tmp_path}', f'train[{part}]') for part in (':25%', '25%:60', '60:')]
    assert [len(part) for part in parts] == [20, 40, 20]
    names = [part.describe(i) for part in parts for i in range(len(part))]
    assert len(set(names)) == 80
    for part in parts:
        assert 0.25 < np.mean([part[i]['label'] for i in range(len(part))]) < 0.75


def test_wrong_folders(folder):
    data = f'folder:{folder}'
    assert f'the folder {folder}/missing does not exist' in refuse(f'{data}/missing')
    assert "no split 'test'; it has train, val" in refuse(data, 'test')
    for split in ('train[', 'train[:5', 'train[5]', ''):
        assert 'not a split' in refuse(data, split)
    assert 'train[9:] has no images; train has 9' in refuse(data, 'train[9:]')
    assert 'val_fraction must be' in str(pytest.raises(DataError, open_source, data, None, val_fraction=1.0).value)
    (folder / 'val' / 'z').mkdir()
    assert 'different class folders; 1 only in val: z' in refuse(data, 'val')
    shutil.rmtree(folder / 'val' / 'a')
    assert '1 only in train: a' in refuse(data, 'val')
    (folder / 'train' / 'empty').mkdir()
    assert f'no images in 1 of 4 class folders: {folder}/train/empty' in refuse(data)
    for name in ('b', 'c d', 'empty'):
        shutil.rmtree(folder / 'train' / name)
    assert 'only one class folder' in refuse(data)
    (folder / 'nothing').mkdir()
    assert 'no class folders' in refuse(f'{data}/nothing')


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
        ({'x_train': np.zeros((6, 5, 4, 2), np.uint8)}, '(6, 5, 4, 2) uint8'),
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
            }
            features = tfds.features.FeaturesDict(features)
            return tfds.core.DatasetInfo(builder=self, features=features, supervised_keys=('image', 'kind'))

        def _split_generators(self, dl_manager):
            return {'train': self._generate_examples(0, 23), 'validation': self._generate_examples(100, 7)}

        def _generate_examples(self, seed, count):
            for i in range(count):
                images = {'image': io.BytesIO(png(seed + i)), 'mask': io.BytesIO(png(i, 'L'))}
                yield i, {**images, 'kind': i % 3, 'objects': [{'name': 'tail'}] * (i % 2)}

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
    assert 'tensorflow' not in sys.modules


@pytest.mark.parametrize('split', ['train', 'train[3:]', 'train[5:9]', 'validation[:50%]+train[20:]', None])
def test_tfrecord(array_record, tfrecord, split):
    expected = open_source('tfds:tiny', split, data_dir=array_record)
    source = open_source('tfds:tiny', split, data_dir=tfrecord)
    assert (source.name, source.class_names) == (expected.name, expected.class_names)
    assert contents(source) == contents(expected)
    assert 'tensorflow' not in sys.modules


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


def test_sources_can_be_pickled(folder, array_record, tfrecord):
    np.savez(folder / 'a.npz', x_train=np.zeros((4, 2, 2), np.uint8), y_train=np.arange(4))
    for data, data_dir in (
        (f'folder:{folder}', None),
        (f'npz:{folder}/a.npz', None),
        ('tfds:tiny', array_record),
        ('tfds:tiny', tfrecord),
        ('embedded:fashion_mnist', None),
    ):
        source = open_source(data, 'train', data_dir=data_dir)
        again = pickle.loads(pickle.dumps(source))
        assert len(again) == len(source) and again.class_names == source.class_names
        assert again[2]['label'] == source[2]['label'] and np.array_equal(again[2]['image'], source[2]['image'])
