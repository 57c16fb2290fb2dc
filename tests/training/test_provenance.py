"""What a run depends on: every kind of change is refused in one line that names it, or accepted and recorded."""

import contextlib
import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from tests.helpers.images import write_classes
from tresnet_jax.checkpoints.run import CHECKPOINTS, MODEL_FILE
from tresnet_jax.errors import TrainingError
from tresnet_jax.training import devices, provenance, run_data
from tresnet_jax.training.config import TrainConfig
from tresnet_jax.training.provenance import PROVENANCE_FILE, compare, load_provenance, save_provenance, stored_classes
from tresnet_jax.training.run_config import load_config, save_config

NOT_UTF8 = b'caf\xe9'.decode('utf-8', 'surrogateescape')


@pytest.fixture
def photos(tmp_path) -> Path:
    folder = tmp_path / 'photos'
    for split, count, seed in (('train', 3, 0), ('val', 2, 20)):
        write_classes(folder / split, {'b10': count, 'b9': count, 'a': count}, seed=seed)
    return folder


@pytest.fixture
def config(photos) -> TrainConfig:
    return TrainConfig(data=f'folder:{photos}', batch_size=4, steps=3)


def now(config: TrainConfig, names=None, count: int = 2) -> provenance.Provenance:
    data = run_data.open_data(config, names)
    return provenance.provenance(config, data.train, data.val, count)


@pytest.fixture
def run(config, tmp_path) -> Path:
    """The folder of a run on these photos that has a checkpoint, but no weights."""
    workdir = tmp_path / 'run'
    (workdir / CHECKPOINTS / '5').mkdir(parents=True)
    save_config(config, workdir)
    save_provenance(now(config), workdir)
    return workdir


def resume(run: Path, config: TrainConfig, count: int = 2, accept: bool = False):
    return compare(now(config, stored_classes(run), count), config, load_config(run), run, 5, accept)


def add_image(photos: Path) -> None:
    shutil.copy(photos / 'train' / 'a' / '06.png', photos / 'train' / 'a' / '99.png')


def change_image(photos: Path) -> None:
    with (photos / 'val' / 'a' / '04.png').open('ab') as file:
        file.write(b'longer')


def rename_image(photos: Path) -> None:
    (photos / 'train' / 'a' / '06.png').rename(photos / 'train' / 'a' / '6.png')


def rename_class(photos: Path) -> None:
    for split in ('train', 'val'):
        (photos / split / 'b9').rename(photos / split / 'c')


def remove_class(photos: Path) -> None:
    for split in ('train', 'val'):
        shutil.rmtree(photos / split / 'b9')


def move_images(photos: Path) -> None:
    (photos / 'train' / 'a' / '06.png').rename(photos / 'train' / 'b9' / '06.png')


def rename_split(photos: Path) -> None:
    (photos / 'val').rename(photos / 'test')


CHANGES = {
    add_image: '10 training images instead of 9',
    change_image: 'other sizes of the evaluation images, or another order',
    rename_image: 'other names and sizes of the training images, or another order',
    rename_class: 'new classes: c; missing classes: b9',
    remove_class: '6 training images instead of 9; 2 classes with training images instead of 3',
    move_images: 'other labels and names and sizes of the training images',
    rename_split: 'the evaluation images are those of folder:{photos} test instead of folder:{photos} val',
}


@pytest.mark.parametrize('change', CHANGES)
def test_changed_data(change, run, config, photos):
    assert resume(run, config) == (load_provenance(run), [])
    change(photos)
    with pytest.raises(TrainingError) as refused:
        resume(run, config)
    message = str(refused.value)
    assert message.startswith(f'{run}: the run began with something else: ') and '\n' not in message
    expected = CHANGES[change].format(photos=photos)
    assert expected in message and message.endswith('accept the changes with --accept-changes')
    accepted, remarks = resume(run, config, accept=True)
    assert all(f'accepted: {part}' in remarks for part in message.split('else: ')[1].split('. Restore')[0].split('; '))
    save_provenance(accepted, run)
    assert load_provenance(run).changes == ({'step': 5, 'changes': remarks},)
    assert resume(run, config) == (accepted, []), 'what was accepted is what the next start is compared with'


def test_another_place_is_no_change(run, config, photos):
    photos.rename(photos.parent / 'moved')
    photos.symlink_to(photos.parent / 'moved')
    assert resume(run, config)[1] == []
    relative = dataclasses.replace(config, data='folder:photos', data_dir=photos.parent)
    save_config(relative, run)
    save_provenance(now(relative), run)
    assert resume(run, dataclasses.replace(relative, data_dir=photos.parent / 'run' / '..'))[1] == []


def test_options_of_the_data(run, config):
    other = dataclasses.replace(config, max_value=4095.0)
    with pytest.raises(TrainingError, match='--max-value 4095.0 instead of no --max-value'):
        resume(run, other)
    assert resume(run, other, accept=True)[1] == ['accepted: --max-value 4095.0 instead of no --max-value']


def test_files_of_the_loss(run, config, tmp_path):
    """Their content matters, and not where they are."""
    files = [tmp_path / name for name in ('a.json', 'b.json')]
    for file in files:
        file.write_text('{"num_samples": 9, "pos_counts": [3, 3, 3]}')
    first, moved = (
        dataclasses.replace(config, loss='bce', loss_pos_weight='neg_pos', class_stats=file) for file in files
    )
    save_config(first, run)
    save_provenance(now(first), run)
    assert resume(run, first)[1] == []
    assert resume(run, moved, accept=True)[1] == [
        f'accepted: --class-stats {files[1]} instead of --class-stats {files[0]}'
    ]
    files[0].write_text('{"num_samples": 9, "pos_counts": [1, 3, 3]}')
    with pytest.raises(TrainingError, match=r'the file of --class-stats .*/a.json has other content. Restore'):
        resume(run, first)
    files[0].unlink()
    with pytest.raises(TrainingError, match=r'the file of --class-stats .*/a.json is gone. Restore'):
        resume(run, first)


def test_classes_that_the_data_numbers_itself(run, config):
    """Arrays and TFDS have an order of their own, which a run cannot keep."""
    before = load_provenance(run)
    save_provenance(dataclasses.replace(before, class_names=('a', 'b10', 'b9')), run)
    with pytest.raises(TrainingError, match='another order of the classes: class 1 is b9 instead of b10'):
        compare(before, config, load_config(run), run, 5, False)


@pytest.mark.parametrize('sync_bn', [True, False])
def test_devices_matter_to_batch_norm_that_is_not_synchronised(sync_bn, run, config):
    config = dataclasses.replace(config, sync_bn=sync_bn)
    save_config(config, run)
    if sync_bn:
        assert resume(run, config, count=1)[1] == []
    else:
        with pytest.raises(TrainingError, match='1 device instead of 2, which matters with --no-sync-bn'):
            resume(run, config, count=1)


def test_other_versions_are_said(run, config):
    before = load_provenance(run)
    save_provenance(dataclasses.replace(before, versions=before.versions | {'jax': '0.9.9'}), run)
    found, remarks = resume(run, config)
    assert remarks == [f'jax {before.versions["jax"]} instead of 0.9.9: results may differ by rounding']
    assert found.versions == before.versions and found.changes == ({'step': 5, 'changes': remarks},)


def test_runs_that_recorded_nothing(run, config, photos):
    """Nothing can be compared but the classes of model.json; from then on, there is a record."""
    (run / PROVENANCE_FILE).unlink()
    (run / MODEL_FILE).write_text(json.dumps({'label_names': ['b9', 'a', 'b10']}))
    found, remarks = resume(run, config)
    assert found.class_names == ('b9', 'a', 'b10')
    assert remarks == [f'{run} did not record the data that the run began with, so it cannot be compared']
    rename_class(photos)
    with pytest.raises(TrainingError, match='new classes: c; missing classes: b9'):
        resume(run, config)


def test_names_that_are_not_utf8(tmp_path, run):
    before = load_provenance(run)
    changed = dataclasses.replace(before, class_names=('a', NOT_UTF8))
    save_provenance(changed, run)
    assert load_provenance(run) == changed
    assert [*provenance._of_classes(('a', 'b'), changed.class_names)] == [
        r'new classes: caf\xe9', 'missing classes: b'
    ]  # fmt: skip


def as_two_processes(monkeypatch, first, second) -> None:
    """Call what every process calls: the first sends what the second compares with its own."""
    sent: list[np.ndarray] = []
    with monkeypatch.context() as patch:
        patch.setattr(devices.jax, 'process_count', lambda: 2)
        patch.setattr(devices.multihost_utils, 'process_allgather', lambda mine: sent.append(mine) or mine[None])
        first()
        others = iter(sent)
        patch.setattr(devices.multihost_utils, 'process_allgather', lambda mine: np.stack([next(others), mine]))
        second()


@pytest.mark.parametrize(
    'record, options, latest, message',
    [
        ({'devices': 7, 'versions': {}}, {'threads': 1, 'data_dir': Path('elsewhere'), 'log_wandb': True}, 5, None),
        ({}, {'lr': 0.2}, 5, '^--lr 0.2: process 1 has another value than the first process; all processes need the s'),
        ({}, {'mixup': 0.5, 'skip_nonfinite': 1}, 5, '^--mixup 0.5: process 1'),
        ({}, {}, None, 'run: process 1 finds another latest checkpoint than the first process; all hosts need the sam'),
        ({'class_names': ('a', 'b', 'c')}, {}, 5, 'process 1 reads other training or evaluation images than the first'),
        ({'teacher': {'name': 'old', 'sha256': '00' * 32}}, {}, 5, '^old: process 1 has another teacher than the firs'),
        ({'files': {'class_stats': '1'}}, {}, 5, '--class-stats or --semantic-tree: the file of process 1 has other c'),
    ],
)
def test_every_process_has_the_same(record, options, latest, message, run, config, monkeypatch):
    """Another seed, file or checkpoint on one host would give weights that differ between hosts, without a word."""
    before = dataclasses.replace(load_provenance(run), teacher={'name': 'new', 'sha256': '11' * 32})
    first = lambda: provenance.check_processes(before, config, run, 5)  # noqa: E731
    other = dataclasses.replace(before, **record), dataclasses.replace(config, **options)
    expected = contextlib.nullcontext() if message is None else pytest.raises(TrainingError, match=message)
    with expected:
        as_two_processes(monkeypatch, first, lambda: provenance.check_processes(*other, run, latest))


def test_every_process_starts_from_the_same_weights(monkeypatch):
    def check(value: float, crop: float = 1.0):
        variables = {'kernel': np.full(3, value, np.float32)}, {}
        return lambda: provenance.check_weights(variables, {'crop_pct': crop}, 'resnet50d')

    as_two_processes(monkeypatch, check(0.5), check(0.5))
    with pytest.raises(TrainingError, match='^resnet50d: process 1 starts from other weights than the first process'):
        as_two_processes(monkeypatch, check(0.5), check(0.25))
    with pytest.raises(TrainingError, match='^resnet50d: the weights of process 1 state other images than those of'):
        as_two_processes(monkeypatch, check(0.5), check(0.5, crop=0.9))


@pytest.mark.parametrize('text', ['{', '[]', '{}', '{"train": 5}', '[' * 100_000])
def test_a_damaged_record(text, run):
    (run / PROVENANCE_FILE).write_text(text)
    with pytest.raises(TrainingError, match=r'provenance.json: cannot be read \(.*without comparing its data'):
        load_provenance(run)
