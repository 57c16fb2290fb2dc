"""Our models in Linen and Equinox, and their trees in the formats that JAX programs save."""

import functools
from collections.abc import Callable
from typing import Any

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import serialization, traverse_util
from flax.nnx import bridge
from orbax.checkpoint import v1 as ocp

import tresnet_jax
from tests.helpers.closeness import assert_close, assert_identical
from tests.helpers.images import normal_images
from tests.helpers.models import EMBEDDED_TAGS

OTHER, TAG = EMBEDDED_TAGS


@functools.cache
def pure(tag: str):
    return tresnet_jax.functional(tresnet_jax.create_model(tag, pretrained=True))


@functools.cache
def expected(tag: str) -> tuple[Any, Any]:
    """Return the logits in evaluation, and those and the statistics in training."""
    apply, params, stats = pure(tag)
    x = normal_images()
    return jax.jit(apply)(params, stats, x), jax.jit(functools.partial(apply, train=True))(params, stats, x)


@pytest.mark.parametrize('tag', [TAG, pytest.param(OTHER, marks=pytest.mark.slow)])
def test_linen_by_the_bridge(tag):
    """Two modules, one for each mode, over the same variables."""

    def make(train: bool, rngs):
        model = tresnet_jax.create_model(tag, pretrained=True)
        return model.train() if train else model

    net, training = bridge.to_linen(make, train=False), bridge.to_linen(make, train=True)
    _, params, stats = pure(tag)
    variables = {'params': params, 'batch_stats': stats}
    x = normal_images()
    assert_close(jax.jit(net.apply)(variables, x), expected(tag)[0], 1e-6)
    logits, new = jax.jit(functools.partial(training.apply, mutable=['batch_stats']))(variables, x)
    assert_close((logits, new['batch_stats']), expected(tag)[1], 1e-6)


class Classifier(nn.Module):
    """A Linen module over the functional form."""

    model: Any

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        apply, params, stats = tresnet_jax.functional(self.model)
        params = self.param('net', lambda key: params)
        stats = self.variable('batch_stats', 'net', lambda: stats)
        if not train:
            return apply(params, stats.value, x)
        logits, stats.value = apply(params, stats.value, x, train=True, rngs={'dropout': self.make_rng('dropout')})
        return logits


def test_a_linen_module_over_the_functional_form():
    x, net = normal_images(), Classifier(tresnet_jax.create_model(TAG, pretrained=True))
    variables = jax.jit(net.init)(jax.random.key(0), x)
    assert_identical(variables['params']['net'], pure(TAG)[1])
    run = jax.jit(functools.partial(net.apply, train=True, mutable=['batch_stats']))
    logits, new = run(variables, x, rngs={'dropout': jax.random.key(1)})
    assert_close((logits, new['batch_stats']['net']), expected(TAG)[1], 1e-6)


def test_equinox(tmp_path):
    class Classifier(eqx.Module):
        params: Any
        batch_stats: Any
        apply: Callable[..., Any] = eqx.field(static=True)

        def __init__(self, model):
            self.apply, self.params, self.batch_stats = tresnet_jax.functional(model)

        def __call__(self, x, key=None):
            return self.apply(self.params, self.batch_stats, x)

        def train_step(self, x, key):
            logits, stats = self.apply(self.params, self.batch_stats, x, train=True, rngs={'dropout': key})
            return logits, eqx.tree_at(lambda net: net.batch_stats, self, stats)

    net = Classifier(tresnet_jax.create_model(TAG, pretrained=True))
    x = normal_images()
    assert_close(eqx.filter_jit(net)(x), expected(TAG)[0], 1e-6)

    trainable = eqx.tree_at(
        lambda net: net.batch_stats,
        jax.tree.map(eqx.is_inexact_array, net),
        replace_fn=lambda stats: jax.tree.map(lambda _: False, stats),
    )

    @eqx.filter_jit
    def step(net, x, key):
        moving, fixed = eqx.partition(net, trainable)

        @functools.partial(eqx.filter_value_and_grad, has_aux=True)
        def loss(moving):
            logits, new = eqx.combine(moving, fixed).train_step(x, key)
            return jnp.sin(logits).sum(), (logits, new)

        (_, (logits, new)), gradients = loss(moving)
        return logits, new, gradients

    logits, new, gradients = step(net, x, jax.random.key(0))
    assert_close((logits, new.batch_stats), expected(TAG)[1], 1e-6)
    assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients.params))
    assert not jax.tree.leaves(gradients.batch_stats)
    eqx.tree_serialise_leaves(tmp_path / 'net.eqx', new)
    again = eqx.tree_deserialise_leaves(tmp_path / 'net.eqx', net)
    assert_identical((again.params, again.batch_stats), (new.params, new.batch_stats))


def trees() -> dict[str, Any]:
    _, params, stats = pure(TAG)
    return {'params': params, 'batch_stats': stats}


def test_msgpack():
    """Indices of blocks stay integers, so no target is needed."""
    saved = serialization.msgpack_serialize(jax.tree.map(np.asarray, trees()))
    assert_identical(serialization.msgpack_restore(saved), trees())
    assert_identical(serialization.from_bytes(trees(), serialization.to_bytes(trees())), trees())


@pytest.mark.filterwarnings('ignore:Sharding info not provided')
def test_orbax(tmp_path):
    """With a target the trees come back as they were; without one, indices of blocks are strings."""
    ocp.save(tmp_path / 'trees', trees())
    abstract = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), trees())
    assert_identical(ocp.load(tmp_path / 'trees', abstract), trees())
    loaded = ocp.load(tmp_path / 'trees')
    assert list(loaded['params']['body']['layer1']) == ['0']
    apply, params, stats = pure(TAG)
    assert_identical(jax.jit(apply)(loaded['params'], loaded['batch_stats'], normal_images()), expected(TAG)[0])


def test_names_as_strings():
    """``flatten_dict`` joins names only if all are strings; joined by hand they are timm's but for the leaf."""
    _, params, _ = pure(TAG)
    with pytest.raises(TypeError):
        traverse_util.flatten_dict(params, sep='.')
    flat = {'.'.join(map(str, path)): leaf for path, leaf in traverse_util.flatten_dict(params).items()}
    assert flat['body.layer1.0.conv1.conv.kernel'].shape == (3, 3, 16, 16)
