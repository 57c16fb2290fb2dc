"""Exported models: JAX alone runs them with the model's outputs, and errors say what is wrong."""

import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import convert
import tresnet_jax
from tests.helpers.closeness import assert_close
from tests.helpers.images import normal_images
from tests.helpers.models import SMALL, as_trained
from tests.helpers.paths import EMBEDDED
from tresnet_jax.exporting import CHECKSUM
from tresnet_jax.variants import ARCHITECTURES

# Rounding of the dtype over up to two hundred layers; XLA rounds in other places if weights are constants.
TOLERANCE = {'float32': 1e-5, 'bfloat16': 5e-2}
call = jax.jit(lambda model, x: model(x))


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
@pytest.mark.parametrize(
    'name', [name if name in SMALL else pytest.param(name, marks=pytest.mark.slow) for name in sorted(ARCHITECTURES)]
)
def test_every_architecture(name, dtype, tmp_path):
    model, x = as_trained(name, dtype=dtype), normal_images(2, 64, 64)
    tresnet_jax.export(model, tmp_path / 'model', image_size=64)
    logits = tresnet_jax.load_exported(tmp_path / 'model')(x)
    assert logits.dtype == dtype
    assert_close(logits, call(model, x), TOLERANCE[dtype])
    jax.clear_caches()


@pytest.fixture(scope='module', params=SMALL)
def fashion(request, tmp_path_factory):
    """A trained network, its file, three images and their logits."""
    model = tresnet_jax.create_model(f'{request.param}.fashion_mnist', pretrained=True)
    path = tmp_path_factory.mktemp('exported') / f'{request.param}.stablehlo'
    tresnet_jax.export(model, path)
    x = normal_images(3)
    return model, path, x, np.asarray(call(model, x))


ALONE = """
import json, sys, jax, numpy
path, images, logits = sys.argv[1:]
exported = jax.export.deserialize(bytearray(open(path, 'rb').read()))
numpy.save(logits, exported.call(numpy.load(images)))
metadata = json.loads(open(path, 'rb').read().rpartition(b'\\n')[2])
print(metadata['architecture'], [name for name in ('flax', 'tresnet_jax', 'convert') if name in sys.modules])
"""


def test_jax_alone_runs_the_file(fashion, tmp_path):
    """The documented lines work in a process without flax and this package."""
    model, path, x, expected = fashion
    np.save(tmp_path / 'images.npy', x)
    arguments = [path, tmp_path / 'images.npy', tmp_path / 'logits.npy']
    for package in ('flax', 'tresnet_jax', 'convert'):  # hides the installed package
        (tmp_path / f'{package}.py').write_text('raise ImportError')
    environment = {**os.environ, 'PYTHONPATH': str(tmp_path)}
    command = [sys.executable, '-c', 'import jax.export' + ALONE, *map(str, arguments)]
    result = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert result.stdout == f'{model.architecture} []\n', result.stderr
    assert_close(np.load(tmp_path / 'logits.npy'), expected, TOLERANCE['float32'])


def test_the_caller_chooses_the_number_of_images(fashion):
    _, path, x, expected = fashion
    loaded = tresnet_jax.load_exported(path)
    for batch in (1, 3):
        assert_close(loaded(x[:batch]), expected[:batch], TOLERANCE['float32'])
    assert loaded.exported.platforms == ('cpu', 'cuda', 'tpu')


def test_the_number_of_images_can_be_fixed(tmp_path):
    model = as_trained('test_resnet')
    tresnet_jax.export(model, tmp_path / 'model', image_size=(32, 48), batch=2, platforms=['cpu'])
    loaded = tresnet_jax.load_exported(tmp_path / 'model')
    assert loaded.exported.platforms == ('cpu',)
    assert loaded.metadata['data_config']['input_size'] == [3, 32, 48]
    x = normal_images(2, 32, 48)
    assert_close(loaded(x), call(model, x), TOLERANCE['float32'])
    with pytest.raises(ValueError, match=r'of shape \(2, 32, 48, 3\).*got \(1, 32, 48, 3\)'):
        loaded(x[:1])


def test_the_metadata_prepare_an_image_and_name_its_class(fashion):
    model, path, *_ = fashion
    loaded = tresnet_jax.load_exported(path)
    assert loaded.metadata['architecture'] == model.architecture and loaded.metadata['tag'] == 'fashion_mnist'
    assert loaded.metadata['num_classes'] == 10 and loaded.metadata['dtype'] == 'float32'
    data_config = {key: tuple(v) if isinstance(v, list) else v for key, v in loaded.metadata['data_config'].items()}
    assert data_config == tresnet_jax.resolve_data_config(model)
    image = Image.open(EMBEDDED / 'pictures' / '8_bag.png')
    x = tresnet_jax.create_transform(**loaded.metadata['data_config'])(image)
    assert loaded.metadata['class_names'][int(loaded(x[None])[0].argmax())] == 'Bag'


@pytest.mark.parametrize(
    'options',
    [
        {'features_only': True, 'out_indices': (1, 3)},
        {'num_classes': 0, 'in_chans': 1, 'output_stride': 16},
    ],
)
def test_backbones_and_feature_vectors(options, tmp_path):
    model = as_trained('test_resnet', **options).train()
    x = normal_images(1, channels=model.in_chans)
    tresnet_jax.export(model, tmp_path / 'model', image_size=32)
    got, expected = tresnet_jax.load_exported(tmp_path / 'model')(x), call(model.eval(), x)
    assert_close(got, expected, TOLERANCE['float32'])


def test_weights_are_stored_in_the_compute_dtype(tmp_path):
    for dtype in ('float32', 'bfloat16', 'float16'):
        tresnet_jax.export(as_trained('test_tresnet', dtype=dtype), tmp_path / dtype, image_size=32)
    size = {path.name: path.stat().st_size for path in tmp_path.iterdir()}
    assert size['bfloat16'] == pytest.approx(size['float16'], rel=0.01)
    assert size['float16'] == pytest.approx(size['float32'] / 2, rel=0.1)


def test_float64_needs_jax_enable_x64(tmp_path):
    with jax.enable_x64(True):
        model, x = as_trained('test_resnet', dtype='float64'), normal_images(1)
        tresnet_jax.export(model, tmp_path / 'model', image_size=32)
        assert_close(tresnet_jax.load_exported(tmp_path / 'model')(x), call(model, x), 1e-12)
    with pytest.raises(ValueError, match='jax_enable_x64'):
        tresnet_jax.load_exported(tmp_path / 'model')


@pytest.mark.parametrize(
    'images, got',
    [
        (np.zeros((32, 32, 3), np.float32), r'\(32, 32, 3\)'),
        (np.zeros((1, 3, 32, 32), np.float32), r'\(1, 3, 32, 32\)'),
        (np.zeros((1, 224, 224, 3), np.float32), r'\(1, 224, 224, 3\)'),
        (np.zeros((0, 32, 32, 3), np.float32), r'\(0, 32, 32, 3\)'),
        (np.zeros((1, 32, 32, 3), np.uint8), 'dtype uint8'),
    ],
)
def test_the_error_for_an_input_names_both_shapes(fashion, images, got):
    loaded = tresnet_jax.load_exported(fashion[1])
    with pytest.raises(ValueError, match=rf'normalised images of shape \(batch, 32, 32, 3\).*got .*{got}'):
        loaded(images)


def test_images_of_every_float_dtype_are_accepted(fashion):
    loaded, x = tresnet_jax.load_exported(fashion[1]), jnp.ones((1, 32, 32, 3), jnp.bfloat16)
    np.testing.assert_array_equal(loaded(x), loaded(np.ones((1, 32, 32, 3), np.float64)))


@pytest.mark.parametrize(
    'options, message',
    [
        ({'platforms': ['gpu']}, 'platforms must be some of cpu, cuda, rocm, tpu'),
        ({'platforms': []}, 'platforms must be some of'),
        ({'batch': 0}, 'batch must be positive'),
        ({'image_size': 0}, 'image_size must be a positive number'),
        ({'image_size': 30}, 'multiples of 4'),
    ],
)
def test_an_error_leaves_no_file(options, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        tresnet_jax.export(tresnet_jax.create_model('test_tresnet'), tmp_path / 'model', **options)
    assert not list(tmp_path.iterdir())


def test_a_missing_folder(tmp_path):
    with pytest.raises(convert.ConversionError, match='make it first'):
        tresnet_jax.export(as_trained('test_resnet'), tmp_path / 'nowhere' / 'model', image_size=32)


def test_damaged_files(fashion, tmp_path):
    whole = fashion[1].read_bytes()
    body, _, line = whole.rpartition(b'\n')
    flood = body + b'\n{"a":[' + b'[],' * 4_000_000 + b'1]}'
    for damaged in (
        b'',
        b'garbage',
        whole[: len(whole) // 2],
        body,
        body + b'\n{}',
        body + b'\n[1]',
        flood,
    ):
        (tmp_path / 'model').write_bytes(damaged)
        with pytest.raises(ValueError, match='model: not a file of tresnet_jax.export, or cut short'):
            tresnet_jax.load_exported(tmp_path / 'model')
    without_input = bytes(jax.export.export(jax.jit(lambda: jnp.zeros(1)))().serialize())
    not_images = bytes(jax.export.export(jax.jit(lambda x: x))(jax.ShapeDtypeStruct((3,), 'float32')).serialize())
    unchecked = json.dumps({key: value for key, value in json.loads(line).items() if key != CHECKSUM}).encode()
    for program in (body[len(body) // 2 :], without_input, not_images):
        (tmp_path / 'model').write_bytes(program + b'\n' + line)
        with pytest.raises(ValueError, match='model: its program is damaged; fetch the file again'):
            tresnet_jax.load_exported(tmp_path / 'model')
        (tmp_path / 'model').write_bytes(program + b'\n' + unchecked)  # as older files, which have no checksum
        with pytest.raises(ValueError, match='model: JAX .* cannot read it'):
            tresnet_jax.load_exported(tmp_path / 'model')
    with pytest.raises(FileNotFoundError):
        tresnet_jax.load_exported(tmp_path / 'missing')
    assert json.loads(line)['format'] == 'tresnet_jax.export'
