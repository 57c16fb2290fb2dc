"""ONNX files: ONNX Runtime returns the model's outputs, and the metadata are those of the other format."""

import dataclasses
import json
import sys

import jax
import numpy as np
import onnx
import onnxruntime
import pytest
from flax import nnx
from PIL import Image

import tresnet_jax
from tests.helpers.closeness import assert_close
from tests.helpers.images import normal_images
from tests.helpers.models import SMALL, as_trained
from tests.helpers.paths import EMBEDDED
from tresnet_jax.errors import MissingExtraError
from tresnet_jax.models.pooling import POOL_TYPES
from tresnet_jax.models.tresnet import TResNet
from tresnet_jax.variants import ARCHITECTURES

TOLERANCE = 1e-5
call = jax.jit(lambda model, x: model(x))


@pytest.fixture
def exported(tmp_path):
    """A function that exports a model with the options of `export` and opens the file."""

    def open_exported(model, **options):
        path = tmp_path / 'model.onnx'
        tresnet_jax.export(model, path, **options)
        onnx.checker.check_model(path, full_check=True)
        settings = onnxruntime.SessionOptions()
        settings.intra_op_num_threads, settings.log_severity_level = 1, 4  # an expected error is not printed
        return onnxruntime.InferenceSession(path, settings, providers=['CPUExecutionProvider'])

    return open_exported


def run(session, x):
    """Return the outputs for images (B, H, W, C), feature maps as (B, h, w, C) too."""
    outputs = session.run(None, {'images': np.ascontiguousarray(x.transpose(0, 3, 1, 2))})
    return [y.transpose(0, 2, 3, 1) if y.ndim == 4 else y for y in outputs]


def shapes(values):
    return {value.name: value.shape for value in values}


@pytest.mark.parametrize(
    'name', [name if name in SMALL else pytest.param(name, marks=pytest.mark.slow) for name in sorted(ARCHITECTURES)]
)
def test_every_architecture(name, exported):
    model, x = as_trained(name), normal_images(2, 64, 64)
    assert_close(run(exported(model), x), [call(model, x)], TOLERANCE)
    jax.clear_caches()


@pytest.mark.parametrize(
    'name, options, size',
    [
        ('test_resnet', {}, (33, 50)),
        ('test_resnet', {'output_stride': 8, 'in_chans': 1, 'features_only': True}, (43, 64)),
        ('test_resnet', {'output_stride': 16, 'features_only': True, 'out_indices': (3, 1)}, (43, 64)),
        ('test_tresnet', {'abn_slope': 1e-6, 'in_chans': 5, 'num_classes': 0}, (36, 52)),
        ('test_tresnet', {'abn_slope': 0, 'features_only': True, 'out_indices': (0, 3)}, (36, 52)),
    ],
)
def test_options_and_sizes(name, options, size, exported):
    """One file takes any number of images of any size."""
    model, channels = as_trained(name, drop_rate=0.5, **options), options.get('in_chans', 3)
    session = exported(model.train())
    assert shapes(session.get_inputs()) == {'images': ['batch', channels, 'height', 'width']}
    x = normal_images(3, *size, channels)
    got, expected = run(session, x), jax.tree.leaves(call(model.eval(), x))
    assert_close(got, expected, TOLERANCE)
    assert_close(run(session, x[:1]), [y[:1] for y in got], TOLERANCE)
    assert [y.shape[:2] for y in session.get_outputs()] == [['batch', y.shape[-1]] for y in expected]


def test_the_outputs_have_the_names_of_the_feature_maps(exported):
    for name, indices, expected in (
        ('test_resnet', (3, 0), {'act1': [2, 32, 12, 16], 'layer3': [2, 192, 2, 2]}),
        ('test_tresnet', (1, 2), {'body.layer1': [2, 16, 6, 8], 'body.layer2': [2, 32, 3, 4]}),
    ):
        model = tresnet_jax.create_model(name, features_only=True, out_indices=indices)
        session = exported(model, image_size=(24, 32), batch=2)
        assert shapes(session.get_inputs()) == {'images': [2, 3, 24, 32]}
        assert shapes(session.get_outputs()) == expected


def test_every_pooling(exported):
    model, x = as_trained('test_tresnet'), normal_images(2, 64, 96)
    features = jax.jit(TResNet.forward_features)(model, x)
    for kind in POOL_TYPES:
        model.reset_classifier(0 if kind in ('', 'max') else 10, kind)
        session = exported(model)
        assert list(shapes(session.get_outputs())) == ['logits' if model.num_classes else 'features']
        assert_close(run(session, x), [model.forward_head(features)], TOLERANCE)


@pytest.mark.parametrize('name, groups', [('test_resnet', 3), ('test_tresnet', 7)])
def test_an_ml_decoder(name, groups, exported):
    """With 3 groups, the last classes of the last group do not exist."""
    options = {'head': 'ml_decoder', 'num_classes': 7, 'num_of_groups': groups, 'decoder_embedding': 16}
    model = as_trained(name, **options)
    rng = np.random.default_rng(0)
    for path, parameter in nnx.to_flat_state(nnx.state(model.get_classifier(), nnx.Param)):
        if 'bias' in path[-1] or 'norm' in str(path):  # a new one is zero, a new scale is one
            parameter[...] += rng.normal(size=parameter.shape)
    session = exported(model)
    assert shapes(session.get_outputs()) == {'logits': ['batch', 7]}
    x = normal_images(3, 64, 96)
    assert_close(run(session, x), [call(model, x)], TOLERANCE)


def test_the_metadata_are_those_of_the_other_format(exported, tmp_path):
    model = tresnet_jax.create_model('test_tresnet.fashion_mnist', pretrained=True)
    session = exported(model)
    metadata = {key: json.loads(value) for key, value in session.get_modelmeta().custom_metadata_map.items()}
    tresnet_jax.export(model, tmp_path / 'model.stablehlo', platforms=['cpu'])
    assert metadata == tresnet_jax.load_exported(tmp_path / 'model.stablehlo').metadata
    image = Image.open(EMBEDDED / 'pictures' / '8_bag.png')
    x = tresnet_jax.create_transform(**metadata['data_config'])(image)
    assert metadata['class_names'][int(run(session, x[None])[0].argmax())] == 'Bag'


def test_names_of_classes_of_any_characters(exported):
    model = tresnet_jax.create_model('test_resnet', num_classes=2)
    names = ('caf\u00e9', b'caf\xe9'.decode('utf-8', 'surrogateescape'))
    model.pretrained_cfg = dataclasses.replace(model.pretrained_cfg, num_classes=2, label_names=names)
    metadata = exported(model).get_modelmeta().custom_metadata_map
    assert tuple(json.loads(metadata['class_names'])) == names


def test_a_model_for_winograds_method_gives_the_same_file(tmp_path):
    model = as_trained('test_resnet')
    for name, folded in (('a', model), ('b', tresnet_jax.fold_batchnorm(model, winograd=True))):
        tresnet_jax.export(folded, tmp_path / f'{name}.ONNX')
    assert (tmp_path / 'a.ONNX').read_bytes() == (tmp_path / 'b.ONNX').read_bytes()


@pytest.mark.parametrize('size', [(16, 40), (30, 32)])
def test_a_tresnet_refuses_the_same_sizes(size, exported):
    model, x = tresnet_jax.create_model('test_tresnet'), normal_images(1, *size)
    with pytest.raises(ValueError, match='multiples of 4'):
        jax.eval_shape(model, x)
    with pytest.raises(onnxruntime.capi.onnxruntime_pybind11_state.InvalidArgument):
        run(exported(model), x)


@pytest.mark.parametrize(
    'options, arguments, message',
    [
        ({'dtype': 'bfloat16'}, {}, "float32, and the model has dtype bfloat16: use dtype='float32'"),
        ({'dtype': 'float16'}, {}, "float32, and the model has dtype float16: use dtype='float32'"),
        ({}, {'platforms': ['cpu']}, r'model.onnx: platforms is for StableHLO'),
        ({}, {'batch': 0}, 'batch must be positive'),
        ({}, {'image_size': 30}, 'multiples of 4'),
    ],
)
def test_an_error_leaves_no_file(options, arguments, message, tmp_path):
    model = tresnet_jax.create_model('test_tresnet', **options)
    with pytest.raises(ValueError, match=message):
        tresnet_jax.export(model, tmp_path / 'model.onnx', **arguments)
    assert not list(tmp_path.iterdir())


def test_a_layer_without_a_form_in_onnx(tmp_path):
    class Other(nnx.Linear):
        pass

    model = tresnet_jax.create_model('test_tresnet')
    model.head.fc = Other(128, 10, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match='^head.fc: a layer of type Other cannot be exported to ONNX$'):
        tresnet_jax.export(model, tmp_path / 'model.onnx')


def test_a_network_of_another_class(tmp_path):
    class Other(TResNet):
        pass

    model = Other(ARCHITECTURES['test_tresnet'], rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match='^a model of type Other cannot be exported to ONNX$'):
        tresnet_jax.export(model, tmp_path / 'model.onnx', image_size=32)


def test_without_onnx(monkeypatch, tmp_path):
    monkeypatch.delitem(sys.modules, 'tresnet_jax.onnx_export', raising=False)
    monkeypatch.setitem(sys.modules, 'onnx', None)
    with pytest.raises(MissingExtraError, match=r"^onnx is not installed; run: pip install 'tresnet_jax\[onnx\]'$"):
        tresnet_jax.export(tresnet_jax.create_model('test_resnet'), tmp_path / 'model.onnx')


def test_load_exported_names_the_program_for_an_onnx_file(tmp_path):
    tresnet_jax.export(tresnet_jax.create_model('test_resnet'), tmp_path / 'model.onnx')
    with pytest.raises(ValueError, match='model.onnx: an ONNX file: run it with onnxruntime'):
        tresnet_jax.load_exported(tmp_path / 'model.onnx')
