"""Tar shards: the members of an example by WebDataset's rule for names, the stored index, and refused archives."""

import gzip
import io
import json
import os
import tarfile

import pytest

from tests.helpers.tar_files import write_tar
from tresnet_jax.data import tar_index
from tresnet_jax.data.tar_index import index_shard, scan_shard
from tresnet_jax.errors import DataError

LONG = 'd' * 90 + '/' + 'n' * 180
MEMBERS = [
    ('./a.jpg', b'one'),
    ('a.cls', b' 3\n'),
    ('b/a.seg.PNG', b'two'),
    ('b/a.CLS', b'dog'),
    (f'{LONG}.png', b'long'),
    ('._a.jpg', b'x'),
    ('__MACOSX/a.jpg', b'x'),
    ('__meta__.json', b'x'),
    ('README', b'x'),
    ('é.json', b'{}'),
]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
    return tmp_path / 'cache' / 'tresnet_jax' / 'shards'


@pytest.mark.parametrize('format', [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT], ids=['pax', 'gnu'])
def test_members_of_examples(tmp_path, format):
    path = write_tar(tmp_path / 's.tar', MEMBERS, format=format)
    found = scan_shard(path)
    data = path.read_bytes()
    read = {
        (example.key, extension): data[start : start + length]
        for example in found.examples
        for extension, (start, length) in example.members.items()
    }
    assert read == {
        ('a', 'jpg'): b'one',
        ('a', 'cls'): b' 3\n',
        ('b/a', 'seg.png'): b'two',
        ('b/a', 'cls'): b'dog',
        (LONG, 'png'): b'long',
        ('é', 'json'): b'{}',
    }
    assert [(example.key, example.cls) for example in found.examples][:2] == [('a', '3'), ('b/a', 'dog')]
    assert found.passed_over == 4


def test_the_index_is_built_once(tmp_path, cache, monkeypatch):
    path = write_tar(tmp_path / 's.tar', MEMBERS)
    first = index_shard(path)
    monkeypatch.setattr(tar_index, 'scan_shard', lambda path: pytest.fail('scanned again'))
    assert index_shard(path) == first == scan_shard(path)
    monkeypatch.undo()
    monkeypatch.setenv('XDG_CACHE_HOME', str(cache.parent.parent))
    write_tar(path, MEMBERS[:2])  # another size
    assert len(index_shard(path).examples) == 1
    status = path.stat()
    write_tar(path, [('x.jpg', b'one'), MEMBERS[1]])  # the same size, another time
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    assert [example.key for example in index_shard(path).examples] == ['x', 'a']
    (stored,) = cache.iterdir()
    for damage in ('', '[]', '{"format": 1}', json.dumps(json.loads(stored.read_text()) | {'examples': [1]})):
        stored.write_text(damage)
        assert [example.key for example in index_shard(path).examples] == ['x', 'a']


def test_no_cache_folder(tmp_path, monkeypatch):
    (tmp_path / 'file').write_text('')
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'file'))
    assert len(index_shard(write_tar(tmp_path / 's.tar', MEMBERS)).examples) == 4


def refused(path) -> str:
    with pytest.raises(DataError) as caught:
        index_shard(path)
    message = str(caught.value)
    assert message.startswith(f'{path}: ') and '\n' not in message
    return message


def test_truncated_archives(tmp_path):
    """Cut after each block: never fewer examples without an error."""
    whole = write_tar(tmp_path / 's.tar', [('a.jpg', bytes(700)), ('a.cls', b'1'), (f'{LONG}.jpg', b'2')]).read_bytes()
    end = len(whole.rstrip(b'\0')) // 512 * 512 + 512
    for size in {*range(0, end + 1, 512), 5, 300, end - 200, end + 100}:
        (tmp_path / 'cut.tar').write_bytes(whole[:size])
        assert 'is truncated or damaged' in refused(tmp_path / 'cut.tar')
    (tmp_path / 'cut.tar').write_bytes(whole[: end + 512])
    assert len(index_shard(tmp_path / 'cut.tar').examples) == 2


def test_damaged_archives(tmp_path):
    whole = write_tar(tmp_path / 's.tar', [('a.jpg', bytes(700)), ('a.cls', b'1'), ('b.jpg', b'2')]).read_bytes()
    second = whole.index(b'a.cls')
    for at, value in ((second, b'\xff'), (second + 124, b'\x80' + bytes(10) + b'\xff'), (second + 148, b'9')):
        (tmp_path / 'bad.tar').write_bytes(whole[:at] + value + whole[at + len(value) :])
        assert 'is truncated or damaged after a.jpg' in refused(tmp_path / 'bad.tar')
    (tmp_path / 'bad.tar').write_bytes(whole + whole)  # cat a.tar b.tar
    assert 'is neither a member nor the end of the archive' in refused(tmp_path / 'bad.tar')
    (tmp_path / 'bad.tar').write_bytes(b'text' * 400)
    assert 'expected a tar archive' in refused(tmp_path / 'bad.tar')
    assert 'cannot be read: No such file' in refused(tmp_path / 'none.tar')


def test_refused_members(tmp_path):
    path = tmp_path / 's.tar'
    path.write_bytes(gzip.compress(write_tar(path, MEMBERS).read_bytes()))
    assert 'is compressed, so its members have no fixed places; gunzip it' in refused(path)
    assert 'has two members a.jpg' in refused(write_tar(path, [('a.jpg', b'1'), ('a.JPG', b'2')]))
    assert 'a.cls has 2,000 bytes' in refused(write_tar(path, [('a.cls', b'1' * 2000)]))
    with tarfile.open(path, 'w') as archive:
        link = tarfile.TarInfo('b.jpg')
        link.type, link.linkname = tarfile.SYMTYPE, '/etc/passwd'
        archive.addfile(tarfile.TarInfo('a.jpg'), io.BytesIO())
        archive.addfile(link)
    assert 'the member b.jpg is a link or a device' in refused(path)
