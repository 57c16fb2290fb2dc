"""Files that torch and timm themselves write, in the forms that training scripts have; compared with the state dict."""

import argparse
import copy
import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import timm.layers
import timm.utils
import torch
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import convert
import tresnet_jax
from convert.__main__ import main
from convert.golden import timm_model
from tests.helpers.layouts import COUNTER, float32_state, inplace_abn_state
from tresnet_jax.checkpoints import read
from tresnet_jax.checkpoints.layouts import to_timm
from tresnet_jax.data.transforms import resolve_data_config

NAMES = ('test_resnet', 'test_tresnet')


def network(name: str, seed: int = 0) -> torch.nn.Module:
    """Return timm's model with seeded weights and statistics."""
    model = timm_model(name)
    model.load_state_dict(float32_state(name, seed))
    return model


def assert_read(file: Path, state: dict[str, torch.Tensor], **options: Any) -> convert.Checkpoint:
    """Assert that a file gives exactly these tensors and counters; return what `read` found."""
    checkpoint = convert.read(file, **options)
    found = to_timm(checkpoint)
    got = found.tensors | {key: np.asarray(count) for key, count in found.counters.items()}
    assert got.keys() == state.keys()
    for key, value in state.items():
        np.testing.assert_array_equal(got[key], value.detach().numpy(), err_msg=key)
    return checkpoint


def plain(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return dict(model.state_dict())


def script(model: torch.nn.Module, file: Path) -> None:
    """Write a model as TorchScript, which torch calls deprecated."""
    with warnings.catch_warnings(action='ignore'):
        torch.jit.trace(model.eval(), torch.zeros(1, 3, 32, 32)).save(str(file))


def averaged(model: torch.nn.Module) -> AveragedModel:
    """Return torch's moving average after two steps that differ from the model."""
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=True)
    average.update_parameters(model)
    other = copy.deepcopy(model)
    with torch.no_grad():
        for value in other.parameters():
            value.mul_(1.5)
    average.update_parameters(other)
    return average


@pytest.mark.parametrize('name', NAMES)
@pytest.mark.parametrize('ema', [True, False])
def test_timms_own_training_checkpoint(name, ema, tmp_path):
    """Written by timm's CheckpointSaver, with its ModelEma and the arguments of its script."""
    model, average = network(name), network(name, 1)
    args = argparse.Namespace(
        model=name, img_size=48, input_size=None, crop_pct=0.9, mean=[0.1, 0.2, 0.3], std=None, interpolation='',
        data_dir=Path('data'),
    )  # fmt: skip
    saver = timm.utils.CheckpointSaver(
        torch.nn.DataParallel(model),
        torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9),
        args=args,
        model_ema=timm.utils.ModelEmaV3(average),
        checkpoint_dir=str(tmp_path),
        recovery_dir=str(tmp_path),
        unwrap_fn=lambda m: getattr(m, 'module', m),
    )
    saver.save_checkpoint(epoch=3, metric=np.float64(71.25))
    expected = plain(average if ema else model)
    checkpoint = assert_read(tmp_path / 'last.pth.tar', expected, ema=ema)
    assert checkpoint.has_ema and checkpoint.training == {
        'epoch': 3,
        'metric': 71.25,
        'arch': checkpoint.training['arch'],
    }
    mine = tresnet_jax.create_model(name, checkpoint=tmp_path / 'last.pth.tar')
    config = resolve_data_config(mine)
    assert (config['input_size'], config['crop_pct'], config['mean']) == ((3, 48, 48), 0.9, (0.1, 0.2, 0.3))


@pytest.mark.parametrize('name', NAMES)
@pytest.mark.parametrize(
    'wrap',
    [torch.nn.DataParallel, lambda m: torch.nn.DataParallel(torch.compile(m)), averaged],
    ids=['DataParallel', 'and compile', 'AveragedModel'],
)  # fmt: skip
def test_wrapped_models(name, wrap, tmp_path):
    wrapped = wrap(network(name))
    expected = plain(wrapped.module)
    expected = {key.removeprefix('_orig_mod.'): value for key, value in expected.items()}
    for number, tree in enumerate([wrapped.state_dict(), {'state_dict': wrapped.state_dict()}]):
        torch.save(tree, tmp_path / f'{number}.pth')
        assert_read(tmp_path / f'{number}.pth', expected)


@pytest.mark.parametrize('name', NAMES)
def test_stages_under_activation_checkpointing_and_compile(name, tmp_path):
    model = network(name)
    expected = plain(copy.deepcopy(model))
    trunk: Any = model.body if name == 'test_tresnet' else model
    trunk.layer1 = checkpoint_wrapper(trunk.layer1)
    trunk.layer2 = torch.compile(trunk.layer2)
    state = torch.nn.ModuleDict({'net': model}).state_dict()
    assert any('_orig_mod' in key for key in state)
    torch.save(state, tmp_path / 'a.pth')
    assert_read(tmp_path / 'a.pth', expected)


@pytest.mark.parametrize('name', NAMES)
def test_the_reference_scripts_of_torchvision(name, tmp_path):
    model = network(name)
    average = averaged(model)
    tree = {
        'model': model.state_dict(), 'model_ema': average.state_dict(), 'epoch': 3,
        'optimizer': torch.optim.SGD(model.parameters(), lr=0.1).state_dict(), 'lr_scheduler': {}, 'scaler': None,
        'args': argparse.Namespace(model='resnet50', val_crop_size=48, val_resize_size=64, interpolation='bilinear'),
    }  # fmt: skip
    torch.save(tree, tmp_path / 'a.pth')
    assert_read(tmp_path / 'a.pth', plain(average.module))
    assert_read(tmp_path / 'a.pth', plain(model), ema=False)
    config = resolve_data_config(tresnet_jax.create_model(name, checkpoint=tmp_path / 'a.pth'))
    assert (config['input_size'], config['crop_pct']) == ((3, 48, 48), 0.75)


class Lit(torch.nn.Module):
    """As a LightningModule: the network under an attribute, a loss with weights, and the file's other values."""

    def __init__(self, model: torch.nn.Module):
        super().__init__()
        self.net = model
        self.criterion = torch.nn.CrossEntropyLoss(weight=torch.ones(1000))


@pytest.mark.parametrize('name', NAMES)
def test_checkpoints_like_those_of_lightning(name, tmp_path):
    lit, average = Lit(network(name)), Lit(network(name, 1))
    tree: dict[str, Any] = {
        'epoch': 2, 'global_step': 7, 'pytorch-lightning_version': '2.6.0', 'loops': {}, 'callbacks': {},
        'state_dict': lit.state_dict(), 'hyper_parameters': {'root': Path('data'), 'lr': 0.1},
        'optimizer_states': [torch.optim.SGD(lit.parameters(), lr=0.1, momentum=0.9).state_dict()],
    }  # fmt: skip
    torch.save(tree, tmp_path / 'a.ckpt')
    assert_read(tmp_path / 'a.ckpt', plain(lit.net))
    # WeightAveraging stores the average as the state dict.
    tree |= {'state_dict': average.state_dict(), 'current_model_state': lit.state_dict(), 'averaging_state': {}}
    torch.save(tree, tmp_path / 'b.ckpt')
    assert_read(tmp_path / 'b.ckpt', plain(average.net))
    assert_read(tmp_path / 'b.ckpt', plain(lit.net), ema=False)
    # StochasticWeightAveraging keeps an average with old statistics in a callback.
    old = {'StochasticWeightAveraging': {'average_model_state': average.state_dict()}}
    torch.save(
        tree | {'state_dict': lit.state_dict(), 'callbacks': old, 'current_model_state': {}}, tmp_path / 'c.ckpt'
    )
    assert_read(tmp_path / 'c.ckpt', plain(lit.net))


@pytest.mark.parametrize('name', NAMES)
def test_whole_modules(name, tmp_path):
    """A pickled module, one in a dictionary beside its average, one in a wrapper, and TorchScript."""
    model, average = network(name), network(name, 1)
    trees = {
        'module': (model, model),
        'dictionary': ({'model': model, 'ema': average, 'updates': 3}, average),
        'wrapped': ([torch.nn.DataParallel(model)], model),
        'legacy': (model, model),
    }
    for case, (tree, expected) in trees.items():
        torch.save(tree, tmp_path / f'{case}.pth', _use_new_zipfile_serialization=case != 'legacy')
        checkpoint = assert_read(tmp_path / f'{case}.pth', plain(expected))
        assert checkpoint.stated.settled_by == 'the classes of the pickled module'
    script(model, tmp_path / 'traced.pt')
    assert_read(tmp_path / 'traced.pt', plain(model))


@pytest.mark.parametrize(
    'options, words',
    [
        ({'act_layer': 'silu'}, 'the activation SiLU in conv1.2'),
        ({'act_layer': 'mish'}, 'the activation Mish in conv1.2'),
        ({'aa_layer': torch.nn.AvgPool2d}, 'AvgPool2d in'),
        ({'aa_layer': timm.layers.BlurPool2d}, 'BlurPool2d in'),
    ],
)
def test_modules_of_twins_are_refused(options, words, tmp_path):
    """Their state dicts have the keys and shapes of ours, and so load with a note."""
    model = timm.create_model('test_resnet', **options)
    torch.save(model, tmp_path / 'module.pth')
    with pytest.raises(convert.ConversionError, match=words):
        convert.read(tmp_path / 'module.pth')
    script(model, tmp_path / 'traced.pt')
    with pytest.raises(convert.ConversionError, match=words):
        convert.read(tmp_path / 'traced.pt')
    torch.save(model.state_dict(), tmp_path / 'state.pth')
    assert 'do not exclude' in ' '.join(convert.to_flax(convert.read(tmp_path / 'state.pth'))[2].notes)


@pytest.fixture
def repeats(monkeypatch):
    """Let the tensors of a small file repeat elements, so that large networks need no large files."""
    monkeypatch.setattr(read, 'ALWAYS_ALLOWED', 2**31)


@pytest.mark.usefixtures('repeats')
@pytest.mark.parametrize('twin', ['resnetaa34d', 'resnetaa50d', 'resnetblur101d'])
def test_twins_of_timm(twin, tmp_path):
    """Same keys and shapes as ours, so the note names the twin; timm's config.json refuses it."""
    with torch.device('meta'):
        shapes = {key: tuple(value.shape) for key, value in timm.create_model(twin).state_dict().items()}
        ours = twin.replace('aa', '').replace('blur', '')
        assert shapes == {key: tuple(v.shape) for key, v in timm_model(ours).state_dict().items()}
    tensors = {key: torch.zeros(()).expand(shape) for key, shape in shapes.items() if not key.endswith(COUNTER)}
    torch.save(tensors, tmp_path / 'a.pth')
    assert twin in ' '.join(convert.read(tmp_path / 'a.pth').notes)
    (tmp_path / 'config.json').write_text(json.dumps({'architecture': twin}))
    with pytest.raises(convert.ConversionError, match=f"has the tensors of {ours}, but .* says '{twin}'"):
        convert.read(tmp_path / 'a.pth')


@pytest.mark.usefixtures('repeats')
@pytest.mark.parametrize(
    'name',
    ['seresnet152d', 'resnetrs50', 'ecaresnet50d', 'resnet50t', 'resnet50c', 'resnext50d_32x4d', 'resnext50_32x4d'],
)
def test_near_relatives_of_timm(name, tmp_path):
    with torch.device('meta'):
        shapes = {key: tuple(value.shape) for key, value in timm.create_model(name).state_dict().items()}
    tensors = {key: torch.zeros(()).expand(shape) for key, shape in shapes.items() if not key.endswith(COUNTER)}
    torch.save({'state_dict': tensors}, tmp_path / 'a.pth')
    with pytest.raises(convert.ConversionError, match='another network|plain ResNet'):
        convert.to_flax(convert.read(tmp_path / 'a.pth'))


@pytest.mark.usefixtures('repeats')
@pytest.mark.parametrize('name', ['tresnet_m', 'resnet18d'])
def test_timms_feature_extractors(name, tmp_path):
    """`features_only` renames a TResNet's body."""
    with torch.device('meta'):
        shapes = {k: tuple(v.shape) for k, v in timm.create_model(name, features_only=True).state_dict().items()}
    tensors = {k: torch.zeros(()).expand(shape) for k, shape in shapes.items() if not k.endswith(COUNTER)}
    torch.save(tensors, tmp_path / 'a.pth')
    report = convert.to_flax(convert.read(tmp_path / 'a.pth'))[2]
    assert report.architecture == name and report.num_classes == 0
    assert report.layout == ('timm features_only' if name == 'tresnet_m' else 'timm')


def test_parameters_without_statistics(tmp_path):
    torch.save(dict(network('test_resnet').named_parameters()), tmp_path / 'a.pth')
    with pytest.raises(convert.ConversionError, match='no running statistics; save model.state_dict'):
        convert.to_flax(convert.read(tmp_path / 'a.pth'))


def test_slopes_of_a_pickled_tresnet(tmp_path):
    model = network('test_tresnet')
    for module in model.modules():
        if isinstance(module, torch.nn.LeakyReLU):
            module.negative_slope = 1e-6
    torch.save(model, tmp_path / 'a.pth')
    assert convert.to_flax(convert.read(tmp_path / 'a.pth'))[2].abn_slope == 1e-6
    torch.save(network('test_tresnet'), tmp_path / 'b.pth')
    assert convert.to_flax(convert.read(tmp_path / 'b.pth'))[2].abn_slope is None


@pytest.mark.parametrize('form', ['prefix', 'bottleneck', 'decoder'])
def test_verify_takes_the_same_network(form, tmp_path, capsys):
    """It states what agreement does not show, unless something settles it."""
    name = 'test_tresnet' if form == 'bottleneck' else 'test_resnet'
    state = float32_state(name)
    options: list[str] = []
    body = {key: value for key, value in state.items() if not key.startswith(('fc.', 'head.'))}
    if form == 'prefix':
        state = {'criterion.weight': torch.ones(3)} | {f'net.{key}': value for key, value in state.items()}
    elif form == 'decoder':
        state, options = body | {'decoder.weight': torch.ones(3, 3)}, ['--drop-head']
    else:
        state = {f'm.{key}': value for key, value in inplace_abn_state(name, True).items()}
        del state['m.head.fc.weight'], state['m.head.fc.bias']
        shapes = {'embedding_generator.0.weight': (64, 512), 'embedding_generator.0.bias': (64,), 'FC.weight': (10, 64),
                  'FC.bias': (10,)}  # fmt: skip
        state |= {f'm.head.fc.{key}': torch.randn(shape) for key, shape in shapes.items()}
    torch.save({'a': [state]}, tmp_path / 'a.pth')
    assert main([str(tmp_path / 'a.pth'), str(tmp_path / 'out.safetensors'), '--verify', *options]) == 0
    printed = capsys.readouterr().out
    assert ('would agree too' in printed) == (name == 'test_resnet')
    if form == 'prefix':
        (tmp_path / 'config.json').write_text(json.dumps({'architecture': name}))
        assert main([str(tmp_path / 'a.pth'), str(tmp_path / 'out.safetensors'), '--verify']) == 0
        assert 'would agree too' not in capsys.readouterr().out
