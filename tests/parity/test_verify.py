"""``convert --verify``, ``inspect`` and ``golden`` with torch and timm at hand."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import safetensors
import safetensors.numpy
import torch

import convert
import tresnet_jax
from convert.__main__ import main
from convert.golden import write_golden
from convert.inspect import RELEASED
from convert.verify import compare_with_stored
from tests.helpers.foreign import BY_NAME
from tests.helpers.layouts import float32_state, inplace_abn_state
from tests.helpers.paths import EMBEDDED
from tests.helpers.reference import reference
from tresnet_jax.checkpoints import match
from tresnet_jax.variants import PRETRAINED

STAGES = ['features.0', 'features.1', 'features.2', 'features.3', 'features.4', 'logits']


@pytest.mark.parametrize('name, layout', [('test_resnet', 'timm'), ('test_tresnet', 'timm'), ('test_tresnet', 'iabn')])
def test_verify_prints_every_stage_and_draws_it(name, layout, tmp_path, capsys):
    file, out, chart = tmp_path / 'a.pth', tmp_path / 'out.safetensors', tmp_path / 'chart.png'
    torch.save(float32_state(name) if layout == 'timm' else {'model': inplace_abn_state(name, True)}, file)
    assert main([str(file), str(out), '--verify', '--plot', str(chart)]) == 0
    printed = capsys.readouterr().out
    assert [line.split()[0] for line in printed.splitlines()[1:7]] == STAGES and 'differs' not in printed
    assert chart.read_bytes().startswith(b'\x89PNG') and out.exists()
    assert main([str(out), str(tmp_path / 'back.pth'), '--verify']) == 0


@pytest.mark.parametrize('slope', ['0', '0.01', '1e-6'])
def test_verify_sets_every_slope_of_timms_model(slope, tmp_path, capsys):
    """0 is a slope like any other, and 0.01, timm's slope in the stem, holds for the blocks too."""
    torch.save(float32_state('test_tresnet'), tmp_path / 'a.pth')
    assert main([str(tmp_path / 'a.pth'), str(tmp_path / 'out.safetensors'), '--verify', '--abn-slope', slope]) == 0
    assert 'differs' not in capsys.readouterr().out
    assert main([str(tmp_path / 'out.safetensors'), str(tmp_path / 'back.safetensors'), '--verify']) == 0
    printed = capsys.readouterr()
    assert 'differs' not in printed.out and f'option for the slope {float(slope):g} and would take 0.001' in printed.err
    golden = tmp_path / 'golden.safetensors'
    write_golden(golden, 'test_tresnet', checkpoint=tmp_path / 'out.safetensors', image_size=32)
    model = tresnet_jax.create_model('test_tresnet', checkpoint=tmp_path / 'out.safetensors')
    assert all(row.agrees for row in compare_with_stored(model, golden))


def test_golden_of_the_names_of_another_library(tmp_path):
    names = {timm: name for name, timm in BY_NAME['mmpretrain'].layers.items()}
    state = float32_state('test_resnet')
    renamed = {f'{names.get(key.rpartition(".")[0], "head.fc")}.{key.rpartition(".")[2]}': state[key] for key in state}
    torch.save(renamed, tmp_path / 'mm.pth')
    torch.save(state, tmp_path / 'timm.pth')
    write_golden(tmp_path / 'golden.safetensors', 'test_resnet', checkpoint=tmp_path / 'mm.pth', image_size=32)
    model = tresnet_jax.create_model('test_resnet', checkpoint=tmp_path / 'timm.pth')
    assert all(row.agrees for row in compare_with_stored(model, tmp_path / 'golden.safetensors'))


def test_verify_with_another_slope_and_without_a_head(tmp_path, capsys):
    torch.save(inplace_abn_state('test_tresnet', False), tmp_path / 'a.pth')
    options = ['--verify', '--abn-slope', '1e-6', '--drop-head']
    assert main([str(tmp_path / 'a.pth'), str(tmp_path / 'out.safetensors'), *options]) == 0
    assert 'differs' not in capsys.readouterr().out


@pytest.mark.parametrize('name, layer', [('test_resnet', 'layer3.0.conv2'), ('test_tresnet', 'body.layer2.0.conv1.bn')])
def test_verify_names_the_first_layer_that_differs(name, layer, tmp_path, monkeypatch, capsys):
    """A converter with one error: the layer is named, nothing is written."""
    right = match.torch_to_flax_layout

    def wrong(key, value):
        return right(key, value) * (1.01 if key in (f'{layer}.kernel', f'{layer}.scale') else 1)

    monkeypatch.setattr(match, 'torch_to_flax_layout', wrong)
    torch.save(float32_state(name), tmp_path / 'a.pth')
    assert main([str(tmp_path / 'a.pth'), str(tmp_path / 'out.safetensors'), '--verify']) == 2
    captured = capsys.readouterr()
    assert f'first difference at {layer} (' in captured.err and '<- differs' in captured.out
    assert not (tmp_path / 'out.safetensors').exists()


def test_inspect_of_a_training_checkpoint(tmp_path, capsys):
    state = {f'module.{k}': v.half() if v.is_floating_point() else v for k, v in float32_state('test_resnet').items()}
    ema = {k: v.clone() for k, v in state.items()}
    torch.save({'epoch': 12, 'metric': 80.5, 'state_dict': state, 'state_dict_ema': ema}, tmp_path / 'a.pth.tar')
    assert main(['inspect', str(tmp_path / 'a.pth.tar'), '--json']) == 0
    found = json.loads(capsys.readouterr().out)
    expected = {
        'container': 'torch', 'wrapper': 'state_dict_ema', 'layout': 'timm', 'architecture': 'test_resnet',
        'exact': True, 'tags': ['test_resnet.r160_in1k'], 'num_classes': 1000, 'in_chans': 3, 'head': None,
        'ema': True, 'training': {'epoch': 12, 'metric': 80.5}, 'dtypes': {'float16': 77, 'int64': 15},
    }  # fmt: skip
    assert {key: found[key] for key in expected} == expected
    assert main(['inspect', str(tmp_path / 'a.pth.tar')]) == 0
    text = capsys.readouterr().out
    assert found['sha256'] in text and 'epoch       12' in text and f'{found["size"]:,} bytes' in text


def test_inspect_of_an_original_checkpoint(tmp_path, capsys):
    torch.save({'model': inplace_abn_state('test_tresnet', True)}, tmp_path / 'a.pth')
    assert main(['inspect', str(tmp_path / 'a.pth'), '--json']) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found['layout'], found['wrapper'], found['architecture']) == ('inplace_abn', 'model', 'test_tresnet')


def test_inspect_of_what_is_none_of_ours(tmp_path, capsys):
    torch.save({'conv1.weight': torch.zeros(64, 3, 7, 7), 'fc.weight': torch.zeros(2, 3)}, tmp_path / 'a.pth')
    assert main(['inspect', str(tmp_path / 'a.pth')]) == 0
    assert "a plain ResNet's stem" in capsys.readouterr().out
    assert main(['inspect', str(tmp_path / 'nowhere.pth')]) == 2


def test_released_files_are_tags_of_the_table():
    assert set(RELEASED.values()) <= set(PRETRAINED)
    assert all(re.fullmatch('[0-9a-f]{8}', digits) for digits in RELEASED)


@pytest.mark.parametrize('weights', ['seeded', 'checkpoint', 'one of two'])
def test_golden_file(weights, tmp_path, capsys):
    """The outputs in the file are timm's, of seeded weights or of a checkpoint's."""
    seeded = weights == 'seeded'
    out, model = tmp_path / 'golden.safetensors', reference('test_resnet', num_classes=7).float()
    state = model.state_dict()
    if weights == 'one of two':
        state = {'student': {key: x + 1 for key, x in state.items()}, 'teacher': state}
    torch.save(state, tmp_path / 'a.pth')
    options = [] if seeded else ['--checkpoint', str(tmp_path / 'a.pth')]
    options += ['--key', 'teacher'] if weights == 'one of two' else []
    assert main(['golden', 'test_resnet', str(out), '--image-size', '32', '--seed', '3', *options]) == 0
    with safetensors.safe_open(out, 'np') as file:
        stored, metadata = file.get_tensors(), file.metadata()
    assert stored['images'].shape == (1, 3, 32, 32) and set(stored) == {'images', *STAGES}
    if not seeded:
        with torch.no_grad():
            logits = model(torch.from_numpy(stored['images'])).numpy()
        np.testing.assert_allclose(stored['logits'], logits, rtol=1e-5, atol=1e-6)
        assert len(metadata['weights']) == 64
    else:
        assert metadata['weights'] == 'seeded_weights(shapes, 3)' and stored['logits'].shape == (1, 1000)
    assert main(['golden', 'nothing', str(out)]) == 2
    assert 'did you mean' in capsys.readouterr().err and Path(out).exists()


def test_golden_file_of_a_wide_classifier(tmp_path):
    """The pooling comes with the checkpoint, as in a conversion."""
    out, model = tmp_path / 'golden.safetensors', reference('test_tresnet', num_classes=7, global_pool='catavgmax')
    torch.save(model.float().state_dict(), tmp_path / 'a.pth')
    options = ['--checkpoint', str(tmp_path / 'a.pth'), '--image-size', '32']
    assert main(['golden', 'test_tresnet', str(out), *options]) == 0
    ours = tresnet_jax.create_model('test_tresnet', checkpoint=tmp_path / 'a.pth')
    rows = compare_with_stored(ours, out)
    assert [row.name for row in rows] == STAGES and all(row.agrees for row in rows)


@pytest.mark.parametrize(
    'harm, message',
    [
        (lambda tensors, metadata: metadata.clear(), "'float32_noise' is missing"),
        (lambda tensors, metadata: metadata.update(float32_noise='{}'), "'features.0' is missing"),
        (lambda tensors, metadata: metadata.update(float32_noise='[1'), 'not a file of stored outputs'),
        (lambda tensors, metadata: metadata.update(float32_noise='[1]'), 'not a file of stored outputs'),
        (lambda tensors, metadata: tensors.pop('images'), "'images' is missing"),
        (lambda tensors, metadata: tensors.pop('logits'), 'the model has'),
        (lambda tensors, metadata: tensors.update(logits=tensors['logits'][:, :3]), r'logits has shape \(10, 3\)'),
    ],
)
def test_stored_outputs_that_are_damaged(harm, message, tmp_path):
    model = tresnet_jax.create_model('test_resnet.fashion_mnist', pretrained=True)
    with safetensors.safe_open(EMBEDDED / 'test_resnet.fashion_mnist.golden.safetensors', 'np') as file:
        tensors, metadata = file.get_tensors(), dict(file.metadata())
    harm(tensors, metadata)
    safetensors.numpy.save_file(tensors, tmp_path / 'a.safetensors', metadata)
    with pytest.raises(convert.ConversionError, match=message):
        compare_with_stored(model, tmp_path / 'a.safetensors')
