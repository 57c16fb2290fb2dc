"""timm loads a converted training run and gives the same logits."""

import safetensors.torch
import torch

import tresnet_jax
from convert.__main__ import main
from convert.golden import timm_model
from tests.helpers.closeness import assert_close
from tests.helpers.reference import call, images, nhwc
from tests.helpers.runs import make_run


def test_timm_loads_a_converted_run(tmp_path):
    run = tmp_path / 'run'
    make_run(run, steps={12: 0.5})
    x = images(4, 3, 32, 32).float()
    ours = call(tresnet_jax.create_model('test_resnet', checkpoint=run), nhwc(x))
    for target in (tmp_path / 'timm.safetensors', tmp_path / 'timm.pth'):
        assert main([str(run), str(target), '--to', 'torch']) == 0
        state = torch.load(target) if target.suffix == '.pth' else safetensors.torch.load_file(target)
        assert {int(value) for key, value in state.items() if key.endswith('num_batches_tracked')} == {12}
        model = timm_model('test_resnet', num_classes=10)
        model.load_state_dict(state, strict=True)
        with torch.no_grad():
            assert_close(ours, model(x).numpy(), 1e-5)
    assert main([str(run), str(tmp_path / 'verified.safetensors'), '--verify']) == 0
