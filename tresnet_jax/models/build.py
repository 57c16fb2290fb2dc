"""Build a model from its row in the table of variants, and fill it with weights."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from tresnet_jax.models.base import ImageModel, Tree
from tresnet_jax.models.resnetd import ResNetD
from tresnet_jax.models.tresnet import TResNet
from tresnet_jax.variants import ARCHITECTURES, RESNETD, TRESNET

HEADS = ('linear', 'ml_decoder')
CLASSES = {TRESNET.name: TResNet, RESNETD.name: ResNetD}
DTYPES = ('float32', 'bfloat16', 'float16', 'float64')


def _check_dtype(value: Any) -> jnp.dtype:
    try:
        dtype = jnp.dtype(value)
    except TypeError:
        dtype = None
    if dtype is None or dtype.name not in DTYPES:
        raise ValueError(f'dtype must be one of {", ".join(DTYPES)}, got {value!r}')
    if jax.dtypes.canonicalize_dtype(dtype) != dtype:
        raise ValueError("dtype float64 needs jax.config.update('jax_enable_x64', True) at the start of the program")
    return dtype


class HeadOptions(NamedTuple):
    """A requested head; `create_model` describes the fields. None for `head`: that of the checkpoint."""

    head: str | None = None
    num_of_groups: int | None = None
    decoder_embedding: int | None = None


ANY_HEAD = HeadOptions()


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
    head: str | None = None,
    num_of_groups: int | None = None,
    decoder_embedding: int | None = None,
    **options: Any,
) -> ImageModel:
    """Build a model with drawn weights; with ``rngs=ShapesOnly()``, the weights are only shapes.

    Args:
        architecture: a name in the table, without a tag.
        num_classes, in_chans: 0 or more, and 1 or more.
        rngs: random numbers for the weights.
        global_pool: one of timm's names. None: the family's default.
        output_stride: pixels of the image per pixel of the last feature map, along one edge.
        abn_slope: slope of TResNet's leaky ReLUs. None: the family's default.
        dtype: the compute dtype.
        abn_memory, remat: the memory mode, as in `create_model`.
        head, num_of_groups, decoder_embedding: the head, as in `create_model`. None: a linear layer.
        **options: further arguments of the family's class.

    Raises:
        ValueError: an option or mode that the architecture does not have, or an unsupported dtype.
    """
    for name in ('drop_rate', 'drop_path_rate'):
        if not 0 <= options.get(name, 0) <= 1:
            raise ValueError(f'{name} must be between 0 and 1, got {options[name]}')
    config = ARCHITECTURES[architecture]
    family = config.family
    dtype = _check_dtype(dtype)
    if in_chans < 1 or num_classes < 0:
        raise ValueError(f'in_chans must be positive and num_classes not negative, got {in_chans} and {num_classes}')
    decodes = check_head(head, num_of_groups, decoder_embedding, global_pool, options.get('drop_rate'))
    decodes = decodes and num_classes > 0
    options |= {'num_classes': 0 if decodes else num_classes, 'in_chans': in_chans, 'dtype': dtype, 'rngs': rngs}
    if global_pool is not None:
        options['global_pool'] = global_pool
    if output_stride not in family.output_strides:
        strides = ' or '.join(map(str, family.output_strides))
        raise ValueError(f'{architecture}: output_stride must be {strides}, got {output_stride}')
    if abn_slope is not None and family.default_slope is None:
        raise ValueError(f'{architecture} has ReLUs; abn_slope is for the leaky ReLUs of TResNet')
    if abn_slope is not None:
        if not np.isfinite(abn_slope):
            raise ValueError(f'abn_slope must be a finite number, got {abn_slope}')
        options['abn_slope'] = abn_slope
    if output_stride != 32:  # TResNet's class does not have this argument
        options['output_stride'] = output_stride
    model = CLASSES[family.name](config, **options)
    model.architecture = architecture
    if decodes:
        model.start_ml_decoder(num_classes, rngs, num_of_groups, decoder_embedding)
    if (abn_memory, remat) != ('plain', False):  # those of a new model
        model.set_memory(abn_memory, remat)
    return model


def check_head(
    head: str | None,
    num_of_groups: int | None,
    decoder_embedding: int | None,
    global_pool: str | None = None,
    drop_rate: float | None = None,
) -> bool:
    """Return whether the head is an ML-Decoder; see `create_model` for the arguments.

    Raises:
        ValueError: the head is unknown, or an option is not one of this head.
    """
    if head not in (None, *HEADS):
        raise ValueError(f'head must be one of {", ".join(HEADS)}, got {head!r}')
    decodes = head == 'ml_decoder'
    if not decodes and (num_of_groups, decoder_embedding) != (None, None):
        raise ValueError("num_of_groups and decoder_embedding are for head='ml_decoder'")
    if decodes and global_pool:
        raise ValueError(
            f'an ML-Decoder takes the feature map without a pooling: leave out global_pool={global_pool!r}'
        )
    if decodes and drop_rate:
        raise ValueError(f'an ML-Decoder has a dropout of its own: leave out drop_rate={drop_rate:g}')
    return decodes


def add_ml_decoder_head(
    model: ImageModel,
    num_of_groups: int | None = None,
    decoder_embedding: int | None = None,
    *,
    rngs: nnx.Rngs | None = None,
) -> ImageModel:
    """Replace the head of a model with a new ML-Decoder (Ridnik et al., arXiv:2111.12933). Return the model, as timm.

    The new head has the model's number of classes. It takes the feature map without pooling, and the dropout before
    the classifier is set to 0. Its queries are random, part of the weights, and never trained.

    Args:
        model: a model with classes, which is changed.
        num_of_groups, decoder_embedding: as in `create_model`.
        rngs: random numbers for the weights. None: ``nnx.Rngs(0)``.

    Raises:
        ValueError: the model has no classes, or an option is out of range.

    Example:
        >>> import jax, tresnet_jax
        >>> model = tresnet_jax.create_model('test_resnet', num_classes=80)
        >>> model = tresnet_jax.add_ml_decoder_head(model)
        >>> jax.eval_shape(model, jax.numpy.zeros((2, 64, 64, 3))).shape
        (2, 80)
        >>> model.get_classifier().num_of_groups
        80
    """
    if model.num_classes == 0:
        raise ValueError('the model has no classes: give create_model their number (num_classes)')
    model.start_ml_decoder(model.num_classes, rngs or nnx.Rngs(0), num_of_groups, decoder_embedding)
    return model


def fill(model: ImageModel, params: Tree, batch_stats: Tree) -> ImageModel:
    """Return a model of the same structure with these weights, cast to the dtypes of the model's parameters."""
    graphdef, *expected = nnx.split(model, nnx.Param, nnx.BatchStat)
    given = [
        jax.tree.map(lambda leaf, value: np.asarray(value, leaf.dtype), nnx.to_pure_dict(tree), values)
        for tree, values in zip(expected, (params, batch_stats), strict=True)
    ]
    return nnx.merge(graphdef, *jax.device_put(given))
