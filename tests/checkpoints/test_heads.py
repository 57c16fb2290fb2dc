"""Classifiers in other places than timm's, and heads that are not one linear layer."""

import re
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

import convert
import tresnet_jax
from convert.__main__ import main
from tests.helpers.states import RAW, RESNET, TRESNET, body, linear, prefixed, renamed, saved
from tresnet_jax.checkpoints.heads import find_head
from tresnet_jax.checkpoints.layout import as_tensor
from tresnet_jax.checkpoints.layouts import to_timm

FEATURES = {'test_resnet': 96, 'test_tresnet': 512}


def bottleneck(prefix: str, features: int, dtype: type = np.float32) -> dict[str, np.ndarray]:
    """Return ASL's head: features -> 64 -> 10 classes."""
    inner, outer = linear(64, features), linear(10, 64)
    head = prefixed(inner, 'embedding_generator.0.') | prefixed(outer, 'FC.')
    return {prefix + key: value.astype(dtype) for key, value in head.items()}


@pytest.mark.parametrize('dtype', [np.float32, np.float64, np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize('prefix', ['', 'module.model.'])
@pytest.mark.parametrize('state, head', [(TRESNET, 'head.fc'), (RESNET, 'fc')], ids=['tresnet', 'resnet'])
def test_the_bottleneck_of_asl_is_one_linear_layer(state, head, prefix, dtype, tmp_path):
    """W = FC.W E.W and b = FC.W E.b + FC.b, in float64, rounded once."""
    features = FEATURES['test_tresnet' if state is TRESNET else 'test_resnet']
    parts = bottleneck(f'{head}.', features, dtype)
    file = saved(tmp_path, {'model': prefixed({**body(state), **parts}, prefix), 'num_classes': 10})
    found = to_timm(convert.read(file))
    inner, inner_bias, outer, outer_bias = (
        parts[f'{head}.{owner}.{leaf}'].astype(np.float64)
        for owner in ('embedding_generator.0', 'FC')
        for leaf in ('weight', 'bias')
    )
    wide = np.float64 if dtype is np.float64 else np.float32
    for leaf, value in (('weight', outer @ inner), ('bias', outer @ inner_bias + outer_bias)):
        got = found.tensors[f'{head}.{leaf}']
        assert got.dtype == wide
        np.testing.assert_array_equal(got, value.astype(wide))
    assert found.head is None and "folded ASL's bottleneck head, two linear layers, into one" in found.notes
    assert convert.to_flax(convert.read(file))[2].num_classes == 10


DECODER = {
    'fc.embed_standart.weight': (768, 96),
    'fc.query_embed.weight': (10, 768),
    'fc.decoder.layers.0.norm1.weight': (768,),
    'fc.duplicate_pooling': (10, 768, 1),
}
FASTAI = {'1.2.weight': (192,), '1.4.weight': (512, 192), '1.6.weight': (512,), '1.8.weight': (10, 512)}
OTHER_HEADS = {
    'ML-Decoder': (DECODER, 'an ML-Decoder head'),
    'fastai': (FASTAI, r'another head than one linear layer: 4 tensors \(1.2, 1.4, 1.6, 1.8\)'),
    'decoder': ({'decoder.blocks.0.weight': (8, 96, 3, 3)}, r'linear layer: 1 tensor \(decoder.blocks\)'),
    'two layers': ({'fc.0.weight': (32, 96), 'fc.0.bias': (32,), 'fc.2.weight': (10, 32), 'fc.2.bias': (10,)},
                   r'linear layer: 4 tensors \(fc.0, fc.2\)'),
    'no bias': ({'fc.1.weight': (10, 96)}, r'linear layer: 1 tensor \(fc.1\)'),
    'another width': ({'cls.weight': (10, 80), 'cls.bias': (10,)}, r'classifier \(cls.weight\) that takes 80 features'),
    'in place, another width': ({'fc.weight': (10, 80), 'fc.bias': (10,)}, 'classifier that takes 80 features'),
    'two linear layers': ({'a.weight': (10, 96), 'a.bias': (10,), 'b.weight': (4, 96), 'b.bias': (4,)},
                          r'several linear layers that take its features \(a, b\)'),
    'behind the classifier': ({'fc.weight': (30, 96), 'fc.bias': (30,), 'cls.weight': (10, 30), 'cls.bias': (10,)},
                              r'a further linear layer after its 30 classes \(cls\)'),
    'half of a bottleneck': ({'fc.embedding_generator.0.weight': (64, 96), 'fc.FC.weight': (10, 64)},
                             "ASL's bottleneck head with other layers"),
    'a deeper bottleneck': ({**{f'fc.embedding_generator.{i}.weight': (96, 96) for i in (0, 2)},
                             **{f'fc.embedding_generator.{i}.bias': (96,) for i in (0, 2)},
                             'fc.FC.weight': (10, 96), 'fc.FC.bias': (10,)}, "ASL's bottleneck head with other layers"),
}  # fmt: skip


@pytest.mark.parametrize('case', OTHER_HEADS)
def test_other_heads_are_named_and_can_be_dropped(case, tmp_path, capsys):
    shapes, words = OTHER_HEADS[case]
    head = {key: np.zeros(shape, np.float32) for key, shape in shapes.items()}
    file, out = saved(tmp_path, {'model': {**body(RESNET), **head}}), tmp_path / 'out.safetensors'
    with pytest.raises(convert.ConversionError, match=f'{file}: has .*{words}.*--drop-head'):
        convert.to_flax(convert.read(file))
    assert main([str(file), str(out), '--drop-head']) == 0
    said = capsys.readouterr().out
    assert all(f'dropped {key}: ' in said for key in head)
    assert tresnet_jax.create_model('test_resnet', checkpoint=out).num_classes == 0


def test_the_product_of_two_narrow_matrices_is_not_computed():
    shapes = {'embedding_generator.0.weight': (1, 96), 'embedding_generator.0.bias': (1,)}
    shapes |= {'FC.weight': (2**22, 1), 'FC.bias': (2**22,)}
    beside = {key: as_tensor(np.broadcast_to(np.float32(1), shape)) for key, shape in shapes.items()}
    head = find_head({}, beside, 'test_resnet')
    assert not head.tensors and 'bottleneck head with other layers' in str(head.foreign)


@pytest.mark.parametrize('case', ['fastai', 'ML-Decoder'])
def test_models_that_need_no_head_of_the_file(case, tmp_path):
    head = {key: np.zeros(shape, np.float32) for key, shape in OTHER_HEADS[case][0].items()}
    file = saved(tmp_path, {**body(RESNET), **head})
    for options, classes in (({'num_classes': 0}, 0), ({'num_classes': 3}, 3), ({'features_only': True}, 0)):
        model = tresnet_jax.create_model('test_resnet', checkpoint=file, **options)
        assert model.num_classes == classes
        np.testing.assert_array_equal(convert.to_torch(model)['bn1.running_mean'], RESNET['bn1.running_mean'])
    with pytest.raises(convert.ConversionError, match='--drop-head'):
        tresnet_jax.create_model('test_resnet', checkpoint=file)


def test_what_is_beside_a_classifier_is_left_out_and_named(tmp_path):
    others = {'criterion.weight': np.ones(10), 'metrics.total': np.array(3), **prefixed(linear(4, 8), 'aux.cls.')}
    report = convert.to_flax(convert.read(saved(tmp_path, {**prefixed(RESNET, 'net.'), **others})))[2]
    assert report.num_classes == 10
    assert 'left out 4 tensors (criterion, metrics, aux.cls)' in report.notes


def test_a_classifier_outside_of_the_network_is_taken_and_named(tmp_path):
    state = {**prefixed(body(RESNET), 'backbone.'), **prefixed(linear(7), 'head.layers.2.')}
    report = convert.to_flax(convert.read(saved(tmp_path, state)))[2]
    assert report.num_classes == 7 and 'took head.layers.2 as the classifier' in report.notes
    with pytest.raises(convert.ConversionError, match='has 7 classes, but test_resnet.fashion_mnist has 10'):
        convert.to_flax(convert.read(saved(tmp_path, state)), 'test_resnet.fashion_mnist')


@pytest.mark.parametrize(
    'key, shape, left_out',
    [
        ('criterion.weight', (7,), True),
        ('ce_loss.pos_weight', (7,), True),
        ('module.loss_fn.weight', (7,), True),
        ('val_acc.tp', (7,), True),
        ('total', (), False),
        ('criterion.W', (7, 96), False),  # the classifier of ArcFace
        ('neck.weight', (96,), False),
    ],
)
def test_the_loss_beside_a_classifier(key, shape, left_out, tmp_path):
    """As in Lightning's checkpoints: what training alone calls is left out, anything else can be part of the head."""
    state = {**prefixed(body(RESNET), 'backbone.'), **prefixed(linear(7), 'head.'), key: np.ones(shape, np.float32)}
    checkpoint = convert.read(saved(tmp_path, {'state_dict': state}))
    if left_out:
        report = convert.to_flax(checkpoint)[2]
        owner = key.rpartition('.')[0]
        assert report.num_classes == 7 and report.notes[-2:] == (
            'took head as the classifier', f'left out 1 tensor ({owner})',
        )  # fmt: skip
    else:
        with pytest.raises(convert.ConversionError, match='another head than one linear layer'):
            convert.to_flax(checkpoint)


HEAD, BODY, RAW_BODY = linear(7), body(RESNET), body(RAW)
AVERAGED = {key: value * np.float32(2) for key, value in HEAD.items()}
ELSEWHERE = {
    'nested': ({'backbone': BODY, 'head': HEAD}, HEAD),
    'another name': ({'model': BODY, 'classifier': HEAD}, HEAD),
    'with a prefix': ({'model': prefixed(BODY, 'module.'), 'fc': prefixed(HEAD, 'module.')}, HEAD),
    'flat': ({'backbone': BODY, **prefixed(HEAD, 'fc.')}, HEAD),
    'deep': ({'net': {'backbone': {'a': BODY}, 'head': {'fc': HEAD}}, 'epoch': 3}, HEAD),
    'above': ({'state_dict': {'backbone': BODY}, 'linear': HEAD}, HEAD),
    'the innermost': ({'net': {'backbone': BODY, 'head': HEAD}, 'head': linear(5)}, HEAD),
    'in a list': ([BODY, HEAD], HEAD),
    'a name of the network': ({'net': prefixed(BODY, 'net.'), 'layer5': HEAD}, HEAD),
    'counters': ({'backbone': BODY, 'head': {**HEAD, 'total_ops': np.zeros(1)}}, HEAD),
    'of a TResNet': ({'backbone': body(TRESNET), 'head': linear(7, 512)}, linear(7, 512)),
    'an average': ({'net': RAW_BODY, 'head': HEAD, 'ema_net': BODY, 'ema_head': AVERAGED}, AVERAGED),
    'two pairs': ({'a': {'net': RAW_BODY, 'head': HEAD}, 'ema': {'net': BODY, 'head': AVERAGED}}, AVERAGED),
    'not those of an optimizer': ({'backbone': BODY, 'optimizer': {'state': {0: {'exp_avg': HEAD['weight']}}}}, None),
    'not without a bias': ({'backbone': BODY, 'proxies': {'weight': HEAD['weight']}}, None),
    'not of another width': ({'backbone': BODY, 'head': linear(7, 80)}, None),
    'not of several layers': (
        {'backbone': BODY, 'mlp': {**prefixed(HEAD, '0.'), **prefixed(linear(7, 7), '2.')}},
        None,
    ),
    'not if the network has one': ({'backbone': RESNET, 'head': HEAD}, {'weight': RESNET['fc.weight']}),
}


@pytest.mark.parametrize('case', ELSEWHERE)
def test_classifiers_in_dictionaries_beside_the_network(case, tmp_path):
    tree, head = ELSEWHERE[case]
    state = to_timm(convert.read(saved(tmp_path, tree)))
    found = [key for key in state.tensors if key.startswith(('fc.', 'head.'))]
    assert state.head is None and len(found) == (2 if head else 0)
    if head:
        weight = next(key for key in found if key.endswith('weight'))
        np.testing.assert_array_equal(state.tensors[weight], head['weight'])


def test_several_classifiers_beside_the_network(tmp_path):
    file = saved(tmp_path, {'backbone': BODY, 'head_a': HEAD, 'head_b': {'fc': linear(5)}})
    words = r'has several linear layers that take its features \(head_a, head_b.fc\).*--drop-head'
    with pytest.raises(convert.ConversionError, match=words):
        convert.to_flax(convert.read(file))
    assert convert.to_flax(convert.read(file), num_classes=0)[2].num_classes == 0


def test_a_classifier_is_never_mixed_with_an_average(tmp_path):
    file = saved(tmp_path, {'backbone': RAW_BODY, 'backbone_ema': BODY, 'head': HEAD})
    report = convert.to_flax(convert.read(file))[2]
    assert report.num_classes == 0
    assert 'left out the classifier head: it is not an average, unlike the network' in report.notes
    assert convert.to_flax(convert.read(file, ema=False))[2].num_classes == 7


def test_a_dropped_head_of_many_tensors_has_one_line(tmp_path, capsys):
    heads = {f'head{i}.{key}': value for i in range(20) for key, value in HEAD.items()}
    assert main([str(saved(tmp_path, {**BODY, **heads})), str(tmp_path / 'out.safetensors'), '--drop-head']) == 0
    said = capsys.readouterr().out
    assert '  dropped 40 tensors: several linear layers that take its features (head0, head1,' in said
    assert said.count('  dropped ') == 1


def test_what_takes_the_features_without_a_bias_is_named(tmp_path):
    report = convert.to_flax(convert.read(saved(tmp_path, {'backbone': BODY, 'arc': {'weight': HEAD['weight']}})))[2]
    assert 'left out 1 tensor (arc), no linear layer with a bias' in report.notes


def test_a_classifier_without_a_bias(tmp_path):
    state = {key: value for key, value in RESNET.items() if key != 'fc.bias'}
    with pytest.raises(convert.ConversionError, match=r'fc.bias \(10,\)\n--drop-head'):
        convert.to_flax(convert.read(saved(tmp_path, state)))


@pytest.mark.parametrize(
    'old, new',
    [
        ('layer1.0.conv1.weight', 'layer1.0.conv1.weight_orig'),
        ('layer1.0.conv1.weight', 'layer1.0.conv1.parametrizations.weight.original0'),
        ('layer2.0.conv1.weight', 'layer2.0.conv1.base_layer.weight'),
        ('layer2.0.conv1.', 'layer2.0.conv1.lora_A.default.'),
        ('fc.weight', 'fc.weight_g'),
    ],
)
def test_split_weights_are_merged_where_they_come_from(old, new, tmp_path):
    file = saved(tmp_path, prefixed(renamed(RESNET, old, new), 'net.'))
    with pytest.raises(convert.ConversionError, match='whose weights are split (.*); merge them in its program'):
        convert.to_flax(convert.read(file))
    with pytest.raises(convert.ConversionError):
        convert.to_flax(convert.read(file), 'test_resnet')


def test_the_body_stays_strict(tmp_path):
    """A tensor within the body is never left out, and a renamed one is listed on both sides."""
    state = {**RESNET, 'layer1.0.extra.weight': np.zeros(3)}
    with pytest.raises(convert.ConversionError, match=r'unexpected in the file \(1\):\n  layer1.0.extra.weight'):
        convert.to_flax(convert.read(saved(tmp_path, state)), 'test_resnet')
    moved = {key.replace('bn1.bias', 'norm.shift') if key == 'bn1.bias' else key: v for key, v in RESNET.items()}
    with pytest.raises(convert.ConversionError) as error:
        convert.to_flax(convert.read(saved(tmp_path, moved)), 'test_resnet')
    assert 'missing from the file (1):\n  bn1.bias' in str(error.value)
    assert 'unexpected in the file (1):\n  norm.shift' in str(error.value)


@pytest.mark.parametrize('value', [np.zeros(()), np.zeros((0, 96)), np.zeros(3), np.zeros((10, 96, 1, 1))])
@pytest.mark.parametrize('key', ['fc.weight', 'cls.weight'])
def test_classifiers_of_impossible_shapes(key, value, tmp_path):
    state = {**body(RESNET), key: value.astype(np.float32), key.replace('weight', 'bias'): np.zeros(10, np.float32)}
    file = saved(tmp_path, state)
    with pytest.raises(convert.ConversionError):
        convert.to_flax(convert.read(file))
    assert convert.to_flax(convert.read(file), num_classes=0)[2].num_classes == 0
    assert main(['inspect', str(file)]) == 0


def test_a_checkpoint_by_hand_has_its_head_found_too():
    checkpoint = convert.Checkpoint(Path('a'), 'torch', {**body(RESNET), **prefixed(linear(5), 'fc.1.')}, {})
    assert convert.to_flax(checkpoint)[2].num_classes == 5


def test_names_of_other_libraries_ask_for_the_converter(tmp_path):
    """`create_model` takes timm's names alone; after conversion it opens the file."""
    mmdetection = {re.sub('^bn1', 'stem.7', re.sub('^conv1', 'stem', key)): value for key, value in RESNET.items()}
    file = saved(tmp_path, prefixed(mmdetection, 'backbone.'))
    with pytest.raises(convert.ConversionError, match=f'first run: python -m convert {file} TARGET.safetensors'):
        tresnet_jax.create_model('test_resnet', checkpoint=file)
    assert main([str(file), str(tmp_path / 'out.safetensors')]) == 0
    model = tresnet_jax.create_model('test_resnet', checkpoint=tmp_path / 'out.safetensors')
    np.testing.assert_array_equal(convert.to_torch(model)['bn1.running_mean'], RESNET['bn1.running_mean'])
