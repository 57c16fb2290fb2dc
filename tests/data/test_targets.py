"""Images with any number of classes: the forms of their labels, and the kinds of data that have them."""

import json
import pickle

import numpy as np
import pytest

from tests.helpers.images import encode, noise_image
from tests.helpers.sources import refuse
from tests.helpers.tar_files import image_members, write_tar
from tresnet_jax.data.pipeline import eval_dataset, train_dataset
from tresnet_jax.data.sources import open_source
from tresnet_jax.data.splits import Split
from tresnet_jax.data.target_values import get_field, has_field, number_targets, parse_target_keys
from tresnet_jax.data.targets import targets_of
from tresnet_jax.data.transforms import create_transform
from tresnet_jax.errors import DataError

SPLIT = Split('data', 'train', 'train')
INDICES = {'target_format': 'indices'}
MULTIHOT = {'target_format': 'multihot'}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))


def number(values, *, keys=None, form='indices', names=None, train=None):
    found = number_targets(
        values, parse_target_keys(keys, form, 'data'), names, SPLIT, train and (lambda: train), 'image {}'.format
    )
    return [found.targets[i].tolist() for i in range(len(values))], found.class_names


def rows(source) -> list[list[float]]:
    """Return the targets of all images, after checking that they are those of a pickled copy."""
    copy = pickle.loads(pickle.dumps(source))
    records = [source[i] for i in range(len(source))]
    for i, record in enumerate(records):
        assert set(record) == {'image', 'target'} and record['target'].dtype == np.float32
        np.testing.assert_array_equal(copy[i]['target'], record['target'])
    return [record['target'].tolist() for record in records]


def test_targets():
    targets = targets_of([{2: 1.0, 0: 0.5}, {}, {1: 1.0, 0: 0.0}], 3)
    assert [targets[i].tolist() for i in range(3)] == [[0.5, 0, 1], [0, 0, 0], [0, 1, 0]]
    assert targets.counts().tolist() == [0.5, 1, 1] and len(targets.values) == 3
    part = targets.select(np.array([2, 0]))
    assert [part[i].tolist() for i in range(2)] == [[0, 1, 0], [0.5, 0, 1]]
    assert len(targets.select(np.array([], np.int64))) == 0
    assert targets.digest() == targets_of([{0: 0.5, 2: 1.0}, {}, {1: 1.0}], 3).digest()
    assert targets.digest() != targets_of([{0: 0.5, 1: 1.0}, {}, {1: 1.0}], 3).digest()
    with pytest.raises(IndexError):
        targets[3]


def test_indices():
    """timm's rules: an empty list is an image without labels, and repeats count once."""
    assert number([[2, 0, 2], [], [1]]) == ([[1, 0, 1], [0, 0, 0], [0, 1, 0]], ('0', '1', '2'))
    assert number([[1], 0], names=('a', 'b', 'c')) == ([[0, 1, 0], [1, 0, 0]], ('a', 'b', 'c'))
    assert number([[0]], train=[[3], []])[1] == ('0', '1', '2', '3')
    assert number([['b 10', 'b 9'], 'a', []]) == ([[0, 1, 1], [1, 0, 0], [0, 0, 0]], ('a', 'b 9', 'b 10'))
    assert number([['a']], train=[['b'], ['a']]) == ([[1, 0]], ('a', 'b'))
    assert number([[]], names=('a', 'b')) == ([[0, 0]], ('a', 'b'))
    assert number([np.array([1, 0])])[0] == [[1, 1]]


def test_multihot():
    values = [[0, 1], [0.25, 1.0], [False, True], np.array([1, 0], np.uint8)]
    assert number(values, form='multihot') == ([[0, 1], [0.25, 1], [0, 1], [1, 0]], ('0', '1'))
    assert number([[1, 0]], form='multihot', names=('a', 'b'))[1] == ('a', 'b')


@pytest.mark.parametrize(
    ('value', 'form', 'message'),
    [
        ([-1], 'indices', 'image 0 has the label -1; expected a list of class indices'),
        ([1.0], 'indices', 'has the label 1.0; .* one per class, give --target-format multihot'),
        ([True], 'indices', 'has the label True'),
        ([10**7], 'indices', 'has the label 10000000'),
        (None, 'indices', 'has the label None'),
        ([[1]], 'indices', r'has the label \[1\]'),
        ([''], 'indices', "has the label ''; expected"),
        ([1, 'a'], 'indices', 'some labels are numbers, such as 1, others names, such as a'),
        ([], 'indices', 'no image of train has a label'),
        ([1.5], 'multihot', r'the labels of image 0 are \[1.5\]; expected a list of numbers from 0 to 1'),
        ([float('nan')], 'multihot', 'the labels of image 0'),
        ([], 'multihot', 'the labels of image 0'),
        (1, 'multihot', 'the labels of image 0 are 1; '),
    ],
)
def test_wrong_labels(value, form, message):
    with pytest.raises(DataError, match=f'data: .*{message}'):
        number([value], form=form)


def test_labels_beyond_the_classes():
    with pytest.raises(DataError, match='image 1 has the label 2; there are 2 classes'):
        number([[0], [2]], names=('a', 'b'))
    with pytest.raises(DataError, match='image 0 has the label 4; there are 2 classes'):
        number([[4]], train=[[0, 1]])
    with pytest.raises(DataError, match='image 1 has 3 numbers; expected one for each of 2 classes'):
        number([[0, 1], [0, 1, 0]], form='multihot')
    with pytest.raises(DataError, match='1 classes of train are not among the class names: c; these are a, b'):
        number([['c']], names=('a', 'b'))


def test_keys():
    fields = {'objects': [{'kind': 3}, {'kind': 1}], 'a/b': 1, 'a': {'b': 2, 'c': {'d': [4]}}}
    assert get_field(fields, 'objects/kind') == [3, 1]
    assert get_field(fields, 'a/b') == 1 and get_field(fields, 'a/c/d') == [4]
    assert not has_field(fields, 'a/c/e') and not has_field(fields, 'objects/kind/x')
    keys = parse_target_keys('cat, dog', 'indices', 'data')
    assert keys.value({'cat': 1, 'dog': 0}, 'x', 'data') == ['cat']
    assert number([['dog'], []], keys='cat,dog') == ([[0, 1], [0, 0]], ('cat', 'dog'))
    for text, form, message in (
        ('a,,b', 'indices', 'expected different names'),
        ('a,a', 'indices', 'expected different names'),
        ('a,b', 'multihot', 'is for one field'),
    ):
        with pytest.raises(DataError, match=message):
            parse_target_keys(text, form, 'data')
    with pytest.raises(DataError, match='cat of x is no; expected a number'):
        keys.value({'cat': 'no', 'dog': 0}, 'x', 'data')
    with pytest.raises(DataError, match='--target-key names cat, dog; the classes are a, b'):
        number([['cat']], keys='cat,dog', names=('a', 'b'))


def write_csv(folder, header, *lines):
    for i in range(len(lines)):
        (folder / f'{i}.png').write_bytes(encode(noise_image(5, 4, seed=i)))
    (folder / 'all.csv').write_text('\n'.join([header, *lines]))
    return f'csv:{folder}/all.csv'


def test_csv(tmp_path):
    data = write_csv(
        tmp_path, 'path,labels,split', '0.png,hot dog|cat,train', '2.png,,train', '1.png,elk,train', '3.png,cat,val'
    )
    train = open_source(data, 'train', **INDICES)
    assert train.class_names == ('cat', 'elk', 'hot dog') and rows(train) == [[1, 0, 1], [0, 1, 0], [0, 0, 0]]
    assert train[1]['image'] == encode(noise_image(5, 4, seed=1)) and train.describe(2) == f'{tmp_path}/2.png'
    val = open_source(data, None, **INDICES)
    assert rows(val) == [[1, 0, 0]] and val.class_names == train.class_names and val.name == f'{data} val'
    before = train.fingerprint()
    write_csv(tmp_path, 'path,labels,split', '0.png,cat,train', '2.png,,train', '1.png,elk|hot dog,train')
    after = open_source(data, 'train', **INDICES).fingerprint()
    assert {part for part in before if before[part] != after[part]} == {'labels'}


def test_csv_with_spaces(tmp_path):
    data = write_csv(tmp_path, 'path,label', '0.png,scab rust', '1.png,rust', '2.png,healthy', '3.png,')
    source = open_source(data, None, for_evaluation=True, **INDICES)
    assert source.class_names == ('healthy', 'rust', 'scab')
    assert rows(source) == [[0, 1, 1], [0, 1, 0], [1, 0, 0], [0, 0, 0]]
    data = write_csv(tmp_path, 'path,label', '0.png,hot dog', '1.png,cat', '2.png,cat hot dog')
    assert 'hot dog may be one label or two; separate labels by |' in refuse(data, None, for_evaluation=True, **INDICES)


@pytest.mark.parametrize(('text', 'word'), [('"cat,dog"', 'cat,dog'), ('"cat, dog"', 'cat,'), ("['cat']", "['cat']")])
def test_csv_with_other_separators(text, word, tmp_path):
    """Each combination of classes would be a class of its own."""
    data = write_csv(tmp_path, 'path,labels', f'0.png,{text}', '1.png,cat', '2.png,dog')
    assert f'the labels {word} may be separated by another' in refuse(data, None, for_evaluation=True, **INDICES)
    data = write_csv(tmp_path, 'path,labels', f'0.png,{text}', '1.png,cat|', '2.png,dog')
    assert len(open_source(data, None, for_evaluation=True, **INDICES).class_names) == 3


def test_csv_columns(tmp_path):
    data = write_csv(tmp_path, 'path,Cat,dog,vector', '0.png,1,0,0 0.5 1', '1.png,1,1,1 1 1', '2.png,0,0.0,0 0 0')
    options = {'for_evaluation': True, 'val_fraction': 0.1}
    source = open_source(data, None, target_key='dog,Cat', **options, **INDICES)
    assert source.class_names == ('dog', 'Cat') and rows(source) == [[0, 1], [1, 1], [0, 0]]
    source = open_source(data, None, target_key='vector', **options, **MULTIHOT)
    assert rows(source) == [[0, 0.5, 1], [1, 1, 1], [0, 0, 0]] and source.class_names == ('0', '1', '2')
    assert 'expected the columns path, bird' in refuse(data, None, target_key='bird', **options, **INDICES)
    for key, column in (('path', 'path'), ('Cat,split', 'split')):
        assert f'{key}: the column {column} has no labels' in refuse(data, target_key=key, **options, **INDICES)
    data = write_csv(tmp_path, 'path,label,labels', '0.png,a,b')
    assert 'has the columns labels and label; name one' in refuse(data, None, **INDICES)


def test_a_part_for_validation(tmp_path):
    data = write_csv(tmp_path, 'path,labels', *(f'{i}.png,{"|".join("abc"[: i % 4])}' for i in range(20)))
    train, val = (open_source(data, split, val_fraction=0.25, **INDICES) for split in ('train', None))
    assert (len(train), len(val)) == (15, 5)
    both = {source.describe(i): source[i]['target'].sum() for source in (train, val) for i in range(len(source))}
    assert both == {f'{tmp_path}/{i}.png': i % 4 for i in range(20)}
    assert len(open_source(data, 'train[:5]', val_fraction=0.25, **INDICES)) == 5


def test_tar_shards(tmp_path):
    labels = [{'labels': [2, 0]}, {'labels': []}, {'labels': [1]}]
    write_tar(tmp_path / 'a-train-0.tar', image_members(labels))
    write_tar(tmp_path / 'a-val-0.tar', image_members([{'labels': [1, 2]}]))
    train = open_source(f'wds:{tmp_path}', 'train', **INDICES)
    assert rows(train) == [[1, 0, 1], [0, 0, 0], [0, 1, 0]] and train[2]['image'] == encode(noise_image(5, 4, seed=2))
    assert rows(open_source(f'wds:{tmp_path}', None, **INDICES)) == [[0, 1, 1]]
    assert 'has no field x in json; it has labels' in refuse(f'wds:{tmp_path}', target_key='x', **INDICES)


def test_fields_of_tar_shards(tmp_path):
    fields = [
        {'o': [{'k': 'a'}, {'k': 'b'}], 'v': [0.5, 0], 'cat': 1, 'dog': 0},
        {'o': [], 'v': [1, 1], 'cat': 0, 'dog': 0},
    ]
    path = write_tar(tmp_path / 'x.tar', image_members(fields))
    options = {'for_evaluation': True}
    assert rows(open_source(f'wds:{path}', None, target_key='o/k', **options, **INDICES)) == [[1, 1], [0, 0]]
    assert rows(open_source(f'wds:{path}', None, target_key='v', **options, **MULTIHOT)) == [[0.5, 0], [1, 1]]
    source = open_source(f'wds:{path}', None, target_key='cat,dog', **options, **INDICES)
    assert rows(source) == [[1, 0], [0, 0]] and source.class_names == ('cat', 'dog')
    path = write_tar(tmp_path / 'cls.tar', image_members([1, 0]))
    assert rows(open_source(f'wds:{path}', None, **options, **INDICES)) == [[0, 1], [1, 0]]
    path = write_tar(tmp_path / 'cls.tar', image_members(['1 0']))
    assert 'the member cls of 0000.png is 1 0; expected' in refuse(f'wds:{path}', None, **options, **INDICES)


def test_npz(tmp_path):
    rng = np.random.default_rng(0)
    y = rng.random((6, 3)).astype(np.float32)
    arrays = {
        'x_train': rng.integers(0, 256, (6, 8, 8), np.uint8),
        'y_train': y,
        'x_test': np.zeros((2, 8, 8), np.uint8),
    }
    np.savez(tmp_path / 'a.npz', y_test=np.array([[1, 0, 0], [0, 0, 0]]), **arrays)
    data = f'npz:{tmp_path}/a.npz'
    train = open_source(data, 'train', **MULTIHOT)
    np.testing.assert_array_equal(rows(train), y)
    assert train[2]['image'].shape == (8, 8, 1) and train.class_names == ('0', '1', '2')
    assert rows(open_source(data, 'test', class_names=('a', 'b', 'c'), **MULTIHOT)) == [[1, 0, 0], [0, 0, 0]]
    np.testing.assert_array_equal(rows(open_source(data, 'train[1:3]', **MULTIHOT)), y[1:3])
    assert 'y_train: float32 (6, 3) cannot be lists of labels' in refuse(data, **INDICES)
    assert 'expected (N,) integers' in refuse(data)
    np.savez(tmp_path / 'a.npz', x_train=arrays['x_train'], y_train=np.array(1))
    assert '6 images but 1 labels' in refuse(data)


def test_hugging_face(tmp_path, monkeypatch):
    import datasets

    datasets.disable_progress_bars()
    monkeypatch.setattr(datasets.config, 'HF_DATASETS_CACHE', tmp_path / 'cache')
    monkeypatch.setattr(datasets.config, 'HF_HUB_OFFLINE', True)
    names = datasets.ClassLabel(names=['zebra', 'ant', 'bee'])
    columns = {
        'image': datasets.Image(), 'labels': datasets.List(names), 'objects': datasets.List({'kind': names}),
        'vector': datasets.List(datasets.Value('float32'), length=2), 'wet': datasets.Value('bool'),
        'dry': datasets.Value('int8'),
    }  # fmt: skip
    values = {
        'image': [{'bytes': encode(noise_image(5, 4, seed=i)), 'path': None} for i in range(3)],
        'labels': [[2, 0], [], [1]], 'objects': [[{'kind': 1}, {'kind': 1}], [], [{'kind': 0}]],
        'vector': [[0.5, 1], [0, 0], [1, 0]], 'wet': [True, False, False], 'dry': [0, 0, 1],
    }  # fmt: skip
    table = datasets.Dataset.from_dict(values, features=datasets.Features(columns))
    datasets.DatasetDict(train=table, test=table.select([2, 0])).save_to_disk(str(tmp_path / 'set'))
    data = f'hfds:{tmp_path}/set'
    train = open_source(data, 'train', **INDICES)
    assert train.class_names == ('zebra', 'ant', 'bee') and rows(train) == [[1, 0, 1], [0, 0, 0], [0, 1, 0]]
    assert train[1]['image'] == encode(noise_image(5, 4, seed=1))
    stored = open_source(data, None, class_names=('ant', 'bee', 'zebra'), **INDICES)
    assert rows(stored) == [[1, 0, 0], [0, 1, 1]]
    assert rows(open_source(data, 'train', target_key='objects/kind', **INDICES)) == [[0, 1, 0], [0, 0, 0], [1, 0, 0]]
    assert rows(open_source(data, 'train', target_key='vector', **MULTIHOT)) == [[0.5, 1], [0, 0], [1, 0]]
    source = open_source(data, 'train', target_key='dry,wet', **INDICES)
    assert rows(source) == [[0, 1], [0, 0], [1, 0]] and source.class_names == ('dry', 'wet')
    part = table.select_columns(['image', 'labels'])
    fewer = datasets.Features(image=columns['image'], labels=datasets.List(datasets.ClassLabel(names=['zebra', 'ant'])))
    wrong = part.data.table.cast(fewer.arrow_schema)
    datasets.DatasetDict(train=datasets.Dataset(wrong)).save_to_disk(str(tmp_path / 'wrong'))
    assert 'row 0 has the label 2; labels has 2 class names' in refuse(f'hfds:{tmp_path}/wrong', **INDICES)
    message = refuse(data, target_key='objects/size', **INDICES)
    assert '--target-key objects/size: no such column; the columns are image, labels' in message


COCO = {
    'images': [{'id': 7, 'file_name': 'b.png'}, {'id': 3, 'file_name': 'a.png'}, {'id': 9, 'file_name': 'c.png'}],
    'categories': [{'id': 90, 'name': 'toothbrush'}, {'id': 1, 'name': 'person'}],
    'annotations': [
        {'image_id': 7, 'category_id': 1, 'iscrowd': 1},
        {'image_id': 7, 'category_id': 1},
        {'image_id': 3, 'category_id': 90},
        {'image_id': 3, 'category_id': 1},
    ],
}


def write_coco(folder, name='train2017', **changes):
    (folder / 'annotations').mkdir(exist_ok=True)
    (folder / name).mkdir(exist_ok=True)
    for i, image in enumerate('abc'):
        (folder / name / f'{image}.png').write_bytes(encode(noise_image(5, 4, seed=i)))
    (folder / 'annotations' / f'instances_{name}.json').write_text(json.dumps(COCO | changes))
    return f'coco:{folder}'


def test_coco(tmp_path):
    """The order of images and classes is that of the file; images without annotations are left out."""
    data = write_coco(tmp_path)
    write_coco(tmp_path, 'val2017', images=COCO['images'][:2])
    train = open_source(data, 'train', **INDICES)
    assert train.class_names == ('toothbrush', 'person') and rows(train) == [[0, 1], [1, 1]]
    assert train.describe(0) == f'{tmp_path}/train2017/b.png' and train[1]['image'] == encode(noise_image(5, 4, seed=0))
    assert rows(open_source(data, 'train2017', keep_unlabelled=True, **INDICES)) == [[0, 1], [1, 1], [0, 0]]
    assert len(open_source(data, None, **INDICES)) == 2 and len(open_source(data, 'val[:1]', **INDICES)) == 1
    assert 'json: class 0 is toothbrush; expected person' in refuse(
        data, class_names=('person', 'toothbrush'), **INDICES
    )
    assert 'json: has 2 classes; expected 3' in refuse(data, class_names=('toothbrush', 'person', 'x'), **INDICES)
    write_coco(tmp_path, 'train2014')
    assert 'train2014 and train2017 are splits of the same kind' in refuse(data, **INDICES)
    assert len(open_source(data, 'train2014', **INDICES)) == 2
    assert 'give --task multilabel' in refuse(data)


def test_one_file_of_coco(tmp_path):
    write_coco(tmp_path)
    file = f'{tmp_path}/annotations/instances_train2017.json'
    assert rows(open_source(f'coco:{file}:../train2017', None, for_evaluation=True, **INDICES)) == [[0, 1], [1, 1]]
    assert len(open_source(f'coco:{file}:{tmp_path}/train2017', 'train', val_fraction=0.5, **INDICES)) == 1
    assert 'where are its images?' in refuse(f'coco:{file}', **INDICES)
    assert 'does not exist' in refuse(f'coco:{file}:nowhere', **INDICES)


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'categories': None}, "is not a file of COCO's instances"),
        ({'images': [{'id': 1}]}, "is not a file of COCO's instances"),
        ({'annotations': [{'image_id': 8, 'category_id': 1}]}, 'an annotation is of image 8 and category 1'),
        ({'annotations': [{'image_id': 'a\n', 'category_id': 1}]}, r'image a\n and category 1, which are not in it'),
        ({'annotations': [{'image_id': [7], 'category_id': 1}]}, "is not a file of COCO's instances"),
        ({'images': [*COCO['images'], {'id': 9, 'file_name': 'd.png'}]}, 'different ids'),
        ({'images': [*COCO['images'], {'id': 2, 'file_name': './b.png'}]}, 'lists an image twice, as b.png and ./b.p'),
        ({'images': [{'id': 7, 'file_name': '../b.png'}], 'annotations': []}, 'leaves the folder of the images'),
        ({'images': [{'id': 7, 'file_name': '/b.png'}], 'annotations': []}, 'is not a path below the folder'),
        ({'annotations': []}, 'has no image with annotations'),
        ({'images': [{'id': 7, 'file_name': 'x.png'}], 'annotations': COCO['annotations'][:1]}, 'x.png does not exist'),
    ],
)
def test_wrong_files_of_coco(tmp_path, changes, message):
    assert message in refuse(write_coco(tmp_path, **changes), **INDICES)


def test_kinds_with_one_label(tmp_path):
    for data in ('embedded:fashion_mnist', f'folder:{tmp_path}'):
        assert 'has one label per image; give --task classification' in refuse(data, **INDICES)
    npz = f'npz:{tmp_path}/a.npz'
    assert 'only csv, wds, hfds, tfds data takes --target-key' in refuse(npz, target_key='a', **MULTIHOT)
    assert 'only coco data takes --keep-unlabelled' in refuse(npz, keep_unlabelled=True, **MULTIHOT)


def test_batches(tmp_path):
    """Targets come with their images; padding and unreadable images have none."""
    data = write_csv(tmp_path, 'path,labels', '0.png,a', '1.png,b|c', '2.png,a|b', '3.png,c', '4.png,')
    (tmp_path / '1.png').write_bytes(b'no image')
    source = open_source(data, None, for_evaluation=True, **INDICES)
    transform = create_transform(input_size=(3, 8, 8))
    batches = list(eval_dataset(source, transform, batch_size=4, threads=1, max_unreadable=0.2))
    assert [batch['target'].shape for batch in batches] == [(4, 3), (4, 3)]
    targets, masks = (np.concatenate([batch[name] for batch in batches]) for name in ('target', 'mask'))
    assert targets.tolist() == [[1, 0, 0], [0, 0, 0], [1, 1, 0], [0, 0, 1], *[[0, 0, 0]] * 4]
    assert masks.tolist() == [1, 0, 1, 1, 1, 0, 0, 0] and targets.dtype == np.float32 and 'label' not in batches[0]
    options = {'batch_size': 2, 'seed': 0, 'threads': 1, 'max_unreadable': 0.2}
    endless = iter(train_dataset(source, lambda image, rng: np.zeros((4, 4, 3), np.uint8), **options))
    for _ in range(9):
        batch = next(endless)
        for index, target in zip(batch['index'], batch['target'], strict=True):
            np.testing.assert_array_equal(target, source[int(index)]['target'])
