"""Build a model from its row in the table of variants, and fill it with weights."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from tresnet_jax.models.base import ImageModel, Tree
from tresnet_jax.models.resnetd import ResNetD
from tresnet_jax.models.tresnet import TResNet
from tresnet_jax.variants import ARCHITECTURES, RESNETD, TRESNET

CLASSES = {TRESNET.name: TResNet, RESNETD.name: ResNetD}
DTYPES = ('float32', 'bfloat16', 'float16', 'float64')


def _check_dtype(dtype: Any) -> jnp.dtype:
    dtype = jnp.dtype(dtype)
    if dtype.name not in DTYPES:
        raise ValueError(f'dtype must be one of {", ".join(DTYPES)}, got {dtype.name}')
    if jax.dtypes.canonicalize_dtype(dtype) != dtype:
        raise ValueError("dtype float64 needs jax.config.update('jax_enable_x64', True) at the start of the program")
    return dtype


def build_model(
    architecture: str,
    *,
    num_classes: int,
    in_chans: int,
    rngs: nnx.Rngs,
    global_pool: str | None = None,
    output_stride: int = 32,
    abn_slope: float | None = None,
    dtype: Any = jnp.float32,
    abn_memory: str = 'plain',
    remat: bool = False,
    **options: Any,
) -> ImageModel:
    """Build a model with drawn weights; with ``rngs=ShapesOnly()``, shapes take the place of the drawn weights.

    Args:
        architecture: a name in the table, without a tag.
        num_classes, in_chans: 0 or more, and 1 or more.
        rngs: random numbers for the weights.
        global_pool: one of timm's names. None: the family's default.
        output_stride: pixels of the image per pixel of the last feature map, along one edge.
        abn_slope: slope of TResNet's leaky ReLUs. None: the family's default.
        dtype: the compute dtype.
        abn_memory, remat: the memory mode, as in `create_model`.
        **options: further arguments of the family's class.

    Raises:
        ValueError: an option or mode that the architecture does not have, or an unsupported dtype.
    """
    config = ARCHITECTURES[architecture]
    family = config.family
    dtype = _check_dtype(dtype)
    if in_chans < 1 or num_classes < 0:
        raise ValueError(f'in_chans must be positive and num_classes not negative, got {in_chans} and {num_classes}')
    options |= {'num_classes': num_classes, 'in_chans': in_chans, 'dtype': dtype, 'rngs': rngs}
    if global_pool is not None:
        options['global_pool'] = global_pool
    if output_stride not in family.output_strides:
        strides = ' or '.join(map(str, family.output_strides))
        raise ValueError(f'{architecture}: output_stride must be {strides}, got {output_stride}')
    if abn_slope is not None and family.default_slope is None:
        raise ValueError(f'{architecture} has ReLUs; abn_slope is for the leaky ReLUs of TResNet')
    if abn_slope is not None:
        options['abn_slope'] = abn_slope
    if output_stride != 32:  # TResNet's class does not have this argument
        options['output_stride'] = output_stride
    model = CLASSES[family.name](config, **options)
    model.architecture = architecture
    return model.set_memory(abn_memory, remat)


def fill(model: ImageModel, params: Tree, batch_stats: Tree) -> ImageModel:
    """Return a model of the same structure with these weights, cast to the dtypes of the model's parameters."""
    graphdef, *expected = nnx.split(model, nnx.Param, nnx.BatchStat)
    given = [
        jax.tree.map(lambda leaf, value: np.asarray(value, leaf.dtype), nnx.to_pure_dict(tree), values)
        for tree, values in zip(expected, (params, batch_stats), strict=True)
    ]
    return nnx.merge(graphdef, *jax.device_put(given))
