"""Writing files: complete or absent, one error line, and the permissions of `open`."""

import errno
import hashlib
import os
import threading

import pytest

from tresnet_jax.checkpoints.read import read
from tresnet_jax.checkpoints.torch_file import load
from tresnet_jax.checkpoints.write import save_flax, save_torch
from tresnet_jax.data.arrays import open_npz
from tresnet_jax.errors import ConversionError, HubError, MissingExtraError
from tresnet_jax.exporting import load_exported
from tresnet_jax.files import save_text, sha256, written_beside


@pytest.fixture
def target(tmp_path):
    path = tmp_path / 'target.txt'
    path.write_text('old')
    return path


def write(path):
    with written_beside(path) as beside:
        beside.write_text('new')


def save(path):
    save_text(path, 'new')


both = pytest.mark.parametrize('write', [write, save])


@both
def test_a_file_is_replaced(write, target):
    write(target)
    assert target.read_text() == 'new' and list(target.parent.iterdir()) == [target]


def test_the_old_file_stays_until_the_new_one_is_complete(target):
    with written_beside(target) as beside:
        beside.write_text('half')
        assert target.read_text() == 'old' and beside.parent == target.parent
    assert target.read_text() == 'half'


@pytest.mark.parametrize(
    'error',
    [
        ConversionError('a.safetensors: bn1.weight has dtype int32'),
        HubError('no such repository'),
        MissingExtraError('torch is not installed'),
        KeyError('bn1'),
        RuntimeError('a fault of the program'),
        KeyboardInterrupt(),
    ],
    ids=lambda error: type(error).__name__,
)
def test_other_errors_pass_unchanged(error, target):
    with pytest.raises(type(error)) as caught:
        with written_beside(target) as beside:
            beside.write_text('half')
            raise error
    assert caught.value is error
    assert target.read_text() == 'old' and list(target.parent.iterdir()) == [target]


def test_an_error_of_a_nested_file_names_that_file(tmp_path):
    with pytest.raises(ConversionError) as caught:
        with written_beside(tmp_path / 'outer.txt'):
            save_text(tmp_path / 'missing' / 'inner.txt', 'x')
    assert str(caught.value).startswith(f'{tmp_path}/missing/inner.txt: the folder')
    assert 'outer.txt' not in str(caught.value) and list(tmp_path.iterdir()) == []


def test_an_error_of_the_system_becomes_one_line(target):
    with pytest.raises(ConversionError) as caught:
        with written_beside(target) as beside:
            beside.write_text('half')
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(beside))
    assert str(caught.value) == f'{target}: cannot be written: No space left on device'
    assert target.read_text() == 'old' and list(target.parent.iterdir()) == [target]


@both
@pytest.mark.parametrize('failing', ['write', 'chmod', 'fsync', 'replace'])
def test_every_step_can_fail(write, failing, target, monkeypatch):
    """A full disk shows when the data is written, flushed or renamed."""

    def fail(*args, **options):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), 'a temporary name')

    name = {'write': 'pathlib.Path.write_text', 'chmod': 'pathlib.Path.chmod'}.get(failing, f'os.{failing}')
    monkeypatch.setattr('pathlib.Path.replace' if failing == 'replace' else name, fail)
    with pytest.raises(ConversionError) as caught:
        write(target)
    assert str(caught.value) == f'{target}: cannot be written: No space left on device'
    assert target.read_text() == 'old' and list(target.parent.iterdir()) == [target]


@both
def test_impossible_targets(write, tmp_path):
    with pytest.raises(ConversionError, match='the folder .*missing does not exist; make it first'):
        write(tmp_path / 'missing' / 'a.txt')
    with pytest.raises(ConversionError, match='is a folder; give a file name'):
        write(tmp_path)
    with pytest.raises(ConversionError, match='a{250}: cannot be written: File name too long'):
        write(tmp_path / ('a' * 250))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize('save', [lambda path: save_flax(path, {}, {}, None), lambda path: save_torch(path, {})])
@pytest.mark.parametrize('folder', ['.', '..', '/', 'weights'])
def test_a_folder_as_the_target_of_a_checkpoint(save, folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'weights').mkdir()
    with pytest.raises(ConversionError, match='is a folder; give a file name'):
        save(folder)


READERS = {
    'read': read,
    'load': load,
    'load_exported': load_exported,
    'open_npz': lambda path: open_npz(path, 'train', 'npz:data.npz'),
}


@pytest.mark.parametrize('reader', READERS)
def test_pipes_and_devices_are_not_read(reader, tmp_path):
    """Opening a pipe waits for ever, a device may never end, and neither can be read twice."""
    os.mkfifo(tmp_path / 'pipe')
    (tmp_path / 'device').symlink_to('/dev/zero')
    for name in ('device', 'pipe'):
        with pytest.raises(ValueError) as caught:
            READERS[reader](tmp_path / name)
        assert str(caught.value) == (
            f'{tmp_path / name}: a pipe or a device, not a regular file; write its content to a file first'
        )


@both
def test_threads_that_write_one_file_do_not_meet(write, target, monkeypatch):
    """Both are in the block at the same time; each has a temporary name of its own, and one of them stays."""
    names, barrier = [], threading.Barrier(2, timeout=20)
    touch = type(target).touch

    def meet(self, *args, **options):
        touch(self, *args, **options)
        names.append(self.name)
        barrier.wait()

    monkeypatch.setattr(type(target), 'touch', meet)
    errors = []

    def work():
        try:
            write(target)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert len(names) == len(set(names)) == 2 and target.name not in names
    assert target.read_text() == 'new' and list(target.parent.iterdir()) == [target]


@both
@pytest.mark.parametrize('umask', [0o022, 0o077, 0o002])
def test_permissions_are_those_of_open(write, umask, tmp_path, monkeypatch):
    """Without os.umask, which would change the permissions of files that other threads create meanwhile."""
    before = os.umask(umask)
    try:
        with monkeypatch.context() as patch:
            patch.setattr(os, 'umask', lambda mask: pytest.fail('os.umask is called'))
            write(tmp_path / 'ours')
        with open(tmp_path / 'plain', 'w'):
            pass
    finally:
        os.umask(before)
    modes = [(tmp_path / name).stat().st_mode & 0o777 for name in ('ours', 'plain')]
    assert modes == [0o666 & ~umask] * 2


def test_permissions_do_not_depend_on_the_writer(tmp_path):
    """safetensors creates files that only their owner can read."""
    (tmp_path / 'plain').touch()
    with written_beside(tmp_path / 'ours') as beside:
        beside.write_text('new')
        beside.chmod(0o600)
    assert (tmp_path / 'ours').stat().st_mode == (tmp_path / 'plain').stat().st_mode


def test_text_is_utf_8(tmp_path):
    save_text(tmp_path / 'a.txt', 'Größe\n')
    assert (tmp_path / 'a.txt').read_bytes() == 'Größe\n'.encode()


def test_sha256(tmp_path):
    (tmp_path / 'a').write_bytes(b'abc')
    assert sha256(tmp_path / 'a') == hashlib.sha256(b'abc').hexdigest()
    assert sha256(str(tmp_path)) == ''
