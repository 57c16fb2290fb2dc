"""The lock of a run's folder: refused while its process lives, free afterwards, however it ended."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.paths import ROOT
from tresnet_jax.errors import TrainingError
from tresnet_jax.training import lock
from tresnet_jax.training.lock import LOCK_FILE, OWNER_FILE, locked

HOLDS = """
import sys
from pathlib import Path
from tresnet_jax.training.lock import locked

with locked(Path(sys.argv[1])) as left:
    print(left, flush=True)
    sys.stdin.read()
"""


def holder(folder: Path) -> subprocess.Popen:
    """Start a process that holds the lock until its input is closed; return it once it does."""
    environment = os.environ | {'PYTHONPATH': str(ROOT), 'JAX_PLATFORMS': 'cpu'}
    process = subprocess.Popen(
        [sys.executable, '-c', HOLDS, str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == 'None\n'
    return process


def test_another_process(tmp_path):
    """Refused while it lives; killed, it leaves a lock that does not count, even if its number is used again."""
    process = holder(tmp_path)
    found = (
        rf'^{tmp_path}: process {process.pid} on \S+ \(since .*\) is training in this folder; wait until '
        r'it ends or stop it'
    )
    with pytest.raises(TrainingError, match=found), locked(tmp_path):
        pass
    process.send_signal(signal.SIGKILL)
    process.communicate()
    owner = json.loads((tmp_path / OWNER_FILE).read_text())
    assert owner['pid'] == process.pid
    (tmp_path / OWNER_FILE).write_text(json.dumps(owner | {'pid': os.getpid(), 'host': 'elsewhere'}))
    with locked(tmp_path) as left:
        assert left is not None and left.startswith(f'process {os.getpid()} on elsewhere (since ')
        assert json.loads((tmp_path / OWNER_FILE).read_text())['host'] != 'elsewhere'
    with locked(tmp_path) as left:
        assert left is None


def test_twice_in_a_process(tmp_path):
    with locked(tmp_path), pytest.raises(TrainingError, match=f'process {os.getpid()} on '), locked(tmp_path):
        pass
    (tmp_path / OWNER_FILE).write_text('{')  # of no use, and no reason to fail
    with locked(tmp_path) as left:
        assert left is None


def test_an_error_releases_the_lock(tmp_path):
    with pytest.raises(KeyError), locked(tmp_path):
        raise KeyError
    with locked(tmp_path) as left:
        assert left is None


def test_a_folder_that_cannot_be_locked(tmp_path):
    (tmp_path / LOCK_FILE).mkdir()
    with pytest.raises(TrainingError, match=f'^{tmp_path}: the folder cannot be locked: '), locked(tmp_path):
        pass


def test_other_processes_of_a_run(tmp_path, monkeypatch):
    """They hold no lock, and end if the first one does not get it."""
    got = []
    monkeypatch.setattr(lock.jax, 'process_count', lambda: 2)
    monkeypatch.setattr(lock.jax, 'process_index', lambda: 1)
    monkeypatch.setattr(lock.multihost_utils, 'broadcast_one_to_all', lambda value: got.append(value) or len(got) == 1)
    with locked(tmp_path) as left:
        assert left is None and not list(tmp_path.iterdir())
    with pytest.raises(TrainingError, match='the first process could not lock the folder'), locked(tmp_path):
        pass
