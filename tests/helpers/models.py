"""Models for tests that need neither torch nor a checkpoint."""

import jax
import numpy as np
from flax import nnx

import tresnet_jax
from tresnet_jax.models.base import ImageModel, Tree
from tresnet_jax.models.batch_norm import BatchNormAct
from tresnet_jax.models.functional import functional

SMALL = ('test_resnet', 'test_tresnet')
EMBEDDED_TAGS = ('test_resnet.fashion_mnist', 'test_tresnet.fashion_mnist')


def as_trained(name: str, *, seed: int = 0, **options) -> ImageModel:
    """Return a model of ten classes whose batch norms look trained.

    A fresh batch norm has scales and variances of 1 (0 at the end of a block), shifts and means of 0. Here scales have
    both signs, and none of the four is constant.

    Args:
        name: the architecture.
        seed: the seed of the batch norms' values.
        **options: passed to `create_model`.
    """
    model = tresnet_jax.create_model(name, **{'num_classes': 10, **options})
    rng = np.random.default_rng(seed)
    for _, norm in nnx.iter_modules(model):
        if isinstance(norm, BatchNormAct):
            n, dtype = norm.scale.shape, norm.scale.dtype
            for variable, value in (
                (norm.scale, rng.uniform(0.4, 1.2, n) * rng.choice([-1, 1], n)),
                (norm.bias, rng.uniform(-0.3, 0.3, n)),
                (norm.mean, rng.uniform(-0.3, 0.3, n)),
                (norm.var, rng.uniform(0.5, 1.5, n)),
            ):
                variable[...] = jax.device_put(value.astype(dtype))
    return model


def zero_trees(model: ImageModel) -> tuple[Tree, Tree]:
    """Return parameters and statistics of the model's shapes that take no memory: float32 zeros."""
    _, params, batch_stats = functional(model)
    return jax.tree.map(lambda leaf: np.broadcast_to(np.float32(0), leaf.shape), (params, batch_stats))
