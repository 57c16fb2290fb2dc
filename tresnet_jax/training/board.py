"""Scalars for TensorBoard, written in the thread that logs them.

The writer of tensorboardX has a thread and a queue. If the disk is full, the thread ends, and the run waits forever for
room in the queue.
"""

import socket
import struct
import time
from pathlib import Path
from typing import Any

from tresnet_jax.data.tfrecord import masked_crc32c


class Board:
    """An event file of TensorBoard: TFRecords of tensorboardX's protocol buffers.

    Args:
        folder: the folder of the event files; it is created.
        start: the step that the run resumes from; TensorBoard hides events of later steps in older files.

    Raises:
        OSError: the file cannot be written; also by `add`.
        ModuleNotFoundError: tensorboardX is not installed.
    """

    def __init__(self, folder: Path, start: int):
        from tensorboardX.proto import event_pb2
        from tensorboardX.summary import scalar

        self._proto: Any = event_pb2  # its classes are made at run time
        self._scalar = scalar
        folder.mkdir(exist_ok=True)
        self._file = (folder / f'events.out.tfevents.{time.time():.0f}.{socket.gethostname()}').open('ab')
        self._write(file_version='brain.Event:2')
        self._write(step=start + 1, session_log=self._proto.SessionLog(status=self._proto.SessionLog.START))
        self._file.flush()

    def add(self, step: int, values: dict[str, float]) -> None:
        """Write values by name."""
        for name, value in values.items():
            self._write(step=step, summary=self._scalar(name, value))
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _write(self, **fields: Any) -> None:
        content = self._proto.Event(wall_time=time.time(), **fields).SerializeToString()
        for part in (struct.pack('<Q', len(content)), content):
            self._file.write(part + struct.pack('<I', masked_crc32c(part)))
