"""One run in a folder at a time: a lock that the system releases when its process ends, however it ends."""

import contextlib
import datetime
import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import filelock
import jax
import numpy as np
from jax.experimental import multihost_utils

from tresnet_jax.errors import TrainingError, reason
from tresnet_jax.files import save_text

LOCK_FILE = '.lock'
OWNER_FILE = '.lock_owner.json'  # beside the lock: opening a locked file may empty it


@contextlib.contextmanager
def locked(workdir: Path) -> Iterator[str | None]:
    """Hold the lock of the folder of a run. Every process of the run calls this; the first one holds it.

    ``flock`` holds the lock, so a lock left by a process that was killed, or by a host that was rebooted, does not
    count. A process on another host is detected if the file system shares locks between hosts, as NFS does by default.

    Yields:
        A line about the process that left the lock without releasing it; None if there was none.

    Raises:
        TrainingError: another process trains in the folder, or the folder cannot be written.
    """
    with contextlib.ExitStack() as stack:
        problem: TrainingError | None = None
        if jax.process_index() == 0:
            try:
                left = stack.enter_context(_held(workdir))
            except TrainingError as error:
                problem, left = error, None
        else:
            left = None
        if jax.process_count() > 1:  # the others must not wait for a first process that has given up
            held = multihost_utils.broadcast_one_to_all(np.int32(problem is None))
            if problem is None and not held:
                problem = TrainingError(f'{workdir}: the first process could not lock the folder; see its output')
        if problem is not None:
            raise problem
        yield left


@contextlib.contextmanager
def _held(workdir: Path) -> Iterator[str | None]:
    """Hold the lock, and describe this process in a file beside it."""
    owner = workdir / OWNER_FILE
    lock = filelock.FileLock(workdir / LOCK_FILE)
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        raise TrainingError(
            f'{workdir}: {_describe(owner) or "another process"} is training in this folder; wait until it ends '
            'or stop it, or give another --workdir'
        ) from None
    except (OSError, NotImplementedError) as error:
        raise TrainingError(f'{workdir}: the folder cannot be locked: {reason(error)}') from error
    try:
        left = _describe(owner)
        started = datetime.datetime.now().astimezone().isoformat(' ', 'seconds')
        save_text(owner, json.dumps({'host': socket.gethostname(), 'pid': os.getpid(), 'since': started}) + '\n')
        yield left and f'{left} left {workdir} without closing it; this process takes over'
    finally:
        with contextlib.suppress(OSError):
            owner.unlink(missing_ok=True)
        lock.release()


def _describe(owner: Path) -> str | None:
    """Return the process that holds or held the lock, as text; None if it is not known."""
    try:
        found = json.loads(owner.read_text(encoding='utf-8'))
        return f'process {int(found["pid"])} on {found["host"]} (since {found["since"]})'
    except (OSError, ValueError, KeyError, TypeError):
        return None
