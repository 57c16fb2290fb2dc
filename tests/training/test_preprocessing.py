"""Options of images that are not given: those of the weights, as timm's `resolve_data_config` has them."""

import dataclasses
import json

import numpy as np
import pytest
import timm.data

import tresnet_jax
from convert.__main__ import main as converter
from tests.helpers.runs import CONFIG, make_run
from tresnet_jax.cli import train as command
from tresnet_jax.data.transforms import resolve_data_config
from tresnet_jax.training import loop
from tresnet_jax.training.batches import eval_data_config
from tresnet_jax.training.config import TrainConfig
from tresnet_jax.training.preprocessing import IMAGE_OPTIONS, with_images_of
from tresnet_jax.training.recipes import RECIPES, recipe
from tresnet_jax.training.run_config import CONFIG_FILE, load_config, save_config, with_resolved
from tresnet_jax.variants import PRETRAINED, pretrained_config

OTHER = {'image_size': (24, 40), 'interpolation': 'hamming', 'crop_pct': 0.7, 'crop_mode': 'border'}
STATED = {'input_size': (3, 24, 40), 'interpolation': 'hamming', 'crop_pct': 0.7, 'crop_mode': 'border'}


def printed(capsys, *flags: str) -> dict:
    assert command.main([*flags, '--print-config']) == 0
    return json.loads(capsys.readouterr().out)


def images_of(document: dict) -> dict:
    return {name: document[name] for name in OTHER}


@pytest.mark.parametrize('name', [name for name in PRETRAINED if not PRETRAINED[name].embedded])
@pytest.mark.parametrize(
    'given', [{}, {'crop_pct': 0.8, 'mean': (0.5,) * 3}, {'interpolation': 'box', 'image_size': 64}]
)
def test_timm(name, given):
    """What is given has priority over the tag's value."""
    arguments = {key: list(value) if isinstance(value, tuple) else value for key, value in given.items()}
    arguments['img_size'] = arguments.pop('image_size', None)
    expected = timm.data.resolve_data_config(arguments, pretrained_cfg=timm.models.get_pretrained_cfg(name).to_dict())
    config = with_images_of(TrainConfig(model=name, **given), resolve_data_config(name))
    assert {key: eval_data_config(config)[key] for key in expected} == expected


@pytest.mark.parametrize('name', RECIPES)
def test_recipes(name):
    """A recipe for certain weights states its images; `finetune` takes those of the weights."""
    config = recipe(name)
    stated = ('image_size', 'interpolation', 'crop_pct')
    open_ = [option for option in stated if getattr(config, option) is None]
    assert open_ == ([*stated] if name == 'finetune' else [])


class TestWeights:
    """Of a file, a run, a folder; and of no weights."""

    @pytest.fixture
    def model(self):
        return tresnet_jax.create_model('test_resnet.fashion_mnist', pretrained=True, pretrained_cfg_overlay=STATED)

    def resolved(self, **options) -> TrainConfig:
        config = TrainConfig(**options)
        return loop._resolved(config, loop._create_model(config, 10, None))

    def test_file(self, model, tmp_path, capsys):
        file = tmp_path / 'flax.safetensors'
        run = tmp_path / 'run'
        make_run(run, dataclasses.replace(CONFIG, **OTHER))
        tresnet_jax.save_pretrained(model, tmp_path / 'folder')
        assert converter([str(run), str(file), '--to', 'flax']) == 0
        capsys.readouterr()
        folder = f'local-dir:{tmp_path / "folder"}'
        for options in (
            {'model': 'test_resnet', 'checkpoint': file}, {'model': 'test_resnet', 'checkpoint': run},
            {'model': folder, 'pretrained': True}, {'model': folder},
        ):  # fmt: skip
            config = self.resolved(**options)
            assert {name: getattr(config, name) for name in OTHER} == OTHER
            flags = [f'--{name}={value}' for name, value in options.items() if name != 'pretrained']
            document = printed(capsys, *flags, *(['--pretrained'] if 'pretrained' in options else []))
            assert images_of(document) == OTHER | {'image_size': [24, 40]}
            assert document['of_the_model'] == [*IMAGE_OPTIONS]
            assert np.array_equal(document['mean'], config.mean)
            given = self.resolved(**options, crop_pct=0.9, image_size=32)
            assert (given.crop_pct, given.image_size, given.interpolation) == (0.9, 32, 'hamming')

    def test_no_weights(self, capsys):
        """As in timm, those of the tag, or of the default tag."""
        expected = {'image_size': 160, 'interpolation': 'bilinear', 'crop_pct': 0.95, 'crop_mode': 'center'}
        config = self.resolved(model='test_resnet')
        assert {name: getattr(config, name) for name in OTHER} == expected
        assert images_of(printed(capsys, '--model', 'test_resnet')) == expected
        document = printed(capsys, '--model', 'resnet101d', '--in-chans', '1', '--crop-pct', '0.5')
        assert (document['image_size'], document['crop_pct'], len(document['mean'])) == (256, 0.5, 1)
        assert 'crop_pct' not in document['of_the_model']

    def test_combination(self):
        """A given value that does not suit the size of the weights is refused before the run trains."""
        with pytest.raises(ValueError, match='evaluation images: crop_pct must be positive and leave at least one'):
            self.resolved(model='test_resnet.fashion_mnist', crop_pct=40.0)


class TestResume:
    """A run keeps the images that it began with."""

    def test_run_of_before(self, tmp_path):
        """Development versions had fixed values; a file without them means these."""
        before = {'image_size': 224, 'interpolation': 'bicubic', 'crop_pct': 0.875, 'crop_mode': 'center'}
        path = tmp_path / CONFIG_FILE
        for document in ({'model': 'resnet101d'}, {'model': 'resnet101d', **before}):
            path.write_text(json.dumps(document))
            config = load_config(tmp_path)
            assert {name: getattr(config, name) for name in before} == before
            asked = with_resolved(TrainConfig(model='resnet101d'), config)
            assert {name: getattr(asked, name) for name in before} == before

    def test_command_line(self, tmp_path):
        """The first command again, without these options, resumes with the saved values; others are refused."""
        saved = with_images_of(TrainConfig(model='resnet101d'), resolve_data_config(pretrained_config('resnet18d')))
        save_config(saved, tmp_path)
        (tmp_path / 'checkpoints' / '3').mkdir(parents=True)
        flags = ['--workdir', str(tmp_path), '--model', 'resnet101d']
        assert command.resolve_arguments(flags).config == saved
        assert command.resolve_arguments([*flags, '--image-size', '224']).config == saved
        with pytest.raises(ValueError, match='holds a run with --image-size 224; to resume it'):
            command.resolve_arguments([*flags, '--image-size', '256'])
