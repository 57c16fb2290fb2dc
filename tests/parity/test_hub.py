"""Folders and repositories that timm writes and we read, and the reverse."""

import json
import subprocess
import sys

import pytest
import timm
import torch
from timm.models._hub import save_config_for_hf, save_for_hf

import convert
import tresnet_jax
from convert.__main__ import main
from tests.helpers.closeness import assert_close
from tests.helpers.hub_server import Hub, client_environment
from tests.helpers.reference import call, images, nhwc, ours, randomise, reference
from tresnet_jax.hub.config import to_config
from tresnet_jax.models.build import build_model
from tresnet_jax.models.initializers import ShapesOnly
from tresnet_jax.variants import pretrained_config

FLOAT32 = 1e-5

MODELS = [
    ('test_resnet', {'num_classes': 7}),
    ('test_resnet', {'num_classes': 4, 'in_chans': 1}),
    ('test_resnet', {'num_classes': 0, 'global_pool': ''}),
    ('test_resnet', {'num_classes': 4, 'global_pool': 'catavgmax', 'output_stride': 16}),
    ('resnet18d', {'num_classes': 3, 'in_chans': 4}),
]
# Fields in which timm keeps the origin of its own weights.
ORIGIN = {'origin_url', 'paper_ids', 'paper_name', 'notes'}


def assert_equal_outputs(mine, theirs, channels):
    x = images(2, channels, 64, 64).float()
    with torch.no_grad():
        assert_close(call(mine, nhwc(x)), nhwc(theirs.eval()(x)), FLOAT32)


@pytest.mark.parametrize('name, options', MODELS)
def test_timm_loads_what_we_save(name, options, tmp_path):
    """Our config.json equals timm's, field by field."""
    source = reference(name, **options).float()
    kept = {key: options[key] for key in ('global_pool', 'output_stride') if key in options}
    mine = ours(source, name, **kept)
    mine.pretrained_cfg = pretrained_config(name)
    tresnet_jax.save_pretrained(mine, tmp_path / 'ours')
    theirs = timm.create_model(f'local-dir:{tmp_path}/ours', pretrained=True)
    for key, value in source.state_dict().items():
        if not key.endswith('num_batches_tracked'):
            assert torch.equal(value, theirs.state_dict()[key]), key
    assert_equal_outputs(mine, theirs, options.get('in_chans', 3))

    save_for_hf(source, tmp_path / 'timm', safe_serialization=True)
    mine, timms = (json.loads((tmp_path / who / 'config.json').read_text()) for who in ('ours', 'timm'))
    for key in ORIGIN:
        timms['pretrained_cfg'].pop(key, None)
    assert mine == timms


@pytest.mark.parametrize('name', ['tresnet_m.miil_in1k_448', 'resnet50d.a3_in1k', 'resnet101d.ra2_in1k'])
def test_the_config_of_a_tag_is_timms(name, tmp_path):
    """The models have shapes and no values."""
    with torch.device('meta'):
        theirs = timm.create_model(name)
    save_config_for_hf(theirs, str(tmp_path / 'config.json'))
    timms = json.loads((tmp_path / 'config.json').read_text())
    for key in ORIGIN:
        timms['pretrained_cfg'].pop(key, None)
    row = pretrained_config(name)
    mine = build_model(row.architecture, num_classes=row.num_classes, in_chans=3, rngs=ShapesOnly())
    mine.pretrained_cfg = row
    assert json.loads(json.dumps(to_config(mine))) == timms


@pytest.mark.parametrize('safe', [True, False])
@pytest.mark.parametrize('name, options', MODELS[:4])
def test_we_load_what_timm_saves(name, options, safe, tmp_path):
    """The weights are in model.safetensors or in pytorch_model.bin."""
    torch.manual_seed(0)
    theirs = timm.create_model(name, **options)
    randomise(theirs.double(), seed=1)
    save_for_hf(theirs.float(), tmp_path, safe_serialization=safe)
    assert (tmp_path / 'pytorch_model.bin').exists() != safe
    mine = tresnet_jax.create_model(f'local-dir:{tmp_path}', pretrained=True)
    assert mine.global_pool == options.get('global_pool', 'avg')
    assert_equal_outputs(mine, theirs, options.get('in_chans', 3))


def test_a_pickle_with_code_is_refused_and_not_run(tmp_path):
    marker = tmp_path / 'ran'

    class Trap:
        def __reduce__(self):
            return (open, (str(marker), 'w'))

    save_for_hf(timm.create_model('test_resnet'), tmp_path, safe_serialization=False)
    torch.save({'fc.weight': Trap()}, tmp_path / 'pytorch_model.bin')
    with pytest.raises(convert.ConversionError, match='holds no state dict of tensors'):
        tresnet_jax.create_model(f'local-dir:{tmp_path}', pretrained=True)
    assert not marker.exists()


def test_timm_and_we_share_one_cache(tmp_path):
    """A file that timm has downloaded is not downloaded again."""
    model = timm.create_model('test_resnet', num_classes=4)
    save_for_hf(model, tmp_path / 'saved', safe_serialization=True)
    code = """
import numpy as np, timm, tresnet_jax
theirs = timm.create_model('hf-hub:org/name', pretrained=True)
ours = tresnet_jax.create_model('hf-hub:org/name', pretrained=True)
assert np.array_equal(ours.fc.bias[...], theirs.fc.bias.detach().numpy())
"""
    with Hub() as hub:
        hub.repositories['org/name'] = {path.name: path.read_bytes() for path in (tmp_path / 'saved').iterdir()}
        env = client_environment(tmp_path / 'home', hub.endpoint)
        subprocess.run([sys.executable, '-c', code], env=env, check=True)
        assert sum(request.startswith('STORAGE') for request in hub.requests) == 1


@pytest.mark.parametrize('form', ['folder', 'TimmWrapper', 'module'])
def test_options_survive_conversion(form, tmp_path):
    """Pooling and output stride come from timm's config.json, from transformers' or from a pickled module."""
    theirs = reference('test_resnet', num_classes=4, global_pool='max', output_stride=16).float().eval()
    source = tmp_path / 'source'
    save_for_hf(theirs, source, safe_serialization=True)
    config = json.loads((source / 'config.json').read_text())
    if form == 'TimmWrapper':
        arguments = {'global_pool': 'max', 'output_stride': 16}
        config = {
            'architecture': 'test_resnet',
            'model_type': 'timm_wrapper',
            'num_classes': 4,
            'model_args': arguments,
        }
    elif form == 'module':
        source = tmp_path / 'module.pth'
        torch.save(theirs, source)
    if source.is_dir():
        (source / 'config.json').write_text(json.dumps(config))
    target = tmp_path / 'flax.safetensors'
    assert main([str(source), str(target)]) == 0
    for checkpoint in (source, target):
        assert_equal_outputs(tresnet_jax.create_model('test_resnet', checkpoint=checkpoint), theirs, 3)
