"""What Flax NNX itself offers works on our models: transformations, the optimiser, views, summaries, copies."""

import copy
import functools
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import tresnet_jax
from tests.helpers.closeness import assert_close, assert_identical
from tests.helpers.images import normal_images
from tests.helpers.models import SMALL, as_trained
from tresnet_jax.models.batch_norm import BatchNormAct
from tresnet_jax.models.layers import Dropout, DropPath
from tresnet_jax.models.memory import MODES

LABELS = np.array([0, 2, 1, 1])
RATE, MOMENTUM, STEPS = 0.05, 0.9, 2

ROWS = [(name, mode, remat) for name in SMALL for mode in MODES for remat in (False, True)]
ROWS = [row for row in ROWS if row[0] == 'test_tresnet' or row[1] in ('plain', 'recompute')]
EVERY_DAY = [('test_tresnet', 'inplace', False)]


def random_model(name: str, **options):
    return as_trained(name, num_classes=3, drop_rate=0.1, drop_path_rate=0.2, dtype='float64', **options)


def loss_of(logits: jax.Array) -> jax.Array:
    return optax.losses.softmax_cross_entropy_with_integer_labels(logits, jnp.asarray(LABELS)).mean()


def keys() -> list[jax.Array]:
    return [jax.random.key(step) for step in range(STEPS)]


@functools.cache
def trained_by_jax(name: str):
    """Return the losses, parameters and statistics after some steps of `functional` and optax."""
    apply, params, stats = tresnet_jax.functional(random_model(name))
    x, optimizer = normal_images(4, dtype='float64'), optax.sgd(RATE, momentum=MOMENTUM)

    @jax.jit
    def step(params, stats, state, key):
        def loss(params):
            logits, new = apply(params, stats, x, train=True, rngs={'dropout': key})
            return loss_of(logits), new

        (value, stats), gradients = jax.value_and_grad(loss, has_aux=True)(params)
        updates, state = optimizer.update(gradients, state, params)
        return value, optax.apply_updates(params, updates), stats, state

    losses, state = [], optimizer.init(params)
    for key in keys():
        value, params, stats, state = step(params, stats, state, key)
        losses.append(value)
    return losses, params, stats


@pytest.mark.parametrize(
    'name, mode, remat', [pytest.param(*row, marks=[] if row in EVERY_DAY else pytest.mark.slow) for row in ROWS]
)
def test_training(x64, name, mode, remat):
    """``nnx.jit``, ``nnx.value_and_grad`` and ``nnx.Optimizer`` move parameters and statistics in place."""
    model = random_model(name, abn_memory=mode, remat=remat).train()
    optimizer = nnx.Optimizer(model, optax.sgd(RATE, momentum=MOMENTUM), wrt=nnx.Param)
    x = normal_images(4, dtype='float64')

    @nnx.jit
    def step(model, optimizer, key):
        value, gradients = nnx.value_and_grad(lambda model: loss_of(model(x, rngs=nnx.Rngs(dropout=key))))(model)
        optimizer.update(model, gradients)
        return value

    losses = [step(model, optimizer, key) for key in keys()]
    trees = [nnx.to_pure_dict(nnx.state(model, kind)) for kind in (nnx.Param, nnx.BatchStat)]
    assert_close((losses, *trees), trained_by_jax(name), 1e-9)
    assert np.abs(np.subtract(*losses)) > 1e-6


ML_DECODER = {'head': 'ml_decoder', 'num_of_groups': 2, 'decoder_embedding': 16}
summary = functools.partial(nnx.tabulate, console_kwargs={'width': 300, 'force_terminal': False})


def module_classes(base: type = nnx.Module) -> set[type]:
    return {base}.union(*map(module_classes, base.__subclasses__()))


@pytest.fixture
def same_classes():
    """Undo what nnx.tabulate leaves: a copy of each inherited method in each class, which hides later patches."""
    before = {cls: set(vars(cls)) for cls in module_classes()}
    yield
    for cls, names in before.items():
        for name in set(vars(cls)) - names:
            delattr(cls, name)


@pytest.mark.usefixtures('same_classes')
@pytest.mark.parametrize(
    'name, options',
    [('test_resnet', {'remat': True, 'drop_rate': 0.1}), ('test_tresnet', {'abn_memory': 'lean'} | ML_DECODER)],
)
def test_tabulate(name, options):
    """A summary lists every stage. Flax leaves its classes changed if one fails, and then later tests fail too."""
    model = tresnet_jax.create_model(name, num_classes=3, drop_path_rate=0.1, **options)
    text = summary(model, jnp.zeros((2, 32, 32, 3)))
    assert f'{type(model).__name__} Summary' in text
    assert all(f'layer{stage}' in text for stage in (1, 2, 3, 4))
    in_training = summary(model.train(), jnp.zeros((2, 32, 32, 3)), rngs=nnx.Rngs(dropout=0))
    assert all(f'layer{stage}' in in_training for stage in (1, 2, 3, 4))


@pytest.mark.usefixtures('same_classes')
def test_tabulate_a_folded_model():
    model = tresnet_jax.fold_batchnorm(tresnet_jax.create_model('test_resnet', num_classes=3))
    assert 'BatchNormAct' not in summary(model, jnp.zeros((1, 32, 32, 3)))


@pytest.mark.parametrize('name', SMALL)
def test_view(name):
    """A view in another mode shares the arrays of its model, whose mode does not change."""
    model = as_trained(name, drop_rate=0.1, drop_path_rate=0.2)
    view = nnx.view(model, use_running_average=False, deterministic=False)
    only = nnx.view(model, only=BatchNormAct, use_running_average=False)
    for (path, old), (_, new), (_, part) in zip(*map(nnx.iter_modules, (model, view, only)), strict=True):
        if isinstance(old, BatchNormAct):
            modes = [norm.use_running_average for norm in (old, new, part)]
            assert modes == [True, False, False] and new.mean is old.mean and new.scale is old.scale, path
        elif isinstance(old, Dropout | DropPath):
            assert [drop.deterministic for drop in (old, new, part)] == [True, False, True], path
    with pytest.raises(ValueError, match='Unused keys found'):
        nnx.view(model, running=True)


COPIES = {
    'clone': nnx.clone,
    'deepcopy': copy.deepcopy,
    'pickle': lambda model: pickle.loads(pickle.dumps(model)),
    'split and merge': lambda model: nnx.merge(*nnx.split(model), copy=True),
}


@pytest.mark.parametrize('how', COPIES)
@pytest.mark.parametrize('name', SMALL)
def test_copies(name, how):
    """A copy is the same model, attributes included, and has arrays of its own."""
    model = as_trained(name, abn_memory='recompute', remat=True)
    copied = COPIES[how](model)
    assert type(copied) is type(model)
    assert (nnx.graphdef(copied), copied.memory, copied.config) == (nnx.graphdef(model), model.memory, model.config)
    assert_identical(nnx.to_pure_dict(nnx.state(copied)), before := nnx.to_pure_dict(nnx.state(model)))
    before = jax.tree.map(np.array, before)
    for leaf in jax.tree.leaves(nnx.state(copied, nnx.Param), is_leaf=lambda leaf: isinstance(leaf, nnx.Param)):
        leaf[...] = leaf[...] + 1
    assert_identical(nnx.to_pure_dict(nnx.state(model)), before)


@pytest.mark.parametrize('name', SMALL)
def test_display(name, capsys):
    model = as_trained(name)
    nnx.display(model)
    assert type(model).__name__ in capsys.readouterr().out
    assert repr(model).startswith(type(model).__name__) and 'layer4' in repr(model)


@pytest.mark.parametrize('dtype', ['float32', 'float64'])
def test_created_under_jit(x64, dtype):
    """Weights drawn while JAX traces, from a traced key, are those drawn outside."""

    def weights(key):
        model = tresnet_jax.create_model('test_resnet', num_classes=3, dtype=dtype, rngs=nnx.Rngs(key))
        return nnx.to_pure_dict(nnx.state(model, nnx.Param))

    key = jax.random.key(7)
    assert_identical(jax.jit(weights)(key), weights(key))
