"""Export of a model to one file with its weights and metadata: a StableHLO program, which needs only JAX, or ONNX.

`onnx_export` writes ONNX. A StableHLO file is what ``jax.export`` serialises, a newline, and one line of JSON.
``jax.export.deserialize`` ignores everything after the program, so both parts can be read without this package::

    import json, jax.export
    exported = jax.export.deserialize(bytearray(open(path, 'rb').read()))
    logits = exported.call(images)
    metadata = json.loads(open(path, 'rb').read().rpartition(b'\\n')[2])
"""

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.export
import jax.numpy as jnp

from tresnet_jax.data.transforms import height_width, resolve_data_config
from tresnet_jax.errors import missing_extra, reason
from tresnet_jax.files import LARGEST_JSON, check_regular, written_beside
from tresnet_jax.folding import fold_batchnorm
from tresnet_jax.formats import EXPORTED
from tresnet_jax.labels import class_names
from tresnet_jax.models.base import ImageModel
from tresnet_jax.models.functional import functional
from tresnet_jax.models.layers import param_dtype
from tresnet_jax.models.winograd import TRANSFORMED_KERNEL
from tresnet_jax.profiling import input_size

PLATFORMS = ('cpu', 'cuda', 'rocm', 'tpu')
DEFAULT_PLATFORMS = ('cpu', 'cuda', 'tpu')
ONNX_SUFFIX = '.onnx'
CHECKSUM = 'program_sha256'  # the field of the metadata with the digest of what `jax.export` serialised


def _metadata(model: ImageModel, height: int, width: int) -> dict[str, Any]:
    row = model.pretrained_cfg
    return {
        **EXPORTED.fields(),
        'architecture': model.architecture,
        'tag': row and row.tag,
        'dtype': model.dtype.name,
        'num_classes': model.num_classes,
        'class_names': class_names(model),
        'out_indices': model.out_indices,
        'data_config': {**resolve_data_config(model), 'input_size': (model.in_chans, height, width)},
    }


def _json(value: Any) -> str:
    """Return JSON that can be encoded in UTF-8; class names may hold surrogates, which JSON escapes as Python does."""
    return json.dumps(value, ensure_ascii=False).encode('utf-8', 'backslashreplace').decode()


def _is_onnx(path: str | Path) -> bool:
    return Path(path).suffix.lower() == ONNX_SUFFIX


def export(
    model: ImageModel,
    path: str | Path,
    *,
    image_size: int | tuple[int, int] | None = None,
    platforms: Sequence[str] | None = None,
    batch: int | None = None,
) -> None:
    """Write a model to one file, which computes what the model computes in evaluation mode.

    The suffix of `path` selects the format: ONNX for '.onnx', StableHLO for any other. Batch norm is folded into the
    convolutions. The output is what the model returns: logits, pooled features without classes, or the list of a
    backbone's feature maps.

    A StableHLO file runs with `load_exported` or with JAX alone. It takes float32 images (float64 for a float64 model)
    and returns the model's dtype. Weights have the compute dtype: the file of a float16 or bfloat16 model has half the
    size. JAX releases read such a file for at least six months. The program cannot be differentiated.

    An ONNX file has opset 17 and is for a float32 model. Images and feature maps are (B, C, H, W). The input is named
    'images'; the output is 'logits', or 'features' without classes. A backbone's outputs have the names in its
    `feature_info`. The `metadata_props` hold the metadata of `load_exported`, each value as JSON.

    Args:
        model: a model of `create_model` or `fold_batchnorm`; it is not changed.
        path: the file to write; it appears only when it is complete.
        image_size: height and width of the images in pixels, or one number for both. None: the input size of the
            model's tag for StableHLO, any size that the model takes for ONNX.
        platforms: StableHLO only: platforms to run on, out of 'cpu', 'cuda', 'rocm' and 'tpu'; this machine need not
            have them. None: 'cpu', 'cuda' and 'tpu'.
        batch: images per call. None: any number.

    Raises:
        ValueError: an unknown platform, an unsupported image size, or a model that cannot be written as ONNX.
        MissingExtraError: (a ValueError) ONNX is not installed.
        convert.ConversionError: (a ValueError) the file cannot be written.

    Example:
        >>> import tempfile, tresnet_jax
        >>> model = tresnet_jax.create_model('test_resnet.fashion_mnist', pretrained=True)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     tresnet_jax.export(model, f'{folder}/model.stablehlo', platforms=['cpu'])
        ...     loaded = tresnet_jax.load_exported(f'{folder}/model.stablehlo')
        >>> loaded.metadata['class_names'][:3]
        ['T-shirt/top', 'Trouser', 'Pullover']
    """
    height, width = input_size(model) if image_size is None else height_width(image_size, 'image_size')
    if batch is not None and batch < 1:
        raise ValueError(f'batch must be positive, or None for any, got {batch}')
    metadata = _metadata(model, height, width)
    if _is_onnx(path):
        if platforms is not None:
            raise ValueError(f'{path}: platforms is for StableHLO; an ONNX file runs on any platform, so leave it out')
        content = _onnx(model, metadata, None if image_size is None else (height, width), batch)
    else:
        content = _stablehlo(
            model, metadata, (height, width), DEFAULT_PLATFORMS if platforms is None else platforms, batch
        )
    with written_beside(Path(path)) as temporary:
        temporary.write_bytes(content)


def _onnx(model: ImageModel, metadata: dict[str, Any], image_size: tuple[int, int] | None, batch: int | None) -> bytes:
    try:
        from tresnet_jax.onnx_export import onnx_model
    except ModuleNotFoundError as error:
        raise missing_extra(error) or error from None
    properties = {key: _json(value) for key, value in metadata.items()}
    folded = fold_batchnorm(model)
    return onnx_model(folded, batch=batch, image_size=image_size, metadata=properties).SerializeToString()


def _stablehlo(
    model: ImageModel,
    metadata: dict[str, Any],
    image_size: tuple[int, int],
    platforms: Sequence[str],
    batch: int | None,
) -> bytes:
    if not platforms or not set(platforms) <= set(PLATFORMS):
        raise ValueError(f'platforms must be some of {", ".join(PLATFORMS)}, got {platforms!r}')
    apply, params, batch_stats = functional(fold_batchnorm(model))
    # Otherwise the convolutions would cast them at each call. Winograd's method needs its kernels in float32.
    params = jax.tree.map_with_path(
        lambda path, leaf: leaf if path[-1].key == TRANSFORMED_KERNEL else leaf.astype(model.dtype), params
    )
    batch_shape = jax.export.symbolic_shape('batch') if batch is None else (batch,)
    exported = jax.export.export(jax.jit(lambda x: apply(params, batch_stats, x)), platforms=tuple(platforms))(
        jax.ShapeDtypeStruct((*batch_shape, *image_size, model.in_chans), param_dtype(model.dtype))
    )
    program = bytes(exported.serialize())
    checksum = {CHECKSUM: hashlib.sha256(program).hexdigest()}
    return program + f'\n{_json(metadata | checksum)}'.encode()


class ExportedModel:
    """A model read by `load_exported`: call it with images.

    Attributes:
        metadata: `architecture`, `tag`, `dtype`, `num_classes`, `class_names` (None if unknown), `out_indices` (None
            except for a backbone), and `data_config`, the arguments of `create_transform`.
        exported: the ``jax.export.Exported``.
    """

    def __init__(self, exported: Any, metadata: dict[str, Any]):
        self.exported = exported
        self.metadata = metadata
        self._call = jax.jit(exported.call)

    def __call__(self, images: Any) -> Any:
        """Return the model's output for normalised images, (B, H, W, C), of a floating dtype.

        Raises:
            ValueError: images of another shape, integer images, or a platform that the model was not exported for.
        """
        expected = self.exported.in_avals[0]
        images = jnp.asarray(images)
        batch, *image = expected.shape
        fits = images.ndim == 4 and list(images.shape[1:]) == image and images.shape[0] > 0
        if isinstance(batch, int):
            fits = fits and images.shape[0] == batch
        if not fits or not jnp.issubdtype(images.dtype, jnp.floating):
            shape = ', '.join(map(str, expected.shape))
            got = f'{images.shape} and dtype {images.dtype}'
            raise ValueError(f'expected normalised images of shape ({shape}) and a floating dtype, got {got}')
        return self._call(images.astype(expected.dtype))


def load_exported(path: str | Path) -> ExportedModel:
    """Read a file of `export`: ``logits = load_exported(path)(images)``.

    The file is a program. Load only files from people whose programs you would run.

    Args:
        path: the file.

    Raises:
        ValueError: not a file of `export`, a damaged one, one from a newer release or from a JAX version that this one
            cannot read, or a float64 model without ``jax_enable_x64``.
        OSError: the file does not exist or cannot be read.

    Example:
        >>> import jax.numpy as jnp, tempfile, tresnet_jax
        >>> model = tresnet_jax.create_model('test_resnet', num_classes=5)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     tresnet_jax.export(model, f'{folder}/model.stablehlo', image_size=32, platforms=['cpu'])
        ...     loaded = tresnet_jax.load_exported(f'{folder}/model.stablehlo')
        >>> loaded(jnp.zeros((2, 32, 32, 3))).shape
        (2, 5)
    """
    check_regular(Path(path), ValueError)
    with Path(path).open('rb') as file:
        data = bytearray(os.fstat(file.fileno()).st_size)
        file.readinto(data)
    if _is_onnx(path):
        raise ValueError(f'{path}: an ONNX file: run it with onnxruntime.InferenceSession')
    try:
        line = memoryview(data)[data.rfind(b'\n') + 1 :]
        if len(line) > LARGEST_JSON:
            raise ValueError
        metadata = json.loads(bytes(line))
        if metadata['format'] != EXPORTED.name:
            raise ValueError
    except (ValueError, TypeError, KeyError, RecursionError):
        raise ValueError(f'{path}: not a file of tresnet_jax.export, or cut short') from None
    EXPORTED.check(path, metadata)
    # Files of 0.1.0's development have no checksum. JAX would compile a damaged program, or end the process.
    digest = hashlib.sha256(memoryview(data)[: data.rfind(b'\n')]).hexdigest()
    if metadata.pop(CHECKSUM, digest) != digest:
        raise ValueError(f'{path}: its program is damaged; fetch the file again')
    try:
        exported = jax.export.deserialize(data)
        (images,) = exported.in_avals
        if len(images.shape) != 4 or not jnp.issubdtype(images.dtype, jnp.floating):
            raise ValueError(f'it takes {images}, not images')
        dtype = jax.dtypes.canonicalize_dtype(images.dtype)
    except Exception as error:  # flatbuffers may raise any exception for a damaged file
        raise ValueError(
            f'{path}: JAX {jax.__version__} cannot read it ({reason(error)}): export the model again'
        ) from error
    if images.dtype != dtype:
        raise ValueError(f"{path}: float64 needs jax.config.update('jax_enable_x64', True) at the start of the program")
    return ExportedModel(exported, metadata)
