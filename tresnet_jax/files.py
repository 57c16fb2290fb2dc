"""Write files completely or not at all, read JSON from untrusted sources, and compute digests."""

import contextlib
import hashlib
import json
import os
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import safetensors

from tresnet_jax.errors import ConversionError, reason, shown

# Bytes. The index of a ResNet-200-D has 100 kB, the names of 21,000 classes 500 kB. Parsed, JSON takes up to 30 times
# its size.
LARGEST_JSON = 8 * 2**20


@contextlib.contextmanager
def written_beside(path: Path) -> Iterator[Path]:
    """Yield a temporary path next to `path`; rename it to `path` at the end, or delete it if anything fails.

    The file gets the permissions that ``open`` would give it.

    Raises:
        ConversionError: the folder is missing or cannot be written, or the disk is full. Other errors in the block pass
            unchanged.
    """
    check_place(path)
    beside = path.with_name(f'.{path.name}.{uuid.uuid4().hex}.part')  # unique among processes and threads
    try:
        beside.touch()
        mode = beside.stat().st_mode  # safetensors creates files that only their owner can read
        yield beside
        beside.chmod(mode)
        with beside.open('rb') as file:
            os.fsync(file.fileno())
        beside.replace(path)
    except (OSError, safetensors.SafetensorError) as error:
        raise ConversionError(f'{path}: cannot be written: {reason(error)}') from error
    finally:
        with contextlib.suppress(OSError):
            beside.unlink(missing_ok=True)


def check_place(path: Path) -> None:
    """Raise ConversionError if the target of a file is a folder, or in a folder that does not exist."""
    if not path.parent.is_dir():
        raise ConversionError(f'{path}: the folder {path.parent} does not exist; make it first')
    if os.path.isdir(path):  # False for a name that is too long, where `is_dir` raises OSError
        raise ConversionError(f'{path}: is a folder; give a file name')


def check_regular(path: Path, error: type[ValueError] = ConversionError) -> None:
    """Raise an error if a path is a pipe or a device, which may never end and cannot be read twice."""
    if os.path.exists(path) and not os.path.isfile(path) and not os.path.isdir(path):
        raise error(f'{shown(path)}: a pipe or a device, not a regular file; write its content to a file first')


def save_text(path: Path, text: str) -> None:
    """Write a text file in UTF-8.

    Raises:
        ConversionError: the file cannot be written.
    """
    with written_beside(path) as beside:
        beside.write_text(text, encoding='utf-8')


def read_json(path: Path, error: type[ValueError] = ConversionError, remedy: str = '') -> Any:
    """Return the content of a JSON file in UTF-8.

    Args:
        path: the file.
        error: the class of the error.
        remedy: end of the message, which says what to do if the file cannot be read.

    Raises:
        error: the file is missing, is not a regular file, is too large, or is not JSON.
    """
    remedy = remedy and f'; {remedy}'
    try:
        if path.exists() and not path.is_file():  # reading a device may never end
            raise error(f'{shown(path)}: not a regular file; expected JSON{remedy}')
        with path.open('rb') as file:
            content = file.read(LARGEST_JSON + 1)
        if len(content) > LARGEST_JSON:
            raise error(f'{shown(path)}: too large; expected at most {LARGEST_JSON // 2**20} MiB of JSON{remedy}')
    except OSError as cause:
        raise error(f'{shown(path)}: cannot be read as JSON: {reason(cause)}{remedy}') from cause
    try:
        return json.loads(content.decode('utf-8'))
    except (ValueError, RecursionError) as cause:
        raise error(f'{shown(path)}: cannot be read as JSON: {reason(cause)}{remedy}') from cause


def sha256(path: str | Path) -> str:
    """Return the SHA-256 of a file in hexadecimal, or '' for the folder of a run."""
    if Path(path).is_dir():
        return ''
    with Path(path).open('rb') as file:
        return hashlib.file_digest(file, 'sha256').hexdigest()
