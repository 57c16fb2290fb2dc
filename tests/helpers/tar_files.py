"""Tar shards of images, in WebDataset's format."""

import io
import json
import tarfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tests.helpers.images import encode, noise_image


def write_tar(path: Path, members: Iterable[tuple[str, bytes]], *, format: int = tarfile.PAX_FORMAT) -> Path:
    """Write a tar archive of (name, bytes)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, 'w', format=format) as archive:
        for name, data in members:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path


def image_members(labels: Iterable[Any], *, first: int = 0, key: str = '{:04}') -> list[tuple[str, bytes]]:
    """Return the members KEY.png and KEY.cls of an image for each label; KEY.json instead if a label is a dict.

    Images are numbered from `first`; image i is noise with seed i.
    """
    members: list[tuple[str, bytes]] = []
    for number, label in enumerate(labels, first):
        name = key.format(number)
        members.append((f'{name}.png', encode(noise_image(5, 4, seed=number))))
        if isinstance(label, dict):
            members.append((f'{name}.json', json.dumps(label).encode()))
        elif label is not None:
            members.append((f'{name}.cls', str(label).encode()))
    return members
