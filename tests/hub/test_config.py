"""`save_pretrained`, ``local-dir:``, and what a ``config.json`` may say."""

import dataclasses
import json

import numpy as np
import pytest
import safetensors.numpy
from flax import nnx

import convert
import tresnet_jax
from convert.__main__ import main
from tests.helpers.closeness import assert_identical
from tests.helpers.paths import EMBEDDED
from tresnet_jax import factory
from tresnet_jax.errors import HubError
from tresnet_jax.variants import PRETRAINED

BODY = {'num_classes': 0, 'global_pool': ''}


def shape(model):
    """All that tells two models of an architecture apart but for their weights."""
    stride = getattr(model, 'output_stride', 32)
    return model.architecture, model.num_classes, model.in_chans, model.global_pool, stride


@pytest.fixture
def folder(tmp_path):
    tresnet_jax.save_pretrained(tresnet_jax.create_model('test_resnet', num_classes=5), tmp_path / 'saved')
    return tmp_path / 'saved'


def change(folder, **fields):
    """Change fields of config.json; a name with __ is one of the inner dict, None takes a field away."""
    config = json.loads((folder / 'config.json').read_text())
    for name, value in fields.items():
        inner, _, key = name.rpartition('__')
        fields_of = config[inner] if inner else config
        fields_of[key] = value
        if value is None:
            del fields_of[key]
    (folder / 'config.json').write_text(json.dumps(config))


@pytest.mark.parametrize(
    'name, options',
    [
        ('test_resnet', {'num_classes': 5}),
        ('test_tresnet', {'num_classes': 5, 'in_chans': 1}),
        ('test_tresnet', {'num_classes': 4, 'global_pool': 'catavgmax'}),
        ('test_resnet', {'num_classes': 4, 'global_pool': 'max', 'output_stride': 16, 'in_chans': 5}),
        ('test_resnet', BODY),
    ],
)
def test_what_is_saved_is_loaded(name, options, tmp_path):
    model = tresnet_jax.create_model(name, rngs=nnx.Rngs(3), **options)
    tresnet_jax.save_pretrained(model, tmp_path / 'new' / 'folder')
    loaded = tresnet_jax.create_model(f'local-dir:{tmp_path}/new/folder', pretrained=True)
    assert_identical(convert.to_torch(loaded), convert.to_torch(model))
    built = tresnet_jax.create_model(f'local-dir:{tmp_path}/new/folder', rngs=nnx.Rngs(4))
    assert shape(loaded) == shape(built) == shape(model)
    stem = 'body.conv1.conv.weight' if name == 'test_tresnet' else 'conv1.0.weight'
    assert not np.array_equal(convert.to_torch(built)[stem], convert.to_torch(model)[stem])


def test_what_is_asked_for_goes_before_what_was_saved(folder):
    name = f'local-dir:{folder}'
    adapted = tresnet_jax.create_model(name, pretrained=True, num_classes=3, in_chans=1, global_pool='max')
    assert shape(adapted) == ('test_resnet', 3, 1, 'max', 32)
    change(folder, model_args__output_stride=8)
    for stride, expected in ((None, 8), (16, 16), (32, 32)):
        model = tresnet_jax.create_model(name, output_stride=stride)
        assert model.output_stride == expected
    backbone = tresnet_jax.create_model(name, pretrained=True, features_only=True)
    assert backbone.out_indices == (0, 1, 2, 3, 4) and backbone.num_classes == 0


def test_a_checkpoint_of_ones_own(folder, tmp_path):
    """The folder says what the model is, the file gives the weights and the classes."""
    other = tresnet_jax.create_model('test_resnet', num_classes=7, rngs=nnx.Rngs(9))
    convert.save_torch(tmp_path / 'other.safetensors', convert.to_torch(other))
    loaded = tresnet_jax.create_model(f'local-dir:{folder}', checkpoint=tmp_path / 'other.safetensors')
    assert_identical(convert.to_torch(loaded), convert.to_torch(other))


def test_what_a_checkpoint_states_goes_before_the_folder(folder, tmp_path):
    """A file of ours states everything; of a file of timm's, config.json has what it leaves open."""
    change(folder, model_args__global_pool='max', model_args__output_stride=8)
    params, stats, report = convert.to_flax(convert.read(folder / 'model.safetensors'))
    name, file = f'local-dir:{folder}', tmp_path / 'flax.safetensors'
    for pool, stride in ((None, None), ('avgmax', 16)):
        stated = dataclasses.replace(report, global_pool=pool, output_stride=stride)
        convert.save_flax(file, params, stats, stated)
        model = tresnet_jax.create_model(name, checkpoint=file)
        assert (model.global_pool, model.output_stride) == (pool or 'avg', stride or 32)
    convert.save_torch(file, convert.to_torch(params, stats))
    model = tresnet_jax.create_model(name, checkpoint=file)
    assert (model.global_pool, model.output_stride) == ('max', 8)


@pytest.mark.parametrize('pretrained', [True, False])
def test_another_head_replaces_the_pooling_of_the_folder(pretrained, folder, tmp_path):
    """The pooling and the dropout that config.json states are those of its own head."""
    change(folder, model_args__drop_rate=0.2)
    name = f'local-dir:{folder}'
    model = tresnet_jax.create_model(name, pretrained=pretrained, head='ml_decoder', num_classes=8)
    assert model.ml_decoder is not None and (model.global_pool, model.num_classes) == ('', 8)
    with pytest.raises(ValueError, match="leave out global_pool='max'"):
        tresnet_jax.create_model(name, pretrained=pretrained, head='ml_decoder', global_pool='max')
    convert.save_torch(tmp_path / 'decoder.safetensors', convert.to_torch(model))
    loaded = tresnet_jax.create_model(name, checkpoint=tmp_path / 'decoder.safetensors')
    assert loaded.ml_decoder is not None and loaded.num_classes == 8


def test_the_row_of_a_tag_goes_before_a_config_in_the_cache(tmp_path, monkeypatch):
    """A config.json beside the weights, from an earlier ``hf-hub:``, has no accuracies."""
    name = 'test_resnet.r160_in1k'
    tresnet_jax.save_pretrained(tresnet_jax.create_model(name), tmp_path)
    monkeypatch.setattr(factory, 'find_weights', lambda source, cache_dir: tmp_path / 'model.safetensors')
    assert tresnet_jax.create_model(name, pretrained=True).pretrained_cfg is PRETRAINED[name]


def test_other_names_of_the_weights(folder):
    """timm's usual ones are read; of any others the error names them, as timm would take the first."""
    weights = folder / 'model.safetensors'
    for name in ('pytorch_model.pth', 'model.pth'):
        weights = weights.rename(folder / name)
        assert tresnet_jax.create_model(f'local-dir:{folder}', pretrained=True).num_classes == 5
    weights.rename(folder / 'best.pth')
    (folder / 'last.pth').touch()
    message = r'no model.safetensors or .* in this folder; it has best.pth, last.pth: pass one as checkpoint=PATH$'
    with pytest.raises(HubError, match=message):
        tresnet_jax.create_model(f'local-dir:{folder}', pretrained=True)


def test_the_row(tmp_path):
    """Mean, size, crop and the rest reach the transform."""
    tresnet_jax.save_pretrained(tresnet_jax.create_model('resnet18d.ra4_e3600_r224_in1k', num_classes=2), tmp_path)
    row = tresnet_jax.create_model(f'local-dir:{tmp_path}').pretrained_cfg
    for use_test_size in (False, True):
        assert tresnet_jax.resolve_data_config(row, use_test_size) == tresnet_jax.resolve_data_config(
            'resnet18d.ra4_e3600_r224_in1k', use_test_size
        )
    assert row.tag == 'ra4_e3600_r224_in1k' and row.name == f'local-dir:{tmp_path}' and row.hf_hub_id is None
    assert row.num_classes == 2 and row.license == 'apache-2.0'


def test_a_config_of_before_2023(folder):
    """One dict; and one that says little gets timm's defaults."""
    (folder / 'config.json').write_text(
        json.dumps({'architecture': 'test_resnet', 'num_classes': 5, 'mean': [0, 0, 0]})
    )
    row = tresnet_jax.create_model(f'local-dir:{folder}', pretrained=True).pretrained_cfg
    assert row.mean == (0, 0, 0) and row.std == (0.229, 0.224, 0.225) and row.input_size == (3, 224, 224)


@pytest.mark.parametrize(
    'fields, message',
    [
        ({'architecture': 'resnet50'}, 'unknown architecture'),
        ({'architecture': None}, 'unknown architecture'),
        ({'architecture': ['test_resnet']}, 'architecture cannot be'),
        ({'pretrained_cfg': [1]}, 'must be JSON objects'),
        (
            {'model_args__block_args': {'a': 1}},
            r"uses block_args=\{'a': 1\} \(model_args\), which this package does not support",
        ),
        ({'model_args__in_chans': '3'}, "in_chans cannot be '3'"),
        ({'model_args__global_pool': 'soft'}, "global_pool cannot be 'soft'"),
        ({'model_args__num_classes': -1}, 'num_classes cannot be -1'),
        ({'model_args__num_classes': 6}, 'has 5 classes, but its config.json says 6'),
        ({'model_args__in_chans': 1}, 'has 3 channels, but its config.json says 1'),
        ({'pretrained_cfg__mean': 'a'}, "mean cannot be 'a'"),
        ({'pretrained_cfg__std': [float('nan')]}, 'std cannot be'),
        ({'pretrained_cfg__input_size': [3, 224]}, 'input_size cannot be'),
        ({'pretrained_cfg__crop_pct': 0}, 'crop_pct cannot be 0'),
        ({'pretrained_cfg__interpolation': True}, 'interpolation cannot be True'),
    ],
)
def test_a_config_that_says_nonsense(fields, message, folder):
    change(folder, **fields)
    with pytest.raises(ValueError, match=message):
        tresnet_jax.create_model(f'local-dir:{folder}', pretrained=True)


@pytest.mark.parametrize('content', [b'', b'{', b'[]', b'\xff\xfe', b'[' * 100_000])
def test_a_config_that_is_none(content, folder):
    (folder / 'config.json').write_bytes(content)
    with pytest.raises(HubError, match='config.json: '):
        tresnet_jax.create_model(f'local-dir:{folder}')


def test_a_config_sends_nobody_anywhere(folder, tmp_path):
    """Files, addresses and repositories that it names are not looked at."""
    tresnet_jax.save_pretrained(tresnet_jax.create_model('test_resnet', num_classes=5), tmp_path / 'other')
    inner = {
        'file': str(tmp_path / 'other'),
        'hf_hub_id': 'evil/other',
        'hf_hub_filename': '../other/model.safetensors',
    }
    change(folder, **{f'pretrained_cfg__{key}': value for key, value in inner.items()}, file='x', url='x')
    change(folder, pretrained_cfg__url='http://127.0.0.1:9/x', pretrained_cfg__custom_load=True)
    assert tresnet_jax.create_model(f'local-dir:{folder}', pretrained=True).pretrained_cfg.hf_hub_id is None
    (folder / 'model.safetensors').unlink()
    with pytest.raises(
        HubError, match='saved: no model.safetensors or model.safetensors.index.json or pytorch_model.bin'
    ):
        tresnet_jax.create_model(f'local-dir:{folder}', pretrained=True)
    (folder / 'config.json').unlink()
    with pytest.raises(HubError, match='saved: no config.json'):
        tresnet_jax.create_model(f'local-dir:{folder}')


@pytest.mark.parametrize(
    'name, options, message',
    [
        ('test_resnet', {'features_only': True}, 'only a whole model'),
        ('test_tresnet', {'abn_slope': 1e-6}, 'convert.save_flax'),
    ],
)
def test_models_that_timm_cannot_build(name, options, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        tresnet_jax.save_pretrained(tresnet_jax.create_model(name, **options), tmp_path / 'new')
    assert not (tmp_path / 'new').exists()


def test_a_folder_that_cannot_be_written(folder, tmp_path):
    model = tresnet_jax.create_model('test_resnet', num_classes=6)
    (tmp_path / 'file').touch()
    with pytest.raises(convert.ConversionError, match='file: cannot be created'):
        tresnet_jax.save_pretrained(model, tmp_path / 'file')
    before = (folder / 'config.json').read_text()
    (folder / 'model.safetensors').unlink()
    (folder / 'model.safetensors').mkdir()
    with pytest.raises(convert.ConversionError, match='is a folder'):
        tresnet_jax.save_pretrained(model, folder)
    assert (folder / 'config.json').read_text() == before
    assert sorted(path.name for path in folder.iterdir()) == ['config.json', 'model.safetensors']


def test_a_file_that_is_there_is_replaced(folder):
    model = tresnet_jax.create_model('test_resnet', num_classes=6)
    tresnet_jax.save_pretrained(model, folder)
    loaded = tresnet_jax.create_model(f'local-dir:{folder}', pretrained=True)
    assert_identical(convert.to_torch(loaded), convert.to_torch(model))


STATE = safetensors.numpy.load_file(EMBEDDED / 'test_resnet.fashion_mnist.safetensors')
NAMES = [f'name {index}' for index in range(10)]
TIMM_2021 = {'architecture': 'test_resnet', 'num_classes': 10, 'labels': NAMES, 'mean': [0.1, 0.2, 0.3], 'crop_pct': 1}
WRAPPER = {'architecture': 'test_resnet', 'model_type': 'timm_wrapper', 'num_classes': 10, 'label_names': NAMES[:4]}
SMP = {'encoder_name': 'tu-test_resnet', 'classes': 1, 'in_channels': 3, 'encoder_output_stride': 16}


def written(folder, config, prefix='', **more):
    """Write a folder as it is on the hub; return its name for `create_model`."""
    state = {f'{prefix}{key}': value for key, value in STATE.items() if config is not SMP or not key.startswith('fc.')}
    (folder / 'config.json').write_text(json.dumps(config))
    safetensors.numpy.save_file(state | more, folder / 'model.safetensors', {'format': 'pt'})
    return f'local-dir:{folder}'


@pytest.mark.parametrize(
    'config, prefix, names',
    [
        (TIMM_2021, '', NAMES),
        ({**WRAPPER, 'label_names': dict(enumerate(NAMES))}, 'timm_model.', NAMES),
        (WRAPPER, 'timm_model.', None),
        ({**WRAPPER, 'id2label': dict(enumerate(NAMES)), 'pretrained_cfg': {'mean': [0.1, 0.2, 0.3]}}, '', NAMES),
        ({'architecture': 'test_resnet'}, '', None),
    ],
)
def test_classifiers_of_other_programs(config, prefix, names, tmp_path, capsys):
    """The folder, and what the converter makes of it, have the same classes and prepare images alike."""
    source, target = written(tmp_path, config, prefix), tmp_path / 'out' / 'flax.safetensors'
    target.parent.mkdir()
    model = tresnet_jax.create_model(source, pretrained=True)
    assert main([str(tmp_path), str(target)]) == 0
    converted = tresnet_jax.create_model('test_resnet', checkpoint=target)
    for loaded in (model, converted):
        np.testing.assert_array_equal(convert.to_torch(loaded)['fc.bias'], STATE['fc.bias'].astype(np.float32))
        assert tresnet_jax.class_names(loaded) == (names and tuple(names))
    assert model.pretrained_cfg.num_classes == 10 and model.pretrained_cfg.name == source
    assert main(['inspect', str(tmp_path)]) == 0
    assert ('names       name 0, name 1, name 2, ' in capsys.readouterr().out) == bool(names)
    mean = config.get('mean') or config.get('pretrained_cfg', {}).get('mean')
    if mean:
        assert tresnet_jax.resolve_data_config(model) == tresnet_jax.resolve_data_config(converted)
        assert tresnet_jax.resolve_data_config(model)['mean'] == tuple(mean)


def test_a_segmentation_model(tmp_path):
    """Its encoder is a backbone; its decoder is refused unless it is not wanted."""
    source = written(tmp_path, SMP, 'encoder.model.', **{'decoder.weight': np.zeros((3, 96, 3, 3), np.float32)})
    with pytest.raises(convert.ConversionError, match=r'another head than one linear layer: 1 tensor \(decoder\)'):
        tresnet_jax.create_model(source, pretrained=True)
    backbone = tresnet_jax.create_model(source, pretrained=True, features_only=True)
    assert (backbone.out_indices, backbone.output_stride) == ((0, 1, 2, 3, 4), 16)
    assert shape(tresnet_jax.create_model(source)) == ('test_resnet', 0, 3, 'avg', 16)
    assert main([str(tmp_path), str(tmp_path / 'flax.safetensors'), '--drop-head']) == 0
    assert tresnet_jax.create_model('test_resnet', checkpoint=tmp_path / 'flax.safetensors').output_stride == 16


def test_a_backbone(tmp_path):
    """transformers' TimmBackbone; with a number of classes it becomes a classifier."""
    config = {'backbone': 'test_resnet', 'model_type': 'timm_backbone', 'num_channels': 3, 'out_indices': [1, 3]}
    state = {f'_backbone.{key}': value for key, value in STATE.items() if not key.startswith('fc.')}
    (tmp_path / 'config.json').write_text(json.dumps(config))
    safetensors.numpy.save_file(state, tmp_path / 'model.safetensors')
    assert tresnet_jax.create_model(f'local-dir:{tmp_path}', pretrained=True).out_indices == (1, 3)
    model = tresnet_jax.create_model(f'local-dir:{tmp_path}', pretrained=True, num_classes=3)
    assert model.out_indices is None and model.num_classes == 3


def test_arguments_of_the_model(tmp_path):
    """They are applied, here and after conversion, unless the caller says otherwise."""
    arguments = {'output_stride': 16, 'global_pool': 'max', 'drop_rate': 0.25, 'drop_path_rate': 0.5}
    source = written(tmp_path, {'architecture': 'test_resnet', 'num_classes': 10, 'model_args': arguments})
    model = tresnet_jax.create_model(source, pretrained=True)
    assert shape(model) == ('test_resnet', 10, 3, 'max', 16)
    assert model.head_drop.rate == 0.25 and model.layer4[0].drop_path.rate == 0.5
    assert main([str(tmp_path), str(tmp_path / 'flax.safetensors')]) == 0
    for name, options in (
        ('test_resnet', {'checkpoint': tmp_path / 'flax.safetensors'}),
        ('test_resnet', {'checkpoint': tmp_path / 'model.safetensors'}),
        (source, {'pretrained': True}),
    ):
        assert shape(tresnet_jax.create_model(name, **options)) == ('test_resnet', 10, 3, 'max', 16)
        asked = tresnet_jax.create_model(name, output_stride=32, global_pool='avg', drop_rate=0.0, **options)
        assert shape(asked) == ('test_resnet', 10, 3, 'avg', 32) and asked.head_drop.rate == 0


def test_arguments_of_another_network(tmp_path, capsys):
    source = written(tmp_path, {**TIMM_2021, 'model_args': {'act_layer': 'silu'}})
    words = f"{tmp_path}/config.json: uses act_layer='silu' (model_args), which this package does not support"
    with pytest.raises(HubError) as error:
        tresnet_jax.create_model(source, pretrained=True)
    assert words in str(error.value)
    assert main([str(tmp_path), str(tmp_path / 'flax.safetensors')]) == 2 and words in capsys.readouterr().err
