"""Read a file or a training run as raw tensors, with their stored names and dtypes. No code in a file is ever run."""

import argparse
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import ml_dtypes  # noqa: F401  teaches NumPy the name 'bfloat16', which safetensors needs
import numpy as np
import safetensors

from tresnet_jax.checkpoints.checkpoint import Checkpoint
from tresnet_jax.checkpoints.run import CHECKPOINTS, read_run
from tresnet_jax.errors import ConversionError, reason

# In timm's order (timm/models/_helpers.py): averaged weights first.
EMA_KEYS = ('state_dict_ema', 'model_ema')
STATE_KEYS = ('state_dict', 'model')
TRAINING_KEYS = ('epoch', 'metric', 'arch')
SUFFIXES = ('.safetensors', '.pth', '.pt', '.bin', '.tar', '.ckpt')


def read(path: str | Path, *, ema: bool = True, step: int | Literal['best', 'latest'] | None = None) -> Checkpoint:
    """Read a `.safetensors` file, a torch file (needs torch) or the folder of a training run (needs Orbax).

    Args:
        path: the file or folder.
        ema: take the averaged weights of a training checkpoint if it has them, as timm does.
        step: the checkpoint of a run: a step, 'latest', or 'best' for the best top-1. None: 'best'.

    Raises:
        ConversionError: the file is missing, empty, truncated or corrupt, would run code, or holds no state dict;
            torch or Orbax is needed and not installed; the folder is not a run, or the run has no such checkpoint.

    Example:
        >>> import convert
        >>> from tresnet_jax.factory import embedded_path
        >>> from tresnet_jax.variants import PRETRAINED
        >>> checkpoint = convert.read(embedded_path(PRETRAINED['test_resnet.fashion_mnist']))
        >>> checkpoint.container, len(checkpoint.tensors)
        ('safetensors', 92)
        >>> checkpoint.tensors['fc.weight'].dtype, checkpoint.tensors['fc.weight'].shape
        (dtype('float16'), (10, 96))
    """
    path = Path(path)
    if not path.exists():
        raise ConversionError(f'{path}: no such file')
    if (path / CHECKPOINTS).is_dir():
        return read_run(path, ema=ema, step='best' if step is None else step)
    if not path.is_file():
        raise ConversionError(
            f'{path}: not a file; give the checkpoint itself, or the folder of a training run that has saved one '
            f'(it has no {CHECKPOINTS}/)'
        )
    if step is not None:
        raise ConversionError(f'{path}: --step (step) is for the folder of a training run, and this is a file')
    if path.stat().st_size == 0:
        raise ConversionError(f'{path}: the file is empty; fetch it again')
    with path.open('rb') as file:
        head = file.read(9)
    if path.suffix == '.safetensors' or head[8:9] == b'{':
        return _read_safetensors(path)
    if zipfile.is_zipfile(path) or head[:1] == b'\x80':  # torch's zip format, or a pickle: its older one
        return _read_torch(path, ema)
    raise ConversionError(
        f'{path}: neither a safetensors file nor one that torch.save wrote (an incomplete download or another kind of '
        f'file?); known suffixes are {", ".join(SUFFIXES)}'
    )


def _read_safetensors(path: Path) -> Checkpoint:
    try:
        with safetensors.safe_open(path, framework='np') as file:
            return Checkpoint(path, 'safetensors', file.get_tensors(), dict(file.metadata() or {}))
    except (safetensors.SafetensorError, TypeError, OSError) as error:
        raise ConversionError(f'{path}: cannot be read as safetensors: {reason(error)}; fetch it again') from error


def _read_torch(path: Path, ema: bool) -> Checkpoint:
    try:
        import torch
    except ImportError:
        raise ConversionError(
            f'{path}: reading a torch file needs torch: pip install torch (or use the .safetensors file)'
        ) from None
    try:
        # timm's training script stores its command line, a Namespace: allow this class and no other.
        with torch.serialization.safe_globals([argparse.Namespace]):
            loaded = torch.load(path, map_location='cpu', weights_only=True)
    except Exception as error:  # torch raises many kinds: UnpicklingError, RuntimeError, EOFError, KeyError, ...
        lines = str(error).strip().splitlines() or [type(error).__name__]  # the others are torch's advice
        raise ConversionError(f'{path}: torch cannot load it as plain weights: {lines[0]}') from error
    if not isinstance(loaded, Mapping):
        raise ConversionError(f'{path}: holds a {type(loaded).__name__}, not a state dict of tensors')
    wrapper = next((key for key in (*(EMA_KEYS if ema else ()), *STATE_KEYS) if _is_state_dict(loaded.get(key))), None)
    state = loaded if wrapper is None else loaded[wrapper]
    if not _is_state_dict(state):
        found = ', '.join(map(str, list(loaded)[:5])) or 'nothing'
        raise ConversionError(f'{path}: loads, but holds no state dict of tensors (it has {found})')
    return Checkpoint(
        path,
        'torch',
        {key: to_numpy(value) for key, value in state.items()},
        {},
        wrapper,
        any(_is_state_dict(loaded.get(key)) for key in EMA_KEYS),
        {key: loaded[key] for key in TRAINING_KEYS if isinstance(loaded.get(key), str | int | float)},
    )


def _is_state_dict(value: Any) -> bool:
    import torch

    return (
        isinstance(value, Mapping)
        and bool(value)
        and all(isinstance(k, str) and isinstance(v, torch.Tensor) for k, v in value.items())
    )


def to_numpy(tensor: Any) -> np.ndarray:
    """Return a torch tensor as an array of the same dtype, bfloat16 included; shares memory if possible."""
    import torch

    tensor = tensor.detach().contiguous()
    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    return tensor.numpy()
