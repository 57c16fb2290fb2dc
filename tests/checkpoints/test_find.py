"""Networks in the containers, under the prefixes and beside the tensors that people's checkpoints have.

Each case is a pickle of NumPy arrays, which is read without torch; `tests/parity/test_find.py` has files of torch.
"""

import argparse
import collections
import json
import pickle
from pathlib import Path
from random import Random
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st

import convert
import tresnet_jax
from convert.__main__ import main
from convert.inspect import inspect
from tests.helpers.closeness import assert_identical
from tests.helpers.states import (
    RAW,
    RESNET,
    TRESNET,
    State,
    assert_is,
    body,
    counted,
    inserted,
    nested,
    prefixed,
    renamed,
    saved,
    without,
)  # fmt: skip
from tresnet_jax.checkpoints.checkpoint import COUNTER
from tresnet_jax.checkpoints.choose import SeveralNetworksError, is_average
from tresnet_jax.checkpoints.find import WRAPPERS, clean, find
from tresnet_jax.checkpoints.layouts import to_timm
from tresnet_jax.checkpoints.records import Record

CHILDREN = {'conv1': '0', 'bn1': '1', 'layer1': '4', 'layer2': '5', 'layer3': '6', 'layer4': '7', 'fc': '9'}


def renamed_first(state: State, names: dict[str, str]) -> State:
    """Return a state dict with other first segments."""
    return {f'{names[key.partition(".")[0]]}.{key.partition(".")[2]}': value for key, value in state.items()}


ARGS = argparse.Namespace(
    model='test_resnet', img_size=48, input_size=None, crop_pct=0.9, mean=None, std=[0.25, 0.25, 0.25], lr=0.1,
    output=Path('output/train'), interpolation='bicubic',
)  # fmt: skip
OPTIMIZER = {'state': {0: {'momentum_buffer': RESNET['fc.weight']}}, 'param_groups': [{'lr': 0.1, 'params': [0]}]}

# What the checkpoint holds, and the state dict that must come out, whose classifier can have been elsewhere.
READ: dict[str, tuple[Any, State]] = {
    'bare': (RESNET, RESNET),
    'bare tresnet': (TRESNET, TRESNET),
    'ordered dict': (collections.OrderedDict(RESNET), RESNET),
    'ddp': (prefixed(RESNET, 'module.'), RESNET),
    'compile and ddp': (prefixed(RESNET, 'module._orig_mod.'), RESNET),
    'double': ({k: v.astype(np.float64) for k, v in RESNET.items()}, RESNET),
    'bfloat16': ({k: v if v.dtype == np.int64 else v.astype(ml_dtypes.bfloat16) for k, v in RESNET.items()}, RESNET),
    'compiled inside': (inserted(prefixed(RESNET, 'model.'), '_orig_mod', 1), RESNET),
    'compiled stage': ({k.replace('layer2.', 'layer2._orig_mod.'): v for k, v in RESNET.items()}, RESNET),
    'fsdp': (prefixed({k.replace('.0.', '._fsdp_wrapped_module.0.'): v for k, v in RESNET.items()}, 'module.'), RESNET),
    'checkpoint wrapper': ({k.replace('layer1.', 'layer1._checkpoint_wrapped_module.'): v for k, v in RESNET.items()},
                           RESNET),
    'timm training': ({'epoch': 7, 'arch': 'test_resnet', 'args': ARGS, 'optimizer': OPTIMIZER, 'metric': 71.25,
                       'state_dict': RAW, 'state_dict_ema': RESNET}, RESNET),
    'torchvision references': ({'model': RAW, 'optimizer': OPTIMIZER, 'epoch': 3, 'args': ARGS,
                                'model_ema': {'n_averaged': np.array(3), **prefixed(RESNET, 'module.')}}, RESNET),
    'averaged model': ({'n_averaged': np.array(3), **prefixed(RESNET, 'module.')}, RESNET),
    'thop': (counted(RESNET), RESNET),
    'model and ema': ({'model': RAW, 'ema': RESNET}, RESNET),
    'RT-DETR solver': ({'model': RAW, 'ema': {'module': RESNET, 'updates': 7}, 'optimizer': OPTIMIZER}, RESNET),
    'lightning': ({'state_dict': {**prefixed(RESNET, 'model.'), 'criterion.weight': np.ones(10)}, 'callbacks': {},
                   'hyper_parameters': {'root': Path('data')}, 'optimizer_states': [OPTIMIZER]}, RESNET),
    'lightning average': ({'state_dict': prefixed(RESNET, 'net.'), 'current_model_state': prefixed(RAW, 'net.'),
                           'averaging_state': {'n_averaged': np.array(3)}}, RESNET),
    'lightning swa': ({'state_dict': prefixed(RESNET, 'net.'), 'callbacks': {'StochasticWeightAveraging': {
        'average_model_state': prefixed(RAW, 'net.')}}}, RESNET),
    'mmengine': ({'meta': {'mmengine_version': '0.10.7'}, 'state_dict': prefixed(RESNET, 'backbone.'),
                  'ema_state_dict': {'steps': np.array(3), **prefixed(RAW, 'module.backbone.')}}, RESNET),
    'mmcv 1 buffers': ({'state_dict': {**RESNET, **{f'ema_{k.replace(".", "_")}': v for k, v in RAW.items()
                                                    if '.' in k}}}, RESNET),
    'nested': ({'a': [1, {'deep': ({'net': prefixed(RESNET, 'x.y.z.')},)}]}, RESNET),
    'list': ([RESNET, 3], RESNET),
    'ema_pytorch': ({**prefixed(RAW, 'online_model.'), **prefixed(RESNET, 'ema_model.'), 'initted': np.array(True),
                     'step': np.array(30)}, RESNET),
    'classifier outside': ({'model': {**prefixed(body(RESNET), 'model.'), 'fc.weight': RESNET['fc.weight'],
                                      'fc.bias': RESNET['fc.bias']}, 'preds': np.zeros((4, 10))}, RESNET),
    'dropout before the classifier': (renamed(RESNET, 'fc.', 'fc.1.'), RESNET),
    'another name of the classifier': ({'m': renamed(prefixed(RESNET, 'backbone.'), 'backbone.fc.', 'head.cls.')},
                                       RESNET),
    'equal twice': ({'model': RESNET, 'best': {k: v.copy() for k, v in RESNET.items()}}, RESNET),
    'incomplete beside complete': ({'model_ema': body(without(RAW, 'layer4.')), 'model': RESNET}, RESNET),
    'deepspeed': ({'module': RESNET, 'ds_version': '0.14', 'dp_world_size': 8}, RESNET),
    'features_only': (renamed({k: v for k, v in body(TRESNET).items()}, 'body.', 'body_'), body(TRESNET)),
    'smp without decoder': (prefixed(renamed(body(TRESNET), 'body.', 'body_'), 'encoder.model.'), body(TRESNET)),
    'Paddle pairs': ({'model': {k: ('conv2d_0.w_0', v) for k, v in RESNET.items()}}, RESNET),
    'pairs': (list(RESNET.items()), RESNET),
    'children': (renamed_first(RESNET, CHILDREN), RESNET),
    'children before pooling': ({**prefixed(renamed_first(body(RESNET), CHILDREN), 'features.'),
                                 **{f'head.1.{leaf}': RESNET[f'fc.{leaf}'] for leaf in ('weight', 'bias')}}, RESNET),
    'body of a tresnet': (prefixed({k.removeprefix('body.'): v for k, v in body(TRESNET).items()}, 'net.0.'),
                          body(TRESNET)),
    'nested names': ({'model': nested(RESNET), 'epoch': 3}, RESNET),
    'nested names with an average': ({'model': nested(RAW), 'ema': nested(TRESNET)}, TRESNET),
    'no counters': ({k: v for k, v in RESNET.items() if not k.endswith(COUNTER)}, RESNET),
}  # fmt: skip


@pytest.mark.parametrize('case', READ)
def test_the_network_is_found(case, tmp_path):
    tree, expected = READ[case]
    checkpoint = convert.read(saved(tmp_path, tree))
    state = to_timm(checkpoint)
    assert_is(state.tensors, expected)
    has_counters = any(key.endswith(COUNTER) for key in expected) and case != 'no counters'
    assert len(state.counters) == has_counters * sum(key.endswith('running_var') for key in expected)
    assert not state.head and checkpoint.networks
    assert convert.to_flax(checkpoint)[2].architecture == ('test_resnet' if expected is RESNET else 'test_tresnet')


@pytest.mark.parametrize(
    'case',
    ['timm training', 'torchvision references', 'model and ema', 'RT-DETR solver', 'lightning average', 'mmengine',
     'mmcv 1 buffers', 'ema_pytorch'],
)  # fmt: skip
def test_raw_weights_instead_of_the_average(case, tmp_path):
    file = saved(tmp_path, READ[case][0])
    assert_is(to_timm(convert.read(file, ema=False)).tensors, RAW)
    assert convert.read(file).has_ema
    assert 'the average' in ' '.join(convert.read(file).notes)


@pytest.mark.parametrize(
    'key, expected',
    [
        ('a', RESNET),
        ('a:student', RESNET),
        ('a:student.', RESNET),
        ('b', RAW),
        ('b.deep:x', TRESNET),
        (':x', TRESNET),
    ],
)
def test_the_key_chooses(key, expected, tmp_path):
    tree = {'a': prefixed(RESNET, 'student.'), 'b': {**RAW, 'deep': prefixed(TRESNET, 'x.')}}
    assert_is(to_timm(convert.read(saved(tmp_path, tree), key=key)).tensors, expected)


STUDENT_AND_TEACHER = {'state_dict': {**prefixed(RESNET, 'student.'), **prefixed(RAW, 'teacher.')}}


@pytest.mark.parametrize(
    'tree, keys',
    [
        (STUDENT_AND_TEACHER, ('state_dict:student', 'state_dict:teacher')),
        ({'student': RESNET, 'teacher': RAW}, ('student', 'teacher')),
        ({**prefixed(RESNET, 'encoder_q.'), **prefixed(RAW, 'encoder_k.')}, (':encoder_q', ':encoder_k')),
        ({**prefixed(RESNET, 'one.'), **prefixed(TRESNET, 'two.')}, (':one', ':two')),
        ({'ema_0.99': RESNET, 'ema_0.999': RAW}, ('ema_0.99', 'ema_0.999')),
        ([RESNET, RAW], ('0', '1')),
    ],
)
def test_several_networks_are_listed(tree, keys, tmp_path, capsys):
    """The message, and the list of `inspect --key`, give what `--key` takes; each key gives another network."""
    file = saved(tmp_path, tree)
    with pytest.raises(convert.ConversionError) as error:
        convert.read(file)
    lines = str(error.value).splitlines()
    assert lines[0].startswith(f'{file}: ') and '--key' in lines[0]
    assert sorted(line.strip().split(', ')[0] for line in lines[1:]) == sorted(keys)
    assert all(' parameters' in line and ('test_resnet' in line or 'test_tresnet' in line) for line in lines[1:])
    found = [to_timm(convert.read(file, key=key)).tensors for key in keys]
    assert not np.array_equal(*(next(iter(state.values())) for state in found))
    assert main(['inspect', str(file)]) == 0
    assert capsys.readouterr().out == f'{error.value}\n'
    assert main(['inspect', str(file), '--json']) == 0
    assert sorted(json.loads(capsys.readouterr().out)['networks']) == [line.strip() for line in lines[1:]]
    assert main(['inspect', str(file), '--key', keys[0]]) == 0
    printed = capsys.readouterr().out
    assert all(f'network     {key}, ' in printed for key in keys)


def test_a_file_of_too_many_networks(tmp_path):
    kernel = np.zeros((1, 1, 1, 1), np.float32)
    stem = {f'{name}.weight': kernel for name in ('conv1.0', 'conv1.3', 'conv1.6', 'layer1.0.conv1')}
    with pytest.raises(convert.ConversionError, match='a.pth: holds more than 1000 networks'):
        convert.read(saved(tmp_path, [dict(stem) for _ in range(1001)]))


def test_a_file_of_too_many_comparisons(tmp_path, monkeypatch):
    monkeypatch.setattr('tresnet_jax.checkpoints.find.MOST_COMPARISONS', 10_000)
    twice, many = ({f'{i}.{key}': value for i in range(n) for key, value in RESNET.items()} for n in (2, 40))
    assert convert.read(saved(tmp_path, twice)).prefix == '0.'
    for tree in (many, nested(many)):
        with pytest.raises(convert.ConversionError, match='a.pth: has 40 networks, or their first layers, among'):
            convert.read(saved(tmp_path, tree))


def test_an_unknown_key_lists_the_known_ones(tmp_path):
    file = saved(tmp_path, STUDENT_AND_TEACHER)
    with pytest.raises(convert.ConversionError, match=r'no network at --key mean_teacher(.|\n)*state_dict:student'):
        convert.read(file, key='mean_teacher')
    with pytest.raises(convert.ConversionError, match='no network at --key x .*no TResNet or ResNet-D'):
        convert.read(saved(tmp_path, {'x': np.zeros(3)}), key='x')
    with pytest.raises(convert.ConversionError, match='--key .* is for files with several'):
        convert.save_flax(tmp_path / 'a.safetensors', *convert.to_flax(convert.read(saved(tmp_path, RESNET))))
        convert.read(tmp_path / 'a.safetensors', key='x')


def test_the_command_line_takes_the_key(tmp_path):
    file, out = saved(tmp_path, STUDENT_AND_TEACHER), tmp_path / 'out.safetensors'
    assert main([str(file), str(out)]) == 2 and not out.exists()
    assert main([str(file), str(out), '--to', 'torch', '--key', 'state_dict:teacher']) == 0
    assert_identical(safetensors.numpy.load_file(out), RAW)


@pytest.mark.parametrize(
    'name, network',
    [
        ('module.backbone.layer1.0.conv1.weight', 'module.backbone.layer1.0.conv1.weight'),
        ('_orig_mod.module._fsdp_wrapped_module.fc.bias', 'module.fc.bias'),
        ('layer1._checkpoint_wrapped_module.0._orig_mod.bn1.weight', 'layer1.0.bn1.weight'),
    ],
)
def test_wrappers_leave_the_names(name, network):
    assert clean(name) == network


def module(class_name: str, members: dict[str, Any], **attributes: Any) -> Record:
    """Return a pickled module, of arrays and of other modules."""
    arrays = {key: value for key, value in members.items() if isinstance(value, np.ndarray)}
    modules = {key: value for key, value in members.items() if isinstance(value, Record)}
    state = {'_parameters': arrays, '_buffers': {}, '_modules': modules, 'training': False, **attributes}
    return Record(class_name, state=state)


def as_module(state: State, kinds: dict[str, str], path: str = '') -> Record:
    """Return a network as pickled modules; `kinds` is name -> class of modules, with those that hold no tensors."""
    members: dict[str, Any] = {}
    names = dict.fromkeys(
        [key[len(path) :] for key in [*state, *(f'{kind}.x' for kind in kinds)] if key.startswith(path)]
    )
    for name in names:
        first, dot, _ = name.partition('.')
        if not dot:
            members[first] = state.get(path + name)
        elif first not in members:
            members[first] = as_module(state, kinds, f'{path}{first}.')
    members = {key: value for key, value in members.items() if value is not None}
    return module(kinds.get(path.removesuffix('.'), 'torch.nn.modules.container.Sequential'), members)


def test_pickled_modules_give_their_state_dict():
    """Shared submodules count once, buffers that are not persistent do not count, and a cycle ends."""
    record = as_module(RESNET, {})
    record.state['_buffers'] = {'filt': np.zeros(3), 'kept': np.zeros(3)}
    record.state['_non_persistent_buffers_set'] = {'filt'}
    learner = Record('fastai.learner.Learner', state={'model': record, 'cbs': [record], 'opt': {}})
    learner.state['opt']['self'] = learner
    networks = find(learner)
    assert [network.key for network in networks] == ['model']
    assert networks[0].state.tensors.keys() == RESNET.keys() | {'kept'}
    assert networks[0].architecture == 'test_resnet' and list(networks[0].beside) == ['kept']


@pytest.mark.parametrize(
    'segment, average',
    [('ema', True), ('state_dict_ema', True), ('model_ema', True), ('ema_model', True), ('module_ema', True),
     ('EMA', True), ('ModelEMA', True), ('modelEma', True), ('ema_0.9999', True), ('swa_state', True), ('ema2', True),
     ('averaged_model', True), ('shadow', True), ('schema', False), ('cinema', False), ('model', False),
     ('avgpool', False), ('teacher', False), ('swamp', False), ('EMAil', False)],
)  # fmt: skip
def test_names_of_averages(segment, average):
    for tree in ({segment: RESNET}, prefixed(RESNET, f'{segment}.')):
        (network,) = find(tree)
        assert is_average(tree, network) == average


@pytest.mark.parametrize('skipped', [3, 'abc', None, {'filt': 1}, Record('set', (['filt'],)), [['filt']], {3, 'filt'}])
def test_modules_whose_parts_have_other_types(skipped):
    record = as_module(RESNET, {})
    record.state['_non_persistent_buffers_set'] = skipped
    record.state['_parameters'] = 3
    assert [network.architecture for network in find({'model': record})] == ['test_resnet']


@pytest.mark.parametrize('protocol', range(pickle.HIGHEST_PROTOCOL + 1))
def test_every_protocol_of_pickle(protocol, tmp_path):
    for tree in (RESNET, {'state_dict': RESNET, 'epoch': 3}, collections.OrderedDict(RESNET)):
        (tmp_path / 'a.pkl').write_bytes(pickle.dumps(tree, protocol))
        assert_is(to_timm(convert.read(tmp_path / 'a.pkl')).tensors, RESNET)


def test_what_training_stores_is_shown_on_one_line(tmp_path):
    tree = {'state_dict': RESNET, 'epoch': 10**5000, 'arch': 'a\x1b[31m\n' + 'b' * 10_000, 'metric': 71.25}
    inspection = inspect(saved(tmp_path, tree))
    assert inspection.training == {'arch': r'a\x1b[31m\n' + 'b' * 69 + '...', 'metric': 71.25}
    assert 'metric      71.25' in str(inspection)


def test_only_averages(tmp_path):
    checkpoint = convert.read(saved(tmp_path, {'ema': RESNET}), ema=False)
    assert 'the file has no raw weights, only their average' in checkpoint.notes
    assert 'PaddleClas stores the raw weights' in convert.read(saved(tmp_path, RESNET, 'a.pdema')).notes[0]


def test_the_two_families_side_by_side(tmp_path):
    """What belongs to one is not beside the other, so that its classifier is found elsewhere."""
    tree = {'model': {**prefixed(body(RESNET), 'a.'), 'fc.weight': RESNET['fc.weight'], 'fc.bias': RESNET['fc.bias'],
                      **prefixed(TRESNET, 'b.')}}  # fmt: skip
    assert_is(to_timm(convert.read(saved(tmp_path, tree), key='model:a')).tensors, RESNET)
    checkpoint = convert.read(saved(tmp_path, tree), key='model:b')
    assert not any(key.startswith('a.') for key in checkpoint.tensors)
    assert_is(to_timm(checkpoint).tensors, TRESNET)


SIDE_BY_SIDE = [
    ({**RESNET, **TRESNET}, ('@test_resnet', '@test_tresnet'), (RESNET, TRESNET)),
    (
        {'net': {**prefixed(RESNET, 'a.'), **prefixed(TRESNET, 'a.')}},
        ('net:a@test_resnet', 'net:a@test_tresnet'),
        (RESNET, TRESNET),
    ),
    ({**RESNET, **renamed_first(RAW, CHILDREN)}, ('@1', '@2'), (RESNET, RAW)),
    ({'a': {'b': RESNET}, 'a.b': RAW}, ('a.b@1', 'a.b@2'), (RAW, RESNET)),
]


@pytest.mark.parametrize('tree, keys, states', SIDE_BY_SIDE)
def test_networks_with_one_path_and_prefix_have_keys_of_their_own(tree, keys, states, tmp_path, capsys):
    file = saved(tmp_path, tree)
    with pytest.raises(SeveralNetworksError) as error:
        convert.read(file)
    assert tuple(sorted(row.split(', ')[0] for row in error.value.networks)) == keys
    for key, state in zip(keys, states, strict=True):
        checkpoint = convert.read(file, key=key)
        assert_is(to_timm(checkpoint).tensors, state)
        assert any(f'took {key!r} of the file' in note for note in checkpoint.notes) or keys[0] == 'a.b@1'
    with pytest.raises(SeveralNetworksError):
        convert.read(file, key=keys[0].partition('@')[0] or '(top)')
    assert main(['inspect', str(file), '--key', keys[1]]) == 0
    assert f'network     {keys[0]}, ' in capsys.readouterr().out
    # create_model has no option for one of them.
    with pytest.raises(convert.ConversionError, match='First convert the one that is meant: python'):
        tresnet_jax.create_model('test_resnet', checkpoint=file)


def test_a_listed_key_means_the_same_when_others_are_not_listed(tmp_path):
    """The incomplete networks are not listed, and still count."""
    broken = without(RAW, 'layer4.')
    tree = {'x': {**RESNET, **renamed_first(broken, CHILDREN)}, 'y': RAW}
    with pytest.raises(SeveralNetworksError) as error:
        convert.read(saved(tmp_path, tree))
    assert [row.split(', ')[0] for row in error.value.networks] == ['x@test_resnet', 'y']


def test_names_that_differ_in_wrappers_only(tmp_path):
    """Neither is dropped silently."""
    twice = {**RESNET, '_orig_mod.bn1.weight': RESNET['bn1.weight']}
    report = convert.to_flax(convert.read(saved(tmp_path, twice)))[2]
    assert 'left out 1 tensor (_orig_mod.bn1)' in report.notes
    networks = find({**RESNET, **prefixed(RAW, '_orig_mod.')})
    assert [network.key for network in networks] == ['', ':_orig_mod']


def test_layouts_are_asked_in_order_and_only_of_their_own_names():
    """A network of one family is never beside one of the other."""
    networks = find({**RESNET, **TRESNET})
    assert {network.architecture for network in networks} == {'test_resnet', 'test_tresnet'}
    assert not any(network.beside for network in networks)


settings_quick = settings(max_examples=30, deadline=None, derandomize=True)
segments = st.sampled_from(['module', 'model', 'backbone', 'net', 'encoder', '0', 'x1', 'student'])


@settings_quick
@given(
    st.sampled_from(['test_resnet', 'test_tresnet']),
    st.lists(segments, max_size=3),
    st.lists(st.sampled_from(['model', 'state_dict', 'best', 'a', 'net']), max_size=4),
    st.lists(st.tuples(st.integers(0, 4), st.sampled_from(sorted(WRAPPERS))), max_size=3),
    st.booleans(),
    st.booleans(),
    st.integers(0, 2**32 - 1),
)
def test_any_wrapping_prefix_and_nesting(name, prefix, location, wrappers, thop, more, seed):
    """What is around the network and beside it changes neither its values nor its architecture."""
    state = expected = {'test_resnet': RESNET, 'test_tresnet': TRESNET}[name]
    random = Random(seed)
    if thop:
        state = counted(state)
    state = prefixed(state, ''.join(f'{part}.' for part in prefix))
    for depth, segment in wrappers:
        state = {
            key
            if key.endswith(('total_ops', 'total_params'))
            else '.'.join([*p[: min(depth, len(p) - 1)], segment, *p[min(depth, len(p) - 1) :]]): value
            for key, value in state.items()
            if (p := key.split('.'))
        }
    if more:
        state |= {'criterion.weight': np.ones(3), 'metric.total': np.array(3)}
    keys = list(state)
    random.shuffle(keys)
    tree: Any = {key: state[key] for key in keys}
    for key in location:
        tree = {key: tree, 'epoch': 3, 'optimizer': OPTIMIZER} if random.random() < 0.7 else [tree, 'text']
    networks = find(tree)
    assert len(networks) == 1
    checkpoint = convert.Checkpoint(
        Path('a'), 'torch', {key: value.numpy() for key, value in networks[0].state.tensors.items()}, {}
    )
    found = to_timm(checkpoint)
    assert_is(found.tensors, expected)
    assert any('profiler' in note for note in found.notes) == thop
    assert any('left out 2 tensors (' in note for note in found.notes) == more
