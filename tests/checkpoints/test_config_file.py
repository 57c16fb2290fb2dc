"""What a `config.json` of timm, transformers or segmentation_models_pytorch says."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tresnet_jax.checkpoints import config_file
from tresnet_jax.checkpoints.config_file import SavedConfig
from tresnet_jax.checkpoints.stated import listed_names
from tresnet_jax.errors import ConversionError

TIMM = {'architecture': 'resnet50d', 'num_classes': 3, 'pretrained_cfg': {'mean': [0.5, 0.5, 0.5], 'crop_pct': 0.95}}
WRAPPER = {
    'architecture': 'resnet18d',
    'architectures': ['TimmWrapperForImageClassification'],
    'model_type': 'timm_wrapper',
    'num_classes': 2,
    'label_names': ['LABEL_0', 'LABEL_1'],
    'model_args': {'drop_rate': 0.1},
    'dtype': 'float32',
}
BACKBONE = {
    'architectures': ['TimmBackbone'],
    'backbone': 'resnet50d',
    'model_type': 'timm_backbone',
    'num_channels': 1,
    'out_indices': [1, 2, 3, 4],
    'output_stride': 16,
}
RT_DETR = {'model_type': 'rt_detr_resnet', 'depths': [3, 4, 23, 3], 'layer_type': 'bottleneck', 'hidden_act': 'relu'}
SMP = {'_model_class': 'Unet', 'classes': 5, 'encoder_name': 'tu-tresnet_m', 'encoder_depth': 5, 'in_channels': 4}


def parsed(config: Any) -> SavedConfig:
    return config_file.parse(config_file.as_timm(json.loads(json.dumps(config))), Path('config.json'))


@pytest.mark.parametrize(
    'config, expected',
    [
        (TIMM, {'architecture': 'resnet50d', 'num_classes': 3, 'mean': (0.5, 0.5, 0.5), 'states_images': True}),
        (WRAPPER, {'architecture': 'resnet18d', 'num_classes': 2, 'drop_rate': 0.1, 'states_images': False}),
        ({**WRAPPER, 'pretrained_cfg': TIMM['pretrained_cfg']}, {'crop_pct': 0.95, 'states_images': True}),
        ({**WRAPPER, 'architectures': ['TimmWrapperModel']}, {'num_classes': 0, 'label_names': None, 'notes': ()}),
        ({**WRAPPER, 'num_classes': None, 'num_labels': 7}, {'num_classes': 7, 'states_classes': True}),
        (BACKBONE, {'architecture': 'resnet50d', 'num_classes': 0, 'input_size': (1, 224, 224), 'output_stride': 16}),
        (BACKBONE, {'features_only': True, 'out_indices': (1, 2, 3, 4)}),
        (
            {'backbone': 'resnet50d', 'use_timm_backbone': True, 'model_type': 'detr'},
            {'architecture': 'resnet50d', 'features_only': False},
        ),
        ({'model_type': 'detr', 'backbone_config': BACKBONE}, {'architecture': 'resnet50d', 'features_only': True}),
        (RT_DETR, {'architecture': 'resnet101d', 'num_classes': 0, 'features_only': False}),
        ({'model_type': 'rt_detr', 'backbone_config': {'model_type': 'rt_detr_resnet'}}, {'architecture': 'resnet50d'}),
        (SMP, {'architecture': 'tresnet_m', 'num_classes': 0, 'input_size': (4, 224, 224), 'output_stride': None}),
        ({**SMP, 'encoder_name': 'timm-resnet50d', 'encoder_output_stride': 8}, {'output_stride': 8}),
        ({**TIMM, 'global_pool': 'max'}, {'global_pool': 'max'}),
        ({**TIMM, 'global_pool': 'max', 'model_args': {'global_pool': 'avgmax'}}, {'global_pool': 'avgmax'}),
        ({'architecture': 'resnet50d'}, {'num_classes': 1000, 'states_classes': False, 'states_images': False}),
        ({'architecture': 'resnet50d', 'labels': ['a', 'b']}, {'num_classes': 2, 'states_classes': False}),
    ],
)
def test_forms_of_all_programs(config, expected):
    row = parsed(config)
    assert {key: getattr(row, key) for key in expected} == expected


STALE = ('left out the names of 5 classes in config.json, which says that there are 3',)


@pytest.mark.parametrize(
    'fields, names, notes',
    [
        ({'label_names': ['a', 'b', 'c']}, ('a', 'b', 'c'), ()),
        ({'labels': ['a', 'b', 'c']}, ('a', 'b', 'c'), ()),
        ({'label_names': {'2': 'c', '0': 'a', '1': 'b'}}, ('a', 'b', 'c'), ()),
        ({'label_names': {'a': 0, 'b': 1, 'c': 2}}, ('a', 'b', 'c'), ()),
        ({'label_names': {'0': 'a', '2': 'c'}}, ('a', '1', 'c'), ()),
        ({'label_names': {'0': 'a', '1': 'b'}}, None, ('left out the names of 2 classes in config.json, which says '
                                                       'that there are 3',)),
        ({'id2label': {'0': 'a', '1': 'b', '2': 'c'}}, ('a', 'b', 'c'), ()),
        ({'pretrained_cfg': {'label_names': ['a', 'b', 'c']}}, ('a', 'b', 'c'), ()),
        ({'label_names': list('vwxyz')}, None, STALE),
        ({'label_names': list('vwxyz'), 'id2label': {'0': 'a', '1': 'b', '2': 'c'}}, ('a', 'b', 'c'), ()),
        ({'label_names': ['LABEL_0', 'LABEL_1', 'LABEL_2']}, None, ()),
        ({'label_names': 'abc'}, None, ()),
        ({'label_names': ['a', 3, None]}, None, ()),
        ({}, None, ()),
    ],
)  # fmt: skip
def test_names_of_classes(fields, names, notes):
    """Names of another number of classes are those of the model that was fine-tuned."""
    row = parsed({'architecture': 'resnet50d', 'num_classes': 3, **fields})
    assert (row.label_names, row.notes) == (names, notes)


@pytest.mark.parametrize(
    'fields, task',
    [
        ({}, 'classification'),
        ({'task': None, 'problem_type': 'single_label_classification'}, 'classification'),
        ({'task': 'multilabel'}, 'multilabel'),
        ({'problem_type': 'multi_label_classification'}, 'multilabel'),
    ],
)
def test_tasks(fields, task):
    assert parsed({'architecture': 'resnet50d', 'num_classes': 3, **fields}).task == task
    with pytest.raises(ConversionError, match="config.json: task cannot be 'detection'"):
        parsed({'architecture': 'resnet50d', 'task': 'detection'})


@pytest.mark.parametrize('value', [{'0': 'a', '999999999': 'b'}, {'0': 'a', str(2**70): 'b'}, {}, [], 3, None])
def test_names_with_impossible_indices(value):
    assert listed_names(value) is None and listed_names(value, 10**9) is None


@pytest.mark.parametrize(
    'arguments',
    [
        {'act_layer': 'relu', 'norm_layer': 'BatchNorm2d', 'stem_type': 'deep', 'avg_down': True, 'cardinality': 1},
        {'zero_init_last': False, 'drop_block_rate': 0.1, 'pretrained': False, 'aa_layer': None},
    ],
)
def test_arguments_that_change_nothing(arguments):
    assert parsed({**TIMM, 'model_args': arguments}).num_classes == 3


@pytest.mark.parametrize(
    'architecture, arguments, words',
    [
        ('resnet50d', {'act_layer': 'silu'}, "uses act_layer='silu' (model_args)"),
        ('resnet50d', {'avg_down': False, 'stem_type': 'deep'}, 'uses avg_down=False (model_args)'),
        ('resnet50d', {'block_args': {'attn_layer': 'se'}}, "uses block_args={'attn_layer': 'se'}"),
        ('tresnet_m', {'act_layer': 'relu'}, "uses act_layer='relu'"),
        ('resnet50d', {'img_size': 224, 'stem_width': 64}, 'uses img_size=224, stem_width=64'),
        ('resnet50d', {'x\x1b': 'y' * 300}, r'uses x\x1b='),
        ('resnet50d', {'output_stride': 4}, 'output_stride cannot be 4'),
        ('tresnet_m', {'output_stride': 16}, 'output_stride cannot be 16'),
        ('resnet50d', {'global_pool': 'soft'}, "global_pool cannot be 'soft'"),
        ('resnet50d', {'global_pool': ['avg']}, "global_pool cannot be ['avg']"),
        ('resnet50d', {'drop_rate': 'a'}, "drop_rate cannot be 'a'"),
        ('resnet50d', {'drop_rate': 10**400}, 'drop_rate cannot be 1000'),
        ('resnet50d', {'drop_path_rate': -1}, 'drop_path_rate cannot be -1'),
        ('resnet50d', {'output_stride': 16.0}, 'output_stride cannot be 16.0'),
        ('resnet50d', {'num_classes': 10**30}, 'num_classes cannot be 1000'),
        ('resnet50d', {'features_only': 1}, 'features_only cannot be 1'),
        ('resnet50d', {'out_indices': ['1']}, "out_indices cannot be ['1']"),
        ('resnet50d', ['act_layer'], 'pretrained_cfg and model_args must be JSON objects'),
    ],
)
def test_arguments_that_are_refused(architecture, arguments, words):
    with pytest.raises(ConversionError) as error:
        parsed({'architecture': architecture, 'num_classes': 3, 'model_args': arguments})
    assert words in str(error.value) and str(error.value).startswith('config.json: ')
    assert str(error.value).isprintable() and len(str(error.value)) < 400


@pytest.mark.parametrize(
    'field, value',
    [
        ('mean', [10**400, 0, 0]), ('std', [float('inf')] * 3), ('crop_pct', 10**400), ('crop_pct', 1e-320),
        ('input_size', [3, 10**9, 224]), ('input_size', [3, 224, 10**400]), ('num_classes', 10**400),
    ],
)  # fmt: skip
def test_numbers_without_sense(field, value):
    with pytest.raises(ConversionError, match=f'^config.json: {field} cannot be ') as error:
        parsed({'architecture': 'resnet50d', 'pretrained_cfg': {field: value}})
    assert len(str(error.value)) < 200


def test_a_long_name():
    with pytest.raises(ConversionError, match='architecture cannot be') as error:
        parsed({'architecture': 'x' * 10**6})
    assert len(str(error.value)) < 200


@pytest.mark.parametrize(
    'fields, words',
    [
        ({'hidden_act': 'silu'}, "uses act_layer='silu'"),
        ({'downsample_in_bottleneck': True}, 'uses downsample_in_bottleneck=True'),
        ({'layer_type': 'basic', 'depths': [2, 2, 2, 2]}, "unknown architecture 'another RTDetrResNet'"),
        ({'depths': 'abc'}, "unknown architecture 'another RTDetrResNet'"),
        ({'layer_type': ['basic']}, "unknown architecture 'another RTDetrResNet'"),
    ],
)
def test_backbones_of_transformers_that_are_refused(fields, words):
    with pytest.raises(ConversionError, match=words):
        parsed(RT_DETR | fields)


@pytest.mark.parametrize(
    'mean, channels, expected',
    [([0.5, 0.4, 0.3], 3, (0.5, 0.4, 0.3)), ([0.5], 3, (0.5,) * 3), ([0.5, 0.25], 1, (0.375,)), ([0.5], 1, (0.5,))],
)
def test_images(mean, channels, expected):
    """Values of another number of channels are averaged, as in timm's scripts."""
    images = config_file.images(parsed({**TIMM, 'pretrained_cfg': {'mean': mean, 'input_size': [channels, 64, 48]}}))
    assert images is not None and images['input_size'] == (channels, 64, 48) and images['mean'] == expected
    assert images['std'] == (0.229, 0.224, 0.225) if channels == 3 else images['std'] == pytest.approx((0.226,))
    assert config_file.images(parsed(WRAPPER)) is None


KEYS = (
    'architectures num_classes num_labels label_names labels id2label model_args pretrained_cfg global_pool model_type '
    'backbone backbone_config encoder_name depths layer_type mean input_size out_indices output_stride act_layer '
    'drop_rate'
).split()
WORDS = [
    'resnet50d',
    'timm_wrapper',
    'timm_backbone',
    'rt_detr_resnet',
    'avg',
    'relu',
    'TimmWrapperModel',
    'tu-resnet50d',
]
leaves = st.none() | st.booleans() | st.integers(-3, 2**70) | st.floats() | st.text(max_size=3) | st.sampled_from(WORDS)
values = st.recursive(
    leaves, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=5)
)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    st.fixed_dictionaries(
        {'architecture': st.sampled_from(['resnet50d', 'tresnet_m'])}, optional=dict.fromkeys(KEYS, values)
    )
)
def test_any_content_is_checked(config):
    """It gives a row, or one line that says what is wrong."""
    try:
        row = parsed(config)
        assert config_file.images(row) or not row.states_images or len(row.mean) != 3
        hash(row)
    except ConversionError as error:
        assert str(error).startswith('config.json: ') and str(error).isprintable()
