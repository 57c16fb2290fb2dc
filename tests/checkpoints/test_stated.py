"""What training scripts store of classes and images reaches the model."""

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import convert
import tresnet_jax
from convert.__main__ import main
from tests.helpers.states import RESNET, TRESNET, saved
from tresnet_jax.checkpoints.stated import class_name_lists, data_config, listed_names
from tresnet_jax.checkpoints.stored import Storage, StoredTensor
from tresnet_jax.data.transforms import resolve_data_config

NAMES = tuple(f'class {i}' for i in range(10))
BY_INDEX = dict(enumerate(NAMES))
TIMM = {
    'model': 'test_resnet', 'img_size': None, 'input_size': None, 'crop_pct': None, 'mean': None, 'std': None,
    'interpolation': '', 'lr': 0.1, 'resume': Path('last.pth.tar'),
}  # fmt: skip
GREY = {'mean': (0.5,), 'std': (0.5,)}


@pytest.mark.parametrize(
    'stored',
    [
        {'idx_to_class': BY_INDEX},
        {'idx_to_class': dict(reversed(BY_INDEX.items()))},
        {'idx_to_class': list(NAMES)},
        {'id2label': {str(i): name for i, name in BY_INDEX.items()}},
        {'label_names': NAMES},
        {'class_to_idx': {name: i for i, name in BY_INDEX.items()}},
        {'meta': {'dataset_meta': {'classes': NAMES}}},
        {'meta': {'CLASSES': NAMES, 'classes': ['other', 'names']}},
        {'args': argparse.Namespace(class_names=list(NAMES))},
        {'idx2label': BY_INDEX},
        {'label_to_id': {name: i for i, name in BY_INDEX.items()}},
        {'classnames': NAMES, 'target_names': NAMES},
        {'vocab': np.array(NAMES)},
        {'classes_': np.array(NAMES, object)},
        {'categories': list(NAMES), 'names': ['other', 'names']},
    ],
)
@pytest.mark.parametrize('state, name', [(RESNET, 'test_resnet'), (TRESNET, 'test_tresnet')], ids=['resnet', 'tresnet'])
def test_class_names_reach_the_model(stored, state, name, tmp_path):
    file = saved(tmp_path, {'model': state, **stored})
    model = tresnet_jax.create_model(name, checkpoint=file)
    assert tresnet_jax.class_names(model) == NAMES
    assert model.pretrained_cfg is not None and model.pretrained_cfg.num_classes == 10
    assert resolve_data_config(model) == resolve_data_config(name)
    assert tresnet_jax.class_names(tresnet_jax.create_model(name, checkpoint=file, num_classes=3)) is None


@pytest.mark.parametrize('others', [{}, {'idx_to_class': BY_INDEX}, {'label_names': NAMES[:3]}])
@pytest.mark.parametrize('arguments', [TIMM, {**TIMM, 'crop_pct': 0.9}])
@pytest.mark.parametrize('task', ['multilabel', 'classification', 'other', None, 3])
def test_the_task_reaches_the_model(task, arguments, others, tmp_path):
    file = saved(tmp_path, {'state_dict': RESNET, 'args': argparse.Namespace(**arguments, task=task), **others})
    model = tresnet_jax.create_model('test_resnet', checkpoint=file)
    assert model.pretrained_cfg is not None
    assert model.pretrained_cfg.task == ('multilabel' if task == 'multilabel' else 'classification')


@pytest.mark.parametrize(
    'stored',
    [{'idx_to_class': {0: 'a', 2: 'b'}}, {'label_names': []}, {'label_names': ['a', 3]}, {'classes': 10},
     {'id2label': {}}, {'idx_to_class': {0: ['a']}}, {'class_to_idx': {'a': 0, 'b': 0}}, {'label_names': 'abc'},
     {'names': np.arange(10)}, {'names': np.array([['a', 'b']])}, {'filenames': list(NAMES)}, {'labels': list(NAMES)},
     {'id2label': {i: f'LABEL_{i}' for i in range(10)}}],
)  # fmt: skip
def test_what_is_no_list_of_names(stored):
    assert class_name_lists({'model': RESNET, **stored}) == ()


def test_several_lists_of_names(tmp_path):
    tree = {'model': RESNET, 'classes': list(NAMES), 'synsets': {'names': [f'n{i}' for i in range(10)]}}
    report = convert.to_flax(convert.read(saved(tmp_path, tree)))[2]
    assert report.label_names == NAMES
    assert "took the first of 2 lists of class names, which begin with 'class 0' or 'n0'" in report.notes


def test_names_of_another_number_of_classes_are_left(tmp_path):
    file = saved(tmp_path, {'model': RESNET, 'label_names': ['a', 'b']})
    assert convert.to_flax(convert.read(file))[2].label_names is None


def test_numbers_that_are_no_characters():
    storage = Storage(np.dtype('U1'), 4, lambda: memoryview(b'\0\0\x11\0'))
    assert listed_names(StoredTensor(storage, np.dtype('U1'), (1,), (1,), 0)) is None


@pytest.mark.parametrize(
    'arguments, changes',
    [
        ({}, {}),
        ({'img_size': 48}, {'input_size': (3, 48, 48)}),
        ({'input_size': [3, 48, 32], 'img_size': 64}, {'input_size': (3, 48, 32)}),
        ({'input_size': [1, 48, 32]}, {'input_size': (1, 48, 32), **GREY}),
        ({'in_chans': 1, 'img_size': 48}, {'input_size': (1, 48, 48), **GREY}),
        ({'in_chans': 1, 'mean': [0.4], 'std': [1]}, {'input_size': (1, 160, 160), 'mean': (0.4,), 'std': (1,)}),
        ({'in_chans': 10**9}, {}),
        ({'crop_pct': 0.7}, {'crop_pct': 0.7}),
        ({'mean': [0.5, 0.4, 0.3], 'std': [0.25]}, {'mean': (0.5, 0.4, 0.3), 'std': (0.25, 0.25, 0.25)}),
        ({'interpolation': 'bicubic'}, {'interpolation': 'bicubic'}),
        ({'interpolation': ['bicubic'], 'crop_pct': 10**400, 'img_size': 10**400, 'mean': [10**400] * 3}, {}),
        ({'interpolation': 'random', 'crop_pct': 'x', 'img_size': -3, 'mean': [float('nan')] * 3}, {}),
        ({'model': 'test_resnet.fashion_mnist'}, resolve_data_config('test_resnet.fashion_mnist')),
        ({'model': 'resnet50d'}, {}),
        ({'model': 'unknown'}, {}),
    ],
)
def test_images_of_timms_arguments(arguments, changes):
    """Values that are None or '' are those of the model's tag."""
    tree = {'state_dict': RESNET, 'args': argparse.Namespace(**{**TIMM, **arguments}).__dict__}
    assert data_config(tree, 'test_resnet') == {**resolve_data_config('test_resnet'), **changes}


def test_images_of_torchvisions_arguments():
    arguments = {'val_resize_size': 236, 'val_crop_size': 224, 'interpolation': 'bilinear', 'model': 'resnet50'}
    config = data_config({'args': arguments}, 'test_resnet')
    assert config is not None and config['input_size'] == (3, 224, 224) and config['interpolation'] == 'bilinear'
    assert config['crop_pct'] == 224 / 236 and config['mean'] == (0.485, 0.456, 0.406)


@pytest.mark.parametrize(
    'arguments',
    [{}, {'lr': 0.1}, {'val_crop_size': 224}, {'val_crop_size': '224', 'val_resize_size': 256}, 'text', None],
)
def test_arguments_that_state_no_images(arguments):
    assert data_config({'args': arguments}, 'test_resnet') is None


def test_images_reach_the_model_and_the_converted_file(tmp_path, capsys):
    """As those of a run do: `evaluate.py` and `predict.py` prepare images as the training script evaluated."""
    arguments: Any = argparse.Namespace(**{**TIMM, 'img_size': 40, 'crop_pct': 0.8, 'mean': (0.1, 0.2, 0.3)})
    file = saved(tmp_path, {'args': arguments, 'state_dict': RESNET, 'label_names': NAMES})
    expected = {
        **resolve_data_config('test_resnet'), 'input_size': (3, 40, 40), 'crop_pct': 0.8, 'mean': (0.1, 0.2, 0.3),
    }  # fmt: skip
    assert main([str(file), str(tmp_path / 'flax.safetensors')]) == 0
    assert 'images: 40 x 40, bilinear, crop 0.8, mean 0.1 0.2 0.3' in capsys.readouterr().out
    for path in (file, tmp_path / 'flax.safetensors'):
        model = tresnet_jax.create_model('test_resnet', checkpoint=path)
        assert resolve_data_config(model) == expected and resolve_data_config(model, use_test_size=True) == expected
        assert tresnet_jax.class_names(model) == NAMES
        np.testing.assert_array_equal(convert.to_torch(model)['bn1.running_mean'], RESNET['bn1.running_mean'])
