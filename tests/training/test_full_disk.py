"""Files of a run that cannot be written: one line, no thread that hangs. The device /dev/full is always full."""

import io
import os
import struct
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from tensorboardX import record_writer as crc32c

from tests.helpers.runs import TINY
from tresnet_jax.cli import train as command
from tresnet_jax.data.examples import Unreadable
from tresnet_jax.data.sources import open_source
from tresnet_jax.errors import DataError, TrainingError
from tresnet_jax.training import loop
from tresnet_jax.training.board import Board
from tresnet_jax.training.metrics import RunLog, read_records

FULL = Path('/dev/full')
VALUES = {'step': 1, 'epoch': 0.1, 'loss': 1.0, 'lr': 0.1, 'images_per_second': 1.0, 'wait': 0.0}

pytestmark = pytest.mark.skipif(not FULL.exists(), reason='this system has no /dev/full')


def full(file) -> None:
    """Let what is written to an open file go to a full disk."""
    device = os.open(FULL, os.O_WRONLY)
    os.dup2(device, file.fileno())
    os.close(device)


@pytest.mark.parametrize('which', ['metrics', 'tensorboard'])
def test_metrics(which, tmp_path):
    """The run ends with one line; what was written before stays, and closing the log adds no error."""
    log = RunLog(tmp_path, start=0, steps=9, active=True)
    log.train(VALUES, 1.0)
    full(log._file if which == 'metrics' else log._board._file)
    expected = (
        f'^{tmp_path}: the metrics cannot be written: No space left on device. Free disk space or fix .*; it resumes'
    )
    for step in range(2, 30):  # more than a queue holds
        with pytest.raises(TrainingError, match=expected):
            log.train(VALUES | {'step': step}, 1.0)
    log.close()
    assert read_records(tmp_path)[0]['loss'] == 1.0


def test_what_tensorboard_gets(tmp_path):
    """Events in the format of tensorboardX, after one that hides those of later steps."""
    from tensorboardX.proto import event_pb2

    board = Board(tmp_path / 'tensorboard', 4)
    board.add(5, {'train/loss': 0.5, 'train/lr': 0.25})
    board.close()
    (file,) = (tmp_path / 'tensorboard').iterdir()
    content, events = io.BytesIO(file.read_bytes()), []
    while header := content.read(8):
        crc = content.read(4)
        data = content.read(struct.unpack('<Q', header)[0])
        assert crc + content.read(4) == struct.pack('<II', *map(crc32c.masked_crc32c, (header, data)))
        events.append(event_pb2.Event.FromString(data))
    assert events[0].file_version == 'brain.Event:2' and file.name.startswith('events.out.tfevents.')
    assert (events[1].step, events[1].session_log.status) == (5, event_pb2.SessionLog.START)
    values = [(event.step, event.summary.value[0].tag, event.summary.value[0].simple_value) for event in events[2:]]
    assert values == [(5, 'train/loss', 0.5), (5, 'train/lr', 0.25)]


def test_unreadable_log(tmp_path):
    """The line that does not fit is in the message."""
    source = open_source('embedded:fashion_mnist', 'test[:4]')
    (tmp_path / 'unreadable.log').mkdir()
    found = Unreadable(source, 1.0, tmp_path / 'unreadable.log')
    batch = {'wanted': np.arange(2), 'problem': np.asarray(['', 'cut'])}
    with pytest.raises(DataError, match=r'unreadable.log: cannot be written: Is a directory; it would get .* 1: cut$'):
        found.check(batch)


def test_any_other_file(tmp_path, monkeypatch, capsys):
    """An error of the file system that nothing expects is a line, with the file if it is known."""

    flags = ['--workdir', str(tmp_path / 'run'), '--data', TINY.data]
    for file, expected in ((None, tmp_path / 'run'), ('/mnt/a', '/mnt/a')):
        error = OSError(5, 'Input/output error', file)
        monkeypatch.setattr(loop, 'train', mock.Mock(side_effect=error))
        assert command.main(flags) == 2
        line = capsys.readouterr().err
        assert line.startswith(f'error: {expected}: Input/output error. Free disk space') and line.count('\n') == 1
