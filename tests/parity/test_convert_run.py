"""timm loads a converted training run and gives the same logits, and the same accuracy on a folder of images."""

import dataclasses
import json

import numpy as np
import pytest
import safetensors.torch
import timm.data
import torch
from PIL import Image

import tresnet_jax
from convert.__main__ import main
from convert.golden import timm_model
from tests.helpers.closeness import assert_close
from tests.helpers.paths import EMBEDDED
from tests.helpers.reference import call, images, nhwc
from tests.helpers.runs import CONFIG, make_run
from tresnet_jax.cli import evaluate


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


# In natural order, as timm sorts classes. Plain order would begin with 'KIND 3', 'Kind 0', 'Kind 10'.
NAMES = ('Kind 0', 'kind 1', 'Kind 2', 'KIND 3', 'kind 4', 'Kind 5', 'kind 6', 'Kind 7', 'kind 8', 'Kind 10')


# timm's data set leaves its files open.
@pytest.mark.filterwarnings('ignore::ResourceWarning')
def test_timm_finds_the_same_accuracy_on_a_folder(tmp_path, capsys):
    """As timm's validate.py measures it: timm's data set, loader and model, with the settings that the run stores."""
    with np.load(EMBEDDED / 'fashion_mnist_subset.npz', allow_pickle=False) as data:
        for index, (image, label) in enumerate(zip(data['x_test'][:120], data['y_test'][:120], strict=True)):
            folder = tmp_path / 'data' / 'val' / NAMES[label]
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).resize((40, 36)).save(folder / f'{index}.png')
    prepared = {'mean': (0.5,) * 3, 'std': (0.5,) * 3, 'interpolation': 'bicubic', 'crop_pct': 0.9}
    run = tmp_path / 'run'
    make_run(
        run, dataclasses.replace(CONFIG, data=f'folder:{tmp_path / "data"}', val_split='val', **prepared), {3: 0.5}
    )
    assert evaluate.main(['--checkpoint', str(run), '--json', '--batch-size', '40']) == 0
    ours = json.loads(capsys.readouterr().out)

    file = tmp_path / 'timm.safetensors'
    assert main([str(run), str(file), '--to', 'torch']) == 0
    model = timm.create_model('test_resnet', num_classes=10, checkpoint_path=str(file)).eval()
    dataset = timm.data.create_dataset('', root=str(tmp_path / 'data'), split='val')
    loader = timm.data.create_loader(
        dataset, (3, 32, 32), 40, use_prefetcher=False, num_workers=0, device=torch.device('cpu'), **prepared
    )
    with torch.no_grad():
        right = sum(int((model(x).argmax(1) == labels).sum()) for x, labels in loader)
    assert 40 < right < 120
    assert (ours['count'], ours['top1']['value']) == (120, 100 * right / 120)
