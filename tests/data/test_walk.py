"""Which files of a folder are images: suffixes, hidden and service folders, links and cycles."""

import os

import pytest
from PIL import Image

from tests.helpers.images import encode, grey_image
from tresnet_jax.data.images import load_image
from tresnet_jax.data.sources import open_source
from tresnet_jax.data.walk import find_images, image_suffixes, natural_key, walk
from tresnet_jax.errors import DataError


def touch(root, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def test_find_images(tmp_path, caplog):
    found = ['b/1.png', 'b/2.JPG', 'b/deep/er/3.webp', 'b/folder.png/4.gif']
    touch(tmp_path, 'b/notes.txt', 'b/._1.png', 'a.xyz', *reversed(found))
    given = [tmp_path / 'a.xyz', str(tmp_path / 'b'), tmp_path / 'missing.png', tmp_path / 'b/1.png']
    expected = ['a.xyz', *found, 'missing.png', 'b/1.png']
    assert find_images(given) == [tmp_path / name for name in expected]
    assert caplog.messages == [
        f'{tmp_path}/b: passed over 1 file that is not an image by its suffix (1 .txt)',
    ]
    assert find_images([]) == []


def test_every_suffix_that_pillow_opens(tmp_path):
    names = ['a.jfif', 'b.jpe', 'c.JPE', 'd.JPEG', 'e.Tiff', 'f.mpo', 'g.jp2', 'h.tga', 'i.apng', 'j.psd']
    touch(tmp_path, *names, 'k.pdf', 'l.txt', 'm', 'n.mpg', 'o.h5')
    found = walk(tmp_path)
    assert found.images == names
    assert found.passed_over == {'.pdf': 1, '.txt': 1, '': 1, '.mpg': 1, '.h5': 1}
    for suffix in ('.jfif', '.JPE', '.tga', '.mpo'):
        path = tmp_path / f'real{suffix}'
        path.write_bytes(encode(grey_image(90), Image.registered_extensions()[suffix.lower()]))
        assert load_image(path).size == (6, 5)
    assert image_suffixes() <= {*Image.registered_extensions()}


def test_a_plugin_adds_its_suffix(tmp_path, monkeypatch):
    touch(tmp_path, 'a.heic')
    assert walk(tmp_path).images == []
    monkeypatch.setitem(Image.EXTENSION, '.heic', 'PNG')
    assert walk(tmp_path).images == ['a.heic']


SERVICE = (
    '.ipynb_checkpoints', '@eaDir', '__MACOSX', '$RECYCLE.BIN', 'System Volume Information', '.git', '.AppleDouble',
    'lost+found', '#recycle', '__pycache__', '.Trash-1000', '.thumbnails',
)  # fmt: skip


def test_service_folders_are_skipped_at_every_depth(tmp_path):
    for folder in SERVICE:
        touch(tmp_path, *(f'{above}{folder}/cat/1.png' for above in ('', 'train/', 'train/cat/', 'train/cat/deep/')))
    (tmp_path / 'train/cat/1.png').write_bytes(b'cat')
    touch(tmp_path, 'train/dog/1.png', 'train/dog/Thumbs.db')
    assert walk(tmp_path) == (['train/cat/1.png', 'train/dog/1.png'], {})
    source = open_source(f'folder:{tmp_path}', 'train')
    assert source.class_names == ('cat', 'dog') and source.files == ('cat/1.png', 'dog/1.png')
    assert find_images([tmp_path / 'train']) == [tmp_path / 'train' / file for file in source.files]


def test_cycles_of_links(tmp_path):
    """Four images stay four, in training and in prediction."""
    touch(tmp_path, *(f'data/train/{name}/{i}.png' for name in ('cat', 'dog') for i in range(2)))
    train = tmp_path / 'data' / 'train'
    (train / 'cat' / 'self').symlink_to('.')
    (train / 'cat' / 'up').symlink_to('..')
    (train / 'dog' / 'root').symlink_to(tmp_path)
    (train / 'dog' / 'other').symlink_to('../cat')
    (train / 'cat' / 'other').symlink_to(train / 'dog')
    (train / 'loop').symlink_to('.')
    (tmp_path / 'data' / 'again').symlink_to(tmp_path / 'data')
    expected = ['cat/0.png', 'cat/1.png', 'dog/0.png', 'dog/1.png']
    assert walk(train).images == expected
    source = open_source(f'folder:{tmp_path}/data', 'train')
    assert list(source.files) == expected and source.labels.tolist() == [0, 0, 1, 1]
    assert find_images([tmp_path]) == [train / file for file in expected]


def test_links_to_files_and_folders_outside_are_followed(tmp_path):
    touch(tmp_path, 'pool/1.png', 'pool/deep/2.png', 'one/3.png', 'root/a/real/4.png')
    root = tmp_path / 'root'
    (root / 'b').symlink_to(tmp_path / 'pool')
    (root / 'a' / '3.png').symlink_to('../../one/3.png')
    (root / 'a' / 'also').symlink_to(tmp_path / 'one')
    (root / 'a' / 'alias').symlink_to('real')  # sorted before the folder itself, whose path is kept
    assert walk(root).images == ['a/3.png', 'a/also/3.png', 'a/real/4.png', 'b/1.png', 'b/deep/2.png']


def test_a_broken_link_is_an_unreadable_image(tmp_path):
    (tmp_path / 'a.png').symlink_to('missing')
    (tmp_path / 'b').symlink_to('missing')
    assert walk(tmp_path) == (['a.png'], {'': 1})


@pytest.mark.skipif(not hasattr(os, 'mkfifo'), reason='needs pipes')
def test_pipes_are_not_images(tmp_path):
    os.mkfifo(tmp_path / 'a.png')
    assert walk(tmp_path) == ([], {})


def test_a_folder_that_cannot_be_read(tmp_path, monkeypatch):
    def refuse(folder):
        raise PermissionError(13, 'Permission denied')

    monkeypatch.setattr(os, 'scandir', refuse)
    with pytest.raises(DataError, match=f'^{tmp_path}: cannot be read: Permission denied$'):
        walk(tmp_path)


def test_natural_order():
    names = ['Apple 10', 'Zebra', 'apple 6', 'Apple 5', '2\u00b2', '10']
    assert sorted(names, key=natural_key) == ['2\u00b2', '10', 'Apple 5', 'apple 6', 'Apple 10', 'Zebra']
    misc = pytest.importorskip('timm.utils.misc')
    names.remove('2\u00b2')  # timm raises ValueError
    assert [natural_key(name) for name in names] == [misc.natural_key(name) for name in names]
