"""Fingerprints: the same wherever the data is; each kind of change is seen, and seen as what it is."""

import os
import shutil

import numpy as np
import pytest

from tests.helpers.images import write_classes
from tests.helpers.tar_files import image_members, write_tar
from tresnet_jax.data.fingerprint import names_digest, sizes_digest
from tresnet_jax.data.sources import open_source

FOLDERS = ('folder:set', 'csv:set/list.csv')


@pytest.fixture
def base(tmp_path):
    """Write the same three images as a folder and a CSV file, and others as arrays and as tar shards."""
    write_classes(tmp_path / 'set' / 'train', {'a': 2, 'b': 1})
    write_classes(tmp_path / 'set' / 'val', {'a': 1, 'b': 1}, seed=9)
    write_list(tmp_path)
    save(tmp_path, np.arange(48).reshape(3, 4, 4), [0, 1, 1])
    write_tar(tmp_path / 'shards' / 'a-train-0.tar', image_members([0, 1, 1]))
    write_tar(tmp_path / 'shards' / 'a-val-0.tar', image_members([1]))
    return tmp_path


def write_list(base, labels='aab', *files: str) -> None:
    files = files or ('train/a/00.png', 'train/a/01.png', 'train/b/02.png')
    rows = [f'{file},{label},train' for file, label in zip(files, labels, strict=True)] + ['val/a/00.png,a,val']
    (base / 'set' / 'list.csv').write_text('\n'.join(['path,label,split', *rows]) + '\n')


def save(base, images, labels) -> None:
    arrays = {'x_train': images.astype(np.uint8), 'y_train': np.asarray(labels)}
    np.savez(base / 'set.npz', **arrays, x_test=arrays['x_train'], y_test=arrays['y_train'])


def fingerprint(base, data, split='train') -> dict[str, str]:
    """Paths of a CSV file start from its folder."""
    kind, name = data.split(':')
    return open_source(f'{kind}:{base / name}', split).fingerprint()


def changed(before, after) -> set[str]:
    assert before.keys() == after.keys()
    return {part for part, digest in before.items() if after[part] != digest}


@pytest.mark.parametrize('data', [*FOLDERS, 'npz:set.npz', 'wds:shards'])
def test_the_place_does_not_matter_and_the_split_does(data, base, tmp_path_factory, monkeypatch):
    monkeypatch.setenv('XDG_CACHE_HOME', str(base / 'cache'))
    before = fingerprint(base, data)
    moved = tmp_path_factory.mktemp('moved') / 'new'
    shutil.copytree(base, moved)
    assert fingerprint(moved, data) == before
    assert changed(before, fingerprint(base, data, 'train[:2]'))


@pytest.mark.parametrize('data', FOLDERS)
def test_files(data, base):
    before = fingerprint(base, data)
    with (base / 'set' / 'train' / 'a' / '00.png').open('ab') as file:
        file.write(b'longer')
    assert changed(before, fingerprint(base, data)) == {'sizes'}
    (base / 'set' / 'train' / 'a' / '00.png').unlink()
    shutil.copy(base / 'set' / 'train' / 'b' / '02.png', base / 'set' / 'train' / 'b' / '00.png')
    write_list(base, 'abb', 'train/a/01.png', 'train/b/00.png', 'train/b/02.png')
    assert changed(before, fingerprint(base, data)) == {'names', 'sizes', 'labels'}


def test_labels_and_order(base):
    before = fingerprint(base, 'csv:set/list.csv')
    write_list(base, 'aba')
    assert changed(before, fingerprint(base, 'csv:set/list.csv')) >= {'names'}  # files are sorted by class
    arrays = fingerprint(base, 'npz:set.npz')
    save(base, np.arange(48).reshape(3, 4, 4), np.asarray([0, 1, 1], np.uint8))
    assert fingerprint(base, 'npz:set.npz') == arrays
    save(base, np.arange(48).reshape(3, 4, 4), [1, 0, 1])
    assert changed(arrays, fingerprint(base, 'npz:set.npz')) == {'labels'}
    save(base, np.arange(1, 49).reshape(3, 4, 4), [0, 1, 1])
    assert changed(arrays, fingerprint(base, 'npz:set.npz')) == {'images'}


def test_shards(base, monkeypatch):
    monkeypatch.setenv('XDG_CACHE_HOME', str(base / 'cache'))
    before = fingerprint(base, 'wds:shards')
    write_tar(base / 'shards' / 'a-train-0.tar', image_members([0, 1, 1], first=2))
    assert {'names'} <= changed(before, fingerprint(base, 'wds:shards')) <= {'names', 'sizes'}
    write_tar(base / 'shards' / 'a-train-0.tar', image_members([1, 0, 1]))
    assert changed(before, fingerprint(base, 'wds:shards')) == {'labels'}


def test_names_are_kept_apart_and_files_may_be_missing(tmp_path):
    assert names_digest(['ab', 'c']) != names_digest(['a', 'bc'])
    assert names_digest([os.fsdecode(b'caf\xe9')]) != names_digest(['caf'])
    path = tmp_path / 'a'
    missing = sizes_digest([str(path)])
    path.touch()
    assert sizes_digest([str(path)]) != missing
