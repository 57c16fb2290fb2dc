"""The data of a run: its two splits, the order of its classes, white, and names of files that are not UTF-8."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest
from PIL import Image

from tests.helpers.images import encode, noise_image, write_classes
from tests.helpers.runs import TINY
from tests.helpers.tar_files import image_members, write_tar
from tresnet_jax.checkpoints.run import CHECKPOINTS, MODEL_FILE
from tresnet_jax.cli import evaluate, inputs, train
from tresnet_jax.cli.common import Progress, fail
from tresnet_jax.data.examples import EpochOrders, EvalExamples, TrainExamples, Unreadable
from tresnet_jax.data.sources import open_source
from tresnet_jax.errors import DataError
from tresnet_jax.training import loop, run_data
from tresnet_jax.training.config import TrainConfig

NOT_UTF8 = b'caf\xe9'.decode('utf-8', 'surrogateescape')


@pytest.fixture
def photos(tmp_path):
    """Three classes, whose natural order is not that of plain text, in the folders Training, valid and test."""
    for seed, (split, count) in enumerate((('Training', 4), ('valid', 2), ('test', 1))):
        write_classes(tmp_path / split, {'b10': count, 'b9': count, 'a': count}, seed=30 * seed)
    return tmp_path


def test_the_opening_line_names_both_splits_and_their_sizes(photos):
    config = TrainConfig(data=f'folder:{photos}', batch_size=4, steps=3)
    data = run_data.open_data(config, None)
    assert f'trains on 12 images of {config.data} Training, evaluates on 6 of {config.data} valid, 3 classes' in (
        run_data.opening(config, data, 0, 1)
    )
    named = run_data.open_data(dataclasses.replace(config, val_split='test'), None)
    assert f'evaluates on 3 of {config.data} test' in run_data.opening(config, named, 0, 1)


def test_the_length_of_an_epoch(photos):
    """From the images, from timm's multiple of 256 with repeated augmentation, or as asked."""
    config = TrainConfig(data=f'folder:{photos}', batch_size=4, epochs=2, mixup=0.2, mixup_off_epoch=1)
    data = run_data.open_data(config, None)
    assert (data.steps_per_epoch, data.steps, data.mixing_steps) == (3, 6, 3)
    data = run_data.open_data(dataclasses.replace(config, num_samples=40, mixup_off_epoch=0), None)
    assert (data.steps_per_epoch, data.steps, data.mixing_steps) == (10, 20, None) and len(data.train) == 12
    embedded = TrainConfig(data='embedded:fashion_mnist', batch_size=64, aug_repeats=3)
    assert run_data.open_data(embedded, None).steps_per_epoch == 1792 / 64


def test_a_run_keeps_the_order_of_its_classes(photos, tmp_path):
    """Those of runs that began before the natural order, in training and in evaluation."""
    config = TrainConfig(data=f'folder:{photos}', batch_size=4)
    new, old = (run_data.open_data(config, names) for names in (None, ('a', 'b10', 'b9')))
    assert new.train.class_names == new.val.class_names == ('a', 'b9', 'b10')
    assert old.train.class_names == old.val.class_names == ('a', 'b10', 'b9')
    for source in (old.train, old.val):
        for index in range(len(source)):
            assert f'/{source.class_names[source[index]["label"]]}/' in source.describe(index)

    run = tmp_path / 'run'
    (run / CHECKPOINTS / '5').mkdir(parents=True)
    (run / MODEL_FILE).write_text(json.dumps({'label_names': ['a', 'b10', 'b9']}))
    flags = inputs.InputFlags(checkpoint=run)
    source = inputs._open(flags, config, None, False)
    assert source.class_names == ('a', 'b10', 'b9') and source.name == f'{config.data} valid'
    other = inputs._open(dataclasses.replace(flags, data=f'folder:{photos}/test'), config, None, False)
    assert other.class_names == ('a', 'b9', 'b10') and len(other) == 3


def test_splits_by_the_names_of_their_folders(photos):
    (photos / 'Training').rename(photos / 'b_train')
    (photos / 'valid').rename(photos / 'b_val')
    shutil.rmtree(photos / 'test')
    config = TrainConfig(data=f'folder:{photos}', batch_size=4, train_split='b_train', val_split='b_val')
    data = run_data.open_data(config, None)
    assert (len(data.train), len(data.val)) == (12, 6)
    with pytest.raises(DataError, match='are these splits.*--train-split .b_train. --val-split .b_val.'):
        run_data.open_data(dataclasses.replace(config, train_split='train', val_split=None), None)


def test_white_of_12_bits(tmp_path, caplog):
    """`--max-value` reaches every image of a run; without it, there is one warning."""
    for name in ('a', 'b'):
        (tmp_path / name).mkdir()
        for number in range(3):
            Image.fromarray(np.full((4, 4), 4095, np.uint16)).save(tmp_path / name / f'{number}.png')
    config = TrainConfig(data=f'folder:{tmp_path}', batch_size=4)
    run_data.open_data(config, None)
    assert [message for message in caplog.messages if '--max-value' in message] == [
        f'folder:{tmp_path} train: 4 of 4 images looked at have 16 bits, but values from 4095 to 4095 only. White is '
        '65535, so they are nearly black; set white with --max-value, for example 4095 for 12 bits'
    ]
    caplog.clear()
    source = run_data.open_data(dataclasses.replace(config, max_value=4095), None).train
    assert caplog.messages == []
    for max_value, level in ((None, 16), (4095.0, 255)):
        training = TrainExamples(source, EpochOrders(4, 0), lambda image, rng: np.asarray(image), 1, max_value)
        evaluation = EvalExamples(source, np.asarray, 4, 4, max_value)
        assert (training(0).image == level).all() and (evaluation(0).image == level).all()


def test_names_that_are_not_utf8_are_shown_escaped(tmp_path, capsys):
    folder = tmp_path / NOT_UTF8
    try:
        folder.mkdir()
    except OSError:
        pytest.skip('this file system takes UTF-8 names only')
    for name in ('1.png', '2.png'):
        (folder / name).write_bytes(b'no image')
    (tmp_path / 'tea').mkdir()
    (tmp_path / 'tea' / '3.png').write_bytes(encode(noise_image(4, 4)))
    source = open_source(f'folder:{tmp_path}', None, for_evaluation=True)
    log = tmp_path / 'unreadable.log'
    examples = EvalExamples(source, np.asarray, 4, 4)
    found = [examples(position) for position in range(3)]
    batch = {'wanted': [example.wanted for example in found], 'problem': [example.problem for example in found]}
    Unreadable(source, 1.0, log).check(batch)
    assert log.read_text(encoding='utf-8').startswith(rf'{tmp_path}/caf\xe9/1.png: not an image')
    fail(DataError(f'{NOT_UTF8}: wrong'))
    with Progress(1, 'images', active=False) as progress:
        progress.write(f'{folder}\n  tea 0.5')
    assert capsys.readouterr() == (f'{tmp_path}/caf\\xe9\n  tea 0.5\n', 'error: caf\\xe9: wrong\n')


def test_sources_with_keys(tmp_path, monkeypatch):
    """A run and its evaluation read the same members; the flags may name others."""
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
    for split, labels in (('train', [2, 0, 1, 0]), ('val', [1, 2])):
        fields = [{'label': label, 'twice': f'c{label}'} for label in labels]
        write_tar(tmp_path / f'x-{split}-0.tar', image_members(fields))
    config = TrainConfig(data=f'wds:{tmp_path}', batch_size=2, target_key='twice')
    data = run_data.open_data(config, None)
    assert data.train.class_names == data.val.class_names == ('c0', 'c1', 'c2')
    assert [data.val[index]['label'] for index in range(2)] == [1, 2]

    run = tmp_path / 'run'
    (run / CHECKPOINTS / '5').mkdir(parents=True)
    (run / MODEL_FILE).write_text(json.dumps({'label_names': ['c2', 'c1', 'c0']}))
    flags = inputs.InputFlags(checkpoint=run)
    own = inputs._open(flags, config, None, False)
    assert own.class_names == ('c2', 'c1', 'c0') and own[1]['label'] == 0
    other = dataclasses.replace(flags, data=f'wds:{tmp_path}/x-*.tar', split='train')
    assert inputs._open(other, config, None, False).class_names == ('0', '1', '2')
    assert inputs._open(dataclasses.replace(other, target_key='twice'), config, None, False).class_names[0] == 'c0'


def test_class_maps(photos, tmp_path, monkeypatch):
    """They name the classes of numbers, and order those of folders."""
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
    path = tmp_path / 'names.txt'
    path.write_text('b10\na\n é \nb9\n', encoding='utf-8-sig')  # with a byte-order mark, as Windows writes it
    config = TrainConfig(data=f'folder:{photos}', batch_size=4, class_map=path)
    data = run_data.open_data(config, None)
    assert data.train.class_names == data.val.class_names == ('b10', 'a', 'é', 'b9')
    assert data.val.present == (0, 1, 3)
    assert run_data.open_data(config, ('a', 'b9', 'b10', 'x')).train.class_names == ('a', 'b9', 'b10', 'x')
    for split in ('train', 'val'):
        write_tar(tmp_path / 'shards' / f'{split}.tar', image_members([3, 0]))
    shards = dataclasses.replace(config, data=f'wds:{tmp_path}/shards')
    assert run_data.open_data(shards, None).train.class_names[3] == 'b9'
    arrays = dataclasses.replace(config, data='embedded:fashion_mnist')
    for text, changed, message in (
        ('a\nb9\n', config, '1 classes of Training are not among the class names: b10; these are a, b9'),
        ('a\nb9\nb10', shards, 'train has the label 3; there are 3 classes'),
        ('a\n\nb', config, 'names.txt: expected the name of a class on line 2'),
        ('a\nb\na', config, 'names.txt: a is on the lines 1 and 3'),
        ('', config, 'got an empty file'),
        ('a\nb', arrays, 'has classes of its own; leave out --class-map'),
    ):
        path.write_text(text)
        with pytest.raises(DataError, match=message):
            run_data.open_data(changed, None)


@pytest.mark.slow
def test_a_run_on_a_folder(tmp_path, capsys):
    """Natural order, a class that is not UTF-8, splits in any case: trained, resumed, and evaluated by its names."""
    for split in ('Training', 'Valid'):
        write_classes(tmp_path / split, {'b10': 4, 'b9': 4, NOT_UTF8: 4})
    run = tmp_path / 'run'
    flags = {'data': f'folder:{tmp_path}', 'train_split': 'train', 'val_split': None, 'batch_size': 4}
    config = dataclasses.replace(TINY, **flags, val_batch_size=4, steps=2, mixup=0.0, model_ema=False)
    loop.train(config, run)
    assert json.loads((run / MODEL_FILE).read_text())['label_names'] == ['b9', 'b10', NOT_UTF8]
    assert f'evaluates on 12 of folder:{tmp_path} Valid, 3 classes' in capsys.readouterr().out
    assert train.main(['--workdir', str(run)]) == 0
    arguments = ['--checkpoint', str(run), '--batch-size', '4', '--json']
    found = []
    for data in ([], ['--data', f'folder:{tmp_path}/Valid']):
        capsys.readouterr()
        assert evaluate.main([*arguments, *data]) == 0
        found.append(json.loads(capsys.readouterr().out))
    own, other = found
    assert own['top1'] == other['top1'] and own['loss'] == pytest.approx(other['loss'])
    assert other['classes'] == 'all 3 classes, matched by name'

    for split in ('Training', 'Valid'):
        (tmp_path / split / 'b9').rename(tmp_path / split / 'c')
    assert train.main(['--workdir', str(run)]) == 2
    assert 'the run began with something else: ' in (refused := capsys.readouterr().err) and refused.count('\n') == 1
    assert 'new classes: c; missing classes: b9. Restore' in refused
    assert train.main(['--workdir', str(run), '--accept-changes']) == 0
    assert json.loads((run / MODEL_FILE).read_text())['label_names'] == ['b10', 'c', NOT_UTF8]
    assert train.main(['--workdir', str(run)]) == 0
    jax.clear_caches()
