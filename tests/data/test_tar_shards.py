"""Patterns of tar shards, and the splits that their names have."""

import json
from pathlib import Path

import pytest

from tresnet_jax.data.tar_shards import expand_braces, find_shards, find_splits
from tresnet_jax.errors import DataError


@pytest.mark.parametrize(
    ('pattern', 'expected'),
    [
        # As bash 5 expands them.
        ('x{0..3}', 'x0 x1 x2 x3'),
        ('{03..1}', '03 02 01'),
        ('{a,b{1,2}}x', 'ax b1x b2x'),
        ('{x}{1,2}', '{x}1 {x}2'),
        ('{-2..2}', '-2 -1 0 1 2'),
        ('{08..10..2}', '08 10'),
        ('{a..e..2}', 'a c e'),
        ('{train,val}-{00..01}.tar', 'train-00.tar train-01.tar val-00.tar val-01.tar'),
        ('a{,b}', 'a ab'),
        ('plain.tar', 'plain.tar'),
    ],
)
def test_braces(pattern, expected):
    assert expand_braces(pattern, 'data') == expected.split(' ')


@pytest.mark.parametrize(
    ('pattern', 'message'),
    [
        ('a{0..1', 'is not closed'),
        ('a}', 'is not opened'),
        ('{0..9}' * 7, 'more than 1,000,000'),
        ('{0..9999999}', 'more'),
    ],
)
def test_wrong_braces(pattern, message):
    with pytest.raises(DataError, match=f'data: .*{message}'):
        expand_braces(pattern, 'data')


@pytest.fixture
def folder(tmp_path):
    """Return a function that makes empty files in a folder."""

    def make(*names: str):
        for name in names:
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).touch()
        return tmp_path

    return make


def names(shards, root) -> list[str]:
    return [str(path.relative_to(root)) for path in shards.files]


def test_patterns(folder):
    root = folder('a-10.tar', 'a-9.tar', 'b[1].tar', '{c}.tar', 'sub/a-1.tar')
    assert names(find_shards('a-{9..10}.tar', root, 'w'), root) == ['a-9.tar', 'a-10.tar']
    assert names(find_shards('a-*.tar::sub/*.tar', root, 'w'), root) == ['a-10.tar', 'a-9.tar', 'sub/a-1.tar']
    assert names(find_shards('b[1].tar', root, 'w'), root) == ['b[1].tar']
    assert names(find_shards('{c}.tar', root, 'w'), root) == ['{c}.tar']
    assert find_shards(f'{root}/a-?.tar|1000', root / 'sub', 'w').count == 1000
    for pattern, message in (
        ('a-{7..9}.tar', '2 of 3 shards do not exist: .*a-7.tar, .*a-8.tar'),
        ('z-*.tar', 'no such shard: .*z-'),
        ('a-*.tar::a-9.tar', 'names .*a-9.tar 2 times'),
        ('https://host/a.tar', 'https://host/a.tar is not a path; download the shards first'),
        ('pipe:cat a.tar', 'pipe:cat a.tar is not a path'),
        ('a-9.tar|many', 'expected a number of examples'),
    ):
        with pytest.raises(DataError, match=f'^w: {message}'):
            find_shards(pattern, root, 'w')


def splits(name, root) -> dict[str, list[str]]:
    return {split: names(shards, root) for split, shards in find_splits(name, root, 'w').items()}


@pytest.mark.parametrize('pattern', ['.', '*-{0,1}.tar', 'imagenet1k-{train,validation}-*.tar'])
def test_splits_in_names(folder, pattern):
    root = folder('imagenet1k-train-0.tar', 'imagenet1k-train-1.tar', 'imagenet1k-validation-0.tar')
    train, val = 'imagenet1k-train-{}.tar', 'imagenet1k-validation-0.tar'
    root = root if pattern != '*-{0,1}.tar' else folder('imagenet1k-validation-1.tar')
    found = splits(pattern, root)
    assert found['train'] == [train.format(0), train.format(1)] and val in found['validation']


def test_splits_in_folders(folder):
    root = folder('test/Train/0.tar', 'test/Valid/0.tar', 'test/Valid/.hidden.tar', 'test/notes.txt')
    assert splits('test', root) == {'train': ['test/Train/0.tar'], 'validation': ['test/Valid/0.tar']}
    assert splits('test/Train', root) == {'': ['test/Train/0.tar']}


def test_absolute_and_relative_paths(folder, monkeypatch):
    root = folder('a-train-0.tar', 'sub/b-val-0.tar')
    monkeypatch.chdir(root)
    found = find_splits(f'a-train-0.tar::{root}/sub/b-val-0.tar', Path(), 'w')
    assert {split: len(shards.files) for split, shards in found.items()} == {'train': 1, 'validation': 1}


def test_unclear_splits(folder):
    root = folder('train-0.tar', 'other.tar')
    with pytest.raises(DataError, match=r'the name of .*other\.tar has no split, unlike'):
        find_splits('.', root, 'w')
    with pytest.raises(DataError, match='of which split is train-test-0.tar. Its name has test and train; name'):
        find_splits('*-0.tar', folder('train-test-0.tar'), 'w')
    with pytest.raises(DataError, match='counts the examples of several splits'):
        find_splits('{train,val}-0.tar|7', folder('val-0.tar'), 'w')
    with pytest.raises(DataError, match='no shards'):
        find_splits('empty', folder('empty/x.txt'), 'w')
    with pytest.raises(DataError, match='1 shards are compressed; unpack them: .*1.tar.gz'):
        find_splits('zipped', folder('zipped/0.tar', 'zipped/1.tar.gz'), 'w')


def info(**changes) -> str:
    """Return timm's description of a data set of one split."""
    split = {'name': 'train', 'num_samples': 3, 'filenames': ['x-0.tar', 'x-1.tar'], 'shard_lengths': [2, 1]}
    return json.dumps({'splits': {'train': split | changes}})


def test_info_file(folder):
    root = folder('x-0.tar', 'x-1.tar')
    (root / '_info.json').write_text(info(alt_label='cls2'))
    (shards,) = find_splits('.', root, 'w').values()
    assert (names(shards, root), shards.count, shards.label) == (['x-0.tar', 'x-1.tar'], 3, 'cls2')
    for text, message in (
        ('{', 'does not describe splits as timm does'),
        ('[]', 'does not describe splits'),
        ('[' * 100_000, 'does not describe splits'),
        ('{"splits": {}}', 'names no shards'),
        (info(num_samples='many'), 'does not describe splits'),
        (info(num_samples=float('inf')), 'does not describe splits'),
        (info(filenames=['../x.tar']), 'the shard ../x.tar is outside its folder'),
        (info(filenames=['/x.tar']), 'is outside its folder'),
    ):
        (root / '_info.json').write_text(text)
        with pytest.raises(DataError, match=f'^w: .*_info.json.* {message}'):
            find_splits('.', root, 'w')
