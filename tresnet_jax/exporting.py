"""Export of a model to one file that needs only JAX: a StableHLO program with its weights, and metadata.

The file is what ``jax.export`` serialises, a newline, and one line of JSON. ``jax.export.deserialize`` ignores
everything after the program, so both parts can be read without this package::

    import json, jax.export
    exported = jax.export.deserialize(bytearray(open(path, 'rb').read()))
    logits = exported.call(images)
    metadata = json.loads(open(path, 'rb').read().rpartition(b'\\n')[2])
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.export
import jax.numpy as jnp

from tresnet_jax.data.transforms import height_width, resolve_data_config
from tresnet_jax.errors import reason
from tresnet_jax.files import written_beside
from tresnet_jax.folding import fold_batchnorm
from tresnet_jax.labels import class_names
from tresnet_jax.models.base import ImageModel
from tresnet_jax.models.functional import functional
from tresnet_jax.models.layers import param_dtype
from tresnet_jax.models.winograd import TRANSFORMED_KERNEL
from tresnet_jax.profiling import input_size

FORMAT = 'tresnet_jax.export'
PLATFORMS = ('cpu', 'cuda', 'rocm', 'tpu')


def _metadata(model: ImageModel, height: int, width: int) -> dict[str, Any]:
    row = model.pretrained_cfg
    return {
        'format': FORMAT,
        'architecture': model.architecture,
        'tag': row and row.tag,
        'dtype': model.dtype.name,
        'num_classes': model.num_classes,
        'class_names': class_names(model),
        'out_indices': model.out_indices,
        'data_config': {**resolve_data_config(model), 'input_size': (model.in_chans, height, width)},
    }


def export(
    model: ImageModel,
    path: str | Path,
    *,
    image_size: int | tuple[int, int] | None = None,
    platforms: Sequence[str] = ('cpu', 'cuda', 'tpu'),
    batch: int | None = None,
) -> None:
    """Write a model in evaluation mode to one file, which runs with `load_exported` or with JAX alone.

    Batch norm is folded into the convolutions, and weights have the compute dtype: the file of a float16 or bfloat16
    model has half the size. The program takes float32 images (float64 for a float64 model) and returns what the model
    returns, in the model's dtype: logits, pooled features without classes, or the list of a backbone's feature maps.

    JAX releases read such a file for at least six months. The program cannot be differentiated.

    Args:
        model: a model of `create_model`; it is not changed.
        path: the file to write; it appears only when it is complete.
        image_size: height and width of the images in pixels, or one number for both. None: the input size of the
            model's tag.
        platforms: platforms to run on, out of 'cpu', 'cuda', 'rocm' and 'tpu'; this machine need not have them.
        batch: images per call. None: any number.

    Raises:
        ValueError: an unknown platform, or an unsupported image size.
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
    if not platforms or not set(platforms) <= set(PLATFORMS):
        raise ValueError(f'platforms must be some of {", ".join(PLATFORMS)}, got {platforms!r}')
    if batch is not None and batch < 1:
        raise ValueError(f'batch must be positive, or None for any, got {batch}')

    apply, params, batch_stats = functional(fold_batchnorm(model))
    # Otherwise the convolutions would cast them at each call. Winograd's method needs its kernels in float32.
    params = jax.tree.map_with_path(
        lambda path, leaf: leaf if path[-1].key == TRANSFORMED_KERNEL else leaf.astype(model.dtype), params
    )
    batch_shape = jax.export.symbolic_shape('batch') if batch is None else (batch,)
    exported = jax.export.export(jax.jit(lambda x: apply(params, batch_stats, x)), platforms=tuple(platforms))(
        jax.ShapeDtypeStruct((*batch_shape, height, width, model.in_chans), param_dtype(model.dtype))
    )
    metadata = json.dumps(_metadata(model, height, width), ensure_ascii=False)
    with written_beside(Path(path)) as temporary, temporary.open('wb') as file:
        file.write(exported.serialize())
        file.write(f'\n{metadata}'.encode('utf-8', 'backslashreplace'))  # class names may hold surrogates


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
        ValueError: not a file of `export`, a damaged one, one from a JAX version that this one cannot read, or a
            float64 model without ``jax_enable_x64``.
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
    data = bytearray(Path(path).read_bytes())
    try:
        metadata = json.loads(data[data.rfind(b'\n') + 1 :])
        if metadata['format'] != FORMAT:
            raise ValueError
    except (ValueError, TypeError, KeyError, RecursionError):
        raise ValueError(f'{path}: not a file of tresnet_jax.export, or cut short') from None
    try:
        exported = jax.export.deserialize(data)
    except Exception as error:  # flatbuffers may raise any exception for a damaged file
        raise ValueError(
            f'{path}: JAX {jax.__version__} cannot read it ({reason(error)}): export the model again'
        ) from error
    dtype = exported.in_avals[0].dtype
    if jax.dtypes.canonicalize_dtype(dtype) != dtype:
        raise ValueError(f"{path}: float64 needs jax.config.update('jax_enable_x64', True) at the start of the program")
    return ExportedModel(exported, metadata)
