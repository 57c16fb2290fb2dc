"""Names and shapes of all tensors from a few numbers, and relatives of our networks with the same stem."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

import convert
from tests.helpers.models import zero_trees
from tests.helpers.states import RESNET, TRESNET, inserted, prefixed, without
from tresnet_jax.checkpoints.checkpoint import COUNTER
from tresnet_jax.checkpoints.find import find
from tresnet_jax.checkpoints.identify import FOREIGN, describe, identify
from tresnet_jax.checkpoints.structure import (
    Shape,
    architecture_shape,
    differences,
    expected_shapes,
    tensors_shape,
)
from tresnet_jax.models.build import build_model
from tresnet_jax.models.initializers import ShapesOnly
from tresnet_jax.variants import ALL_BASIC, ALL_BOTTLENECK, ARCHITECTURES

Tensors = dict[str, np.ndarray]
WIDE = (64, 128, 256, 512)


def zeros(shapes: dict[str, tuple[int, ...]]) -> Tensors:
    return {key: np.broadcast_to(np.float32(0), shape) for key, shape in shapes.items()}


def network(architecture: str) -> Tensors:
    return zeros(expected_shapes(architecture_shape(architecture)))


@pytest.mark.parametrize('name, in_chans', [*((name, 3) for name in ARCHITECTURES), ('resnet18d', 1), ('tresnet_m', 1)])
def test_they_are_those_of_the_model(name, in_chans):
    model = build_model(name, num_classes=7, in_chans=in_chans, rngs=ShapesOnly())
    state = convert.to_torch(*zero_trees(model))
    tensors = {key: value for key, value in state.items() if not key.endswith(COUNTER)}
    shape = architecture_shape(name)
    assert tensors_shape(tensors) == shape and not any(differences(tensors, shape))
    assert identify(tensors) == (name, True) and describe(tensors) == name
    if in_chans == 3:
        head = {key for key in tensors if key.startswith(('fc.', 'head.'))}
        assert expected_shapes(shape) == {key: v.shape for key, v in tensors.items() if key not in head}


def with_squeeze_excite(tensors: Tensors) -> Tensors:
    return tensors | zeros({'layer1.0.se.fc1.weight': (16, 256, 1, 1), 'layer1.0.se.fc1.bias': (16,)})


def with_pooled_projection(tensors: Tensors) -> Tensors:
    """ResNet-C: the projection is the first module of a shortcut."""
    moved = {key.replace('.downsample.1.', '.downsample.0.'): value for key, value in tensors.items()}
    return {key.replace('.downsample.2.', '.downsample.1.'): value for key, value in moved.items()}


PROJECTION = {'layer1.0.downsample.1.weight': (64, 64, 1, 1)} | {
    f'layer1.0.downsample.2.{leaf}': (64,) for leaf in ('weight', 'bias', 'running_mean', 'running_var')
}
RELATIVES = {
    'seresnet152d': (with_squeeze_excite(network('resnet50d')), 'a ResNet-D with squeeze-excite'),
    'ecaresnet50d': (network('resnet50d') | zeros({'layer1.0.se.conv.weight': (1, 1, 3)}), 'an ECA-ResNet-D'),
    'resnet50c': (with_pooled_projection(network('resnet50d')), 'a ResNet-C, whose shortcuts do not pool'),
    'resnet50t': (network('resnet50d') | zeros({'conv1.0.weight': (24, 3, 3, 3)}), 'a ResNet-T, whose stem widens'),
    'resnext50d_32x4d': (network('resnet50d') | zeros({'layer1.0.conv2.weight': (128, 4, 3, 3)}), 'a ResNeXt-D'),
    'Paddle 18': (network('resnet18d') | zeros(PROJECTION), 'one more projection, in stage 1'),
    'Paddle 34': (network('resnet34d') | zeros(PROJECTION), 'one more projection, in stage 1'),
    'ResNet200_vd': (zeros(expected_shapes(Shape('resnetd', (3, 12, 48, 3), ALL_BOTTLENECK, 32, WIDE))),
                     "PaddleClas's ResNet200_vd"),
    'tresnet_d': (zeros(expected_shapes(Shape('tresnet', (3, 6, 14, 3), ALL_BOTTLENECK, 64, WIDE))), 'tresnet_d'),
    'wider': (network('resnet50d') | zeros({'layer4.2.conv3.weight': (2048, 520, 1, 1)}),
              'resnet50d with differences: 1 misshapen (layer4.2.conv3.weight, ...)'),
    'deeper': (zeros(expected_shapes(Shape('resnetd', (3, 4, 8, 3), ALL_BASIC, 32, WIDE))),
               'no known architecture; the nearest is resnet34d'),
    'no layer4': (without(network('resnet50d'), 'layer4.'), 'the first part of resnet50d, without layer4'),
    'no layer3': (without(network('resnet101d'), 'layer3.', 'layer4.'),
                  'the first part of resnet50d or resnet101d, without layer3, layer4'),
    'no body.layer4': (without(network('tresnet_l'), 'body.layer4.'), 'the first part of tresnet_l, without layer4'),
    'no statistics': ({key: value for key, value in RESNET.items() if 'running' not in key and COUNTER not in key},
                      'test_resnet with no running statistics; save model.state_dict()'),
    'one statistic missing': (without({k: v for k, v in RESNET.items() if COUNTER not in k}, 'bn1.running_mean'),
                              'test_resnet with too few running statistics'),
}  # fmt: skip


@pytest.mark.parametrize('case', RELATIVES)
@pytest.mark.parametrize('prefix', ['', 'module.encoder.'])
def test_relatives_are_named_and_refused(case, prefix):
    """Whole key sets are compared before an architecture is named, under any prefix."""
    tensors, words = RELATIVES[case]
    assert words in describe(tensors)
    checkpoint = convert.Checkpoint(Path('a.pth'), 'torch', prefixed(tensors, prefix), {})
    with pytest.raises(convert.ConversionError) as error:
        convert.to_flax(checkpoint)
    assert words in str(error.value) and str(error.value).startswith('a.pth: ')
    assert [found.architecture for found in find(checkpoint.tensors)] == [None]


def plain(state: Tensors) -> Tensors:
    """Return in-place ABN's names of a state dict: convolution and norm by index."""
    return {key.replace('.conv.', '.0.').replace('.bn.', '.1.'): value for key, value in state.items()}


@pytest.mark.parametrize(
    'state, words',
    [
        (plain(TRESNET), 'under the names of in-place ABN, but with counters of batch norm'),
        (
            plain(TRESNET) | {'body.conv1.2.depthwise_conv_bn.0.weight': np.zeros((16, 1, 3, 3), np.float32)},
            'TResNet with FReLU',
        ),
    ],
)
def test_old_names_of_other_networks_are_refused(state, words):
    with pytest.raises(convert.ConversionError, match=words):
        convert.to_flax(convert.Checkpoint(Path('a.pth'), 'torch', prefixed(state, 'module.'), {}))


OTHERS = {
    'plain ResNet': ({'conv1.weight': (64, 3, 7, 7), 'layer1.0.conv1.weight': (64, 64, 1, 1)}, "a plain ResNet's stem"),
    'ViT': ({'cls_token': (1, 1, 768), 'blocks.0.attn.qkv.weight': (2304, 768)}, 'neither a TResNet nor a ResNet-D'),
    'ConvNeXt': ({'stem.0.weight': (96, 3, 4, 4), 'stages.0.blocks.0.gamma': (96,)}, 'neither a TResNet nor'),
    'ResNet-v2': ({'stem.conv.weight': (64, 3, 7, 7), 'stages.0.blocks.0.conv1.weight': (64, 64, 1, 1)}, 'neither a'),
}  # fmt: skip


@pytest.mark.parametrize('case', OTHERS)
def test_other_networks_are_none_of_ours(case):
    shapes, words = OTHERS[case]
    assert find(zeros(shapes)) == []
    with pytest.raises(convert.ConversionError, match=words):
        convert.to_flax(convert.Checkpoint(Path('a.pth'), 'torch', prefixed(zeros(shapes), 'module.'), {}))


def test_the_foreign_table_has_networks_that_are_not_ours():
    ours = {architecture_shape(name) for name in ARCHITECTURES}
    assert not ours & FOREIGN.keys()


def test_a_segment_within_the_body_is_another_network():
    """Only the wrappers of torch are dropped from names."""
    assert find(inserted(RESNET, 'wrapped', 1)) == []


def test_the_nearest_architecture_is_of_the_same_family():
    shape = architecture_shape('test_resnet')
    deep = dataclasses.replace(shape, layers=(9999, 1, 1, 1))
    assert deep.distance(shape) < deep.distance(architecture_shape('test_tresnet'))
