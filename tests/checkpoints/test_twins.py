"""Networks with the same tensors and another function: what config.json, scripts and the classes of a module say."""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy

import convert
import tresnet_jax
from convert.__main__ import main
from tests.helpers.states import RESNET, TRESNET, State, prefixed, saved
from tresnet_jax.checkpoints.find import find
from tresnet_jax.checkpoints.records import Record
from tresnet_jax.checkpoints.structure import architecture_shape, expected_shapes
from tresnet_jax.checkpoints.twins import UNSETTLED, Function, check_function
from tresnet_jax.errors import ConversionError

CONTAINER = 'torch.nn.modules.container.Sequential'
ACTIVATION = 'torch.nn.modules.activation'


def zeros(architecture: str) -> State:
    shapes = expected_shapes(architecture_shape(architecture))
    return {key: np.broadcast_to(np.float32(0), shape) for key, shape in shapes.items()}


def written(folder: Path, config: Any, state: State = RESNET) -> Path:
    safetensors.numpy.save_file(state, folder / 'model.safetensors')
    if config is not None:
        (folder / 'config.json').write_text(json.dumps(config))
    return folder / 'model.safetensors'


def notes(file: Path) -> str:
    return ' '.join(convert.to_flax(convert.read(file))[2].notes)


@pytest.mark.parametrize(
    'config',
    [
        {'architecture': 'test_resnet', 'num_classes': 10},
        {'architecture': 'test_resnet.r160_in1k', 'model_args': {'in_chans': 3, 'drop_rate': 0.1}},
        {'encoder_name': 'tu-test_resnet'},
        {'architecture': 'test_resnet', 'model_type': 'timm_wrapper', 'model_args': {'act_layer': 'relu'}},
    ],
)
def test_a_configuration_of_the_same_network_excludes_the_others(config, tmp_path):
    file = written(tmp_path, config)
    assert convert.read(file).stated.settled_by == 'config.json'
    assert 'do not exclude' not in notes(file)


@pytest.mark.parametrize(
    'config',
    [None, [], {}, {'model_type': 'rt_detr'}, {'architecture': ''}, {'architecture': ['ResNet']},
     {'encoder_name': 3}, 'text'],
)  # fmt: skip
def test_without_a_configuration_the_others_are_named(config, tmp_path, capsys):
    """Also without one that names a network; `inspect` and `convert` say it in one note."""
    file = written(tmp_path, config)
    note = f'{UNSETTLED} other activations, dilations; a config.json'
    assert convert.read(file).stated.settled_by is None and note in notes(file)
    assert main(['inspect', str(file)]) == 0 and capsys.readouterr().out.count(note) == 1
    assert main([str(file), str(tmp_path / 'out.safetensors')]) == 0 and capsys.readouterr().out.count(note) == 1


@pytest.mark.parametrize(
    'name, twins',
    [('resnet50d', 'resnetaa50d, resnetblur50d, other'), ('resnet34d', 'resnetaa34d, other'), ('resnet18d', 'other')],
)
def test_twins_of_timm_have_names(name, twins):
    (network,) = find(zeros(name))
    assert check_function(Path('missing/a.pth'), network).notes[0].startswith(f'{UNSETTLED} {twins} activations')


def test_a_tresnet_has_no_twin(tmp_path):
    assert 'exclude' not in notes(written(tmp_path, None, TRESNET))


@pytest.mark.parametrize(
    'config, words',
    [
        ({'architecture': 'resnetaa50d'}, "says 'resnetaa50d'; if that is another"),
        ({'architecture': 'resnet18d'}, "says 'resnet18d'; if that is another"),
        ({'encoder_name': 'tu-resnetblur50d'}, "says 'resnetblur50d'; if that is another"),
        ({'encoder_name': 'resnet50'}, "says 'resnet50'; if that is another"),
        ({'encoder_name': 'timm-resnest50d'}, "says 'resnest50d'; if that is another"),
        ({'backbone': 'resnet50', 'model_type': 'timm_backbone'}, "says 'resnet50'; if that is another"),
        (
            {'architecture': 'test_resnet', 'model_args': {'act_layer': 'silu'}},
            "uses act_layer='silu' (model_args), which this",
        ),
        (
            {'architecture': 'test_resnet', 'model_args': {'aa_layer': 'avg', 'in_chans': 3}},
            "uses aa_layer='avg' (model_args)",
        ),
    ],
)
def test_a_configuration_of_another_network_is_refused(config, words, tmp_path):
    file = written(tmp_path, config)
    for read in (convert.read, lambda path: tresnet_jax.create_model('test_resnet', checkpoint=path)):
        with pytest.raises(ConversionError) as error:
            read(file)
        assert words in str(error.value) and str(error.value).startswith(str(tmp_path))


def test_options_that_the_model_needs_are_named(tmp_path):
    config = {'architecture': 'test_resnet', 'global_pool': 'max', 'model_args': {'output_stride': 8}}
    said = notes(written(tmp_path, config))
    assert "trained with global_pool='max'" in said and 'trained with output_stride=8' in said
    assert 'trained with' not in notes(written(tmp_path, {'architecture': 'test_resnet', 'global_pool': 'avg'}))


SCRIPT = {'model': 'test_resnet', 'gp': None, 'bn_eps': None, 'model_kwargs': {}}  # of timm's train.py


def scripted(name: str = 'test_resnet', **arguments: Any) -> Function:
    """Check tensors beside the arguments of timm's script."""
    (network,) = find(RESNET if name == 'test_resnet' else zeros(name))
    return check_function(Path('missing/a.pth'), network, {'args': {**SCRIPT, 'model': name, **arguments}})


def test_the_options_of_timms_script_reach_the_model(tmp_path, capsys):
    """A file for torch cannot hold them: a warning says so."""
    arguments = argparse.Namespace(**SCRIPT | {'gp': 'max', 'model_kwargs': {'output_stride': 8}})
    file = saved(tmp_path, {'arch': 'test_resnet', 'state_dict': RESNET, 'args': arguments})
    model = tresnet_jax.create_model('test_resnet', checkpoint=file)
    assert (model.global_pool, model.output_stride) == ('max', 8)
    assert convert.read(file).stated.settled_by == "the arguments of timm's script" and 'exclude' not in notes(file)
    assert tresnet_jax.create_model('test_resnet', checkpoint=file, global_pool='avg').global_pool == 'avg'
    flax, back = str(tmp_path / 'flax.safetensors'), str(tmp_path / 'back.safetensors')
    warning = "back.safetensors: give create_model global_pool='max', output_stride=8, which the file does not state"
    assert main([str(file), flax]) == 0 and capsys.readouterr().err == ''
    for command in ([flax, back], ['average', str(file), flax, '--to', 'torch', '--output', back]):
        assert main(command) == 0 and warning in capsys.readouterr().err


@pytest.mark.parametrize(
    'arguments',
    [{}, {'model_kwargs': {'act_layer': 'relu', 'drop_path_rate': 0.1, 'stem_type': None}}, {'bn_eps': 1e-5},
     {'model_kwargs': None}, {'gp': ''}, {'model': 'hf-hub:timm/test_resnet.r160_in1k'}, {'gp': 'avg'}],
)  # fmt: skip
def test_the_script_of_the_same_network_excludes_the_others(arguments):
    function = scripted(**arguments)
    assert function.settled_by and function.notes == () and function.global_pool is None


@pytest.mark.parametrize('arguments', [{'model': 'mine'}, {'model': 'resnet18'}, {'model': None}])
def test_a_script_that_names_no_network_of_ours_leaves_the_others(arguments):
    assert UNSETTLED in scripted(**arguments).notes[0]


def test_arguments_of_other_scripts_are_left():
    """Here 'gp' is a weight of a loss."""
    (network,) = find(RESNET)
    arguments = {'model': 'test_resnet', 'gp': 10.0}
    function = check_function(Path('missing/a.pth'), network, {'hyper_parameters': arguments})
    assert function.settled_by is None and function.global_pool is None


@pytest.mark.parametrize(
    'name, arguments, words',
    [
        ('resnet34d', {'model': 'resnetaa34d.in1k'}, "its training script says 'resnetaa34d', another network"),
        ('resnet50d', {'model': 'hf-hub:timm/resnetblur50d'}, "its training script says 'resnetblur50d', another"),
        ('test_resnet', {'model_kwargs': {'act_layer': 'silu'}}, "uses act_layer='silu' (arguments of its training"),
        ('test_resnet', {'model_kwargs': {'x': 10**5000}}, 'uses x=a value of type int (arguments of its training'),
        ('test_resnet', {'bn_eps': 1e-3}, 'uses bn_eps=0.001 (arguments of its training script)'),
        ('test_resnet', {'gp': 'soft'}, 'has global_pool soft (arguments of its training script)'),
        ('test_resnet', {'gp': ['max']}, 'has global_pool a value of type list'),
        ('test_resnet', {'gp': 10**5000}, 'has global_pool a value of type int'),
        ('test_resnet', {'model_kwargs': {'output_stride': 4}}, 'has output_stride 4 (arguments of its training'),
    ],
)
def test_the_script_of_another_network_is_refused(name, arguments, words):
    with pytest.raises(ConversionError) as error:
        scripted(name, **arguments)
    assert words in str(error.value)


def module(state: State, kinds: dict[str, tuple[str, dict[str, Any]]], path: str = '', script: bool = False) -> Record:
    """Return a network as pickled modules.

    Args:
        state: name -> array.
        kinds: name of a module -> its class and further attributes; others are Sequentials.
        path: the name of the module, with a dot behind it.
        script: as TorchScript writes it.
    """
    inner = [key[len(path) :] for key in [*state, *(f'{name}.' for name in kinds)] if key.startswith(path)]
    arrays = {name: state[path + name] for name in inner if name and '.' not in name}
    modules = {
        name: module(state, kinds, f'{path}{name}.', script)
        for name in dict.fromkeys(key.partition('.')[0] for key in inner if '.' in key)
    }
    kind, attributes = kinds.get(path.removesuffix('.'), (CONTAINER, {}))
    if script:
        package, _, name = kind.rpartition('.')
        return Record(f'__torch__.{package}.___torch_mangle_7.{name}', state={**arrays, **modules, **attributes})
    return Record(kind, state={'_parameters': arrays, '_buffers': {}, '_modules': modules, **attributes})


def checked(state: State, kinds: dict[str, Any], script: bool = False) -> Function:
    """Check a module; `kinds` has classes, or pairs of class and attributes."""
    pairs = {name: kind if isinstance(kind, tuple) else (kind, {}) for name, kind in kinds.items()}
    root = module(state, pairs, '', script)
    (network,) = find({'model': root})
    assert network.state.tensors.keys() == state.keys() and network.key.startswith('model')
    return check_function(Path('folder/that/is/missing/a.pth'), network)


RELU = {
    'act1': f'{ACTIVATION}.ReLU',
    'layer1.0.act2': f'{ACTIVATION}.ReLU',
    'layer2.0.aa': 'torch.nn.modules.linear.Identity',
}


@pytest.mark.parametrize('script', [False, True])
def test_the_classes_of_a_module_exclude_the_others(script):
    function = checked(RESNET, RELU, script)
    assert function.settled_by == 'the classes of the pickled module' and not function.notes
    checked(prefixed(RESNET, 'net.'), {f'net.{name}': kind for name, kind in RELU.items()}, script)


@pytest.mark.parametrize('script', [False, True])
@pytest.mark.parametrize(
    'kinds, words',
    [
        (
            {'layer2.0.aa': 'torch.nn.modules.pooling.AvgPool2d'},
            'AvgPool2d in layer2.0.aa: it is test_resnetaa, not test_resnet',
        ),
        ({'layer2.0.aa': 'timm.layers.blur_pool.BlurPool2d'}, 'BlurPool2d in layer2.0.aa'),
        ({'act1': f'{ACTIVATION}.SiLU'}, 'the activation SiLU in act1'),
        ({'layer3.0.act3': 'timm.layers.activations_me.MishMe'}, 'the activation MishMe in layer3.0.act3'),
        ({'conv1.2': f'{ACTIVATION}.LeakyReLU'}, 'the activation LeakyReLU in conv1.2'),
    ],
)
def test_the_classes_of_another_network_are_refused(kinds, words, script):
    with pytest.raises(ConversionError) as error:
        checked(RESNET, RELU | kinds, script)
    assert words in str(error.value)


def test_epsilons_of_a_module():
    """Paddle's is 1e-5 in float32."""
    kind = 'torch.nn.modules.batchnorm.BatchNorm2d'
    for epsilon in (1e-5, float(np.float32(1e-5))):
        checked(RESNET, {'layer1.0.bn1': (kind, {'eps': epsilon}), 'fc': ('torch.nn.LayerNorm', {'eps': 1e-6})})
    for epsilon in (1e-3, float('nan'), '1e-5', 10**5000):
        with pytest.raises(ConversionError, match='a batch norm of epsilon .* in layer1.0.bn1; test_resnet has 1e-05'):
            checked(RESNET, {'layer1.0.bn1': (kind, {'eps': epsilon})})


def conv(stride: int) -> tuple[str, dict[str, Any]]:
    return 'torch.nn.modules.conv.Conv2d', {'stride': (stride, stride)}


def strides(*pairs: tuple[int, int, int]) -> dict[str, tuple[str, dict[str, Any]]]:
    return {
        f'layer{stage}.0.conv{number}': conv(stride)
        for stage, numbers in zip((2, 3, 4), pairs, strict=True)
        for number, stride in enumerate(numbers, 1)
        if number < 3 or stage == 3
    }


def test_strides_of_a_module():
    """test_resnet has a bottleneck in its third stage only; a basic block strides in its first convolution."""
    assert checked(RESNET, strides((2, 1, 1), (1, 2, 1), (2, 1, 1))).notes == ()
    assert 'output_stride=16' in checked(RESNET, strides((2, 1, 1), (1, 2, 1), (1, 1, 1))).notes[0]
    assert 'output_stride=8' in checked(RESNET, strides((2, 1, 1), (1, 1, 1), (1, 1, 1))).notes[0]
    with pytest.raises(ConversionError, match='strides in layer3.0.conv1'):
        checked(RESNET, strides((2, 1, 1), (2, 1, 1), (2, 1, 1)))


def test_pooling_of_a_module():
    def pool(kind: Any) -> Any:
        return checked(RESNET, {'global_pool': ('timm.layers.SelectAdaptivePool2d', {'pool_type': kind})}).notes

    assert pool('avg') == () and "global_pool='max'" in pool('max')[0]
    endless: Any = []
    for _ in range(60):  # prints as 2 ** 60 lists
        endless = [endless, endless]
    for kind, found in (('soft', "'soft'"), (10**5000, 'a value of type int'), (endless, 'a value of type list')):
        with pytest.raises(ConversionError, match=f'its module pools by {found}, which'):
            pool(kind)


@pytest.mark.parametrize('slope, expected', [(1e-3, None), (1e-6, 1e-6), (0.0, 0.0), (0, 0.0)])
def test_slopes_of_a_module(slope, expected):
    """The stem's slope is 1e-2 in timm; those of the blocks count."""
    leaky = f'{ACTIVATION}.LeakyReLU'
    kinds = {
        'body.conv1.bn.act': (leaky, {'negative_slope': 1e-2}),
        'body.layer1.0.conv1.bn.act': (leaky, {'negative_slope': slope}),
    }
    assert checked(TRESNET, kinds).abn_slope == expected
    for other in (0.5, float('nan'), '1e-3'):
        with pytest.raises(ConversionError, match='its module has leaky ReLUs of the slopes .*; test_tresnet has one'):
            checked(TRESNET, {**kinds, 'body.layer2.0.conv1.bn.act': (leaky, {'negative_slope': other})})
    with pytest.raises(ConversionError, match='the activation SiLU'):
        checked(TRESNET, {'body.layer1.0.conv1.bn.act': f'{ACTIVATION}.SiLU'})


def test_heads_may_have_any_activation():
    """Only modules of the network count."""
    state = {**prefixed(RESNET, 'net.'), 'decoder.0.weight': np.zeros((3, 3))}
    assert checked(
        state, {'decoder.1': f'{ACTIVATION}.GELU', 'net.fc.act': f'{ACTIVATION}.MultiheadAttention'}
    ).settled_by
