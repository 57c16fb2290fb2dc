"""Folded batch norm: the same outputs as the model it was made from, also in half precision."""

import functools

import jax
import numpy as np
import pytest
from flax import nnx
from PIL import Image

import convert
import tresnet_jax
from convert.verify import compare_with_stored
from tests.helpers.closeness import assert_close, assert_identical
from tests.helpers.images import normal_images
from tests.helpers.models import EMBEDDED_TAGS, SMALL, as_trained
from tests.helpers.paths import EMBEDDED
from tresnet_jax.models.base import ImageModel
from tresnet_jax.models.batch_norm import BatchNormAct
from tresnet_jax.variants import ARCHITECTURES

QUICK = (*SMALL, 'resnet50d')


def outputs(model: ImageModel, x: jax.Array) -> list[np.ndarray]:
    """Return every stage's map, and the logits unless the model is a backbone."""

    @jax.jit
    def run(model: ImageModel, x: jax.Array) -> list[jax.Array]:
        last, maps = model.forward_intermediates(x)
        return [*maps, *([] if model.out_indices else [model.forward_head(last)])]

    return [np.asarray(y) for y in run(model, x)]


def state(model: ImageModel) -> dict:
    """Return a copy of the model's state."""
    return jax.tree.map(np.array, nnx.to_pure_dict(nnx.state(model)))


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
    x = normal_images(1, 48, 64, dtype='float64')
    got, expected = outputs(folded, x), outputs(model, x)
    assert len(got) == 6
    record_error(name, 'folded, f64', assert_close(got, expected, 1e-12))
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
def test_every_option(name, options):
    model = as_trained(name, dtype='float64', **options)
    folded = tresnet_jax.fold_batchnorm(model)
    x = normal_images(channels=options.get('in_chans', 3), dtype='float64')
    assert_close(outputs(folded, x), outputs(model, x), 1e-12)
    assert folded.feature_info.channels() == model.feature_info.channels()


@pytest.mark.usefixtures('x64')
@pytest.mark.parametrize('name', SMALL)
def test_the_functional_form(name):
    model = as_trained(name, dtype='float64')
    apply, params, batch_stats = tresnet_jax.functional(tresnet_jax.fold_batchnorm(model))
    assert batch_stats == {}
    x = normal_images(dtype='float64')

    @jax.jit
    def run(params, batch_stats, x):
        return [apply(params, batch_stats, x, method='forward_features'), apply(params, batch_stats, x)]

    assert_close(run(params, batch_stats, x), outputs(model, x)[-2:], 1e-12)
    with pytest.raises(ValueError, match='no batch norm to train'):
        apply(params, batch_stats, x, train=True)


@pytest.mark.parametrize('name', SMALL)
def test_the_given_model_does_not_change(name):
    model = as_trained(name).train()
    before = state(model)
    folded = tresnet_jax.fold_batchnorm(model)
    for _, variable in nnx.to_flat_state(nnx.state(folded)):
        variable[...] = jax.device_put(np.zeros(variable.shape, np.float32))
    assert_identical(state(model), before)
    assert not any(norm.use_running_average for _, norm in nnx.iter_modules(model) if isinstance(norm, BatchNormAct))


def test_a_model_in_training_mode_is_folded_for_evaluation():
    model = as_trained('test_resnet', drop_rate=0.5, drop_path_rate=0.5)
    x = normal_images()
    expected = outputs(model, x)
    assert_close(outputs(tresnet_jax.fold_batchnorm(model.train()), x), expected, 1e-5)


def test_folding_twice_equals_folding_once():
    folded = tresnet_jax.fold_batchnorm(as_trained('test_tresnet'))
    assert_identical(state(tresnet_jax.fold_batchnorm(folded)), state(folded))


def test_a_folded_model_cannot_be_trained_or_converted(tmp_path):
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
    assert jax.eval_shape(folded, normal_images()).shape == (2, 3)


@pytest.mark.parametrize('name', EMBEDDED_TAGS)
def test_every_stage_agrees_with_timm_in_float32(name):
    """The folded model meets the tolerance that `test_embedded` sets for the plain one."""
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
@pytest.mark.parametrize('name', EMBEDDED_TAGS)
def test_half_precision_gives_the_same_classes(name, dtype, fold):
    """The classes agree for at least 99 % of the 500 embedded test images, and the logits are not float32's."""
    single, half = logits(name, 'float32', False), logits(name, dtype, fold)
    assert len(single) == 500
    assert (single.argmax(1) == half.argmax(1)).mean() >= 0.99
    assert 1e-5 < np.sqrt(np.square(half - single).mean() / np.square(single).mean()) < 0.05


@pytest.mark.parametrize('size', [200, 224])
def test_one_large_image_in_bfloat16(size):
    """Only the logits are an output: XLA once fused the last convolutions with the mean and returned NaN."""
    x = normal_images(1, size, size)
    call = jax.jit(lambda model, x: model(x))
    half = tresnet_jax.fold_batchnorm(as_trained('test_resnet', dtype='bfloat16'))
    assert_close(call(half, x), call(as_trained('test_resnet'), x), 0.05)
