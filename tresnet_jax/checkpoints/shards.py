"""Checkpoints in several files: the index, as transformers and accelerate write it, and the files that it names."""

import os
import re
from pathlib import Path

from tresnet_jax.checkpoints.records import printable
from tresnet_jax.errors import ConversionError
from tresnet_jax.files import read_json

INDEX = '.index.json'
INDEX_NAME = re.compile(
    r'.+\.index(\.[\w-]+)?\.json'
)  # transformers writes a variant as 'model.safetensors.index.fp16.json'
VARIANT = re.compile(r'(pytorch_)?model\.[\w-]+\.(safetensors|bin)')
MODEL_NUMBER = re.compile(r'(pytorch_)?model_\d+\.(safetensors|bin)')  # accelerate's second model, and so on
SHARD = re.compile(r'(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})(?P<suffix>\.(safetensors|bin))')
MOST_FILES = 1000  # of one index; each is downloaded
# What a repository of the hub can hold, in order of preference.
REPOSITORY_FILES = (
    'model.safetensors',
    f'model.safetensors{INDEX}',
    'pytorch_model.bin',
    f'pytorch_model.bin{INDEX}',
)
# In a folder also timm's other usual names, and DeepSpeed's.
FOLDER_FILES = (*REPOSITORY_FILES, 'pytorch_model.pth', 'model.pth', 'mp_rank_00_model_states.pt')
SUFFIXES = ('.safetensors', '.pth', '.pt', '.bin', '.ckpt', '.tar', '.pkl', '.npz', '.pdparams')


def file_of_folder(folder: Path) -> Path | None:
    """Return the file, or the index of files, that holds the weights in a folder; None if there is none.

    Raises:
        ConversionError: the folder has several indices or variants, none of a usual name; or several models.
    """
    usual = next((folder / name for name in FOLDER_FILES if (folder / name).is_file()), None)
    if usual is not None:
        others = sorted(name for name in checkpoint_files(folder) if MODEL_NUMBER.fullmatch(name))
        if others:
            raise ConversionError(f'{folder}: has several models; give one of {", ".join([usual.name, *others])}')
        return usual
    found = sorted(path for path in folder.iterdir() if is_index(path) or _is_variant(path))
    if len(found) > 1:
        names = ', '.join(path.name for path in found)
        raise ConversionError(f'{folder}: has several checkpoints; give one of {names}')
    return found[0] if found else None


def checkpoint_files(folder: Path) -> list[str]:
    """Return the names of files in a folder that can be checkpoints, by their suffixes; none if there is no folder."""
    if not folder.is_dir():
        return []
    return sorted(path.name for path in folder.iterdir() if path.suffix in SUFFIXES and path.is_file())


def _is_variant(path: Path) -> bool:
    return VARIANT.fullmatch(path.name) is not None and not SHARD.fullmatch(path.name)


def is_index(path: Path) -> bool:
    """Return whether a file has the name of an index."""
    return INDEX_NAME.fullmatch(path.name) is not None


def check_not_a_shard(path: Path) -> None:
    """Raise ConversionError if a file is one of several that belong together."""
    match = SHARD.fullmatch(path.name)
    if match and int(match['count']) > 1:
        found = [other.name for other in path.parent.iterdir() if is_index(other)]
        index = found[0] if len(found) == 1 else f'{match["stem"]}{match["suffix"]}{INDEX}'
        raise ConversionError(
            f'{path}: is one of {int(match["count"])} files of a checkpoint; give the index, {index}, or the folder'
        )


def read_index(path: Path) -> dict[Path, list[str]]:
    """Return file -> names of its tensors, from an index and the files beside it.

    Raises:
        ConversionError: the index is damaged, or names a file that is missing or not in its folder.
    """
    files = {path.parent / name: keys for name, keys in parse_index(path).items()}
    for file in files:
        if not os.path.isfile(file):  # False for a name that is too long, where `is_file` raises OSError
            raise ConversionError(f'{path}: needs {file.name} beside it, which is missing; fetch it too')
    return files


def parse_index(path: Path) -> dict[str, list[str]]:
    """Return name of a file -> names of its tensors, from an index alone.

    Raises:
        ConversionError: the index is damaged, or names a file that would not be in its folder.
    """
    document = read_json(path)
    names = document.get('weight_map') if isinstance(document, dict) else None
    if not isinstance(names, dict) or not names or not all(isinstance(file, str) for file in names.values()):
        raise ConversionError(f'{path}: not the index of a checkpoint: expected an object weight_map of file names')
    if len(set(names.values())) > MOST_FILES:
        raise ConversionError(f'{path}: names more than {MOST_FILES} files')
    files: dict[str, list[str]] = {}
    for key, name in names.items():
        if not re.fullmatch(r'\w[\w .+=@-]{0,199}', name) or INDEX_NAME.fullmatch(name):
            raise ConversionError(f'{path}: names {printable(name, 60)!r}; expected the name of a file in its folder')
        files.setdefault(name, []).append(key)
    return files
