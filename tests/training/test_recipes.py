"""Recipes against tables of what is published, typed here from the sources; steps of each on a tiny network."""

import dataclasses
import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

from tests.helpers.closeness import assert_identical
from tresnet_jax.checkpoints.run import CHECKPOINTS, load_weights
from tresnet_jax.cli import train as command
from tresnet_jax.errors import TrainingError
from tresnet_jax.training import loop
from tresnet_jax.training.batches import check_transforms
from tresnet_jax.training.config import TrainConfig
from tresnet_jax.training.metrics import read_records
from tresnet_jax.training.recipes import OTHER_NAMES, RECIPES, find_recipe, recipe
from tresnet_jax.training.schedules import create_schedule
from tresnet_jax.training.update_rules import settings_of
from tresnet_jax.variants import PRETRAINED

UNIT = {'mean': (0, 0, 0), 'std': (1, 1, 1)}
HALF = {'mean': (0.5, 0.5, 0.5), 'std': (0.5, 0.5, 0.5)}
IMAGENET = {'mean': (0.485, 0.456, 0.406), 'std': (0.229, 0.224, 0.225)}

CARD = {  # the card of each TResNet says the same
    'epochs': 300, 'opt': 'momentum', 'lr': 0.01, 'momentum': 0.9, 'weight_decay': 1e-4, 'aa': 'original',
    'sched': 'one_cycle', 'interpolation': 'bilinear', 'crop_pct': 0.875, **UNIT,
}  # fmt: skip
CARD_OPEN = {'batch_size', 'cutout', 'smoothing', 'model_ema', 'pct_start'}
IN21K = {
    'opt': 'adam', 'opt_betas': (0.9, 0.999), 'opt_eps': 1e-8, 'lr': 3e-4, 'sched': 'one_cycle', 'pct_start': 0.1,
    'div_factor': 20, 'final_div_factor': 1e4, 'epochs': 80, 'weight_decay': 1e-4, 'smoothing': 0.2, 'cutout': 0.5,
    'hflip': 0, 'image_size': 224, 'loss': 'semantic', **UNIT,
}  # fmt: skip
RA2 = {'opt': 'rmsproptf', 'sched': 'step', 'sched_on_updates': False, 'model_ema': True, 'crop_pct': 0.875, **IMAGENET}
RA2_OPEN = {'lr', 'batch_size', 'epochs', 'weight_decay', 'smoothing', 'aa', 'reprob', 'warmup_epochs', 'decay_rate'}
RA4 = {'opt': 'adamw', 'epochs': 3600, 'image_size': 224, **HALF}
RA4_OPEN = {'lr', 'batch_size', 'opt_betas', 'opt_eps', 'weight_decay', 'aa', 'drop', 'model_ema_decay', 'smoothing'}
RSB = {
    'opt': 'lamb', 'opt_betas': (0.9, 0.999), 'opt_eps': 1e-6, 'batch_size': 2048, 'sched': 'cosine',
    'warmup_epochs': 5, 'warmup_lr': 1e-4, 'min_lr': 1e-6, 'loss': 'bce', 'bce_target_thresh': 0.2, 'cutmix': 1,
    'mixup_prob': 1, 'mixup_switch_prob': 0.5, 'mixup_mode': 'batch', 'reprob': 0, 'color_jitter': 0, 'drop': 0,
    'model_ema': False, 'hflip': 0.5, 'train_interpolation': 'bicubic', 'interpolation': 'bicubic', 'crop_pct': 0.95,
    **IMAGENET,
}  # fmt: skip
RSB_OPEN = {'prefetcher', 'sched_on_updates', 'dtype'}
GLUON = {
    'opt': 'sgd', 'momentum': 0.9, 'sched': 'cosine', 'min_lr': 0, 'warmup_epochs': 5, 'warmup_lr': 0, 'epochs': 200,
    'weight_decay': 1e-4, 'smoothing': 0.1, 'mixup': 0.2, 'color_jitter': 0.4, 'scale': (0.08, 1), 'crop_pct': 0.875,
    'image_size': 224, 'sched_on_updates': True,
}  # fmt: skip

COCO = {
    'task': 'multilabel', 'loss': 'asl', 'asl_gamma_neg': 4, 'asl_gamma_pos': 0, 'asl_clip': 0.05, 'opt': 'adam',
    'asl_focal_gradient': False, 'asl_reduction': 'sum', 'lr': 1e-4, 'weight_decay': 1e-4, 'sched': 'one_cycle',
    'pct_start': 0.2, 'div_factor': 25, 'final_div_factor': 1e4, 'cutout': 0.5, 'model_ema': True,
    'model_ema_decay': 0.9997, 'hflip': 0, 'image_size': 448, **UNIT,
}  # fmt: skip

# Tag -> what is published, what is not.
FACTS = {
    **{f'tresnet_{size}.miil_in1k': (CARD | {'image_size': 224}, CARD_OPEN) for size in ('m', 'l', 'xl')},
    **{f'tresnet_{size}.miil_in1k_448': (CARD | {'image_size': 448}, CARD_OPEN) for size in ('m', 'l', 'xl')},
    **{f'tresnet_{name}.miil_in21k': (IN21K, {'batch_size', 'aa'}) for name in ('m', 'v2_l')},
    **{
        f'tresnet_{name}.miil_in21k_ft_in1k': (
            {'image_size': 224, 'interpolation': 'bilinear', 'crop_pct': 0.875, **UNIT},
            {'opt', 'lr', 'batch_size', 'epochs', 'weight_decay', 'smoothing', 'aa'},
        )
        for name in ('m', 'v2_l')
    },
    **{f'resnet{depth}d.ra2_in1k': (RA2 | {'image_size': 224}, RA2_OPEN) for depth in (18, 34, 50)},
    **{
        f'resnet{depth}d.ra2_in1k': (RA2 | {'image_size': 256, 'crop_pct': 0.95}, RA2_OPEN)
        for depth in (101, 152, 200)
    },
    'resnet18d.ra4_e3600_r224_in1k': (RA4, RA4_OPEN),
    'resnet50d.ra4_e3600_r224_in1k': (RA4, RA4_OPEN),
    'resnet26d.bt_in1k': (
        {'opt': 'sgd', 'sched': 'cosine', 'image_size': 224},
        {'lr', 'batch_size', 'epochs', 'weight_decay', 'reprob', 'warmup_epochs'},
    ),
    'resnet50d.a1_in1k': (
        RSB | {'epochs': 600, 'lr': 5e-3, 'weight_decay': 0.01, 'smoothing': 0.1, 'drop_path': 0.05, 'aug_repeats': 3,
               'mixup': 0.2, 'aa': 'rand-m7-mstd0.5-inc1', 'image_size': 224}, RSB_OPEN),
    'resnet50d.a2_in1k': (
        RSB | {'epochs': 300, 'lr': 5e-3, 'weight_decay': 0.02, 'smoothing': 0, 'drop_path': 0.05, 'aug_repeats': 3,
               'mixup': 0.1, 'aa': 'rand-m7-mstd0.5-inc1', 'image_size': 224}, RSB_OPEN),
    'resnet50d.a3_in1k': (
        RSB | {'epochs': 100, 'lr': 8e-3, 'weight_decay': 0.02, 'smoothing': 0, 'drop_path': 0, 'aug_repeats': 0,
               'mixup': 0.1, 'aa': 'rand-m6-mstd0.5-inc1', 'image_size': 160}, RSB_OPEN),
    'resnet50d.gluon_in1k': (GLUON | {'lr': 0.4, 'batch_size': 1024}, {'train_interpolation', 'dtype'}),
    'resnet101d.gluon_in1k': ({'epochs': 200, 'weight_decay': 1e-4, 'image_size': 224}, {'lr', 'batch_size', 'mixup'}),
    'resnet152d.gluon_in1k': (
        GLUON | {'lr': 0.1, 'batch_size': 256, 'dtype': 'float32'}, {'train_interpolation'}),
    'test_resnet.r160_in1k': (
        {'image_size': 160, 'interpolation': 'bilinear', **HALF}, {'opt', 'lr', 'batch_size', 'epochs'}),
    'tresnet_m_imagenet_timm': (
        {'opt': 'sgd', 'lr': 0.6, 'batch_size': 8 * 190, 'sched': 'cosine', 'epochs': 300, 'mixup': 0.2,
         'aa': 'rand-m9-mstd0.5-inc1', 'reprob': 0.4, 'remode': 'pixel', 'model_ema': True},
        {'weight_decay', 'smoothing', 'warmup_epochs'}),
    'tresnet_m_usi': (
        {'opt': 'adamw', 'lr': 2e-3, 'batch_size': 8 * 128, 'weight_decay': 0.02, 'sched': 'cosine', 'epochs': 300,
         'cooldown_epochs': 10, 'warmup_epochs': 5, 'warmup_lr': 1e-4, 'min_lr': 1e-6, 'aa': 'rand-m7-mstd0.5-inc1',
         'mixup': 0.8, 'cutmix': 1.0, 'smoothing': 0, 'model_ema': True, 'model_ema_decay': 0.99996,
         'train_interpolation': 'bicubic', 'interpolation': 'bicubic', 'distill_loss_weight': 5, 'kd_temperature': 1},
        {'kd_model_name', 'dtype'}),
    'coco_asl': (COCO | {'epochs': 80, 'stop_epoch': 40}, {'batch_size', 'aa', 'model'}),
    'coco_ml_decoder': (
        COCO | {'epochs': 40, 'stop_epoch': None, 'batch_size': 56, 'head': 'ml_decoder', 'model': 'tresnet_v2_l'},
        {'aa', 'dtype'}),
}  # fmt: skip

# The values chosen where the nearest published command is another network's.
CHOSEN = {
    'resnet50d.ra2_in1k': {'opt_eps': 1e-3, 'momentum': 0.9, 'lr': 0.016, 'batch_size': 2 * 128, 'decay_rate': 0.97,
                           'decay_epochs': 2.4, 'warmup_lr': 1e-6, 'epochs': 450, 'weight_decay': 1e-5,
                           'smoothing': 0.1, 'aa': 'rand-m9-mstd0.5', 'reprob': 0.2, 'model_ema_decay': 0.9999},
    'resnet50d.ra4_e3600_r224_in1k': {'opt_betas': (0.6, 0.999), 'lr': 2e-3, 'batch_size': 4096, 'opt_eps': 1e-6,
                                      'weight_decay': 0.01, 'drop': 0.3, 'model_ema_decay': 0.9999, 'warmup_epochs': 5},
    'resnet26d.bt_in1k': {'lr': 0.1, 'batch_size': 2 * 112, 'epochs': 160, 'weight_decay': 1e-4, 'reprob': 0.4},
    'tresnet_m.miil_in21k': {'aa': 'rand-m9-n2-p0.5-mstd101', 'model': 'tresnet_m.miil_in1k', 'pretrained': True},
    'tresnet_l.miil_in1k_448': {'model': 'tresnet_l.miil_in1k', 'pretrained': True},
    'tresnet_v2_l.miil_in21k_ft_in1k': {'model': 'tresnet_v2_l.miil_in21k', 'pretrained': True},
    'resnet152d.gluon_in1k': {'model': 'resnet152d', 'pretrained': False},
}  # fmt: skip
OWN = {'finetune', 'finetune_448', 'imagenette', 'fashion_mnist', 'fashion_mosaics'}


def test_every_tag_has_a_recipe():
    tags = {name for name, row in PRETRAINED.items() if not row.embedded}
    assert len(tags) == 26
    assert (
        tags | OWN | {'tresnet_m_imagenet_timm', 'tresnet_m_usi', 'coco_asl', 'coco_ml_decoder'} == RECIPES.keys()
        and FACTS.keys() == RECIPES.keys() - OWN
    )
    assert {*OTHER_NAMES.values()} <= RECIPES.keys()
    for card in ('tresnet_m', 'tresnet_l_448', 'resnet18d', 'resnet200d', 'tresnet_xl'):
        assert find_recipe(card).name in tags
    for name, near in (('resnet50d.a4', 'resnet50d.a'), ('resnet50d.', 'resnet50d.ra2'), ('', 'finetune')):
        with pytest.raises(TrainingError, match=rf'unknown recipe .*did you mean .*{near}'):
            recipe(name)


@pytest.mark.parametrize('name', FACTS)
def test_published_values(name):
    """Values and their marks: published values have a source, the others a reason."""
    known, unknown = FACTS[name]
    config, row = recipe(name), find_recipe(name)
    for field, value in (known | CHOSEN.get(name, {})).items():
        assert getattr(config, field) == value, field
    described = row.describe(config)
    published = {field for fields in described['published'].values() for field in fields}
    chosen = {field for fields in described['our_choice'].values() for field in fields}
    assert {field for field in known if known[field] is not None} <= published and unknown | CHOSEN.get(
        name, {}
    ).keys() <= chosen
    assert not published & chosen and described['changed_by_flags'] == []
    assert 'published, not reproduced here' in row.result
    for accuracy in PRETRAINED[name].accuracies if name in PRETRAINED else ():
        assert f'{accuracy.top1:.2f} % top-1 at {accuracy.size} pixels' in row.result


@pytest.mark.parametrize('name', RECIPES)
def test_values_are_valid(name):
    """Each field is set once; the options suit one another; the rate begins and ends as it should."""
    row, config = find_recipe(name), recipe(name)
    groups = [*row.published.values(), *row.chosen.values()]
    assert sum(map(len, groups)) == len({field for group in groups for field in group})
    config.check()
    check_transforms(config)
    settings_of(config)
    steps = round(config.epochs * 50)
    rates = np.asarray(create_schedule(config, steps, 50.0)(np.arange(steps)))
    assert 0.9 * config.peak_lr <= rates.max() <= 1.001 * config.peak_lr  # 'step' falls twice in the warm-up
    assert rates[-1] < 0.3 * rates.max()


def test_print_config(tmp_path, capsys):
    """The configuration, and where each value is from; flags are told apart."""
    new = ('--workdir', str(tmp_path), '--recipe', 'gluon_resnet50_v1d', '--lr', '0.2', '--print-config')
    assert command.main(new) == 0
    shown = json.loads(capsys.readouterr().out)
    assert (shown['lr'], shown['batch_size']) == (0.2, 1024)
    origin = shown['recipe']
    assert origin['name'] == 'resnet50d.gluon_in1k' and origin['changed_by_flags'] == ['lr']
    (source,) = (why for why, fields in origin['published'].items() if 'batch_size' in fields)
    assert 'resnet50_v1d-mixup.sh' in source and 'lr' not in origin['published'][source]
    assert any('principal components' in what for what in origin['left_out'])


@pytest.mark.parametrize(
    'name, flags, dropped',
    [
        ('fashion_mosaics', '--loss bce', 'asl_gamma_pos'),
        ('coco_asl', '--loss poly', 'asl_gamma_pos asl_reduction asl_focal_gradient'),
        ('coco_asl', '--task classification --loss ce', 'asl_gamma_pos asl_reduction asl_focal_gradient target_format'),
        ('resnet50d.a1_in1k', '--loss ce', 'bce_target_thresh'),
        ('resnet50d.a1_in1k', '--opt sgd', 'opt_betas opt_eps opt_kwargs'),
        ('resnet50d.ra2_in1k', '--opt=lion', 'opt_eps opt_kwargs'),
        ('tresnet_m.miil_in21k', '--loss bce', 'semantic_tree'),
        ('resnet50d.a1_in1k', '--opt lamb --lr 1e-3', ''),
    ],
)
def test_another_loss_or_optimiser_than_the_recipes(name, flags, dropped):
    """The recipe's options of its own loss and optimiser are dropped, and nothing else."""
    config = command.resolve_arguments(['--recipe', name, *flags.split(), '--print-config']).config
    config.check()
    settings_of(config)
    defaults, begun = TrainConfig(), recipe(name)
    for field in dataclasses.fields(TrainConfig):
        if field.name in dropped.split():
            assert getattr(config, field.name) == getattr(defaults, field.name), field.name
        elif f'--{field.name}' not in flags:
            assert getattr(config, field.name) == getattr(begun, field.name), field.name


def test_an_option_of_the_recipes_loss_that_is_given_is_refused():
    config = command.resolve_arguments(
        '--recipe fashion_mosaics --loss bce --asl-gamma-pos 0 --print-config'.split()
    ).config
    with pytest.raises(TrainingError, match='--asl-gamma-pos 0.0: for --loss asl, not for bce'):
        config.check()


def tiny(config: TrainConfig, **options) -> TrainConfig:
    """Return a configuration with everything that a recipe says of training, on a tiny network and few images."""
    model = 'test_tresnet' if config.model.startswith('tresnet') else 'test_resnet'
    fixed = {
        'model': model, 'pretrained': False, 'data': 'embedded:fashion_mnist', 'image_size': 32, 'batch_size': 16,
        'train_split': 'train[:64]', 'val_split': 'test[:16]', 'val_batch_size': 16, 'epochs': 1.0, 'steps': 2,
        'eval_every': 100.0, 'eval_at_start': False, 'checkpoint_every': 100, 'devices': 1, 'threads': 2,
        'dtype': 'float32', 'log_every': 1, 'stop_epoch': None, 'cooldown_epochs': 0.0,
    }  # fmt: skip
    if config.kd_model_name is not None:
        fixed['kd_model_name'] = 'test_tresnet.fashion_mnist'
    return dataclasses.replace(config, **fixed | options)


@pytest.mark.slow
@pytest.mark.parametrize('name', RECIPES)
def test_two_steps(name, programs, tmp_path):
    config = recipe(name)
    data = {}
    if config.multilabel:
        images, labels = np.zeros((64, 16, 16, 3), np.uint8), np.eye(10, dtype=np.float32)[np.arange(64) % 10]
        np.savez(tmp_path / 'a.npz', x_train=images, y_train=labels, x_test=images, y_test=labels)
        data = {'data': f'npz:{tmp_path}/a.npz', 'target_format': 'multihot'}
    if config.loss == 'semantic':
        (tmp_path / 'tree.json').write_text(
            json.dumps({'class_tree_list': [[0], [1], *([i, 1] for i in range(2, 10))]})
        )
        data = {'semantic_tree': tmp_path / 'tree.json'}
    result = loop.train(tiny(config, **data), tmp_path / 'run')
    assert result.finished and result.step == 2
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(load_weights(tmp_path / 'run', 'latest').params))


@pytest.mark.slow
def test_resume(programs, tmp_path):
    """A1, with repeated augmentation, both kinds of mixing and stochastic depth: the same bits as without a stop."""
    config = tiny(recipe('resnet50d.a1_in1k'), steps=4, checkpoint_every=1, keep_last=4, image_size=(32, 40))
    whole = tmp_path / 'whole'
    assert loop.train(config, whole).step == 4
    run = Path(shutil.copytree(whole, tmp_path / 'run'))
    for step in ('3', '4'):  # as if it had been killed after the second step
        shutil.rmtree(run / CHECKPOINTS / step)
    assert loop.train(config, run).step == 4
    assert [record['step'] for record in read_records(run) if record['kind'] == 'train'] == [1, 2, 3, 4]
    expected, found = (load_weights(folder, 'latest') for folder in (whole, run))
    assert expected.step == found.step == 4
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(found.params))
    assert_identical((found.params, found.batch_stats), (expected.params, expected.batch_stats))
