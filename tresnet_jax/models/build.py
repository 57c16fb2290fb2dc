"""The module tree of an architecture, and a tree filled with weights."""

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
    """The module tree of an architecture; with ``ShapesOnly()`` for `rngs` its drawn weights are shapes.

    Raises:
        ValueError: an option or mode that the architecture does not have, or a dtype that is not computed in.
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
    if output_stride != 32:
        options['output_stride'] = output_stride
    model = CLASSES[family.name](config, **options)
    model.architecture = architecture
    return model.set_memory(abn_memory, remat)


def _check_dtype(dtype: Any) -> jnp.dtype:
    dtype = jnp.dtype(dtype)
    if dtype.name not in DTYPES:
        raise ValueError(f'dtype must be one of {", ".join(DTYPES)}, got {dtype.name}')
    if jax.dtypes.canonicalize_dtype(dtype) != dtype:
        raise ValueError("dtype float64 needs jax.config.update('jax_enable_x64', True) at the start of the program")
    return dtype


def fill(model: ImageModel, params: Tree, batch_stats: Tree) -> ImageModel:
    """A model of the same structure with these values, cast to its parameters' dtype."""
    graphdef, *wanted = nnx.split(model, nnx.Param, nnx.BatchStat)
    given = [
        jax.tree.map(lambda leaf, value: np.asarray(value, leaf.dtype), nnx.to_pure_dict(tree), values)
        for tree, values in zip(wanted, (params, batch_stats), strict=True)
    ]
    return nnx.merge(graphdef, *jax.device_put(given))
