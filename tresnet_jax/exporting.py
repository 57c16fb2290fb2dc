"""A model as one file that needs JAX alone: StableHLO written by `jax.export`, weights inside, and a line about it.

The file is what ``jax.export`` serialises, then a newline, then one line of JSON. What reads the first part does not
look behind it, so both parts are read without this package::

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
from tresnet_jax.files import written_beside
from tresnet_jax.folding import fold_batchnorm
from tresnet_jax.labels import class_names
from tresnet_jax.models.base import ImageModel, functional
from tresnet_jax.models.layers import param_dtype
from tresnet_jax.models.winograd import KERNELS
from tresnet_jax.profiling import input_size

FORMAT = 'tresnet_jax.export'
PLATFORMS = ('cpu', 'cuda', 'rocm', 'tpu')


def export(
    model: ImageModel,
    path: str | Path,
    *,
    image_size: int | tuple[int, int] | None = None,
    platforms: Sequence[str] = ('cpu', 'cuda', 'tpu'),
    batch: int | None = None,
) -> None:
    """Write what a model computes in evaluation mode as one file, which `load_exported` or JAX alone runs.

    Batch norm is folded into the convolutions, and weights have the compute dtype: a float16 or bfloat16 model makes a
    file of half the size. It takes float32 images (float64 for a float64 model) and gives what the model gives,
    in the model's dtype: logits, pooled features without classes, or the list of a backbone's feature maps.

    JAX reads such a file for at least six months of its releases, and its program cannot be differentiated.

    Args:
        model: of `create_model`; it is left as it is.
        path: of the file; there only when it is whole.
        image_size: height and width of the images in pixels, or one number for both; None is the input size of the
            model's tag.
        platforms: which it shall run on, of 'cpu', 'cuda', 'rocm' and 'tpu'; none of them need be here.
        batch: images a call; None leaves it to the caller.

    Raises:
        ValueError: an unknown platform, or a size that the model does not take.
        convert.ConversionError: (a ValueError) the file cannot be written.
    """
    height, width = input_size(model) if image_size is None else height_width(image_size, 'image_size')
    if not platforms or not set(platforms) <= set(PLATFORMS):
        raise ValueError(f'platforms must be some of {", ".join(PLATFORMS)}, got {platforms!r}')
    if batch is not None and batch < 1:
        raise ValueError(f'batch must be positive, or None for any, got {batch}')

    apply, params, batch_stats = functional(fold_batchnorm(model))
    # The convolutions would cast them at each call; Winograd's method needs its own kernels in float32.
    params = jax.tree.map_with_path(
        lambda path, leaf: leaf if path[-1].key == KERNELS else leaf.astype(model.dtype), params
    )
    images = jax.export.symbolic_shape('batch') if batch is None else (batch,)
    exported = jax.export.export(jax.jit(lambda x: apply(params, batch_stats, x)), platforms=tuple(platforms))(
        jax.ShapeDtypeStruct((*images, height, width, model.in_chans), param_dtype(model.dtype))
    )
    metadata = json.dumps(_metadata(model, height, width), ensure_ascii=False)
    with written_beside(Path(path)) as beside, beside.open('wb') as file:
        file.write(exported.serialize())
        file.write(f'\n{metadata}'.encode())


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


class ExportedModel:
    """What `load_exported` gives: a function of images.

    Attributes:
        metadata: `architecture`, `tag`, `dtype`, `num_classes`, `class_names` (None where they are not known),
            `out_indices` of a backbone, and `data_config` for `create_transform`.
        exported: the ``jax.export.Exported``.
    """

    def __init__(self, exported: Any, metadata: dict[str, Any]):
        self.exported = exported
        self.metadata = metadata
        self._call = jax.jit(exported.call)

    def __call__(self, images: Any) -> Any:
        """What the exported model gives for images (B, H, W, C), normalised.

        Raises:
            ValueError: the shape is another, the images are integers, or this is not one of its platforms.
        """
        wanted = self.exported.in_avals[0]
        images = jnp.asarray(images)
        batch, *image = wanted.shape
        fits = images.ndim == 4 and list(images.shape[1:]) == image and images.shape[0] > 0
        if isinstance(batch, int):
            fits = fits and images.shape[0] == batch
        if not fits or not jnp.issubdtype(images.dtype, jnp.floating):
            shape = ', '.join(map(str, wanted.shape))
            got = f'{images.shape} and dtype {images.dtype}'
            raise ValueError(f'expected normalised images of shape ({shape}) and a floating dtype, got {got}')
        return self._call(images.astype(wanted.dtype))


def load_exported(path: str | Path) -> ExportedModel:
    """The function in a file of `export`: ``logits = load_exported(path)(images)``.

    The file is a program: load none from people whose programs you would not run.

    Raises:
        ValueError: not such a file, damaged, of a JAX that this one cannot read, or a float64 model without
            ``jax_enable_x64``.
        OSError: there is no such file, or it cannot be read.
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
    except Exception as error:  # flatbuffers raises whatever a damaged file leads to
        raise ValueError(f'{path}: JAX {jax.__version__} cannot read it ({error}): export the model again') from error
    dtype = exported.in_avals[0].dtype
    if jax.dtypes.canonicalize_dtype(dtype) != dtype:
        raise ValueError(f"{path}: float64 needs jax.config.update('jax_enable_x64', True) at the start of the program")
    return ExportedModel(exported, metadata)
