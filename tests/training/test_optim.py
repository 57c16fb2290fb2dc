"""The optimiser's groups of parameters."""

import jax
import jax.numpy as jnp
import pytest

import tresnet_jax
from tests.helpers.closeness import assert_identical
from tresnet_jax.models.functional import functional
from tresnet_jax.training.config import TrainConfig
from tresnet_jax.training.optim import create_optimizer


@pytest.mark.parametrize('freeze', [(), ('backbone',)])
def test_the_queries_of_an_ml_decoder_are_constants(freeze):
    """Weight decay moves every other kernel, also where the gradient is zero."""
    options = {'head': 'ml_decoder', 'num_of_groups': 2, 'decoder_embedding': 8}
    params = functional(tresnet_jax.create_model('test_resnet', num_classes=5, **options))[1]
    optimizer = create_optimizer(TrainConfig(weight_decay=0.1, freeze=freeze), lambda step: 0.5, params)
    zeros = jax.tree.map(jnp.zeros_like, params)
    with jax.numpy_dtype_promotion('standard'):  # optax promotes integers
        updates, _ = optimizer.update(zeros, optimizer.init(params), params, step=0)
    head, moved = params['fc'], updates['fc']
    assert_identical(moved.pop('query_embed'), zeros['fc']['query_embed'])
    for path, update in jax.tree_util.tree_leaves_with_path(moved):
        assert bool(jnp.any(update != 0)) == (update.ndim > 1), path
    assert head['duplicate_pooling'].ndim == 3 and bool(jnp.any(updates['conv1'][0]['kernel'])) == (not freeze)
