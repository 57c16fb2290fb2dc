"""Folders of runs in which a file is not one, is enormous, or lies: one line, and soon."""

import asyncio
import gc
import logging
import os
import shutil
import tarfile

import numpy as np
import pytest

import convert
from convert.__main__ import main
from tests.helpers.paths import ROOT
from tresnet_jax.checkpoints import run as runs
from tresnet_jax.errors import ConversionError, TrainingError
from tresnet_jax.files import LARGEST_JSON
from tresnet_jax.training.run_config import load_config

# Threads of TensorStore may answer after Orbax has closed its event loop, which Python reports as "unraisable".
pytestmark = pytest.mark.filterwarnings('ignore::pytest.PytestUnraisableExceptionWarning')


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
    monkeypatch.setattr(runs, 'ALWAYS_ALLOWED', 2**20)
    with pytest.raises(
        ConversionError, match=r'/4: cannot be read: its arrays claim 1,\d+,\d+ bytes, its files have \d+,\d+; copy'
    ):
        convert.read(run)


def test_arrays_may_be_compressed(tmp_path, monkeypatch):
    """Orbax stores frozen weights that came from bfloat16 in less than half of their size."""
    monkeypatch.setattr(runs, 'ALWAYS_ALLOWED', 0)
    (tmp_path / 'data').write_bytes(bytes(1000))
    runs._check_sizes(tmp_path, [np.empty(800, np.float32)])
    with pytest.raises(ValueError, match='claim 4,004 bytes, its files have 1,000; copy the run again'):
        runs._check_sizes(tmp_path, [np.empty(1001, np.float32)])


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


def test_arrays_that_cannot_be_read_give_one_line(run, capsys, caplog):
    """Orbax abandons the other arrays, whose errors asyncio would log with their tracebacks."""
    caplog.set_level(logging.WARNING, 'asyncio')
    (run / 'checkpoints/4/state/manifest.ocdbt').write_bytes(b'junk')
    assert main([str(run), str(run / 'a.safetensors')]) == 2
    # Whether Orbax abandons one depends on the time, so here is another.
    loop = asyncio.new_event_loop()
    loop.create_future().set_exception(OSError('damaged'))
    gc.collect()
    loop.close()
    assert caplog.text == '' and not (run / 'a.safetensors').exists()
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and lines[0].startswith(f'error: {run}/checkpoints/4: cannot be read: ')
