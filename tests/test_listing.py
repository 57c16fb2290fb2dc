"""Names of models and weights."""

import pytest

import tresnet_jax
from tresnet_jax.variants import ALIASES, ARCHITECTURES, PRETRAINED


def test_models():
    assert set(tresnet_jax.list_models()) == set(ARCHITECTURES)
    assert tresnet_jax.list_models('tresnet*') == ['tresnet_l', 'tresnet_m', 'tresnet_v2_l', 'tresnet_xl']
    assert tresnet_jax.list_models('resnet[12]*') == [
        'resnet18d',
        'resnet26d',
        'resnet101d',
        'resnet152d',
        'resnet200d',
    ]
    assert tresnet_jax.list_models(['resnet2*', 'resnet5*'], exclude_filters='*26d') == ['resnet50d', 'resnet200d']
    assert tresnet_jax.list_models('resnet50') == []


def test_weights():
    assert set(tresnet_jax.list_pretrained()) == set(tresnet_jax.list_models(pretrained=True)) == set(PRETRAINED)
    assert tresnet_jax.list_pretrained('resnet26d') == ['resnet26d.bt_in1k']
    assert len(tresnet_jax.list_pretrained('resnet50d*')) == 6
    assert tresnet_jax.list_pretrained('*.gluon_in1k', exclude_filters=['resnet1*']) == ['resnet50d.gluon_in1k']
    assert tresnet_jax.list_pretrained(exclude_filters=['resnet*', 'tresnet*', '*.fashion_mnist']) == [
        'test_resnet.r160_in1k'
    ]
    assert 'test_tresnet' in tresnet_jax.list_models(pretrained=True, include_tags=False)


@pytest.mark.parametrize('name', [*ARCHITECTURES, *PRETRAINED, *ALIASES, 'resnet50d.unknown'])
def test_a_known_model(name):
    assert tresnet_jax.is_model(name)


@pytest.mark.parametrize('name', ['resnet50', '', 'tresnet', '.a1_in1k', 'Resnet50d'])
def test_an_unknown_model(name):
    assert not tresnet_jax.is_model(name)
