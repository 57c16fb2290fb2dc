"""ML-Decoder heads in checkpoints: timm's names and the authors', our files, runs and configurations."""

import json

import numpy as np
import pytest
from flax import nnx

import convert
import tresnet_jax
from convert.__main__ import main
from convert.inspect import inspect
from tests.helpers.closeness import assert_identical
from tests.helpers.models import SMALL
from tests.helpers.states import RESNET, TRESNET, body, prefixed, saved, without
from tresnet_jax.checkpoints.checkpoint import COUNTER
from tresnet_jax.checkpoints.ml_decoder import DECODER_NAMES, decoder_shapes
from tresnet_jax.checkpoints.run import MODEL_FILE, save_description, stored_network
from tresnet_jax.errors import HubError

PLACE = {'test_resnet': 'fc.', 'test_tresnet': 'head.'}
BODIES = {'test_resnet': body(RESNET), 'test_tresnet': body(TRESNET)}
SIZES = {'num_of_groups': 4, 'decoder_embedding': 16}
OPTIONS = {'head': 'ml_decoder', **SIZES}


def decoder(name: str, classes: int = 7) -> dict[str, np.ndarray]:
    """Return a seeded head under timm's names, without the place of the head."""
    rng, features = np.random.default_rng(classes), {'test_resnet': 96, 'test_tresnet': 512}[name]
    shapes = decoder_shapes(classes, 4, 16, features)
    return {key: rng.standard_normal(shape).astype(np.float32) for key, shape in shapes.items()}


def of_the_authors(head: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {f'decoder.{key.removeprefix("decoder.")}': value for key, value in head.items()}


def state(name: str) -> dict[str, np.ndarray]:
    return BODIES[name] | prefixed(decoder(name), PLACE[name])


SPELLINGS = {
    'timm': lambda name, head: {**BODIES[name], **prefixed(head, PLACE[name])},
    'authors': lambda name, head: {'model': {**BODIES[name], **prefixed(of_the_authors(head), PLACE[name])}},
    'with a prefix': lambda name, head: prefixed(
        {**BODIES[name], **prefixed(of_the_authors(head), PLACE[name])}, 'module.'
    ),
    'beside': lambda name, head: {'backbone': BODIES[name], 'head': head},
    'beside, the authors': lambda name, head: {'backbone': BODIES[name], 'head': of_the_authors(head)},
    'with a loss': lambda name, head: {**BODIES[name], **prefixed(head, PLACE[name]), 'loss.weight': np.ones(3)},
}


@pytest.mark.parametrize('spelling', SPELLINGS)
@pytest.mark.parametrize('name', SMALL)
def test_every_spelling_loads_and_returns_under_timms_names(name, spelling, tmp_path):
    file = saved(tmp_path, SPELLINGS[spelling](name, decoder(name)))
    params, batch_stats, report = convert.to_flax(convert.read(file))
    assert (report.num_classes, report.head_options) == (7, OPTIONS) and '7 classes (ML-Decoder)' in str(report)
    assert ('left out 1 tensor (loss)' in report.notes) is (spelling == 'with a loss')
    returned = convert.to_torch(params, batch_stats)
    expected = {key: np.asarray(value, np.float32) for key, value in state(name).items() if COUNTER not in key}
    assert_identical({key: returned[key] for key in expected}, expected)
    model = tresnet_jax.create_model(name, checkpoint=file)
    assert (model.num_classes, model.head_options) == (7, OPTIONS)


def test_the_names_and_shapes_are_those_of_the_model():
    model = tresnet_jax.create_model('test_resnet', num_classes=7, **OPTIONS)
    found = {k.removeprefix('fc.'): v.shape for k, v in convert.to_torch(model).items() if k.startswith('fc.')}
    assert found == decoder_shapes(7, 4, 16, 96) and len(DECODER_NAMES) == 19


def changed(**shapes: tuple[int, ...]):
    names = {'pooling': 'duplicate_pooling', 'bias': 'duplicate_pooling_bias', 'embed': 'embed_standart.weight'}
    return lambda head: head | {names[key]: np.zeros(shape, np.float32) for key, shape in shapes.items()}


PROBLEMS = {
    'one is missing': (lambda head: without(head, 'decoder.layers.0.linear1.bias'),
                       'without decoder.layers.0.linear1.bias'),
    'several are missing': (lambda head: without(head, 'decoder.'), 'without .* and 13 more'),
    'two layers': (lambda head: head | {k.replace('.0.', '.1.'): v for k, v in head.items()},
                   'with decoder.layers.1.* and 13 more'),
    'zero-shot': (lambda head: head | {'wordvec_proj.weight': np.zeros((16, 300), np.float32)},
                  'with wordvec_proj.weight'),
    'another width': (changed(embed=(16, 80)), r'whose embed_standart.weight has shape \(16, 80\) instead of'),
    'two axes': (changed(pooling=(4, 16)), r'whose duplicate_pooling has shape \(4, 16\)'),
    'more groups than classes': (changed(bias=(3,)), 'of 4 queries, 16 wide, for 3 classes'),
    'no groups': (changed(pooling=(0, 16, 2)), 'of 0 queries'),
    'other groups': (changed(bias=(9,)), r'whose duplicate_pooling has shape \(4, 16, 2\) instead of \(4, 16, 3\)'),
    'several': (lambda head: {**head, **prefixed(head, 'other.')}, 'beside 1 more'),
}  # fmt: skip


@pytest.mark.parametrize('case', PROBLEMS)
def test_heads_that_differ_are_refused_and_can_be_dropped(case, tmp_path, capsys):
    change, words = PROBLEMS[case]
    head = prefixed(change(decoder('test_resnet')), 'fc.')
    file, out = saved(tmp_path, {**BODIES['test_resnet'], **head}), tmp_path / 'out.safetensors'
    with pytest.raises(convert.ConversionError, match=f'{file}: has an ML-Decoder head {words}.*--drop-head') as caught:
        convert.to_flax(convert.read(file))
    assert '\n' not in str(caught.value)
    assert f'an ML-Decoder head {words.split()[0]}' in str(inspect(file).head)
    assert main([str(file), str(out), '--drop-head']) == 0
    assert 'dropped' in capsys.readouterr().out
    assert tresnet_jax.create_model('test_resnet', checkpoint=out).num_classes == 0


def test_inspect_names_the_head(tmp_path):
    found = inspect(saved(tmp_path, state('test_tresnet')))
    assert (found.architecture, found.num_classes, found.tags) == ('test_tresnet', 7, ())
    assert found.head == 'an ML-Decoder head of 4 queries, 16 wide' and f'7, {found.head}' in str(found)
    assert found.looks_like == 'test_tresnet' and found.exact


@pytest.mark.parametrize('name', SMALL)
def test_a_file_of_ours_keeps_the_head(name, tmp_path, capsys):
    source, flax, back = saved(tmp_path, state(name)), tmp_path / 'flax.safetensors', tmp_path / 'back.safetensors'
    assert main([str(source), str(flax)]) == 0
    assert convert.read(flax).metadata['head'] == 'ml_decoder' and inspect(flax).num_classes == 7
    assert main([str(flax), str(back), '--to', 'torch']) == 0
    assert_identical(convert.read(back).tensors, dict(sorted(state(name).items())))
    capsys.readouterr()
    model = tresnet_jax.create_model(name, checkpoint=flax)
    assert (model.num_classes, model.head_options) == (7, OPTIONS)
    for stated, tensors in (('linear', 'ml_decoder'), ('', 'ml_decoder'), ('decoder', 'ml_decoder')):
        checkpoint = convert.read(flax)
        checkpoint.metadata['head'] = stated
        with pytest.raises(convert.ConversionError, match=f"the head '{tensors}', but states '{stated or 'linear'}'"):
            convert.to_flax(checkpoint)


def test_heads_other_than_that_of_the_checkpoint_are_drawn(tmp_path):
    decoding, name = saved(tmp_path, state('test_resnet')), 'test_resnet'
    linear = saved(tmp_path, RESNET, 'linear.pth')
    for file, options, classes, expected, kept in (
        (decoding, {}, 7, OPTIONS, True),
        (decoding, OPTIONS, 7, OPTIONS, True),
        (decoding, {'head': 'ml_decoder', 'num_classes': 7}, 7, OPTIONS, True),
        (decoding, {'head': 'linear'}, 7, {}, False),
        (decoding, {'num_classes': 0}, 0, {}, False),
        (decoding, {'features_only': True}, 0, {}, False),
        (decoding, {**OPTIONS, 'num_of_groups': 2}, 7, {**OPTIONS, 'num_of_groups': 2}, False),
        (decoding, {**OPTIONS, 'decoder_embedding': 8}, 7, {**OPTIONS, 'decoder_embedding': 8}, False),
        (decoding, {**OPTIONS, 'num_classes': 9}, 9, OPTIONS, False),
        (linear, OPTIONS, 10, OPTIONS, False),
        (linear, {**OPTIONS, 'num_classes': 80}, 80, OPTIONS, False),
        (linear, {'head': 'linear'}, 10, {}, True),
    ):
        model = tresnet_jax.create_model(name, checkpoint=file, **options)
        assert (model.num_classes, model.head_options) == (classes, expected), options
        tensors = convert.to_torch(model)
        np.testing.assert_array_equal(tensors['bn1.running_mean'], RESNET['bn1.running_mean'])
        key = 'fc.weight' if file == linear else 'fc.duplicate_pooling'
        original = (RESNET if file == linear else state(name))[key]
        assert (key in tensors and np.array_equal(tensors[key], original)) is kept, options
    assert tresnet_jax.create_model(name, checkpoint=decoding, num_classes=3).head_options['decoder_embedding'] == 768
    with pytest.raises(ValueError, match='a dropout of its own'):
        tresnet_jax.create_model(name, checkpoint=decoding, drop_rate=0.1)
    with pytest.raises(ValueError, match="has no classes for head='ml_decoder'"):
        tresnet_jax.create_model(name, checkpoint=saved(tmp_path, body(RESNET), 'body.pth'), head='ml_decoder')


def test_a_run_describes_its_head(tmp_path):
    model = tresnet_jax.create_model('test_tresnet', num_classes=7, **OPTIONS)
    data = tresnet_jax.resolve_data_config(model)
    save_description(tmp_path, model, data, None)
    network = stored_network(tmp_path)
    expected = {'name': 'test_tresnet', 'in_chans': 3, 'global_pool': None, 'output_stride': None}
    assert network == expected | OPTIONS
    assert tresnet_jax.create_model(**network, num_classes=7).head_options == OPTIONS
    save_description(tmp_path, tresnet_jax.create_model('test_tresnet', num_classes=7), data, None)
    assert 'head' not in json.loads((tmp_path / MODEL_FILE).read_text())


def test_a_folder_with_a_config_keeps_the_head(tmp_path):
    model = tresnet_jax.create_model('test_tresnet', num_classes=7, **OPTIONS, rngs=nnx.Rngs(3))
    tresnet_jax.save_pretrained(model, tmp_path)
    file, source = tmp_path / 'config.json', f'local-dir:{tmp_path}'
    config = json.loads(file.read_text())
    assert config['model_args'] == {'in_chans': 3, 'num_classes': 7, **OPTIONS}
    assert config['pretrained_cfg']['classifier'] == 'head'
    loaded = tresnet_jax.create_model(source, pretrained=True)
    assert_identical(convert.to_torch(loaded), convert.to_torch(model))
    assert tresnet_jax.create_model(source).head_options == OPTIONS
    for options, expected in (({'head': 'linear'}, 7), ({'num_classes': 0}, 0)):
        for pretrained in (True, False):
            other = tresnet_jax.create_model(source, pretrained=pretrained, **options)
            assert (other.num_classes, other.ml_decoder, other.global_pool) == (expected, None, 'fast')
    config['model_args'] |= {'head': 'linear', 'num_of_groups': None, 'decoder_embedding': None}
    file.write_text(json.dumps(config))
    with pytest.raises(HubError, match="has the head 'ml_decoder', but its config.json says 'linear'"):
        tresnet_jax.create_model(source, pretrained=True)
    for key, value in (('head', 'conv'), ('num_of_groups', 0), ('decoder_embedding', '16')):
        file.write_text(json.dumps(config | {'model_args': {**OPTIONS, key: value}}))
        with pytest.raises(HubError, match=f'{key} cannot be {value!r}'):
            tresnet_jax.create_model(source)
