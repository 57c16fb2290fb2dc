"""CSV files of images: columns, splits, labels, where the paths start, and what is refused."""

import pytest

from tests.helpers.images import encode, noise_image
from tests.helpers.sources import refuse
from tresnet_jax.data.sources import open_source


def make(root, *rows: str, header: str = 'path,label,split', name: str = 'all.csv') -> str:
    """Write a CSV file, and the images of the paths without commas; return the name of the data."""
    root.mkdir(exist_ok=True)
    (root / name).write_bytes('\n'.join([header, *rows, '']).encode('utf-8', 'surrogateescape'))
    for seed, row in enumerate(filter(None, rows)):
        path = root / row.partition(',')[0].strip('"')
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode(noise_image(4, 3, seed=seed)))
    return f'csv:{root / name}'


ROWS = ('b/1.png,10,train', 'b/2.png,9,Valid', 'c.png,9,train', 'a.png,10,train', 'd.png,10,test')


def test_rows_with_splits(tmp_path):
    data = make(tmp_path, *ROWS)
    train, val = open_source(data, 'train'), open_source(data, None)
    assert train.class_names == val.class_names == ('9', '10') and train.num_classes == 2
    assert train.files == ('a.png', 'b/1.png', 'c.png') and train.labels.tolist() == [1, 1, 0]
    assert train[1] == {'image': (tmp_path / 'b' / '1.png').read_bytes(), 'label': 1}
    assert train.describe(1) == str(tmp_path / 'b' / '1.png')
    assert (val.name, val.files, val.labels.tolist(), val.present) == (f'{data} Valid', ('b/2.png',), [0], (0,))
    assert open_source(data, 'test').labels.tolist() == [1]
    assert "no split 'extra'; it has train, Valid, test" in refuse(data, 'extra')


def test_rows_without_splits(tmp_path):
    rows = [f'{label}{i}.png,{label}' for i in range(10) for label in ('Dog', 'cat')]
    data = make(tmp_path, *rows, header='path,label')
    train, val = open_source(data, 'train', val_fraction=0.2), open_source(data, None, val_fraction=0.2)
    assert train.class_names == ('cat', 'Dog') and (len(train), len(val)) == (16, 4)
    assert val.labels.tolist() == [1, 1, 0, 0] and not {*train.files} & {*val.files}
    assert open_source(data, None, val_fraction=0.2).files == val.files
    whole = open_source(data, None, for_evaluation=True)
    assert len(whole) == 20 and all(whole.class_names[whole[i]['label']] in whole.files[i] for i in range(20))
    assert len(open_source(data, 'train[:5]')) == 5


def test_the_order_of_the_rows_does_not_matter(tmp_path):
    one, two = make(tmp_path, *ROWS), make(tmp_path, *reversed(ROWS), name='reversed.csv')
    assert open_source(one, 'train').files == open_source(two, 'train').files
    stored = open_source(one, 'train', class_names=('10', '9'))
    assert stored.class_names == ('10', '9') and stored.labels.tolist() == [0, 0, 1]


def test_where_paths_start(tmp_path, monkeypatch):
    data = make(tmp_path / 'images', *ROWS)
    (tmp_path / 'lists').mkdir()
    (tmp_path / 'images' / 'all.csv').rename(tmp_path / 'lists' / 'all.csv')
    listed = f'csv:{tmp_path}/lists/all.csv'
    assert 'none of 3 images looked for exists, such as ' in refuse(listed)
    assert len(open_source(listed, 'train', data_dir=tmp_path / 'images')) == 3
    monkeypatch.chdir(tmp_path / 'lists')
    assert open_source('csv:all.csv', 'train', data_dir=tmp_path / 'images')[0]['label'] == 1
    make(tmp_path / 'images', *ROWS)
    assert 'may be ' in refuse('csv:all.csv', data_dir=tmp_path / 'images')
    monkeypatch.chdir(tmp_path)
    assert len(open_source('csv:all.csv', 'train', data_dir=tmp_path / 'images')) == 3
    assert len(open_source(data, 'train')) == 3
    assert 'does not exist' in refuse('csv:other.csv', data_dir=tmp_path / 'images')


def test_headers_quotes_and_encodings(tmp_path):
    name = b'caf\xe9.png'.decode('utf-8', 'surrogateescape')
    rows = ('"x.png",  a ', f'{name},b')
    data = make(tmp_path, *rows, '', header='\ufeff Path ,LABEL')
    (tmp_path / 'all.csv').write_bytes((tmp_path / 'all.csv').read_bytes().replace(b'\n', b'\r\n'))
    source = open_source(data, None, for_evaluation=True)
    assert source.class_names == ('a', 'b') and source[0]['label'] == 0
    assert source.files == ('x.png', name) and source[1]['image']


@pytest.mark.parametrize(
    ('header', 'rows', 'message'),
    [
        ('image,class', ['a.png,a'], 'expected the columns path, label and, optionally, split, got image, class'),
        ('path;label', ['a.png;a'], 'expected the columns path, label and, optionally, split, got path;label'),
        ('path,labels', ['a.png,a b'], 'has a column labels; for several labels per image give --task multilabel'),
        ('path,label,Path', ['a.png,a,b'], 'has several columns path'),
        ('path,label', ['a.png,a', 'b,c.png,b'], 'line 3 has 3 values, but the header has 2; put names with commas'),
        ('path,label', ['a.png,'], 'line 2 has no label'),
        ('path,label,split', ['a.png,a,train', 'b.png,b,'], 'line 3 has no split'),
        ('path,label', ['a.png,a', 'b.png,b', 'a.png,b'], 'a.png has two labels: a (line 2) and b (line 4)'),
        ('path,label,split', ['a.png,a,train', 'a.png,a,val'], 'a.png has two splits: train (line 2) and val (line 3)'),
        ('path,label', ['a.png,a', 'b.png,b', './a.png,b'], './a.png, which is a.png, has two labels: a (line 2)'),
        ('path,label,split', ['b//a.png,a,train', 'b/./a.png,a,val'], 'b/./a.png, which is b//a.png, has two splits'),
        ('path,label', ['a.png,a', 'b.png,b', 'a.png,a'], 'a.png is listed twice (lines 2 and 4); leave out one'),
        ('path,label', ['b/a.png,a', 'b/../b/a.png,a'], 'b/../b/a.png, which is b/a.png, is listed twice (lines 2'),
        ('path,label', ['a.png,a', 'b.png,a'], 'only one class, a; expected at least two'),
        ('path,label', [], 'has no rows'),
        ('path,label,split', ['a.png,a,train', 'b.png,b,Train'], 'Train are splits of the same kind'),
        ('path,label', ['"a.png,a'], 'cannot be read as a CSV file'),
    ],
)
def test_wrong_rows(tmp_path, header, rows, message):
    assert message in refuse(make(tmp_path, *rows, header=header))


def test_absolute_paths(tmp_path, monkeypatch):
    """An absolute path is an image of the folder too; a name that differs in case is another file, if it is one."""
    data = make(tmp_path, 'a.png,a', f'{tmp_path}/a.png,b', header='path,label')
    assert f'{tmp_path}/a.png, which is a.png, has two labels: a (line 2) and b (line 3)' in refuse(data)
    monkeypatch.chdir(tmp_path)
    assert 'has two labels' in refuse('csv:all.csv') and 'has two labels' in refuse('csv:./all.csv')
    for label in ('a', 'b'):
        (tmp_path / 'A.png').unlink(missing_ok=True)
        make(tmp_path, 'a.png,a', 'A.png,b', header='path,label')
        if label == 'b':
            (tmp_path / 'A.png').unlink()
            (tmp_path / 'A.png').hardlink_to(tmp_path / 'a.png')  # as a file system without case has it
            assert 'A.png, which is a.png, has two labels' in refuse('csv:all.csv')
        else:
            assert len(open_source('csv:all.csv', None, for_evaluation=True)) == 2


def test_other_classes_in_validation(tmp_path):
    data = make(tmp_path, 'a.png,Ant,train', 'b.png,Bee,train', 'c.png,bee,val', 'd.png,Cat,val')
    assert 'train and val have different classes; 1 only in val: Cat' in refuse(data, None)
    data = make(tmp_path, 'a.png,Ant,train', 'b.png,Bee,train', 'c.png,bee,val')
    assert open_source(data, None).labels.tolist() == [1]
    (tmp_path / 'folder.csv').mkdir()
    assert 'does not exist' in refuse(f'csv:{tmp_path}/folder.csv')
