"""Folders of runs in which a file is not one, is enormous, or lies: one line, and soon."""

import gc
import json
import os
import re
import shutil
import sys
import tarfile

import pytest

import convert
from convert.__main__ import main
from tests.helpers.paths import ROOT
from tests.helpers.runs import change_arrays
from tresnet_jax.checkpoints import run as runs
from tresnet_jax.checkpoints import run_arrays
from tresnet_jax.errors import ConversionError, TrainingError
from tresnet_jax.files import LARGEST_JSON
from tresnet_jax.training.run_config import load_config


@pytest.fixture
def run(tmp_path):
    with tarfile.open(ROOT / 'tests/compat/run_1.tar.xz') as archive:
        archive.extractall(tmp_path, filter='data')
    return tmp_path / 'run_1'


FILES = ['metrics/metrics', '_CHECKPOINT_METADATA', 'state/_METADATA', 'state/manifest.ocdbt', 'state/_sharding']


@pytest.mark.parametrize('name', FILES)
def test_large_files(run, name):
    """Holes: they take no place on the disk, and Orbax would load them into memory."""
    file = run / 'checkpoints/4' / name
    os.truncate(file, 2**40)
    with pytest.raises(ConversionError) as error:
        convert.read(run)
    assert str(error.value) == f'{file}: too large; expected at most 8 MiB; copy the run again'


def test_arrays_may_be_large(run, monkeypatch):
    monkeypatch.setattr(runs, 'LARGEST_JSON', 50_000)
    (data,) = (run / 'checkpoints/4/state/d').iterdir()
    os.truncate(data, 60_000)
    runs._check_files(run / 'checkpoints')


@pytest.mark.parametrize('name', FILES)
def test_pipes_and_devices(run, name):
    """Opening a pipe waits for ever, and a device never ends."""
    file = run / 'checkpoints/4' / name
    file.unlink()
    os.mkfifo(file)
    with pytest.raises(ConversionError) as error:
        convert.read(run)
    assert str(error.value) == f'{file}: not a regular file; copy the run again'
    file.unlink()
    file.symlink_to('/dev/zero')
    with pytest.raises(ConversionError, match='not a regular file'):
        convert.read(run)
    file.unlink()
    file.symlink_to(file)
    with pytest.raises(ConversionError, match='cannot be read: Too many levels of symbolic links'):
        convert.read(run)


def test_arrays_that_claim_much_more_than_the_files(run, monkeypatch):
    monkeypatch.setattr(run_arrays, 'ALWAYS_ALLOWED', 2**20)
    with pytest.raises(
        ConversionError, match=r'/4: cannot be read: its arrays claim 1,\d+,\d+ bytes, its files have \d+,\d+; copy'
    ):
        convert.read(run)


def test_arrays_may_be_compressed(tmp_path, monkeypatch):
    """Orbax stores frozen weights that came from bfloat16 in less than half of their size."""
    monkeypatch.setattr(run_arrays, 'ALWAYS_ALLOWED', 0)
    (tmp_path / 'data').write_bytes(bytes(1000))
    run_arrays._check_sizes(tmp_path, 4000)
    with pytest.raises(ValueError, match='claim 4,001 bytes, its files have 1,000; copy the run again'):
        run_arrays._check_sizes(tmp_path, 4001)


def test_files_that_disappear_are_not_missed(run):
    """A run that is still training deletes checkpoints."""
    runs._check_files(run / 'checkpoints')
    shutil.rmtree(run / 'checkpoints/4')
    runs._check_files(run / 'checkpoints')


@pytest.mark.parametrize('name', ['config.json', 'model.json'])
def test_large_descriptions(run, name):
    os.truncate(run / name, 2**40)
    with pytest.raises(
        (ConversionError, TrainingError),
        match=f'{name}.*too large; expected at most {LARGEST_JSON // 2**20} MiB of JSON',
    ):
        load_config(run)
        convert.read(run)


def junk_in_the_table(state):
    (state / 'manifest.ocdbt').write_bytes(b'junk')


def no_data(state):
    shutil.rmtree(state / 'd')


def junk_in_many_arrays(state):
    change_arrays(state, '/c/0', lambda data: b'junk')


def arrays_in_enormous_pieces(state):
    """Of which each is read whole."""

    def change(described):
        grid = {'name': 'regular', 'configuration': {'chunk_shape': [2**40]}}
        codecs = [{'name': 'bytes', 'configuration': {'endian': 'little'}}]
        return json.dumps(json.loads(described) | {'chunk_grid': grid, 'codecs': codecs}).encode()

    change_arrays(state, '.bias/zarr.json', change)


@pytest.mark.parametrize(
    'damage, message',
    [
        (junk_in_the_table, 'Error decoding manifest'),
        (no_data, 'No such file|NOT_FOUND'),
        (junk_in_many_arrays, 'DATA_LOSS'),
        (arrays_in_enormous_pieces, r'its arrays claim [\d,]+ bytes'),
    ],
)
def test_arrays_that_cannot_be_read_give_one_line(damage, message, run, capsys, caplog, monkeypatch):
    """And no thread reports the others."""
    reported = []
    monkeypatch.setattr(sys, 'unraisablehook', reported.append)
    damage(run / 'checkpoints/4/state')
    assert main([str(run), str(run / 'a.safetensors')]) == 2
    gc.collect()
    assert not reported and caplog.text == '' and not (run / 'a.safetensors').exists()
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and lines[0].startswith(f'error: {run}/checkpoints/4: cannot be read: ')
    assert re.search(message, lines[0])
