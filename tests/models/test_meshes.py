"""Training steps over a mesh of four devices give the numbers of one device."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import tresnet_jax
from tests.helpers.closeness import assert_close
from tests.helpers.images import normal_images
from tests.helpers.models import as_trained
from tresnet_jax.models.batch_norm import inplace_abn
from tresnet_jax.models.layers import drop, space_to_depth
from tresnet_jax.models.memory import MODES, recomputed
from tresnet_jax.models.meshes import barrier
from tresnet_jax.models.ml_decoder import MLDecoder
from tresnet_jax.models.pooling import blur_pool

pytestmark = pytest.mark.usefixtures('x64')

BATCH, DEVICES = 8, 4
TOLERANCE = 1e-9
TWO_STAGES = {'features_only': True, 'out_indices': (1, 2)}  # as many kinds of layers as in the whole networks
SPLIT, WHOLE = P('batch'), P()


@functools.cache
def mesh(kind: AxisType) -> jax.sharding.Mesh:
    return jax.make_mesh((DEVICES,), ('batch',), axis_types=(kind,))


def put(tree: Any, spec: P, kind: AxisType) -> Any:
    return jax.device_put(tree, NamedSharding(mesh(kind), spec))


def step_of(apply: Callable[..., Any], axis_name: str | None = None) -> Callable[..., Any]:
    """Return a function that takes parameters, statistics, images and keys, and returns ((loss, rest), gradients)."""
    mean = functools.partial(jax.lax.pmean, axis_name=axis_name) if axis_name else lambda tree: tree

    def loss(params, stats, x, keys):
        outputs, stats = apply(params, stats, x, train=True, rngs={'dropout': keys})
        outputs = jax.tree.leaves(outputs)
        terms = [
            (y * jnp.cos(jnp.arange(y.shape[-1], dtype=y.dtype)).reshape((1,) * (y.ndim - 1) + (-1,))) for y in outputs
        ]
        return mean(sum(jnp.sin(term).mean() for term in terms)), (stats, outputs)

    def step(*args):
        result, gradients = jax.value_and_grad(loss, has_aux=True)(*args)
        return result, mean(gradients)

    return step


def model(name: str, whole: bool, **options: Any) -> Any:
    drop = {'drop_rate': 0.3} if whole else TWO_STAGES
    return tresnet_jax.functional(as_trained(name, dtype='float64', drop_path_rate=0.3, **drop, **options))


def batch() -> tuple[np.ndarray, jax.Array]:
    """Return images, and a key for each, so that the devices drop what one device would."""
    return normal_images(BATCH, dtype='float64'), jax.random.split(jax.random.key(3), BATCH)


@functools.cache
def on_one_device(name: str, whole: bool) -> Any:
    apply, params, stats = model(name, whole)
    return jax.tree.map(np.asarray, jax.jit(step_of(apply))(params, stats, *batch()))


def on_four(name: str, how: str, kind: AxisType, whole: bool, **options: Any) -> Any:
    """Compute a step over the mesh by `jit` or by `shard_map`, which has its default, check_vma=True."""
    sharded = how == 'shard_map'
    apply, params, stats = model(name, whole, axis_name='batch' if sharded else None, **options)
    args = [*(put(tree, WHOLE, kind) for tree in (params, stats)), *(put(tree, SPLIT, kind) for tree in batch())]
    step = step_of(apply, 'batch' if sharded else None)
    if sharded:
        out = ((WHOLE, (WHOLE, SPLIT)), WHOLE)
        step = jax.shard_map(step, mesh=mesh(kind), in_specs=(WHOLE, WHOLE, SPLIT, SPLIT), out_specs=out)
    return jax.jit(step)(*args)


AUTO, EXPLICIT = AxisType.Auto, AxisType.Explicit
ROWS = [(name, mode, remat) for name in ('test_tresnet', 'test_resnet') for mode in MODES for remat in (False, True)]
ROWS = [row for row in ROWS if row[0] == 'test_tresnet' or row[1] in ('plain', 'recompute')]
CASES = [(*row, how, kind) for row in ROWS for how, kind in (('jit', AUTO), ('jit', EXPLICIT), ('shard_map', EXPLICIT))]
EVERY_DAY = [
    ('test_tresnet', 'lean', False, 'jit', EXPLICIT),
    ('test_tresnet', 'inplace', False, 'shard_map', EXPLICIT),
    ('test_resnet', 'plain', False, 'jit', EXPLICIT),
    ('test_resnet', 'recompute', True, 'shard_map', EXPLICIT),
]


@pytest.mark.parametrize(
    'name, mode, remat, how, kind',
    [pytest.param(*case, marks=[] if case in EVERY_DAY else pytest.mark.slow) for case in CASES],
)
def test_two_stages(name, mode, remat, how, kind):
    got = on_four(name, how, kind, False, abn_memory=mode, remat=remat)
    assert_close(got, on_one_device(name, False), TOLERANCE)
    maps, gradients = got[0][1][1], got[1]
    assert all(y.sharding.spec[0] == 'batch' for y in maps) and all(
        leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(gradients)
    )


@pytest.mark.slow
@pytest.mark.parametrize('how, kind', [('jit', EXPLICIT), ('shard_map', AUTO)])
@pytest.mark.parametrize('name, mode', [('test_tresnet', 'lean'), ('test_resnet', 'plain')])
def test_whole_networks(name, mode, how, kind):
    assert_close(on_four(name, how, kind, True, abn_memory=mode), on_one_device(name, True), TOLERANCE)


def test_split_parameters():
    """As in FSDP: a quarter of each parameter on a device, if an axis of it can be divided; so are the gradients."""
    apply, params, stats = model('test_resnet', False)

    def sharding(leaf: jax.Array) -> NamedSharding:
        names = [None] * leaf.ndim
        if leaf.shape[-1] % DEVICES == 0:
            names[-1] = 'batch'
        return NamedSharding(mesh(AUTO), P(*names))

    split = jax.tree.map(sharding, params)
    step = jax.jit(step_of(apply), out_shardings=(None, split))
    got = step(jax.device_put(params, split), put(stats, WHOLE, AUTO), *(put(tree, SPLIT, AUTO) for tree in batch()))
    assert_close(got, on_one_device('test_resnet', False), TOLERANCE)
    kernel = got[1]['layer1'][0]['conv1']['kernel']
    assert kernel.addressable_shards[0].data.size == kernel.size / DEVICES


def ml_decoder(x: np.ndarray) -> Callable[[jax.Array], jax.Array]:
    head = MLDecoder(6, 3, 16, num_features=x.shape[-1], dtype=x.dtype, rngs=nnx.Rngs(0))
    head.train()
    return lambda x: head(x, nnx.Rngs(dropout=jax.random.key(5)))


def dropped(rate: float, shape: tuple[int, ...]) -> Callable[[jax.Array], jax.Array]:
    return lambda x: drop(x, jax.random.key(5), rate, shape)


@pytest.mark.parametrize(
    'layer',
    [
        lambda x: space_to_depth,
        lambda x: blur_pool,
        lambda x: dropped(0.5, (BATCH, 1, 1, 1)),
        lambda x: dropped(1.0, x.shape),
        ml_decoder,
    ],
    ids=['space_to_depth', 'blur_pool', 'drop path', 'all dropped', 'ml_decoder'],
)
def test_layers_keep_an_explicit_sharding(layer):
    """The types of the outputs and of the gradients name the axis that the images are split along."""
    x = normal_images(BATCH, 8, 8, 12, dtype='float64')
    function = layer(x)

    @jax.jit
    def outputs(x):
        y, pullback = jax.vjp(function, x)
        return y, pullback(jnp.cos(y))[0]

    expected = outputs(x)
    with jax.set_mesh(mesh(EXPLICIT)):
        split = put(x, SPLIT, EXPLICIT)
        assert all(aval.sharding.spec[0] == 'batch' for aval in jax.make_jaxpr(outputs)(split).out_avals)
        assert_close(outputs(split), expected, 1e-12)


@pytest.mark.slow
@pytest.mark.parametrize('slope', [1e-2, None])
def test_inplace_gradients_of_other_variance(slope):
    """Parameters that are the same on all devices, and those of each device, get their gradients under check_vma."""
    x = normal_images(BATCH, 4, 4, 5, dtype='float64')
    scale, bias = (np.random.default_rng(seed).uniform(0.5, 1.5, 5) for seed in (0, 1))

    def loss(scale, bias, x, axis_name):
        y, mean, var = inplace_abn(x, scale, bias, slope, 1e-5, axis_name)
        return jnp.sin(y).sum()

    expected = jax.grad(loss, argnums=(0, 1, 2))(scale, bias, x, None)
    gradients = jax.grad(functools.partial(loss, axis_name='batch'), argnums=(0, 1, 2))
    run = jax.shard_map(gradients, mesh=mesh(AUTO), in_specs=(WHOLE, WHOLE, SPLIT), out_specs=(WHOLE, WHOLE, SPLIT))
    assert_close(run(scale, bias, x), expected, 1e-12)

    def each(scale, bias, x):  # a scale for each device, and the same images
        gradients = jax.grad(functools.partial(loss, axis_name=None), argnums=(0, 1, 2))(scale[0], bias, x)
        return gradients[0][None], *gradients[1:]

    scales = np.stack([scale * (1 + i) for i in range(DEVICES)])
    run = jax.shard_map(each, mesh=mesh(AUTO), in_specs=(SPLIT, WHOLE, WHOLE), out_specs=(SPLIT, WHOLE, WHOLE))
    separate = [jax.grad(loss, argnums=(0, 1, 2))(scale, bias, x, None) for scale in scales]
    summed = [sum(gradients[i] for gradients in separate) for i in (1, 2)]
    assert_close(run(scales, bias, x), (np.stack([gradients[0] for gradients in separate]), *summed), 1e-12)


@pytest.mark.parametrize('wait', [False, True])
def test_a_recomputed_layer_of_other_variance(wait):
    layer = nnx.Linear(5, 5, dtype='float64', param_dtype=jnp.float64, rngs=nnx.Rngs(0))
    graphdef, params = nnx.split(layer)
    x = normal_images(BATCH, 2, 2, 5, dtype='float64')

    def gradients(params, x, reduce):
        def loss(params, x):
            y = recomputed(lambda layer, x: jnp.sin(layer(x)), nnx.merge(graphdef, params), x, (), wait=wait)
            return reduce((y**2).sum())

        return jax.grad(loss, argnums=(0, 1))(params, x)

    expected = gradients(params, x, lambda y: y)
    run = functools.partial(gradients, reduce=lambda y: jax.lax.psum(y, 'batch'))
    got = jax.shard_map(run, mesh=mesh(AUTO), in_specs=(WHOLE, SPLIT), out_specs=(WHOLE, SPLIT))(params, x)
    assert_close(got, expected, 1e-12)


def test_without_a_mesh_a_barrier_is_one_operation():
    tree = {'a': jnp.ones(3), 'b': (jnp.ones(2, jnp.int32), jnp.ones(()))}
    texts = [jax.jit(lambda tree, f=f: f(tree)).lower(tree).as_text() for f in (barrier, jax.lax.optimization_barrier)]
    assert texts[0] == texts[1] and texts[0].count('optimization_barrier') == 1
