"""Checkpoints in several files."""

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st

import convert
import tresnet_jax
from convert.__main__ import main
from tests.helpers.states import RESNET, assert_is, prefixed
from tresnet_jax.checkpoints.layouts import to_timm

INDEX = 'model.safetensors.index.json'


def shard(folder: Path, count: int = 3, stem: str = 'model', suffix: str = 'safetensors', prefix: str = '') -> Path:
    """Write RESNET as files with an index; return the index."""
    state = prefixed(RESNET, prefix)
    names = {}
    for number in range(count):
        part = dict(list(state.items())[number::count])
        name = f'{stem}-{number + 1:05}-of-{count:05}.{suffix}'
        if suffix == 'safetensors':
            safetensors.numpy.save_file(part, folder / name, {'format': 'pt'})
        else:
            (folder / name).write_bytes(pickle.dumps(part))
        names |= dict.fromkeys(part, name)
    index = folder / f'{stem}.{suffix}.index.json'
    index.write_text(json.dumps({'metadata': {'total_size': 3}, 'weight_map': names}))
    return index


@pytest.mark.parametrize('stem, suffix', [('model', 'safetensors'), ('pytorch_model', 'bin'), ('weights.v2', 'bin')])
@pytest.mark.parametrize('prefix', ['', 'timm_model.'])
def test_by_the_index_and_by_the_folder(stem, suffix, prefix, tmp_path):
    index = shard(tmp_path, stem=stem, suffix=suffix, prefix=prefix)
    for path in (index, tmp_path):
        checkpoint = convert.read(path)
        assert checkpoint.container == ('safetensors' if suffix == 'safetensors' else 'torch')
        assert_is(to_timm(checkpoint).tensors, RESNET)
        model = tresnet_jax.create_model('test_resnet', checkpoint=path)
        np.testing.assert_array_equal(convert.to_torch(model)['bn1.running_mean'], RESNET['bn1.running_mean'])


def test_by_local_dir_and_on_the_command_line(tmp_path, capsys):
    index = shard(tmp_path)
    (tmp_path / 'config.json').write_text(json.dumps({'architecture': 'test_resnet', 'num_classes': 10}))
    model = tresnet_jax.create_model(f'local-dir:{tmp_path}', pretrained=True)
    np.testing.assert_array_equal(convert.to_torch(model)['bn1.running_mean'], RESNET['bn1.running_mean'])
    for source in (index, tmp_path):
        assert main([str(source), str(tmp_path / 'out.safetensors')]) == 0
        assert main(['inspect', str(source)]) == 0
    assert 'looks like  test_resnet' in capsys.readouterr().out


@pytest.mark.parametrize('file', ['model.safetensors', 'pytorch_model.bin', 'mp_rank_00_model_states.pt'])
def test_a_folder_with_one_file(file, tmp_path):
    tree = {'module': RESNET} if file.startswith('mp_') else RESNET
    path = tmp_path / file
    path.write_bytes(safetensors.numpy.save(RESNET) if file.endswith('safetensors') else pickle.dumps(tree))
    assert_is(to_timm(convert.read(tmp_path)).tensors, RESNET)


def test_a_lone_shard_asks_for_the_index(tmp_path):
    shard(tmp_path)
    with pytest.raises(convert.ConversionError, match='one of 3 files of a checkpoint; give the index, model.safeten'):
        convert.read(tmp_path / 'model-00002-of-00003.safetensors')
    alone = tmp_path / 'alone'
    alone.mkdir()
    shard(alone, count=1)
    assert_is(to_timm(convert.read(alone / 'model-00001-of-00001.safetensors')).tensors, RESNET)


@pytest.mark.parametrize(
    'name', ['../model.safetensors', '/etc/passwd', 'a/b.safetensors', 'a\\b.safetensors', '..', '.', '', '.hidden',
             'C:x.safetensors', 'a\0b', INDEX, 'x' * 70 + '/'],
)  # fmt: skip
def test_names_that_leave_the_folder_are_refused(name, tmp_path):
    folder = tmp_path / 'in'
    folder.mkdir()
    safetensors.numpy.save_file(RESNET, tmp_path / 'model.safetensors')
    (folder / INDEX).write_text(json.dumps({'weight_map': dict.fromkeys(RESNET, name)}))
    with pytest.raises(convert.ConversionError, match='expected the name of a file in its folder'):
        convert.read(folder / INDEX)


@pytest.mark.parametrize(
    'text, words',
    [
        ('', 'cannot be read as JSON'),
        ('{"weight_map": ', 'cannot be read as JSON'),
        ('[' * 100_000, 'cannot be read as JSON'),
        ('[]', 'expected an object weight_map'),
        ('{"weight_map": {}}', 'expected an object weight_map'),
        ('{"weight_map": {"a": 3}}', 'expected an object weight_map'),
        (json.dumps({'weight_map': {str(i): f'{i}.bin' for i in range(1001)}}), 'names more than 1000 files'),
        ('{"weight_map": ["a"]}', 'expected an object weight_map'),
        ('{"weight_map": {"a": "model-00001-of-00002.safetensors"}}', 'which is missing; fetch it too'),
    ],
)
def test_damaged_indices(text, words, tmp_path):
    (tmp_path / INDEX).write_text(text)
    with pytest.raises(convert.ConversionError, match=words) as error:
        convert.read(tmp_path / INDEX)
    assert str(error.value).count('\n') == 0


def test_a_shard_without_a_key_of_the_index(tmp_path):
    index = shard(tmp_path)
    document = json.loads(index.read_text())
    document['weight_map'] |= {'bn1.more': 'model-00001-of-00003.safetensors'}
    index.write_text(json.dumps(document))
    with pytest.raises(convert.ConversionError, match=r'model-00001-of-00003.safetensors lacks bn1.more'):
        convert.read(index)


@pytest.mark.parametrize('index', ['model.safetensors.index.fp16.json', 'weights.index.json'])
def test_indices_of_other_names(index, tmp_path):
    """Such as those of a variant of transformers."""
    shard(tmp_path, stem='model.fp16').rename(tmp_path / index)
    for path in (tmp_path, tmp_path / index):
        assert_is(to_timm(convert.read(path)).tensors, RESNET)
    with pytest.raises(convert.ConversionError, match=f'give the index, {index}, or the folder'):
        convert.read(tmp_path / 'model.fp16-00002-of-00003.safetensors')


def test_a_variant_in_a_folder(tmp_path):
    safetensors.numpy.save_file(RESNET, tmp_path / 'model.fp16.safetensors')
    assert_is(to_timm(convert.read(tmp_path)).tensors, RESNET)
    (tmp_path / 'pytorch_model.bf16.bin').write_bytes(b'')
    with pytest.raises(convert.ConversionError, match='give one of model.fp16.safetensors, pytorch_model.bf16.bin'):
        convert.read(tmp_path)


def test_a_folder_of_other_files(tmp_path):
    for name in ('b.pth', 'a.ckpt', 'log.txt'):
        (tmp_path / name).write_bytes(b'')
    with pytest.raises(convert.ConversionError, match=r'not a file; give one of its files \(a.ckpt, b.pth\)'):
        convert.read(tmp_path)


def test_a_folder_of_lightning(tmp_path):
    """It has a folder `checkpoints` too, with files in it."""
    file = tmp_path / 'checkpoints' / 'epoch=3-step=9.ckpt'
    file.parent.mkdir()
    file.write_bytes(pickle.dumps({'state_dict': {f'model.{key}': value for key, value in RESNET.items()}}))
    with pytest.raises(convert.ConversionError, match=r'give one of its files \(checkpoints/epoch=3-step=9.ckpt\)'):
        convert.read(tmp_path)
    assert_is(to_timm(convert.read(file)).tensors, RESNET)


@pytest.mark.parametrize(
    'names', [('model.safetensors', 'model_1.safetensors'), ('pytorch_model.bin', 'pytorch_model_1.bin')]
)
def test_several_models_in_a_folder(names, tmp_path):
    """As accelerate saves them; the first need not be the one that is meant."""
    for name in names:
        safetensors.numpy.save_file(RESNET, tmp_path / name)
    (tmp_path / 'optimizer.bin').write_bytes(b'')
    with pytest.raises(convert.ConversionError, match=f'has several models; give one of {", ".join(names)}$'):
        convert.read(tmp_path)
    assert_is(to_timm(convert.read(tmp_path / names[1])).tensors, RESNET)


def test_several_indices_in_a_folder(tmp_path):
    shard(tmp_path, stem='one')
    shard(tmp_path, stem='two')
    with pytest.raises(
        convert.ConversionError, match='several checkpoints; give one of one.safetensors.index.json, two'
    ):
        convert.read(tmp_path)


@settings(max_examples=10, deadline=None, derandomize=True)
@given(st.integers(0, 2**32 - 1), st.integers(1, 9))
def test_any_division_into_shards(tmp_path_factory, seed, count):
    folder = tmp_path_factory.mktemp('shards')
    rng = np.random.default_rng(seed)
    names = {key: f'part{rng.integers(count)}.safetensors' for key in RESNET}
    for name in set(names.values()):
        safetensors.numpy.save_file({key: RESNET[key] for key in names if names[key] == name}, folder / name)
    (folder / 'x.safetensors.index.json').write_text(json.dumps({'weight_map': names}))
    assert_is(to_timm(convert.read(folder)).tensors, RESNET)
