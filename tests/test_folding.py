"""Folded models compute what they were made from, and nothing but that; half precision says the same as float32."""

import functools
import importlib.resources
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from PIL import Image

import convert
import tresnet_jax
from convert.verify import compare_with_stored
from tresnet_jax.models.base import ImageModel
from tresnet_jax.models.batch_norm import BatchNormAct
from tresnet_jax.variants import ARCHITECTURES

EMBEDDED = Path(str(importlib.resources.files('tresnet_jax') / 'embedded'))
NAMES = ('test_resnet.fashion_mnist', 'test_tresnet.fashion_mnist')
SMALL = ('test_resnet', 'test_tresnet')
QUICK = (*SMALL, 'resnet50d')


def as_trained(name: str, seed: int = 0, **options) -> ImageModel:
    """A model with statistics, scales of both signs and shifts as after training, where a fresh one has 0 and 1."""
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


def images(batch: int = 2, height: int = 32, width: int = 32, channels: int = 3) -> jax.Array:
    return jax.device_put(np.random.default_rng(1).standard_normal((batch, height, width, channels)))


def outputs(model: ImageModel, x: jax.Array) -> list[np.ndarray]:
    """Every stage's map and what a call gives."""

    @jax.jit
    def run(model: ImageModel, x: jax.Array) -> list[jax.Array]:
        last, maps = model.forward_intermediates(x)
        return [*maps, *([] if model.out_indices else [model.forward_head(last)])]

    return [np.asarray(y) for y in run(model, x)]


def assert_close(got, expected, tolerance: float = 1e-12) -> None:
    assert len(got) == len(expected)
    for a, b in zip(got, expected, strict=True):
        assert np.abs(a - b).max() <= tolerance * np.abs(b).max()


def state(model: ImageModel) -> list[np.ndarray]:
    return [np.array(leaf) for leaf in jax.tree.leaves(nnx.to_pure_dict(nnx.state(model)))]


@pytest.mark.usefixtures('x64')
@pytest.mark.parametrize(
    'name', [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in sorted(ARCHITECTURES)]
)
def test_every_architecture(name, record_error):
    model = as_trained(name, dtype='float64')
    folded = tresnet_jax.fold_batchnorm(model)
    layers = [layer for _, layer in nnx.iter_modules(folded)]
    assert not any(isinstance(layer, BatchNormAct) for layer in layers)
    assert all(layer.use_bias for layer in layers if isinstance(layer, nnx.Conv))
    x = images(1, 48, 64)
    got, expected = outputs(folded, x), outputs(model, x)
    assert len(got) == 6
    assert_close(got, expected)
    errors = [np.abs(a - b).max() / np.abs(b).max() for a, b in zip(got, expected, strict=True)]
    record_error(name, 'folded, f64', max(errors))
    jax.clear_caches()


@pytest.mark.usefixtures('x64')
@pytest.mark.parametrize(
    'name, options',
    [
        ('test_resnet', {'output_stride': 8}),
        ('test_resnet', {'output_stride': 16, 'in_chans': 1}),
        ('test_resnet', {'num_classes': 0, 'global_pool': ''}),
        ('test_resnet', {'features_only': True, 'out_indices': (0, 2)}),
        ('test_resnet', {'remat': True, 'drop_rate': 0.5, 'drop_path_rate': 0.5}),
        ('test_tresnet', {'abn_slope': 1e-6, 'in_chans': 5}),
        ('test_tresnet', {'num_classes': 0}),
        ('test_tresnet', {'features_only': True}),
        ('test_tresnet', {'global_pool': 'catavgmax', 'axis_name': 'batch'}),
    ],
)
def test_options(name, options):
    model = as_trained(name, dtype='float64', **options)
    folded = tresnet_jax.fold_batchnorm(model)
    x = images(channels=options.get('in_chans', 3))
    assert_close(outputs(folded, x), outputs(model, x))
    assert folded.feature_info.channels() == model.feature_info.channels()


@pytest.mark.usefixtures('x64')
@pytest.mark.parametrize('name', SMALL)
def test_functional(name):
    model = as_trained(name, dtype='float64')
    apply, params, batch_stats = tresnet_jax.functional(tresnet_jax.fold_batchnorm(model))
    assert batch_stats == {}
    x = images()

    @jax.jit
    def run(params, batch_stats, x):
        return apply(params, batch_stats, x, method='forward_features'), apply(params, batch_stats, x)

    assert_close(run(params, batch_stats, x), outputs(model, x)[-2:])
    with pytest.raises(ValueError, match='no batch norm to train'):
        apply(params, batch_stats, x, train=True)


@pytest.mark.parametrize('name', SMALL)
def test_the_given_model_is_left_as_it_is(name):
    model = as_trained(name).train()
    before = state(model)
    folded = tresnet_jax.fold_batchnorm(model)
    for _, variable in nnx.to_flat_state(nnx.state(folded)):
        variable[...] = jax.device_put(np.zeros(variable.shape, np.float32))
    assert_close(state(model), before, 0)
    assert not any(norm.use_running_average for _, norm in nnx.iter_modules(model) if isinstance(norm, BatchNormAct))


def test_a_model_in_training_mode_is_folded_for_evaluation():
    model = as_trained('test_resnet', drop_rate=0.5, drop_path_rate=0.5)
    x = jnp.float32(images())
    expected = outputs(model, x)
    assert_close(outputs(tresnet_jax.fold_batchnorm(model.train()), x), expected, 1e-5)


def test_folding_twice_is_folding_once():
    folded = tresnet_jax.fold_batchnorm(as_trained('test_tresnet'))
    assert_close(state(tresnet_jax.fold_batchnorm(folded)), state(folded), 0)


def test_a_folded_model_is_neither_trained_nor_converted(tmp_path):
    folded = tresnet_jax.fold_batchnorm(as_trained('test_resnet'))
    with pytest.raises(ValueError, match='no batch norm to train'):
        folded.train()
    assert folded.head_drop.deterministic
    assert folded.eval() is folded
    with pytest.raises(convert.ConversionError, match='convert the model before'):
        convert.to_torch(folded)
    with pytest.raises(convert.ConversionError, match='convert the model before'):
        tresnet_jax.save_pretrained(folded, tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_folded_model_gets_a_new_classifier():
    folded = tresnet_jax.fold_batchnorm(as_trained('test_resnet')).reset_classifier(3)
    assert jax.eval_shape(folded, jnp.float32(images())).shape == (2, 3)


@pytest.mark.parametrize('name', NAMES)
def test_float32_stays_at_its_noise(name):
    """Folded, every stage is as near to timm's stored outputs as `test_embedded` asks of the plain model."""
    model = tresnet_jax.fold_batchnorm(tresnet_jax.create_model(name, pretrained=True))
    comparisons = compare_with_stored(model, EMBEDDED / f'{name}.golden.safetensors')
    assert len(comparisons) == 6
    for row in comparisons:
        assert row.error <= 10 * row.noise, row


@functools.cache
def embedded_images(name: str) -> np.ndarray:
    transform = tresnet_jax.create_transform(**tresnet_jax.resolve_data_config(name))
    with np.load(EMBEDDED / 'fashion_mnist_subset.npz', allow_pickle=False) as data:
        return np.stack([transform(Image.fromarray(image)) for image in data['x_test']])


@functools.cache
def logits(name: str, dtype: str, fold: bool) -> np.ndarray:
    model = tresnet_jax.create_model(name, pretrained=True, dtype=dtype)
    model = tresnet_jax.fold_batchnorm(model) if fold else model
    y = jax.jit(lambda model, x: model(x))(model, embedded_images(name))
    assert y.dtype == dtype
    return np.asarray(y, np.float32)


@pytest.mark.parametrize('fold', [False, True], ids=['plain', 'folded'])
@pytest.mark.parametrize('dtype', ['bfloat16', 'float16'])
@pytest.mark.parametrize('name', NAMES)
def test_half_precision_gives_the_same_classes(name, dtype, fold):
    """On at least 99 % of the 500 embedded test images; and the logits are not float32's own."""
    single, half = logits(name, 'float32', False), logits(name, dtype, fold)
    assert len(single) == 500
    assert (single.argmax(1) == half.argmax(1)).mean() >= 0.99
    assert 1e-5 < np.sqrt(np.square(half - single).mean() / np.square(single).mean()) < 0.05


@pytest.mark.parametrize('size', [200, 224])
def test_bfloat16_of_one_wide_image(size):
    """Nothing but the logits: XLA took the last convolutions into one fusion with the mean, and gave NaN."""
    x = images(1, size, size)
    call = jax.jit(lambda model, x: model(x))
    single = np.asarray(call(as_trained('test_resnet'), x))
    half = np.asarray(call(tresnet_jax.fold_batchnorm(as_trained('test_resnet', dtype='bfloat16')), x), np.float32)
    assert np.abs(half - single).max() <= 0.05 * np.abs(single).max()
