"""Folders of images: splits, classes, their order, and what is refused because it can be read in two ways."""

import shutil

import numpy as np
import pytest

from tests.helpers.images import encode, noise_image, write_classes
from tests.helpers.sources import refuse
from tresnet_jax.data.sources import open_source
from tresnet_jax.errors import DataError


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
    assert 'train and val have different classes; 1 only in val: z' in refuse(data, 'val')
    (folder / 'train' / 'empty').mkdir()
    assert f'no images in 1 of 4 class folders: {folder}/train/empty' in refuse(data)
    for name in ('b', 'c d', 'empty'):
        shutil.rmtree(folder / 'train' / name)
    assert 'only one class folder' in refuse(data)
    (folder / 'nothing').mkdir()
    assert 'no class folders' in refuse(f'{data}/nothing')


# Splits


def write(root, *names: str) -> None:
    """Write small PNG files, each different, at these paths below `root`."""
    for seed, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(encode(noise_image(4, 3, seed=seed)))


def split_folders(root, *splits: str) -> str:
    """Write two classes into each folder and return the name of the data; the n-th split has n + 2 images."""
    for number, split in enumerate(splits):
        write(root, *(f'{split}/cat/{i}.png' for i in range(number + 1)), f'{split}/dog/a.png')
    return f'folder:{root}'


@pytest.mark.parametrize(
    ('folders', 'train', 'evaluated'),
    [
        (('train', 'valid', 'test'), 'train', 'valid'),
        (('train', 'valid'), 'train', 'valid'),
        (('train', 'test', 'val'), 'train', 'val'),
        (('Training', 'Test'), 'Training', 'Test'),
        (('Train', 'Val'), 'Train', 'Val'),
        (('TRAIN', 'Testing'), 'TRAIN', 'Testing'),
        (('training', 'evaluation', 'testing'), 'training', 'evaluation'),
        (('train', 'Eval', 'test'), 'train', 'Eval'),
        (('train', 'Validation', 'notes'), 'train', 'Validation'),
    ],
)
def test_synonyms_of_splits_in_any_case(tmp_path, folders, train, evaluated):
    data = split_folders(tmp_path, *folders)
    for asked, expected in (('train', train), (None, evaluated)):
        source = open_source(data, asked)
        assert source.name == f'{data} {expected}' and source.class_names == ('cat', 'dog')
        assert len(source) == folders.index(expected) + 2
    kinds = {'va': 'validation', 'ev': 'val', 'te': 'Test'}
    asked = kinds[evaluated[:2].lower()]
    assert open_source(data, f'{asked}[:1]').name == f'{data} {evaluated}[:1]'


def test_two_splits_of_one_kind_are_refused(tmp_path):
    data = split_folders(tmp_path, 'train', 'val', 'valid')
    assert 'val and valid are splits of the same kind; name one' in refuse(data, None)
    assert len(open_source(data, 'val')) == 3 and len(open_source(data, 'valid')) == 4
    assert 'val and valid are splits' in refuse(data, 'validation')
    split_folders(tmp_path, 'Train')
    if {'train', 'Train'} <= {path.name for path in tmp_path.iterdir()}:  # a file system that tells case apart
        assert 'Train and train are splits of the same kind' in refuse(data, 'train')


@pytest.mark.parametrize(
    'folders', [('a_train', 'a_test'), ('one', 'two'), ('x-training', 'x-val'), ('fold1', 'fold2', 'fold3')]
)
def test_other_folders_of_class_folders_may_be_splits(tmp_path, folders):
    data = split_folders(tmp_path, *folders)
    message = refuse(data)
    assert 'are these splits? If so, name them: --train-split ' in message and all(name in message for name in folders)
    assert refuse(data, None, for_evaluation=True) == message
    train, val = (open_source(data, name) for name in folders[:2])
    assert train.class_names == val.class_names == ('cat', 'dog') and (len(train), len(val)) == (2, 3)
    assert open_source(data, f'{folders[1]}[:2]').name == f'{data} {folders[1]}[:2]'
    whole = open_source(data, '.')  # as the message says, for folders that are classes
    assert whole.class_names == folders if folders != ('a_train', 'a_test') else ('a_test', 'a_train')


def test_one_of_two_is_a_split(tmp_path):
    write(tmp_path, 'a_train/cat/1.png', 'a_train/dog/2.png', 'a_test/3.png', 'a_test/4.png')
    assert 'are these splits?' in refuse(f'folder:{tmp_path}')
    write(tmp_path / 'years', 'train2017/1.png', 'val2017/2.png')
    assert 'are these splits?' in refuse(f'folder:{tmp_path}/years')


def test_classes_with_subfolders_are_classes(tmp_path):
    write(tmp_path / 'tiny', *(f'n0{i}/images/{i}.png' for i in range(3)))
    write(tmp_path / 'pair', 'cat/images/1.png', 'dog/images/2.png')
    write(tmp_path / 'kinds', 'cat/tabby/1.png', 'cat/manx/2.png', 'dog/pug/3.png', 'dog/husky/4.png', 'elk/5.png')
    for name, classes in (('tiny', 3), ('pair', 2), ('kinds', 3)):
        assert open_source(f'folder:{tmp_path}/{name}', 'train').num_classes == classes


def test_splits_without_class_folders(tmp_path):
    write(tmp_path, 'train/1.png', 'train/2.png', 'test/3.png')
    for split, options in (('train', {}), (None, {'for_evaluation': True})):
        message = refuse(f'folder:{tmp_path}', split, **options)
        assert 'test, train have the names of splits, but hold images without class folders' in message
        assert '--data csv:FILE' in message
    write(tmp_path, 'train/cat/1.png', 'train/dog/1.png')
    assert len(open_source(f'folder:{tmp_path}', 'train')) == 2
    message = refuse(f'folder:{tmp_path}', None)
    assert 'no split to evaluate on' in message and 'test holds images without class folders' in message
    assert len(open_source(f'folder:{tmp_path}', 'test', for_evaluation=True, unlabelled=True)) == 1


def test_a_class_may_have_the_name_of_a_split(tmp_path):
    write(tmp_path, *(f'{name}/{i}.png' for name in ('bus', 'plane', 'train') for i in range(10)))
    data = f'folder:{tmp_path}'
    assert open_source(data, 'train').class_names == ('bus', 'plane', 'train')
    assert (len(open_source(data, 'train')), len(open_source(data, None))) == (27, 3)
    for split in (None, 'train'):  # evaluation, embedding
        assert len(open_source(data, split, for_evaluation=True, unlabelled=split is not None)) == 30
    write(tmp_path, 'train/old/1.png')  # a class with images of its own stays a class
    assert len(open_source(data, None, for_evaluation=True)) == 31


def test_a_split_beside_classes_is_refused(tmp_path):
    write(tmp_path, 'train/steam/1.png', 'train/diesel/2.png', 'bus/3.png')
    message = refuse(f'folder:{tmp_path}')
    assert 'is train a split or a class? It holds folders of images, but bus beside it hold other images' in message
    write(tmp_path / 'deep', 'train/steam/1.png', 'train/diesel/2.png', 'bus/city/3.png', 'bus/school/4.png')
    assert 'is train a split or a class?' in refuse(f'folder:{tmp_path}/deep', for_evaluation=True)
    write(tmp_path / 'more', 'train/cat/1.png', 'train/dog/2.png', 'sketch/cat/3.png')  # another split
    assert len(open_source(f'folder:{tmp_path}/more', 'train')) == 2
    assert len(open_source(f'folder:{tmp_path}/more', 'sketch', class_names=('cat', 'dog'))) == 1
    write(tmp_path, 'test/steam/1.png')  # two splits: bus is another folder
    assert open_source(f'folder:{tmp_path}', 'train').class_names == ('diesel', 'steam')


def test_evaluation_takes_one_class_and_no_shares(tmp_path):
    write(tmp_path, 'cat/1.png', 'cat/2.png')
    assert 'only one class folder' in refuse(f'folder:{tmp_path}')
    assert f'give --data folder:{tmp_path}/cat' in refuse(f'folder:{tmp_path}')
    source = open_source(f'folder:{tmp_path}', None, for_evaluation=True)
    assert (source.class_names, len(source), source.name) == (('cat',), 2, f'folder:{tmp_path} train')


def test_images_without_class_folders_for_embedding(tmp_path):
    write(tmp_path, '1.png', '2.JPE')
    source = open_source(f'folder:{tmp_path}', 'train', for_evaluation=True, unlabelled=True)
    assert (source.name, len(source), source.class_names) == (f'folder:{tmp_path}', 2, ('',))
    assert 'no class folders' in refuse(f'folder:{tmp_path}') and 'csv:FILE' in refuse(f'folder:{tmp_path}')


# Classes


def test_classes_are_in_timms_order(tmp_path):
    timm = pytest.importorskip('timm.data.readers.reader_image_folder')
    names = ('Apple 10', 'apple 6', 'Apple 5', 'Zebra', 'b2', 'b10', 'B1', '10', '9', '09a')
    write(tmp_path, *(f'{split}/{name}/1.png' for split in ('train', 'val') for name in names))
    expected = timm.find_images_and_targets(str(tmp_path / 'train'))[1]
    source = open_source(f'folder:{tmp_path}', 'train')
    assert source.class_names == tuple(sorted(expected, key=expected.get))
    assert source.class_names[2:6] == ('10', 'Apple 5', 'apple 6', 'Apple 10')
    for i in range(len(source)):
        folder = source.files[i].partition('/')[0]
        assert source.class_names[source[i]['label']] == folder
    assert open_source(f'folder:{tmp_path}', None).class_names == source.class_names


def test_a_run_keeps_the_order_of_its_classes(tmp_path):
    names = ('b10', 'b9', 'a')
    write(tmp_path, *(f'{name}/{i}.png' for name in names for i in range(20)))
    new = open_source(f'folder:{tmp_path}', 'train')
    assert new.class_names == ('a', 'b9', 'b10')
    for split in ('train', 'validation', 'train[:30%]'):  # the same files, with the labels of the run
        new = open_source(f'folder:{tmp_path}', split)
        old = open_source(f'folder:{tmp_path}', split, class_names=('a', 'b10', 'b9'))
        assert old.files == new.files and old.class_names == ('a', 'b10', 'b9')
        assert old.labels.tolist() == [(0, 2, 1)[label] for label in new.labels]


def test_fewer_classes_in_validation(tmp_path, caplog):
    write(tmp_path, 'train/Ant/1.png', 'train/Bee fly/1.png', 'train/cat/1.png', 'val/cat/1.png', 'val/bee_fly/1.png')
    val = open_source(f'folder:{tmp_path}', None)
    assert val.class_names == ('Ant', 'Bee fly', 'cat') and val.present == (1, 2)
    assert {val.files[i]: val[i]['label'] for i in range(2)} == {'bee_fly/1.png': 1, 'cat/1.png': 2}
    assert 'has images of 2 of 3 classes' in caplog.text and 'similar names: bee_fly is Bee fly' in caplog.text
    write(tmp_path, 'val/Bee fly/1.png')
    assert 'are the same class of train' in refuse(f'folder:{tmp_path}', None)


def test_both_unicode_forms_are_the_same_class(tmp_path):
    composed, decomposed = 'caf\u00e9', 'cafe\u0301'
    write(tmp_path, f'train/{composed}/1.png', 'train/tea/1.png', f'val/{decomposed}/1.png', f'val/{composed}/2.png')
    if len(list((tmp_path / 'val').iterdir())) == 1:
        pytest.skip('this file system does not tell the forms apart')
    train, val = (open_source(f'folder:{tmp_path}', split) for split in ('train', None))
    assert train.class_names == val.class_names == (composed, 'tea')
    assert val.labels.tolist() == [0, 0] and val.present == (0,)


def test_names_that_are_not_utf8(tmp_path):
    name = b'caf\xe9'.decode('utf-8', 'surrogateescape')
    try:
        write(tmp_path, f'train/{name}/{name}.png', 'train/tea/1.png')
    except OSError:
        pytest.skip('this file system takes UTF-8 names only')
    source = open_source(f'folder:{tmp_path}', 'train')
    assert source.class_names == (name, 'tea') and source[0]['label'] == 0
    assert source.describe(0).endswith(f'{name}.png')
    (tmp_path / 'train' / name / f'{name}.png').unlink()
    assert rf'{tmp_path}/train/caf\xe9' in refuse(f'folder:{tmp_path}')


def test_links_to_one_class_are_refused(tmp_path):
    write(tmp_path, 'pool/1.png', 'data/a/1.png')
    for name in ('b', 'c'):
        (tmp_path / 'data' / name).symlink_to(tmp_path / 'pool')
    assert 'the class folders b and c in ' in refuse(f'folder:{tmp_path}/data')


def test_passed_over_files_are_named_once(tmp_path, caplog):
    write(tmp_path, 'a/1.png', 'b/2.png', 'b/3.png', 'loose.png')
    for name in ('a/notes.txt', 'a/list.txt', 'b/photo', 'b/.hidden', 'b/Thumbs.db'):
        (tmp_path / name).touch()
    for split in ('train', 'validation'):
        open_source(f'folder:{tmp_path}', split)
    assert len(caplog.records) == 2
    assert '3 files that are not images by their suffix (2 .txt, 1 without suffix)' in caplog.text
    assert 'passed over 1 images outside the class folders' in caplog.text
    shutil.rmtree(tmp_path / 'a')
    (tmp_path / 'a').mkdir()
    (tmp_path / 'a' / 'x.heic').touch()
    message = refuse(f'folder:{tmp_path}')
    assert 'no images in 1 of 2 class folders' in message and '1 .heic' in message
