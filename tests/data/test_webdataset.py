"""Images in tar shards: members, labels, splits, and what is refused."""

import json
import pickle

import numpy as np
import pytest

from tests.helpers.images import encode, noise_image
from tests.helpers.sources import refuse
from tests.helpers.tar_files import image_members, write_tar
from tresnet_jax.data import webdataset
from tresnet_jax.data.pipeline import eval_dataset
from tresnet_jax.data.sources import open_source
from tresnet_jax.data.transforms import create_transform
from tresnet_jax.errors import ImageError


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))


@pytest.fixture
def data(tmp_path) -> str:
    """Write two training shards and one for validation; return the name of the data."""
    root = tmp_path / 'sets'
    write_tar(root / 'a-train-0.tar', image_members([2, 0, 1]))
    write_tar(root / 'a-train-1.tar', image_members([0, 2], first=3))
    write_tar(root / 'a-val-0.tar', image_members([1, 1], first=5))
    return f'wds:{root}'


def test_splits_of_shards(tmp_path, data):
    train, val = open_source(data, 'train'), open_source(data, None)
    assert train.class_names == ('0', '1', '2') and train.labels.tolist() == [2, 0, 1, 0, 2]
    for index in range(5):
        assert train[index]['image'] == encode(noise_image(5, 4, seed=index))
    assert train[1]['label'] == 0 and type(train[1]['label']) is int
    assert train.describe(3) == f'{tmp_path}/sets/a-train-1.tar: 0003.png'
    assert (val.name, val.labels.tolist(), val.present) == (f'{data} validation', [1, 1], (1,))
    assert open_source(data, 'validation', class_names=tuple('abc')).class_names == ('a', 'b', 'c')
    assert open_source('wds:sets', 'train', data_dir=tmp_path).members == train.members
    copy = pickle.loads(pickle.dumps(train))
    assert copy[4] == train[4] and copy.describe(4) == train.describe(4)


def test_shards_as_splits(tmp_path, data):
    """timm's way: the split names the shards, perhaps with the number of examples."""
    assert open_source(data, 'a-train-{0..1}.tar|5').labels.tolist() == [2, 0, 1, 0, 2]
    part = open_source(f'wds:{tmp_path}/sets/a-*.tar', f'{tmp_path}/sets/a-train-0.tar[:67%]')
    assert len(part) == 2 and part.present == (0, 1, 2) and part.name.endswith('a-train-0.tar[:67%]')
    assert 'a-train-?.tar|6 has 5 examples; expected 6' in refuse(data, 'a-train-?.tar|6')
    assert "no split 'test'; it has train, validation" in refuse(data, 'test')
    assert 'no such shard' in refuse(data, 'b.tar')


def test_shards_without_splits(tmp_path):
    path = write_tar(tmp_path / 'all.tar', image_members([number % 2 for number in range(20)]))
    train, val = (open_source(f'wds:{path}', split, val_fraction=0.2) for split in ('train', None))
    assert (len(train), len(val)) == (16, 4) and val.labels.tolist().count(0) == 2
    assert not {*train.members} & {*val.members} and list(train.members) == sorted(train.members)
    whole = open_source(f'wds:{path}', None, for_evaluation=True)
    assert whole.labels.tolist() == [0, 1] * 10
    assert len(open_source(f'wds:{path}', 'train[:5]')) == 5
    assert 'no images for validation; val_fraction is 0' in refuse(f'wds:{path}', None, val_fraction=0)


def test_labels_in_json_and_names(tmp_path):
    fields = [{'label': 1, 'kind': 'Dog'}, {'label': 0, 'kind': 'ant'}, {'label': -1, 'kind': 'Dog 10'}]
    path = write_tar(tmp_path / 's.tar', image_members(fields))
    evaluated = {'for_evaluation': True}
    assert open_source(f'wds:{path}', None, **evaluated).labels.tolist() == [1, 0]  # -1 is left out, as in timm
    named = open_source(f'wds:{path}', None, target_key='kind', **evaluated)
    assert named.class_names == ('ant', 'Dog', 'Dog 10') and named.labels.tolist() == [1, 0, 2]
    assert 'expected the field other in json' in refuse(f'wds:{path}', None, target_key='other', **evaluated)
    assert 'several labels' in refuse(f'wds:{path}', None, target_key='label,kind')
    both = [*image_members(fields), ('0000.cls', b'7'), ('0001.cls', b'8'), ('0002.cls', b'9')]
    assert open_source(f'wds:{write_tar(path, both)}', None, **evaluated).labels.tolist() == [7, 8, 9]
    assert open_source(f'wds:{path}', None, target_key='label', **evaluated).labels.tolist() == [1, 0]


def test_names_of_the_training_split(tmp_path):
    write_tar(tmp_path / 'train.tar', image_members(['b', 'a', 'c']))
    write_tar(tmp_path / 'val.tar', image_members(['c', 'B']))
    val = open_source(f'wds:{tmp_path}', None)
    assert val.class_names == ('a', 'b', 'c') and val.labels.tolist() == [2, 1]
    write_tar(tmp_path / 'val.tar', image_members(['d']))
    assert 'train and validation have different classes; 1 only in validation: d' in refuse(f'wds:{tmp_path}', None)


def test_several_images_of_an_example(tmp_path):
    one = encode(noise_image(5, 4))
    members = [('a.jpg', one), ('a.depth.png', one), ('a.png', one + b'x'), ('a.cls', b'0')]
    path = write_tar(tmp_path / 's.tar', [*members, ('b.webp', one), ('b.cls', b'1')])
    message = refuse(f'wds:{path}', None, for_evaluation=True)
    assert 's.tar: a has the images jpg and png; choose one: --input-key jpg' in message
    source = open_source(f'wds:{path}', None, input_key='png;webp', for_evaluation=True)
    assert source.members == ('a.png', 'b.webp') and source[0]['image'] == one + b'x'
    message = refuse(f'wds:{path}', None, input_key='png', for_evaluation=True)
    assert 's.tar: b has no image (--input-key png); it has webp, cls' in message
    message = refuse('folder:x', input_key='png', target_key='y')
    assert 'only wds, hfds data takes --input-key and --target-key' in message


@pytest.mark.parametrize(
    ('members', 'message'),
    [
        (image_members([0, None]), '1 of 2 images have no label; expected the member cls, or the field'),
        (image_members([0, 'dog']), 'some labels are numbers, such as 0, others names, such as dog'),
        (image_members([0, 1, '']), "the label of 0002.png is ''"),
        (
            image_members([{'label': [1, 2]}]),
            '0000.png has several labels, [1, 2]; for several labels per image give --task multilabel',
        ),
        (image_members([{'label': True}]), "the label of 0000.png is 'True'; expected a name, or a number"),
        (image_members([{'label': 1.5}]), "the label of 0000.png is '1.5'"),
        (image_members([-1, -1]), 'all labels of train are -1: it has no labels'),
        (image_members(['1,2', 0]), 'the member cls of 0000.png is 1,2; expected the number or the name of one class'),
        (image_members(['[1, 2]', 'a']), 'the member cls of 0000.png is [1, 2]; expected the number or the name'),
        (image_members(['a\nb']), r'the member cls of 0000.png is a\nb; expected'),
        (image_members([10**8]), 'expected a name, or a number from 0'),
        (image_members([0, 0]), 'only one class, 0; expected at least two'),
        ([('a.png', b'x'), ('a.json', b'{')], 'a.json is not JSON'),
        ([('a.cls', b'1')], 'a has no image; it has cls'),
        ([('a.0001.jpg', b'x'), ('a.0002.jpg', b'x')], 's.tar has no images; it has a.0001.jpg|0002.jpg'),
        ([], 's.tar has no images; it has no members'),
    ],
)
def test_refused_examples(tmp_path, members, message):
    assert message in refuse(f'wds:{write_tar(tmp_path / "s.tar", members)}')


def test_refused_shards(tmp_path, data):
    shard = tmp_path / 'sets' / 'a-train-1.tar'
    train = open_source(data, 'train')
    shard.write_bytes(shard.read_bytes()[:-10_000])
    assert f'{shard}: is truncated or damaged' in refuse(data)
    batches = eval_dataset(train, create_transform((3, 8, 8)), batch_size=5, max_unreadable=1)
    assert next(iter(batches))['mask'].tolist() == [1, 1, 1, 0, 0]  # cut while a run reads it
    with pytest.raises(ImageError, match='has become shorter since it was indexed'):
        train[3]
    info = {'splits': {'train': {'name': 'train', 'num_samples': 1, 'filenames': ['gone.tar']}}}
    (tmp_path / 'sets' / '_info.json').write_text(json.dumps(info))
    assert '1 shards of train do not exist, such as' in refuse(data)


def test_many_shards_are_announced_once(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(webdataset, 'MANY_SHARDS', 1)
    for number in range(2):
        write_tar(tmp_path / f'{number}.tar', image_members([0, 1]))
    for _ in range(2):
        assert len(open_source(f'wds:{tmp_path}', None, for_evaluation=True)) == 4
    assert caplog.messages == [f'wds:{tmp_path}: reading the headers of 2 shards, once; this may take minutes']


def test_images_without_labels(tmp_path):
    path = write_tar(tmp_path / 's.tar', [*image_members([None, None]), ('notes.txt', b'')])
    source = open_source(f'wds:{path}', 'train', for_evaluation=True, unlabelled=True)
    assert source.class_names == ('',) and np.array_equal(source.labels, [0, 0])
    write_tar(path, image_members([-1, -1]))
    assert open_source(f'wds:{path}', 'train', for_evaluation=True, unlabelled=True).class_names == ('',)
    write_tar(path, image_members([None, 1]))
    assert '1 of 2 images have no label' in refuse(f'wds:{path}', for_evaluation=True, unlabelled=True)
