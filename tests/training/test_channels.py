"""Runs on images of other channels and sizes: trained, resumed, evaluated, predicted, embedded and converted."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from PIL import Image

import tresnet_jax
from convert.__main__ import main as converter
from tests.helpers.closeness import assert_identical
from tests.helpers.images import encode
from tests.helpers.runs import TINY
from tresnet_jax.checkpoints.run import load_weights
from tresnet_jax.cli import embed, evaluate, explain, predict, thumbnails
from tresnet_jax.cli.inputs import InputFlags, load_inputs
from tresnet_jax.errors import DataError, TrainingError
from tresnet_jax.training import batches, loop
from tresnet_jax.training.config import TrainConfig
from tresnet_jax.training.hosts import Hosts
from tresnet_jax.training.run_config import load_config
from tresnet_jax.training.run_data import open_data

SIZE = (24, 40)

pytestmark = pytest.mark.usefixtures('programs')


@pytest.fixture(scope='module')
def config(tmp_path_factory) -> TrainConfig:
    """Runs of three steps on a folder of grey and coloured images, from RGB weights."""
    folder = tmp_path_factory.mktemp('data')
    for number in range(48):
        grey = np.random.default_rng(number).integers(0, 255, (26, 44), np.uint8) // 2 + 120 * (number % 2)
        path = folder / ('train' if number < 32 else 'val') / 'ab'[number % 2] / f'{number:02}.png'
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode(Image.fromarray(grey.astype(np.uint8)).convert('RGB' if number % 3 else 'L')))
    return dataclasses.replace(
        TINY, model='test_resnet.fashion_mnist', pretrained=True, data=f'folder:{folder}', train_split='train',
        val_split=None, in_chans=1, image_size=SIZE, interpolation=None, crop_pct=None, crop_mode=None,
        aa='rand-m9-mstd0.5-inc1', steps=3, eval_every=1.5,
        checkpoint_every=2, log_every=1, model_ema=False, drop_path=0.0, mixup=0.0, reprob=0.0, devices=1,
    )  # fmt: skip


@pytest.fixture(scope='module')
def run(config, tmp_path_factory):
    """A finished run."""
    folder = tmp_path_factory.mktemp('run')
    assert loop.train(config, folder).finished
    return folder


def test_what_the_run_stores(run):
    config, description = load_config(run), json.loads((run / 'model.json').read_text())
    assert (config.in_chans, config.mean, config.std, config.height_width) == (1, (0.5,), (0.5,), SIZE)
    assert (config.interpolation, config.crop_pct, config.crop_mode) == ('bilinear', 1.0, 'center')  # of the tag
    assert description['in_chans'] == 1
    assert description['data_config']['input_size'] == [1, *SIZE] and description['data_config']['mean'] == [0.5]
    model = tresnet_jax.create_model('test_resnet', checkpoint=run)
    assert model.in_chans == 1 and tresnet_jax.resolve_data_config(model)['input_size'] == (1, *SIZE)


def test_resumed_to_the_bit(run, config, tmp_path):
    loop.train(dataclasses.replace(config, stop_epoch=1), tmp_path)
    # The number of channels is that of the run, even if the option is open.
    assert loop.train(dataclasses.replace(load_config(tmp_path), in_chans=None, stop_epoch=None), tmp_path).finished
    assert_identical(*(load_weights(folder, 'latest').params for folder in (tmp_path, run)))


@pytest.mark.slow  # it evaluates, predicts and embeds
def test_used(run, config, tmp_path, capsys):
    """evaluate.py, predict.py and embed.py prepare images as the transform of the model does."""
    model = tresnet_jax.create_model('test_resnet', checkpoint=run)
    transform = tresnet_jax.create_transform(**tresnet_jax.resolve_data_config(model))
    folder = config.data.removeprefix('folder:')
    paths = [f'{folder}/val/{"ab"[label]}/{number:02}.png' for label in (0, 1) for number in range(32 + label, 48, 2)]
    x = np.stack([transform(Image.open(path)) for path in paths])
    probabilities = jax.nn.softmax(model(x))
    right = float((probabilities.argmax(1) == np.repeat((0, 1), 8)).mean())

    assert evaluate.main(['--checkpoint', str(run), '--batch-size', '16', '--json']) == 0
    document = json.loads(capsys.readouterr().out)
    assert document['top1']['value'] == pytest.approx(100 * right) and document['data_config']['input_size'] == [
        1,
        *SIZE,
    ]
    other = load_inputs(InputFlags(checkpoint=run, image_size=(32, 24)), Hosts())
    assert other.data_config['input_size'] == (1, 32, 24)

    assert predict.main([*paths, '--model', 'test_resnet', '--checkpoint', str(run), '--json']) == 0
    pictures = json.loads(capsys.readouterr().out)['pictures']
    found = [[c['probability'] for c in sorted(p['classes'], key=lambda c: c['index'])] for p in pictures]
    np.testing.assert_allclose(found, probabilities, rtol=1e-4)

    flags = ['--split', 'val', '--batch-size', '16', '--out', str(tmp_path), '--sheet', str(tmp_path / 'sheet.png')]
    assert embed.main(['--checkpoint', str(run), *flags]) == 0 and (tmp_path / 'sheet.png').exists()
    (file,) = tmp_path.glob('*.safetensors')
    backbone = tresnet_jax.create_model('test_resnet', checkpoint=run, num_classes=0)
    np.testing.assert_allclose(safetensors.numpy.load_file(file)['features'], backbone(x), rtol=1e-4, atol=1e-5)


def test_explained(run, config, tmp_path, monkeypatch):
    """Maps of a grey image, drawn over it."""
    monkeypatch.setattr(explain, 'grad_cam', lambda model, x, chosen=None, layer='': jnp.zeros((len(x), 1, 3, 5)))
    path = f'{config.data.removeprefix("folder:")}/val/a/32.png'
    flags = ['--model', 'test_resnet', '--checkpoint', str(run), '--topk', '1', '--out', str(tmp_path / 'maps')]
    assert explain.main([path, *flags]) == 0
    assert [file.name for file in (tmp_path / 'maps').iterdir()] == ['32.png']


def test_converted(run, tmp_path, capsys):
    """A Flax file, config.json, and an exported program keep channels, size and mean."""
    file = tmp_path / 'flax.safetensors'
    assert converter([str(run), str(file), '--to', 'flax']) == 0
    assert 'images: 24 x 40, bilinear, crop 1, mean 0.5, std 0.5' in capsys.readouterr().out
    expected = tresnet_jax.resolve_data_config(tresnet_jax.create_model('test_resnet', checkpoint=run))
    model = tresnet_jax.create_model('test_resnet', checkpoint=file)
    tresnet_jax.save_pretrained(model, tmp_path / 'hub')
    saved = tresnet_jax.create_model(f'local-dir:{tmp_path}/hub', pretrained=True)
    for loaded in (model, saved):
        assert loaded.in_chans == 1 and tresnet_jax.resolve_data_config(loaded) == expected


def test_channels_of_the_weights(config, run):
    """They are those of the model unless others are asked for; an average replaces their mean."""
    options = {'pretrained': False, 'checkpoint': run, 'in_chans': None}
    for channels, mean in ((None, (0.5,)), (3, (0.5,) * 3)):
        changed = dataclasses.replace(config, **(options | {'in_chans': channels}))
        model = loop._create_model(changed, 2, None)
        resolved = loop._resolved(changed, model)
        assert (resolved.in_chans, resolved.mean) == (model.in_chans, mean) and model.in_chans == (channels or 1)
    two = dataclasses.replace(config, **options, mean=(0.1, 0.2))
    batches.check_transforms(two)  # the weights are not known yet
    with pytest.raises(TrainingError, match='--mean 0.1 0.2: expected one number for images of 1 channel'):
        loop._resolved(two, loop._create_model(two, 2, None))


class TestAnyNumber:
    """Arrays of four channels."""

    @pytest.fixture
    def four(self, tmp_path) -> TrainConfig:
        rng = np.random.default_rng(0)
        x, y = rng.integers(0, 256, (32, 30, 30, 4), np.uint8), np.arange(32) % 2
        np.savez(tmp_path / 'a.npz', x_train=x, y_train=y, x_test=x[:16], y_test=y[:16])
        return dataclasses.replace(
            TINY, data=f'npz:{tmp_path}/a.npz', train_split='train', val_split=None, in_chans=4, color_jitter=0.0,
            image_size=SIZE, mean=(0.1, 0.2, 0.3, 0.4), std=(0.5,) * 4, devices=1, draft=False,
        )  # fmt: skip

    def test_batches(self, four, tmp_path):
        batches.check_transforms(four)
        data = open_data(four, None)
        for make, source in ((batches.train_batches, data.train), (batches.eval_batches, data.val)):
            iterator = iter(make(four, source, jax.devices()[:1], tmp_path))
            image = next(iterator)['image']
            iterator.close()
            assert image.shape == (1, 16, *SIZE, 4) and image.dtype == np.uint8
        expected = batches.eval_transform(four).crop_image(data.val[3]['image'])
        assert np.array_equal(image[0, 3], expected)

    @pytest.mark.parametrize(
        'change, message',
        [
            ({'color_jitter': 0.4}, 'color_jitter must be 0 for images of 4 channels'),
            ({'aa': 'original'}, "auto_augment must be none for images of 4 channels, got 'original'"),
            ({'mean': (0.1, 0.2, 0.3)}, '--mean 0.1 0.2 0.3: expected one or 4 numbers for images of 4 channels'),
            ({'std': ()}, 'no --std: expected one or 4 numbers'),
            ({'in_chans': 1, 'std': (1.0, 2.0), 'mean': None}, '--std 1.0 2.0: expected one number for images of 1'),
        ],
    )
    def test_refused(self, four, change, message):
        with pytest.raises(TrainingError, match=message):
            batches.check_transforms(dataclasses.replace(four, **change))

    def test_thumbnails(self, four):
        """They show the first three channels."""
        source = open_data(four, None).train
        image = thumbnails.thumbnail_of(source, 2, None)
        assert image.mode == 'RGB' and np.array_equal(np.asarray(image), source[2]['image'][..., :3])

    def test_data_of_other_channels(self, four, tmp_path):
        four = dataclasses.replace(four, in_chans=5, mean=None, std=None)
        with pytest.raises(DataError, match='images have 4 channels, but the model takes 5; train with --in-chans 4'):
            loop.train(four, tmp_path / 'run')
        assert not (tmp_path / 'run' / 'config.json').exists()
