"""timm gives a converted run the same logits and accuracy, and so do we for a checkpoint of timm's training."""

import argparse
import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import timm.data
import timm.utils
import torch
from PIL import Image

import tresnet_jax
from convert.__main__ import main
from convert.golden import timm_model
from tests.helpers.closeness import assert_close
from tests.helpers.paths import EMBEDDED
from tests.helpers.reference import call, images, nhwc
from tests.helpers.runs import CONFIG, make_run
from tresnet_jax.cli import evaluate, predict


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


PREPARED = {'mean': (0.5,) * 3, 'std': (0.5,) * 3, 'interpolation': 'bicubic', 'crop_pct': 0.9}
IMAGES, BATCH = 120, 40


@pytest.fixture(scope='module')
def data(tmp_path_factory) -> Path:
    """A folder of classes, below its split."""
    root = tmp_path_factory.mktemp('data')
    with np.load(EMBEDDED / 'fashion_mnist_subset.npz', allow_pickle=False) as arrays:
        pairs = zip(arrays['x_test'][:IMAGES], arrays['y_test'][:IMAGES], strict=True)
        for index, (image, label) in enumerate(pairs):
            folder = root / 'val' / NAMES[label]
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).resize((40, 36)).save(folder / f'{index}.png')
    return root


def validated(checkpoint: Path, data: Path, **arguments) -> tuple[float, float]:
    """Return top-1 and top-5 as timm's validate.py finds them with these arguments: timm's data set, loader, model."""
    model = timm.create_model('test_resnet', num_classes=10, checkpoint_path=str(checkpoint)).eval()
    config = timm.data.resolve_data_config(arguments, model=model)
    dataset = timm.data.create_dataset('', root=str(data), split='val')
    loader = timm.data.create_loader(
        dataset,
        config['input_size'],
        BATCH,
        use_prefetcher=False,
        num_workers=0,
        device=torch.device('cpu'),
        **{key: config[key] for key in PREPARED},
    )
    with torch.no_grad():
        ranks = [timm.utils.accuracy(model(x), labels, topk=(1, 5)) for x, labels in loader]
    top1, top5 = (float(sum(values)) / len(ranks) for values in zip(*ranks, strict=True))  # the batches are full
    assert 100 / 3 < top1 < 100
    return top1, top5


def evaluated(capsys, *arguments) -> tuple[float, float]:
    """Return top-1 and top-5 of evaluate.py."""
    assert evaluate.main([*map(str, arguments), '--json', '--batch-size', str(BATCH)]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found['count'] == IMAGES
    return found['top1']['value'], found['top5']['value']


# timm's data set leaves its files open.
@pytest.mark.filterwarnings('ignore::ResourceWarning')
def test_timm_finds_the_same_accuracy_on_a_folder(data, tmp_path, capsys):
    run, file = tmp_path / 'run', tmp_path / 'timm.safetensors'
    make_run(run, dataclasses.replace(CONFIG, data=f'folder:{data}', val_split='val', **PREPARED), {3: 0.5})
    assert main([str(run), str(file), '--to', 'torch']) == 0
    capsys.readouterr()
    ours = evaluated(capsys, '--checkpoint', run)
    assert ours == pytest.approx(validated(file, data, img_size=32, **PREPARED), rel=1e-6)


@pytest.mark.filterwarnings('ignore::ResourceWarning')
@pytest.mark.parametrize('ema', [True, False])
def test_a_checkpoint_of_timms_training_has_the_same_accuracy_here(data, tmp_path, capsys, ema):
    """Images are prepared as the checkpoint's arguments say: the tag has another size, mean and standard deviation."""
    average = safetensors.torch.load_file(EMBEDDED / 'test_resnet.fashion_mnist.safetensors')
    raw = average | {'fc.bias': average['fc.bias'] + torch.linspace(-3, 3, 10)}
    model = timm.create_model('test_resnet', num_classes=10)
    arguments = {'img_size': 36, 'input_size': None, **PREPARED, 'mean': [0.45, 0.5, 0.55], 'std': [0.5, 0.45, 0.55]}
    tree = {
        'epoch': 4, 'arch': 'test_resnet', 'version': 2, 'metric': 71.25,
        'state_dict': {f'module.{key}': value for key, value in raw.items()},
        'optimizer': torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9).state_dict(),
        'args': argparse.Namespace(model='test_resnet', num_classes=10, data_dir=data, **arguments),
    }  # fmt: skip
    if ema:
        tree['state_dict_ema'] = {f'module.{key}': value for key, value in average.items()}
    file = tmp_path / 'last.pth.tar'
    torch.save(tree, file)
    flags = '--model', 'test_resnet', '--checkpoint', file
    ours = evaluated(capsys, *flags, '--data', f'folder:{data}', '--split', 'val')
    plain = tmp_path / 'plain.pth'
    torch.save(average if ema else raw, plain)
    assert ours == pytest.approx(validated(plain, data, **arguments), rel=1e-6)

    image = next((data / 'val').rglob('*.png'))
    assert predict.main([*map(str, flags), '--json', str(image)]) == 0
    config = json.loads(capsys.readouterr().out)['data_config']
    assert (config['input_size'], config['mean'], config['crop_pct']) == ([3, 36, 36], arguments['mean'], 0.9)
