"""Checkpoints as people have them, made with torch and timm and opened by the converter."""

import argparse
from pathlib import Path

import numpy as np
import pytest
import safetensors
import safetensors.torch
import timm.models.tresnet
import torch

import convert
import tresnet_jax
from convert.__main__ import main
from convert.golden import timm_model
from tests.helpers.closeness import assert_identical
from tests.helpers.layouts import COUNTER, float32_state, inplace_abn_names, inplace_abn_state


def converted(path: Path, *options: str) -> dict[str, torch.Tensor]:
    """Convert a file to timm's layout by the command line and return its tensors."""
    out = path.with_name('converted.safetensors')
    assert main([str(path), str(out), '--to', 'torch', *options]) == 0
    return safetensors.torch.load_file(out)


@pytest.mark.parametrize('prefix', ['', 'module.', '_orig_mod.', 'module._orig_mod.', '_orig_mod.module.'])
@pytest.mark.parametrize('ema', [True, False])
def test_timm_training_checkpoint(prefix, ema, tmp_path, capsys):
    """A training checkpoint has a Namespace, an optimiser and averaged weights, which --no-ema leaves out."""
    plain, averaged = float32_state('test_resnet', 1), float32_state('test_resnet', 2)
    model = timm_model('test_resnet')
    model(torch.zeros(2, 3, 32, 32)).sum().backward()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    optimizer.step()
    checkpoint = {
        'epoch': 7, 'arch': 'test_resnet', 'version': 2, 'metric': 71.25, 'optimizer': optimizer.state_dict(),
        'args': argparse.Namespace(model='test_resnet', lr=0.1),
        'state_dict': {prefix + k: v for k, v in plain.items()},
        'state_dict_ema': {prefix + k: v for k, v in averaged.items()},
    }  # fmt: skip
    file = tmp_path / 'checkpoint-7.pth.tar'
    torch.save(checkpoint, file)
    assert_identical(converted(file, *([] if ema else ['--no-ema'])), averaged if ema else plain)
    assert f"took '{'state_dict_ema' if ema else 'state_dict'}'" in capsys.readouterr().out
    read = convert.read(file)
    assert read.has_ema and read.training == {'epoch': 7, 'metric': 71.25, 'arch': 'test_resnet'}


@pytest.mark.parametrize('wrapper', [None, 'model', 'state_dict', 'model_ema'])
@pytest.mark.parametrize('zipped', [True, False], ids=['zip', 'legacy'])
def test_wrappers_and_formats_of_torch_files(wrapper, zipped, tmp_path):
    state = float32_state('test_resnet')
    file = tmp_path / 'model.pth'
    torch.save({wrapper: state} if wrapper else state, file, _use_new_zipfile_serialization=zipped)
    assert_identical(converted(file), state)


@pytest.mark.parametrize('wrapper', [None, 'model', 'state_dict'])
@pytest.mark.parametrize('blur_filters', [True, False])
def test_inplace_abn_layout(wrapper, blur_filters, tmp_path, capsys):
    """The result equals that of timm's own filter; the next test checks the filter's formula."""
    state = inplace_abn_state('test_tresnet', blur_filters)
    assert 'body.conv1.0.weight' in state and 'body.layer2.0.conv1.0.0.weight' in state
    file = tmp_path / 'original.pth'
    torch.save({wrapper: state} if wrapper else state, file, _use_new_zipfile_serialization=False)
    got = converted(file)
    plain = {k: v for k, v in state.items() if not k.endswith('.filt')}
    assert_identical(got, timm.models.tresnet.checkpoint_filter_fn(plain, None))
    timm_model('test_tresnet').load_state_dict(got, strict=True)
    out = capsys.readouterr().out
    negative = sum(int((v < 0).sum()) for k, v in state.items() if k.endswith('.1.weight') and v.ndim == 1)
    assert negative > 0 and f'({negative} gammas were negative)' in out
    assert ('blur filters' in out) == blur_filters


def test_the_gamma_of_inplace_abn(tmp_path):
    """y = (x - mean) / sqrt(var + eps) * (|w| + eps) + b, with eps = 1e-5 both times (inplace_abn 1.0.11)."""
    state = inplace_abn_state('test_tresnet', False)
    torch.save(state, tmp_path / 'a.pth')
    got = converted(tmp_path / 'a.pth')
    old, new = state['body.layer2.0.conv1.0.1.weight'], got['body.layer2.0.conv1.bn.weight']
    assert (old < 0).any()
    torch.testing.assert_close(new, old.abs() + 1e-5, rtol=0, atol=0)


def test_gammas_are_converted_once_and_only_once(tmp_path):
    """A file in timm's layout inside {'model': ...} and a file of ours keep their gammas.

    timm's filter converts those of the first again.
    """
    torch.save(inplace_abn_state('test_tresnet', False), tmp_path / 'a.pth')
    once = converted(tmp_path / 'a.pth')
    torch.save({'model': once}, tmp_path / 'b.pth')
    assert_identical(converted(tmp_path / 'b.pth'), once)
    assert main([str(tmp_path / 'a.pth'), str(tmp_path / 'flax.safetensors'), '--to', 'flax']) == 0
    assert main([str(tmp_path / 'flax.safetensors'), str(tmp_path / 'back.safetensors'), '--to', 'torch']) == 0
    assert_identical(safetensors.torch.load_file(tmp_path / 'back.safetensors'), once)


def test_half_precision_gammas_keep_the_epsilon(tmp_path):
    """1e-5 vanishes beside 1 in float16, so the sum is computed in float32."""
    state = {k: v.half() for k, v in inplace_abn_state('test_tresnet', False).items()}
    torch.save(state, tmp_path / 'a.pth')
    params, _, _ = convert.to_flax(convert.read(tmp_path / 'a.pth'))
    old = state['body.conv1.1.weight'].float().abs().numpy()
    np.testing.assert_array_equal(params['body']['conv1']['bn']['scale'], old + np.float32(1e-5))


def test_the_slope_is_kept_and_used(tmp_path):
    """It passes from the command line through the file into the model; the caller's slope takes precedence."""
    torch.save(inplace_abn_state('test_tresnet', False), tmp_path / 'a.pth')
    flax_file = tmp_path / 'flax.safetensors'
    assert main([str(tmp_path / 'a.pth'), str(flax_file), '--abn-slope', '1e-6']) == 0
    with safetensors.safe_open(flax_file, 'np') as file:
        assert file.metadata()['abn_slope'] == '1e-06'

    def slopes(**options) -> set[float]:
        body = tresnet_jax.create_model('test_tresnet', checkpoint=flax_file, **options).body
        return {body.conv1.bn.slope, body.layer3[0].conv1.bn.slope}

    assert slopes() == {1e-6}
    assert slopes(abn_slope=0.1) == {0.1}
    assert slopes(abn_slope=1e-3) == {1e-3, 1e-2}


@pytest.mark.parametrize('wrapper, slope', [('model', 1e-6), ('state_dict', None)])
def test_the_original_second_version_is_known_by_its_wrapper(wrapper, slope):
    """The TResNet repository writes {'model': ...} and trained with 1e-6, ImageNet21K {'state_dict': ...} and 1e-3."""
    with torch.device('meta'):
        model = timm_model('tresnet_v2_l')
    state = {key: value for key, value in model.state_dict().items() if not key.endswith(COUNTER)}
    shapes = {key: tuple(value.shape) for key, value in inplace_abn_names(model, state).items()}
    tensors = {key: np.broadcast_to(np.float32(1), shape) for key, shape in shapes.items()}
    report = convert.to_flax(convert.Checkpoint(Path('v2.pth'), 'torch', tensors, {}, wrapper))[2]
    assert report.architecture == 'tresnet_v2_l' and report.layout == 'inplace_abn'
    assert report.abn_slope == slope


def with_head(head: dict[str, tuple[int, ...]]) -> dict[str, torch.Tensor]:
    """Return a body in the original layout with another head."""
    body = {k: v for k, v in inplace_abn_state('test_tresnet', False).items() if not k.startswith('head.')}
    return body | {key: torch.zeros(shape) for key, shape in head.items()}


@pytest.mark.parametrize('head, name', [
    ({'head.decoder.embed_standart.weight': (768, 512), 'head.decoder.query_embed.weight': (100, 768)}, 'ML-Decoder'),
    ({'head.fc.embedding_generator.0.weight': (64, 512), 'head.fc.FC.weight': (10, 64)}, "ASL's bottleneck head"),
    ({'head.fc.weight': (10, 768), 'head.fc.bias': (10,)}, 'takes 768 features instead of 512'),
])  # fmt: skip
def test_heads_that_timm_does_not_have(head, name, tmp_path, capsys):
    """The error names the head and --drop-head, which converts the body."""
    file, out = tmp_path / 'head.pth', tmp_path / 'out.safetensors'
    torch.save({'model': with_head(head)}, file)
    assert main([str(file), str(out)]) == 2
    error = capsys.readouterr().err
    assert name in error and '--drop-head' in error and not out.exists()
    assert main([str(file), str(out), '--drop-head']) == 0
    said = capsys.readouterr().out
    assert all(f'dropped {key}: ' in said for key in head)
    model = tresnet_jax.create_model('test_tresnet', checkpoint=out)
    assert model.num_classes == 0
    assert tresnet_jax.create_model('test_tresnet', checkpoint=file, num_classes=3).num_classes == 3


def foreign(layers: tuple[int, ...], basic: int) -> dict[str, np.ndarray]:
    """Return the keys that identify ML-Decoder's networks of width 1, whose first `basic` stages have basic blocks."""
    tensors = {'body.conv1.conv.weight': np.zeros((64, 48, 3, 3), np.float32)}
    for stage, depth in enumerate(layers):
        planes = 64 * 2**stage
        for block in range(depth):
            path = f'body.layer{stage + 1}.{block}'
            tensors[f'{path}.conv1.conv.weight'] = np.zeros((planes, 4, 1, 1), np.float32)
            if stage >= basic:
                tensors[f'{path}.conv3.conv.weight'] = np.zeros((4 * planes, planes, 1, 1), np.float32)
    return tensors


@pytest.mark.parametrize(
    'layers, basic, name',
    [
        ((3, 8, 34, 5), 0, "ML-Decoder's tresnet_xl"),
        ((3, 4, 6, 3), 2, "ML-Decoder's tresnet_s"),
        ((3, 6, 14, 3), 0, "ML-Danbooru's tresnet_d"),
    ],
)
@pytest.mark.parametrize('model', [None, 'tresnet_xl'])
def test_other_networks_with_our_names_are_refused(layers, basic, name, model):
    with pytest.raises(convert.ConversionError, match=name):
        convert.to_flax(convert.Checkpoint(Path('a.pth'), 'torch', foreign(layers, basic), {}), model)


def test_a_number_of_classes_that_differs_from_the_tags(tmp_path, capsys):
    file, out = tmp_path / 'a.pth', tmp_path / 'out.safetensors'
    torch.save(float32_state('test_resnet', num_classes=7), file)
    assert main([str(file), str(out), '--model', 'test_resnet.r160_in1k']) == 2
    error = capsys.readouterr().err
    assert 'has 7 classes, but test_resnet.r160_in1k has 1000' in error and '--num-classes 7' in error
    assert main([str(file), str(out), '--model', 'test_resnet.r160_in1k', '--num-classes', '7']) == 0
    assert tresnet_jax.create_model('test_resnet', checkpoint=out).num_classes == 7
    assert main([str(file), str(out), '--num-classes', '9']) == 0
    assert tresnet_jax.create_model('test_resnet', checkpoint=out).num_classes == 0
    assert main([str(file), str(out), '--num-classes', '9', '--drop-head']) == 2


def test_values_that_are_not_finite_are_named(tmp_path, capsys):
    state = float32_state('test_resnet')
    state['bn1.running_var'][3], state['fc.bias'][0] = float('nan'), float('inf')
    torch.save(state, tmp_path / 'a.pth')
    assert main([str(tmp_path / 'a.pth'), str(tmp_path / 'out.safetensors')]) == 0
    error = capsys.readouterr().err
    assert error.count('warning: ') == 2 and 'bn1.running_var has values that are not finite' in error
    with pytest.warns(UserWarning, match='not finite'):
        tresnet_jax.create_model('test_resnet', checkpoint=tmp_path / 'a.pth')


@pytest.mark.parametrize('content', [[1, 2], {'epoch': 3}, {'weight': 'text'}, torch.zeros(3)])
def test_torch_files_without_a_state_dict_are_refused(content, tmp_path, capsys):
    torch.save(content, tmp_path / 'a.pth')
    assert main([str(tmp_path / 'a.pth'), str(tmp_path / 'out.safetensors')]) == 2
    assert 'state dict of tensors' in capsys.readouterr().err


@pytest.mark.parametrize('cut', [0.3, 0.999])
@pytest.mark.parametrize('zipped', [True, False], ids=['zip', 'legacy'])
def test_truncated_torch_files_are_refused(cut, zipped, tmp_path, capsys):
    file = tmp_path / 'a.pth'
    torch.save(float32_state('test_resnet'), file, _use_new_zipfile_serialization=zipped)
    file.write_bytes(file.read_bytes()[: int(cut * file.stat().st_size)])
    assert main([str(file), str(tmp_path / 'out.safetensors')]) == 2
    error = capsys.readouterr().err
    assert str(file) in error and 'Traceback' not in error and not (tmp_path / 'out.safetensors').exists()
