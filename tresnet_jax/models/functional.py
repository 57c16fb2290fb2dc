"""The pure form of a model: a function of its parameters, its statistics and the images."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
from flax import nnx

from tresnet_jax.models.base import ImageModel, Tree


def functional(model: ImageModel, frozen: Sequence[str] = ()) -> tuple[Callable[..., Any], Tree, Tree]:
    """Return the pure form of a model: ``apply, params, batch_stats``.

    Both trees are nested dicts of arrays; their paths are timm's names except for the leaf. `apply` holds
    no arrays and works under jit, grad, vmap, pmap and JAX's other transformations::

        logits = apply(params, batch_stats, x)
        logits, batch_stats = apply(params, batch_stats, x, train=True, rngs={'dropout': key})
        features = apply(params, batch_stats, x, method='forward_features')

    `rngs` may be omitted if no layer is random. With keys of shape (B,) each image has its own random numbers, so that
    a batch gives the same outputs in one piece and in parts.

    Args:
        model: a model of `create_model`.
        frozen: parts ('backbone', 'stem', 'layer1', ..., 'head') that stay in evaluation mode during training: their
            batch norm uses its running statistics and does not update them.

    Raises:
        ValueError: an unknown part.

    Example:
        >>> import jax, tresnet_jax
        >>> model = tresnet_jax.create_model('test_resnet', num_classes=5)
        >>> apply, params, batch_stats = tresnet_jax.functional(model)
        >>> params['layer1'][0]['conv1']['kernel'].shape
        (3, 3, 32, 32)
        >>> jax.eval_shape(apply, params, batch_stats, jax.numpy.zeros((2, 64, 64, 3))).shape
        (2, 5)
    """
    for name in frozen:
        model.part(name)
    graphdef, params, stats = nnx.split(model, nnx.Param, nnx.BatchStat)

    def apply(
        params: Tree,
        batch_stats: Tree,
        x: jax.Array,
        *args: Any,
        train: bool = False,
        rngs: Mapping[str, jax.Array] | None = None,
        method: str = '__call__',
        **kwargs: Any,
    ) -> Any:
        m = nnx.merge(graphdef, params, batch_stats)
        m = m.train() if train else m.eval()
        for module in [module for name in frozen for module in m.part(name)]:
            module.eval()
        out = getattr(m, method)(x, *args, rngs=None if rngs is None else nnx.Rngs(**rngs), **kwargs)
        return (out, nnx.to_pure_dict(nnx.state(m, nnx.BatchStat))) if train else out

    return apply, nnx.to_pure_dict(params), nnx.to_pure_dict(stats)
