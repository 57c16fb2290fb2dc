"""`create_model`: names, options, weights, and errors."""

import dataclasses
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import convert
import tresnet_jax
from tests.helpers.closeness import assert_identical
from tests.helpers.images import normal_images
from tests.helpers.models import EMBEDDED_TAGS, as_trained
from tresnet_jax.factory import embedded_path
from tresnet_jax.variants import ALIASES, PRETRAINED

call = jax.jit(lambda model, x: model(x))
FASHION = PRETRAINED['test_resnet.fashion_mnist']


def test_importing_the_library_is_light():
    """The import loads neither torch and other heavy packages nor the converter."""
    heavy = ['torch', 'timm', 'grain', 'tensorflow', 'huggingface_hub', 'matplotlib', 'tyro', 'tqdm', 'convert']
    code = f'import sys, tresnet_jax; print([name for name in {heavy} if name in sys.modules])'
    result = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == '[]'


@pytest.mark.parametrize(
    'name, classes',
    [
        ('test_resnet', 1000),
        ('test_tresnet', 1000),
        ('test_tresnet.fashion_mnist', 10),
        ('test_resnet.r160_in1k', 1000),
    ],
)
def test_the_number_of_classes_of_a_name(name, classes):
    assert tresnet_jax.create_model(name).num_classes == classes


def test_a_tag_has_its_classes_and_its_row():
    model = tresnet_jax.create_model('tresnet_m.miil_in21k')
    assert model.num_classes == 11221
    assert model.pretrained_cfg is PRETRAINED['tresnet_m.miil_in21k']
    assert model.architecture == 'tresnet_m'


@pytest.mark.parametrize('name', ['tresnet_m_448', 'gluon_resnet50_v1d'])
def test_older_names_build(name):
    model = tresnet_jax.create_model(name, num_classes=0)
    assert model.pretrained_cfg.name == ALIASES[name]


@pytest.mark.parametrize('name', EMBEDDED_TAGS)
def test_pretrained_weights_are_those_of_the_file(name):
    stored = convert.read(embedded_path(PRETRAINED[name])).tensors
    weights = {key: value.astype(np.float32) for key, value in stored.items() if value.ndim}
    found = convert.to_torch(tresnet_jax.create_model(name, pretrained=True))
    assert_identical({key: value for key, value in found.items() if value.ndim}, weights)


def test_models_are_made_in_evaluation_mode():
    model = as_trained('test_resnet', drop_rate=0.5)
    x = normal_images()
    expected = call(model, x)
    assert_identical(call(model.eval(), x), expected)
    with pytest.raises(ValueError, match='dropout'):
        call(model.train(), x)


def test_the_line_of_the_model_cards_works():
    model = tresnet_jax.create_model('test_resnet', pretrained=False).reset_classifier(10)
    assert jax.eval_shape(lambda x: model(x), jnp.zeros((1, 32, 32, 3))).shape == (1, 10)


@pytest.mark.parametrize(
    'name, options, message',
    [
        ('tresnet_s', {}, 'did you mean tresnet_'),
        ('resnet50', {}, 'did you mean resnet50d'),
        ('resnet50d.a4_in1k', {}, 'resnet50d has resnet50d.a1_in1k'),
        ('test_resnet', {'global_pool': 'mean'}, 'unknown global_pool'),
        ('test_resnet', {'global_pool': ''}, 'num_classes=0'),
        ('test_resnet', {'output_stride': 4}, '8 or 16 or 32'),
        ('test_tresnet', {'output_stride': 16}, 'output_stride must be 32'),
        ('test_resnet', {'abn_slope': 1e-6}, 'abn_slope is for the leaky ReLUs of TResNet'),
        ('test_tresnet', {'abn_slope': float('nan')}, 'abn_slope must be a finite number, got nan'),
        ('test_resnet', {'dtype': 'int32'}, "dtype must be one of .*, got 'int32'"),
        ('test_resnet', {'dtype': 'float31'}, "dtype must be one of .*, got 'float31'"),
        ('test_resnet', {'dtype': 32}, 'dtype must be one of .*, got 32'),
        ('test_resnet', {'dtype': 'float64'}, 'jax_enable_x64'),
        ('test_resnet', {'in_chans': 0}, 'in_chans must be positive'),
        ('test_resnet', {'num_classes': -1}, 'num_classes not negative'),
        ('test_resnet', {'drop_rate': 5}, 'drop_rate must be between 0 and 1, got 5'),
        ('test_tresnet', {'drop_path_rate': float('nan')}, 'drop_path_rate must be between 0 and 1, got nan'),
        ('test_resnet', {'out_indices': (1,)}, 'features_only=True'),
        ('test_resnet', {'features_only': True, 'out_indices': (7,)}, 'out of range'),
        ('test_resnet', {'checkpoint': 'nowhere.safetensors'}, 'no such file'),
    ],
)
def test_errors_name_the_remedy(name, options, message):
    with pytest.raises(ValueError, match=message):
        tresnet_jax.create_model(name, **options)


def test_a_checkpoint_sets_the_number_of_classes():
    path = embedded_path(FASHION)
    assert tresnet_jax.create_model('test_resnet', checkpoint=path).num_classes == 10
    other = tresnet_jax.create_model('test_resnet', checkpoint=path, num_classes=3)
    assert other(jnp.zeros((1, 32, 32, 3))).shape == (1, 3)
    kept, new = convert.to_torch(tresnet_jax.create_model('test_resnet', checkpoint=path)), convert.to_torch(other)
    for key in kept:
        same = np.array_equal(kept[key], new[key])
        assert same != key.startswith('fc.'), key
    assert tresnet_jax.create_model('test_resnet', checkpoint=path, num_classes=0).num_classes == 0


def test_a_pooling_that_does_not_fit_the_checkpoints_classifier():
    with pytest.raises(ValueError, match='fc.weight'):
        tresnet_jax.create_model('test_resnet', checkpoint=embedded_path(FASHION), global_pool='catavgmax')


def test_a_checkpoint_with_a_wide_classifier_sets_its_pooling(tmp_path):
    source = tresnet_jax.create_model('test_tresnet', num_classes=5, global_pool='catavgmax')
    file = tmp_path / 'wide.safetensors'
    convert.save_torch(file, convert.to_torch(source))
    loaded = tresnet_jax.create_model('test_tresnet', checkpoint=file)
    assert loaded.global_pool == 'catavgmax'
    assert_identical(nnx.to_pure_dict(nnx.state(loaded)), nnx.to_pure_dict(nnx.state(source)))


def test_an_overlay_replaces_what_a_checkpoint_states(tmp_path):
    """Numbers of classes and channels are those of the weights, or an error says which is which."""
    images = {**tresnet_jax.resolve_data_config(FASHION), 'mean': [0.1], 'std': [0.2], 'input_size': [3, 40, 40]}
    params, stats, report = convert.to_flax(convert.read(embedded_path(FASHION)))
    report = dataclasses.replace(report, data_config=images, label_names=tuple('abcdefghij'))
    file = tmp_path / 'flax.safetensors'
    convert.save_flax(file, params, stats, report)

    def create(name='test_resnet.r160_in1k', **overlay):
        return tresnet_jax.create_model(name, checkpoint=file, pretrained_cfg_overlay=overlay)

    model = create(std=[0.3, 0.3, 0.3], num_classes=10, label_names=list('ABCDEFGHIJ'))  # the tag has 1,000 classes
    config = tresnet_jax.resolve_data_config(model)
    assert (config['mean'], config['std'], config['input_size']) == ((0.1,) * 3, (0.3,) * 3, (3, 40, 40))
    assert tresnet_jax.class_names(model) == tuple('ABCDEFGHIJ')
    with pytest.raises(convert.ConversionError, match='has num_classes 10, but pretrained_cfg_overlay says 5; to ch'):
        create('test_resnet', num_classes=5)
    with pytest.raises(convert.ConversionError, match='has in_chans 3, but pretrained_cfg_overlay says 1; to change'):
        create('test_resnet', input_size=(1, 40, 40))


def test_an_overlay_leaves_the_other_numbers_of_a_new_model():
    """A name without a tag means 1,000 classes and 3 channels, whatever its default tag has."""
    for overlay, numbers in (({'mean': [0.1]}, (1000, 3)), ({'num_classes': 7, 'input_size': (1, 32, 32)}, (7, 1))):
        model = tresnet_jax.create_model('test_tresnet', pretrained_cfg_overlay=overlay)
        assert (model.num_classes, model.in_chans) == numbers


def test_the_tag_that_a_file_of_ours_names(tmp_path):
    """Images are prepared as for that tag, not as for the default one. A tag in the name of the model has priority."""
    file = tmp_path / 'flax.safetensors'
    params, stats, report = convert.to_flax(convert.read(embedded_path(FASHION)), FASHION.name)
    convert.save_flax(file, params, stats, report)
    assert tresnet_jax.create_model('test_resnet', checkpoint=file).pretrained_cfg is FASHION
    overlay = {'crop_pct': 0.5}
    config = tresnet_jax.create_model('test_resnet', checkpoint=file, pretrained_cfg_overlay=overlay).pretrained_cfg
    assert config == dataclasses.replace(FASHION, **overlay)
    other = tresnet_jax.create_model('test_resnet.r160_in1k', checkpoint=file, num_classes=3)
    assert other.pretrained_cfg is PRETRAINED['test_resnet.r160_in1k']


@pytest.mark.parametrize(
    'overlay, message',
    [
        ({'mean': 0.5}, 'mean must be a list of numbers, got 0.5'),
        ({'std': [0.5, 0, 0.5]}, 'mean and std must be .*, std not zero'),
        ({'input_size': (64, 64)}, r'input_size must be \(channels, height, width\), got \(64, 64\)'),
        ({'test_input_size': 64}, r'test_input_size must be \(channels, height, width\) or None, got 64'),
        ({'interpolation': 'cubic'}, "interpolation must be one of .*, got 'cubic'"),
        ({'test_crop_pct': -1}, 'crop_pct must be positive'),
        ({'num_classes': '5'}, "num_classes must be a whole number, got '5'"),
        ({'task': 'multi'}, "task must be one of classification, multilabel, got 'multi'"),
    ],
)
def test_values_of_an_overlay(overlay, message):
    with pytest.raises(ValueError, match=f'^pretrained_cfg_overlay: {message}'):
        tresnet_jax.create_model('test_resnet', pretrained_cfg_overlay=overlay)
