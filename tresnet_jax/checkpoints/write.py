"""Write trees or tensors as a file, first under a temporary name, then renamed: a file is complete or absent."""

import json
from pathlib import Path
from typing import Literal

import flax
import jax
import ml_dtypes
import numpy as np
import safetensors.numpy

from tresnet_jax.checkpoints.checkpoint import COUNTER
from tresnet_jax.checkpoints.names import flatten
from tresnet_jax.checkpoints.report import Report
from tresnet_jax.errors import ConversionError, reason, shown
from tresnet_jax.files import check_place, written_beside
from tresnet_jax.formats import CHECKPOINT
from tresnet_jax.models.base import Tree
from tresnet_jax.version import __version__

TORCH_SUFFIXES = ('.safetensors', '.pth', '.pt', '.bin')


def check_target(path: Path, to: Literal['flax', 'torch']) -> None:
    """Check what can be checked before the work of a conversion: the place and the suffix of the file to write.

    Raises:
        ConversionError: the path is a folder, or in a folder that does not exist; or the layout has other suffixes.
    """
    check_place(path)
    if to == 'flax' and path.suffix != '.safetensors':
        better = path.parent / f'{path.stem}.safetensors'
        raise ConversionError(f'{path}: a Flax file is a .safetensors file; name it {better}')
    if path.suffix not in TORCH_SUFFIXES:
        raise ConversionError(f'{path}: unknown suffix; use one of {", ".join(TORCH_SUFFIXES)}')


def save_safetensors(path: Path, tensors: dict[str, np.ndarray], metadata: dict[str, str] | None = None) -> None:
    """Write arrays as one safetensors file.

    Raises:
        ConversionError: the file cannot be written.
    """
    # safetensors writes memory as it is laid out, so a transposed view would be written in the wrong order.
    tensors = {key: np.asarray(value, order='C') for key, value in tensors.items()}
    with written_beside(path) as beside:
        safetensors.numpy.save_file(tensors, beside, metadata)


def save_flax(path: str | Path, params: Tree, batch_stats: Tree, report: Report, source_sha256: str = '') -> None:
    """Write trees as one flat safetensors file, with keys such as ``params.layer1.0.conv1.kernel``, and metadata.

    Args:
        path: the .safetensors file.
        params, batch_stats, report: the results of `to_flax`; the report becomes the metadata.
        source_sha256: digest of the source in hexadecimal, for the metadata.

    Raises:
        ConversionError: the suffix is not .safetensors, or the file cannot be written.

    Example:
        >>> import tempfile, convert
        >>> from tresnet_jax.factory import embedded_path
        >>> from tresnet_jax.variants import PRETRAINED
        >>> checkpoint = convert.read(embedded_path(PRETRAINED['test_tresnet.fashion_mnist']))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     convert.save_flax(f'{folder}/flax.safetensors', *convert.to_flax(checkpoint))
        ...     again = convert.read(f'{folder}/flax.safetensors')
        >>> again.metadata['architecture'], again.tensors['params.head.fc.kernel'].shape
        ('test_tresnet', (512, 10))
    """
    path = Path(path)
    check_target(path, 'flax')
    tensors = {f'params.{key}': np.asarray(value) for key, value in flatten(params).items()}
    tensors |= {f'batch_stats.{key}': np.asarray(value) for key, value in flatten(batch_stats).items()}
    versions = {'tresnet_jax': __version__} | {package.__name__: package.__version__ for package in (flax, jax, np)}
    metadata = {
        **{key: str(value) for key, value in CHECKPOINT.fields().items()},
        'architecture': report.architecture,
        'tag': report.tag or '',
        'num_classes': str(report.num_classes),
        **{key: str(value) for key, value in report.head_options.items()},
        'in_chans': str(report.in_chans),
        'global_pool': report.global_pool or '',
        'output_stride': '' if report.output_stride is None else str(report.output_stride),
        'abn_slope': '' if report.abn_slope is None else repr(report.abn_slope),
        'data_config': json.dumps(report.data_config or {}),
        'label_names': json.dumps(report.label_names or ()),
        'task': report.task,
        'source': shown(report.path.name),  # safetensors takes UTF-8 only
        'source_sha256': source_sha256,
        'source_dtypes': json.dumps(report.source_dtypes),
        COUNTER: json.dumps(report.counters),
        'versions': json.dumps(versions),
    }
    save_safetensors(path, tensors, metadata)


def save_torch(path: str | Path, tensors: dict[str, np.ndarray]) -> None:
    """Write timm's tensors as `.safetensors`, or as `.pth`, `.pt` or `.bin` for ``torch.load``, which needs torch.

    Raises:
        ConversionError: the suffix is unknown, torch is not installed, or the file cannot be written.

    Example:
        >>> import tempfile, convert, tresnet_jax
        >>> model = tresnet_jax.create_model('test_resnet.fashion_mnist', pretrained=True)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     convert.save_torch(f'{folder}/timm.safetensors', convert.to_torch(model))
        ...     again = convert.read(f'{folder}/timm.safetensors')
        >>> again.tensors['fc.bias'].shape
        (10,)
    """
    path = Path(path)
    check_target(path, 'torch')
    if path.suffix == '.safetensors':
        return save_safetensors(path, tensors, {'format': 'pt'})
    try:
        import torch
    except ImportError:
        raise ConversionError(
            f'{path}: writing a torch file needs torch: pip install torch (or name a .safetensors file)'
        ) from None

    def tensor(value: np.ndarray) -> torch.Tensor:
        if value.dtype == ml_dtypes.bfloat16:  # torch does not know ml_dtypes, but the bits are the same
            return torch.from_numpy(value.view(np.int16)).view(torch.bfloat16)
        return torch.from_numpy(value)

    state = {key: tensor(np.require(value, requirements=['C', 'W'])) for key, value in tensors.items()}
    with written_beside(path) as beside:
        try:
            torch.save(state, beside)
        except RuntimeError as error:  # torch's error for a full disk
            raise OSError(reason(error)) from error
