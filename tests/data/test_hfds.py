"""Data sets of Hugging Face's library: splits, columns, class names, and images in files of their own."""

import pickle
import sys

import datasets
import pytest

from tests.helpers.images import encode, noise_image
from tests.helpers.sources import refuse
from tresnet_jax.data.sources import open_source

datasets.disable_progress_bars()


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """Keep the files that the library writes, and show that nothing is downloaded."""
    monkeypatch.setattr(datasets.config, 'HF_DATASETS_CACHE', tmp_path / 'cache')
    monkeypatch.setattr(datasets.config, 'HF_HUB_OFFLINE', True)


def png(seed: int) -> bytes:
    return encode(noise_image(5, 4, seed=seed))


def rows(labels, *, first: int = 0, label='label', image='image', kind=None, **columns):
    """Return a data set of noise; image i has seed `first` + i and the path i.png."""
    images = [{'bytes': png(first + i), 'path': f'{first + i}.png'} for i in range(len(labels))]
    found = datasets.Dataset.from_dict({image: images, label: labels, **columns})
    found = found.cast_column(image, datasets.Image())
    return found if kind is None else found.cast_column(label, kind)


NAMED = datasets.ClassLabel(names=['zebra', 'ant 10', 'ant 9'])


@pytest.fixture
def saved(tmp_path):
    """Return a function that saves splits and returns the name of the data."""

    def save(**splits) -> str:
        datasets.DatasetDict(splits).save_to_disk(str(tmp_path / 'set'))
        return f'hfds:{tmp_path}/set'

    return save


def test_splits_and_class_names(tmp_path, saved):
    data = saved(train=rows([2, 0, 1, 0], kind=NAMED), Val=rows([1, 1], first=4, kind=NAMED))
    train, val = open_source(data, 'training'), open_source(data, None)
    assert train.class_names == ('zebra', 'ant 10', 'ant 9') and train.labels.tolist() == [2, 0, 1, 0]
    for index in range(4):
        assert train[index]['image'] == png(index)
    assert type(train[0]['label']) is int and train.describe(3) == f'{data} train 3: 3.png'
    assert (val.name, val.labels.tolist(), val.present) == (f'{data} Val', [1, 1], (1,))
    assert open_source('hfds:set', None, data_dir=tmp_path)[1]['image'] == png(5)
    stored = open_source(data, 'train', class_names=('ant 9', 'zebra', 'ant 10'))
    assert stored.labels.tolist() == [0, 1, 2, 1]
    part = open_source(data, 'train[:50%]')
    assert len(part) == 2 and part.present == (0, 1, 2)
    copy = pickle.loads(pickle.dumps(part))
    assert [copy[i] for i in range(2)] == [part[i] for i in range(2)] and copy.describe(1) == part.describe(1)
    assert len(pickle.dumps(part)) < 20_000
    assert "no split 'test'; it has train, Val" in refuse(data, 'test')


def test_parquet_files(tmp_path):
    for split, labels in (('train', [0, 1, 2]), ('test', [2, 1])):
        rows(labels, kind=NAMED).to_parquet(str(tmp_path / 'set' / f'{split}-00000-of-00001.parquet'))
    test = open_source(f'hfds:{tmp_path}/set', None)
    assert (test.name, test.labels.tolist()) == (f'hfds:{tmp_path}/set test', [2, 1])
    assert test.class_names == tuple(NAMED.names) and test[1]['image'] == png(1)


def test_fingerprints(tmp_path, saved):
    data = saved(train=rows([2, 0, 1], kind=NAMED), test=rows([2, 0], first=1, kind=NAMED))
    before = open_source(data, 'train').fingerprint()
    (tmp_path / 'set').rename(tmp_path / 'moved')
    assert open_source('hfds:moved', 'train', data_dir=tmp_path).fingerprint() == before
    for split in (rows([2, 0, 0], kind=NAMED), rows([2, 0, 1], first=1, kind=NAMED)):
        after = open_source(saved(train=split, test=split), 'train').fingerprint()
        assert (after['labels'] != before['labels']) is (after['names'] == before['names'])


def test_data_without_splits(tmp_path):
    rows([i % 2 for i in range(20)]).save_to_disk(str(tmp_path / 'set'))
    data = f'hfds:{tmp_path}/set'
    train, val = (open_source(data, split, val_fraction=0.2) for split in ('train', None))
    assert (len(train), len(val)) == (16, 4) and val.labels.tolist().count(0) == 2
    assert not {*train.indices} & {*val.indices}
    whole = open_source(data, None, for_evaluation=True)
    assert whole.labels.tolist() == [0, 1] * 10 and whole.class_names == ('0', '1')


def test_labels_without_class_names(saved):
    data = saved(train=rows(['b', 'a', 'c']), validation=rows(['c', 'B']))
    assert open_source(data, None).labels.tolist() == [2, 1]
    assert open_source(data, None).class_names == ('a', 'b', 'c')
    data = saved(train=rows([0, 4]), validation=rows([3, -1, 4]))
    val = open_source(data, None)
    assert val.labels.tolist() == [3, 4] and val[1]['image'] == png(2)  # -1 is left out, as in tar shards
    assert len(val.class_names) == 5


def test_columns(saved):
    def only(**columns):
        return saved(test=rows([0, 1], kind=NAMED, **columns))

    two = [{'bytes': png(9), 'path': None}] * 2
    data = only(label='fine_label', image='img')
    assert open_source(data, None)[0]['label'] == 0
    data = only(image='photo', label='species', note=['x', 'y'])
    assert open_source(data, None).key == 'photo'
    data = only(label='fine', coarse=[1, 0])
    assert open_source(data, None, target_key='coarse')[0]['label'] == 1
    assert 'no column of labels; name it with --target-key. The columns are image, fine, coarse' in refuse(
        saved(test=rows([0, 1], label='fine', coarse=[1, 0])), None
    )
    both = rows([0, 1], label='fine', coarse=[1, 0], kind=NAMED).cast_column('coarse', NAMED)
    assert 'several columns may be the labels, fine, coarse; name it with --target-key' in refuse(
        saved(test=both), None
    )
    several = rows([0, 1], img=two).cast_column('img', datasets.Image())
    assert 'several columns may be the images, image, img; name it with --input-key' in refuse(
        saved(test=several), None
    )
    assert open_source(saved(test=several), None, input_key='img')[0]['image'] == png(9)
    binary = datasets.Dataset.from_dict({'image': [png(1), png(2)], 'label': [0, 1]})
    assert open_source(saved(test=binary), None)[1]['image'] == png(2)
    assert open_source(saved(test=rows([0, 1], raw=[png(1), png(2)])), None, input_key='raw')[0]['image'] == png(1)


@pytest.mark.parametrize(
    ('labels', 'options', 'message'),
    [
        ([0, None], {}, '1 of 2 rows of test have no label'),
        ([[0, 1], [1]], {}, 'row 0 of test has several labels, [0, 1]; for several labels per image give'),
        ([0.5, 1.0], {}, "the label of row 0 of test is '0.5'"),
        ([True, False], {}, "the label of row 0 of test is 'True'"),
        ([-1, -1], {}, 'all labels of test are -1: it has no labels'),
        ([0, 0], {}, 'only one class, 0; expected at least two'),
        ([0, 1], {'input_key': 'label'}, '--input-key label: no images; the columns are image, label'),
        ([0, 1], {'input_key': 'x'}, '--input-key x: no such column'),
        ([0, 1], {'target_key': 'x'}, '--target-key x: no such column; the columns are image, label'),
        ([0, 1], {'class_names': ['a']}, 'test has the label 1; there are 1 classes'),
    ],
)
def test_refused_rows(saved, labels, options, message):
    assert message in refuse(saved(test=rows(labels)), None, **options)


def test_refused_data(tmp_path, monkeypatch):
    assert 'does not exist' in refuse(f'hfds:{tmp_path}/none')
    (tmp_path / 'empty').mkdir()
    assert 'datasets cannot read it: ' in refuse(f'hfds:{tmp_path}/empty')
    paths = datasets.Dataset.from_dict({'image': ['a.png'], 'label': [0]})
    paths.save_to_disk(str(tmp_path / 'paths'))
    assert 'no column of images; name it with --input-key' in refuse(f'hfds:{tmp_path}/paths', for_evaluation=True)
    monkeypatch.setitem(sys.modules, 'datasets', None)
    assert "needs Hugging Face's datasets: pip install 'tresnet_jax[hfds]'" in refuse('hfds:any/name')


def test_images_in_files_of_their_own(tmp_path):
    """Those of the folder are read; a path elsewhere, which an untrusted file may name, is not."""
    folder = tmp_path / 'set'
    folder.mkdir()
    (folder / 'in.png').write_bytes(png(1))
    (tmp_path / 'out.png').write_bytes(png(2))
    images = [folder / 'in.png', tmp_path / 'out.png', folder / '..' / 'out.png', None]
    table = {'image': [{'bytes': None, 'path': path and str(path)} for path in images], 'label': [0, 1, 0, 1]}
    datasets.Dataset.from_dict(table).to_parquet(str(folder / 'train.parquet'))
    source = open_source(f'hfds:{folder}', 'train')
    assert source[0]['image'] == png(1)
    for index in (1, 2):
        with pytest.raises(ValueError, match='out.png, which is outside the data set'):
            source[index]
    with pytest.raises(ValueError, match='the row has no image'):
        source[3]


def test_data_without_labels(saved):
    options = {'for_evaluation': True, 'unlabelled': True}
    data = saved(test=rows(['x', 'y'], label='note'))
    assert open_source(data, None, **options).class_names == ('',)
    assert 'no column of labels' in refuse(data, None, for_evaluation=True)
    assert open_source(saved(test=rows([-1, -1], kind=NAMED)), None, **options).labels.tolist() == [0, 0]


def test_labels_outside_the_class_names(saved):
    import pyarrow

    table = pyarrow.table({'image': rows([0, 9]).data['image'], 'label': [0, 9]})
    features = datasets.Features(image=datasets.Image(), label=NAMED)
    data = saved(test=datasets.Dataset(pyarrow.Table.from_arrays(table.columns, schema=features.arrow_schema)))
    assert 'test has the label 9; label has 3 class names' in refuse(data, None)
