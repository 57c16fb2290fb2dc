"""Write files completely or not at all, and compute digests."""

import contextlib
import hashlib
import os
import uuid
from collections.abc import Iterator
from pathlib import Path

import safetensors

from tresnet_jax.errors import ConversionError, reason


@contextlib.contextmanager
def written_beside(path: Path) -> Iterator[Path]:
    """Yield a temporary path next to `path`; rename it to `path` at the end, or delete it if anything fails.

    The file gets the permissions that ``open`` would give it.

    Raises:
        ConversionError: the folder is missing or cannot be written, or the disk is full. Other errors in the block pass
            unchanged.
    """
    if not path.parent.is_dir():
        raise ConversionError(f'{path}: the folder {path.parent} does not exist; make it first')
    if path.is_dir():
        raise ConversionError(f'{path}: is a folder; give a file name')
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


def save_text(path: Path, text: str) -> None:
    """Write a text file in UTF-8.

    Raises:
        ConversionError: the file cannot be written.
    """
    with written_beside(path) as beside:
        beside.write_text(text, encoding='utf-8')


def sha256(path: str | Path) -> str:
    """Return the SHA-256 of a file in hexadecimal, or '' for the folder of a run."""
    if Path(path).is_dir():
        return ''
    with Path(path).open('rb') as file:
        return hashlib.file_digest(file, 'sha256').hexdigest()
