"""Checkpoints in several files: the index, as transformers and accelerate write it, and the files that it names."""

import json
import re
from pathlib import Path

from tresnet_jax.checkpoints.records import printable
from tresnet_jax.errors import ConversionError, reason

INDEX = '.index.json'
SHARD = re.compile(r'(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})(?P<suffix>\.(safetensors|bin))')
# What a folder can hold, in order of preference.
FOLDER_FILES = (
    'model.safetensors',
    f'model.safetensors{INDEX}',
    'pytorch_model.bin',
    f'pytorch_model.bin{INDEX}',
    'mp_rank_00_model_states.pt',  # DeepSpeed's
)
LARGEST_INDEX = 64 * 2**20  # bytes; that of ResNet-200-D has 100 kB


def file_of_folder(folder: Path) -> Path | None:
    """Return the file, or the index of files, that holds the weights in a folder; None if there is none.

    Raises:
        ConversionError: the folder has several indices, none of a usual name.
    """
    for name in FOLDER_FILES:
        if (folder / name).is_file():
            return folder / name
    indices = sorted(folder.glob(f'*{INDEX}'))
    if len(indices) > 1:
        raise ConversionError(f'{folder}: has several indices; give one of {", ".join(path.name for path in indices)}')
    return indices[0] if indices else None


def check_not_a_shard(path: Path) -> None:
    """Raise ConversionError if a file is one of several that belong together."""
    match = SHARD.fullmatch(path.name)
    if match and int(match['count']) > 1:
        index = f'{match["stem"]}{match["suffix"]}{INDEX}'
        raise ConversionError(
            f'{path}: is one of {int(match["count"])} files of a checkpoint; give the index, {index}, or the folder'
        )


def read_index(path: Path) -> dict[Path, list[str]]:
    """Return file -> names of its tensors, from an index.

    Raises:
        ConversionError: the index is damaged, or names a file that is missing or not in its folder.
    """
    try:
        if path.stat().st_size > LARGEST_INDEX:
            raise ConversionError(f'{path}: too large for the index of a checkpoint')
        document = json.loads(path.read_text(encoding='utf-8'))
    except (OSError, ValueError, RecursionError) as error:
        if isinstance(error, ConversionError):
            raise
        raise ConversionError(f'{path}: cannot be read as JSON: {reason(error)}') from error
    names = document.get('weight_map') if isinstance(document, dict) else None
    if not isinstance(names, dict) or not names or not all(isinstance(file, str) for file in names.values()):
        raise ConversionError(f'{path}: not the index of a checkpoint: expected an object weight_map of file names')
    files: dict[Path, list[str]] = {}
    for key, name in names.items():
        if not re.fullmatch(r'[\w][\w .+=@-]*', name) or name.endswith(INDEX):
            raise ConversionError(f'{path}: names {printable(name, 60)!r}; expected the name of a file in its folder')
        files.setdefault(path.parent / name, []).append(key)
    for file in files:
        if not file.is_file():
            raise ConversionError(f'{path}: needs {file.name} beside it, which is missing; fetch it too')
    return files
