"""Whole runs: resumed to the bit, stopped by what is not a number, and told what is wrong in one line."""

import dataclasses
import json
import os
import shutil
import signal

import jax
import numpy as np
import pytest

import tresnet_jax
from tests.helpers.closeness import assert_identical
from tests.helpers.runs import TINY
from tresnet_jax.checkpoints.run import CHECKPOINTS, MODEL_FILE, load_weights
from tresnet_jax.cli import train as command
from tresnet_jax.errors import ConversionError, TrainingError
from tresnet_jax.factory import embedded_path
from tresnet_jax.labels import FASHION_MNIST
from tresnet_jax.training import loop
from tresnet_jax.training.checkpoint import Checkpoints
from tresnet_jax.training.config import TrainConfig
from tresnet_jax.training.metrics import Interval, RunLog, read_records
from tresnet_jax.training.provenance import PROVENANCE_FILE
from tresnet_jax.training.recipes import recipe
from tresnet_jax.training.run_config import load_config, save_config

pytestmark = pytest.mark.usefixtures('programs')


def weights(workdir) -> list[np.ndarray]:
    """All weights and averages of the last checkpoint."""
    found = []
    for ema in (False, True):
        saved = load_weights(workdir, 'latest', ema=ema)
        found += jax.tree.leaves((saved.params, saved.batch_stats))
    return found


def train_with_signals(config: TrainConfig, workdir, monkeypatch, at: int, number: int) -> loop.Result:
    """Train, and be asked to stop once the metrics of that many steps were read."""
    seen = 0
    add = Interval.add

    def count(self, values):
        nonlocal seen
        seen += 1
        if seen == at:
            os.kill(os.getpid(), number)
        add(self, values)

    with monkeypatch.context() as patch:
        patch.setattr(Interval, 'add', count)
        return loop.train(config, workdir)


@pytest.fixture(scope='module')
def uninterrupted(tmp_path_factory):
    workdir = tmp_path_factory.mktemp('whole')
    result = loop.train(TINY, workdir)
    return workdir, result


def test_interrupted_twice_and_resumed_is_the_same_to_the_bit(uninterrupted, tmp_path, monkeypatch, capsys):
    """Weights, statistics, averages and metrics, through augmentation, mixup, erasing and stochastic depth."""
    whole, result = uninterrupted
    assert result.finished
    first = train_with_signals(TINY, tmp_path, monkeypatch, 1, signal.SIGTERM)
    assert not first.finished and 1 <= first.step < 5
    assert f'interrupted and saved at step {first.step}; to resume: train.py --workdir' in capsys.readouterr().out
    second = train_with_signals(load_config(tmp_path), tmp_path, monkeypatch, 2, signal.SIGINT)
    assert first.step < second.step < 8
    last = loop.train(load_config(tmp_path), tmp_path)
    assert last.finished
    assert_identical(weights(tmp_path), weights(whole))
    assert last.evaluation == result.evaluation and last.ema_evaluation == result.ema_evaluation
    evaluations = [[r for r in read_records(folder) if r['kind'] == 'eval'] for folder in (tmp_path, whole)]
    for a, b in zip(*evaluations, strict=True):
        assert a | {'time': 0} == b | {'time': 0}


def test_lost_steps_are_made_again(uninterrupted, tmp_path, monkeypatch):
    """A run that died behind its last checkpoint: the lost steps leave no metrics, and the end is the same."""
    whole, _ = uninterrupted

    class Died(Exception):
        pass

    def die(self, step, state, data):
        if step > 3:
            raise Died
        save(self, step, state, data)

    save = Checkpoints.save
    with monkeypatch.context() as patch, pytest.raises(Died):
        patch.setattr(Checkpoints, 'save', die)
        loop.train(TINY, tmp_path)
    assert max(record['step'] for record in read_records(tmp_path)) > 3
    loop.train(load_config(tmp_path), tmp_path)
    assert_identical(weights(tmp_path), weights(whole))
    steps = [(record['kind'], record['step']) for record in read_records(tmp_path)]
    assert len(steps) == len(set(steps)) and steps == sorted(steps, key=lambda record: record[1])


class Killed(BaseException):
    """As SIGKILL: nothing of the run handles it."""


@pytest.mark.parametrize('end', ['SIGTERM', pytest.param('killed', marks=pytest.mark.slow), 'killed before the row'])
def test_ended_in_the_evaluation(end, uninterrupted, tmp_path, monkeypatch, capsys):
    """The state was saved before. The evaluation is made again, and the metrics are those of an undisturbed run."""
    whole, _ = uninterrupted
    evaluated = []

    def stopping(step, variables, batches, tick):
        def count(images):
            evaluated.append(images)
            if end == 'killed':
                raise Killed
            os.kill(os.getpid(), signal.SIGTERM)
            tick(images)

        return evaluate(step, variables, batches, count)

    def killed(self, values):
        raise Killed

    evaluate = loop.evaluate
    with monkeypatch.context() as patch:
        patch.setattr(*((RunLog, 'evaluation', killed) if 'row' in end else (loop, 'evaluate', stopping)))
        if end == 'SIGTERM':
            assert not loop.train(TINY, tmp_path).finished
            assert 'interrupted and saved at step 4; to resume' in capsys.readouterr().out
        else:
            with pytest.raises(Killed):
                loop.train(TINY, tmp_path)
    assert evaluated == ([] if 'row' in end else [16])  # of 40
    assert load_weights(tmp_path, 'latest').step == 4
    assert [r['kind'] for r in read_records(tmp_path)] == ['train', 'train']

    assert loop.train(load_config(tmp_path), tmp_path).finished
    assert_identical(weights(tmp_path), weights(whole))
    timeless = [[r | dict.fromkeys(('time', 'images_per_second', 'wait')) for r in read_records(folder)]
                for folder in (tmp_path, whole)]  # fmt: skip
    assert timeless[0] == timeless[1]
    assert load_weights(tmp_path, 'best').rating == load_weights(whole, 'best').rating


def test_interrupted_before_the_first_step(tmp_path, monkeypatch):
    """In the evaluation at the start: that, too, is saved and made again."""
    config = dataclasses.replace(TINY, eval_at_start=True)
    calls = []

    def stopping(*arguments):
        calls.append(arguments)
        os.kill(os.getpid(), signal.SIGTERM)
        return evaluate(*arguments)

    evaluate = loop.evaluate
    with monkeypatch.context() as patch:
        patch.setattr(loop, 'evaluate', stopping)
        result = loop.train(config, tmp_path)
    assert (result.step, result.finished, len(calls)) == (0, False, 1)
    assert loop.train(load_config(tmp_path), tmp_path).finished
    assert [r['step'] for r in read_records(tmp_path) if r['kind'] == 'eval'] == [0, 4, 8]


def test_a_log_line_has_all_steps_since_the_last(tmp_path, monkeypatch):
    """Also those before an evaluation in between, which only the throughput leaves out."""
    steps, summary = [], Interval.summary

    def count(self, step, *arguments):
        steps.append((step, len(self._values), len(self._values) - self._untimed))
        return summary(self, step, *arguments)

    monkeypatch.setattr(Interval, 'summary', count)
    assert loop.train(dataclasses.replace(TINY, log_every=3), tmp_path).finished
    assert steps == [(3, 3, 2), (6, 3, 2), (8, 2, 2)]


def test_what_a_run_leaves(uninterrupted):
    """The files of a run, and what is in them."""
    workdir, result = uninterrupted
    assert (workdir / 'curves.png').read_bytes()[:4] == b'\x89PNG'
    assert list((workdir / 'tensorboard').glob('events*'))
    records = read_records(workdir)
    assert [r['step'] for r in records if r['kind'] == 'train'] == [2, 4, 6, 8]
    last = records[-1]
    assert last['count'] == 40 and last['top1'] == result.evaluation.top1
    assert last['ema_loss'] == result.ema_evaluation.loss != last['loss']
    kept = sorted(int(path.name) for path in (workdir / 'checkpoints').iterdir())
    assert len(kept) <= TINY.keep_last + TINY.keep_best and kept[-1] == 8
    resolved = load_config(workdir)
    assert json.loads((workdir / MODEL_FILE).read_text())['label_names'] == list(FASHION_MNIST)
    assert resolved.num_classes == 10 and resolved.mean == (0.5, 0.5, 0.5)


def test_stop_epoch_and_save_epochs(uninterrupted, tmp_path, capsys):
    """The schedule stays that of the whole run, which continues to the same weights; the epoch is kept."""
    whole, _ = uninterrupted
    config = dataclasses.replace(TINY, save_epochs=(0.5,), keep_last=1, keep_best=0)
    stopped = loop.train(dataclasses.replace(config, stop_epoch=0.5), tmp_path)
    assert (stopped.step, stopped.finished) == (3, True) and stopped.evaluation is not None
    assert 'begins: 3 steps of 16 images (0.50 epochs, schedule of 8 steps)' in capsys.readouterr().out
    assert loop.train(dataclasses.replace(load_config(tmp_path), stop_epoch=None), tmp_path).step == 8
    assert load_config(tmp_path) == dataclasses.replace(load_config(whole), **{
        name: getattr(config, name) for name in ('save_epochs', 'keep_last', 'keep_best')
    }), 'the folder alone would stop the run after half an epoch, and delete what it shall keep'  # fmt: skip
    assert_identical(weights(tmp_path), weights(whole))
    assert sorted(int(path.name) for path in (tmp_path / 'checkpoints').iterdir()) == [3, 8]
    assert [r['step'] for r in read_records(tmp_path) if r['kind'] == 'eval'][0] == 3


@pytest.mark.parametrize('option, value', [('stop_epoch', 1.5), ('save_epochs', (0.5, 1.5))])
def test_an_epoch_after_the_end(option, value, tmp_path):
    name = option.replace('_', '-')
    with pytest.raises(TrainingError, match=rf'^--{name} 1.5: the schedule has only 8 steps \(1.333 epochs\)$'):
        loop.train(dataclasses.replace(TINY, **{option: value}), tmp_path)
    assert not (tmp_path / 'config.json').exists() and not (tmp_path / 'checkpoints').exists()


def test_a_finished_run_has_nothing_to_do(uninterrupted):
    workdir, _ = uninterrupted
    before = weights(workdir)
    assert loop.train(load_config(workdir), workdir).finished
    assert_identical(weights(workdir), before)


def test_what_a_run_has_resolved_stays(uninterrupted, tmp_path):
    """A caller who gives the first configuration again leaves it open; the model alone would give another value."""
    whole, _ = uninterrupted
    run = tmp_path / 'run'
    shutil.copytree(whole, run)
    changed = dataclasses.replace(load_config(run), mean=(0.1, 0.2, 0.3), num_classes=10)
    save_config(changed, run)
    assert loop.train(TINY, run).finished
    assert load_config(run) == changed


def test_more_skipped_steps_than_allowed(uninterrupted, monkeypatch):
    """The weights would stay as they are, and nothing would say so."""
    workdir, _ = uninterrupted
    restore = Checkpoints.restore

    def skipped(self, state, data):
        state, lines = restore(self, state, data)
        return dataclasses.replace(state, nonfinite=np.int32(2)), lines

    monkeypatch.setattr(Checkpoints, 'restore', skipped)
    with pytest.raises(TrainingError, match='has skipped 2 steps .* with --skip-nonfinite 2 or more, got 1'):
        loop.train(dataclasses.replace(load_config(workdir), skip_nonfinite=1), workdir)
    assert load_config(workdir).skip_nonfinite == 0
    assert loop.train(dataclasses.replace(load_config(workdir), skip_nonfinite=2), workdir).finished


def test_ended_before_the_first_checkpoint(tmp_path, monkeypatch):
    """The folder takes a run with other options, and nothing of the first one is left."""
    config = dataclasses.replace(TINY, eval_at_start=True)
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(Checkpoints, 'save', lambda *arguments: (_ for _ in ()).throw(Killed()))
        loop.train(config, tmp_path)
    assert [r['step'] for r in read_records(tmp_path)] == [0, 2]
    folder = ('--workdir', str(tmp_path))
    assert command.resolve_arguments(folder).config == config, 'what the data and the model gave is not kept'
    other = command.resolve_arguments([*folder, '--train-split', 'train[:80]']).config
    assert loop.train(other, tmp_path).finished
    assert load_config(tmp_path).train_split == 'train[:80]'
    assert [r['step'] for r in read_records(tmp_path) if r['kind'] == 'eval'] == [0, 4, 8]


@pytest.mark.parametrize('source', ['folder', pytest.param('file', marks=pytest.mark.slow)])
def test_a_resume_needs_no_initial_weights(source, tmp_path, monkeypatch):
    """Neither the file nor the repository, which are gone."""
    origin = tmp_path / 'origin'
    model = tresnet_jax.create_model('test_resnet.fashion_mnist', pretrained=True)
    if source == 'folder':
        tresnet_jax.save_pretrained(model, origin)
        config = dataclasses.replace(TINY, model=f'local-dir:{origin}', pretrained=True)
    else:
        origin.mkdir()
        shutil.copy(embedded_path(model.pretrained_cfg), origin / 'a.safetensors')
        config = dataclasses.replace(TINY, checkpoint=origin / 'a.safetensors')
    run = tmp_path / 'run'
    assert not train_with_signals(config, run, monkeypatch, 1, signal.SIGTERM).finished
    shutil.rmtree(origin)
    result = loop.train(load_config(run), run)
    assert result.finished and result.evaluation.top1 > 0.5


def test_other_data_is_refused_or_accepted(uninterrupted, tmp_path, capsys):
    whole, _ = uninterrupted
    run = tmp_path / 'run'
    shutil.copytree(whole, run)
    folder, split = ('--workdir', str(run)), ('--val-split', 'test[:30]')
    message = error_of(capsys, *folder, *split)
    assert 'holds a run with --val-split test[:40]' in message and 'add --accept-changes' in message
    assert '--accept-changes' not in error_of(capsys, *folder, *split, '--lr', '0.3')
    path = run / PROVENANCE_FILE
    record = json.loads(path.read_text())
    path.write_text(json.dumps(record | {'train': record['train'] | {'count': 97}}))
    assert '96 training images instead of 97. Restore' in error_of(capsys, *folder)
    assert command.main([*folder, *split, '--accept-changes']) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[:2] == [
        'accepted: --val-split test[:30] instead of --val-split test[:40]',
        'accepted: 96 training images instead of 97',
    ]
    assert json.loads(path.read_text())['changes'] == [{'step': 8, 'changes': [*said[:2], *said[2:4]]}]
    assert load_config(run).val_split == 'test[:30]'
    assert command.main(folder) == 0 and 'accepted' not in capsys.readouterr().out


def test_a_run_from_before_there_was_a_record(uninterrupted, tmp_path, capsys):
    whole, _ = uninterrupted
    run = tmp_path / 'run'
    shutil.copytree(whole, run, ignore=shutil.ignore_patterns(PROVENANCE_FILE, MODEL_FILE))
    (run / 'label_names.json').write_text(json.dumps(FASHION_MNIST))
    for said in (True, False):
        assert command.main(['--workdir', str(run)]) == 0
        assert ('did not record the data' in capsys.readouterr().out) is said


def test_loss_that_is_not_a_number_stops_the_run(tmp_path):
    """With the step, the images and what came before; the weights saved are finite."""
    config = dataclasses.replace(TINY, lr=1e38, steps=20, checkpoint_every=1, eval_every=100)
    with pytest.raises(TrainingError, match=r'step \d+: .*last finite: .*images of the batch, by index: \d+ ') as error:
        loop.train(config, tmp_path)
    assert '--skip-nonfinite' in str(error.value)
    assert all(np.isfinite(leaf).all() for leaf in weights(tmp_path))


def error_of(capsys, *arguments: str) -> str:
    assert command.main(arguments) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith('error: ')
    return lines[0]


def test_readable_errors(uninterrupted, tmp_path, capsys):
    """Each one line and exit code 2."""
    workdir, _ = uninterrupted
    new = ('--workdir', str(tmp_path / 'new'))
    assert 'unknown recipe' in error_of(capsys, *new, '--recipe', 'nothing')
    assert 'must be a multiple of' in error_of(capsys, *new, '--batch-size', '3', '--devices', '2')
    pairs = ('--batch-size', '6', '--devices', '2', '--mixup', '0.2')
    assert '1 part (--accumulate) times 2 images (--mixup' in error_of(capsys, *new, *pairs)
    assert '--lr must be positive' in error_of(capsys, *new, '--lr', '-1')
    assert 'no_such_model' in error_of(capsys, *new, '--model', 'no_such_model')
    for flags, what in (
        (('--aa', 'rand-w0'), "training images: auto_augment 'rand-w0': 'w0' is unknown"),
        (('--scale', '0.5', '0.1'), 'training images: scale must be two increasing numbers in (0, 1]'),
        (('--ratio', '2', '1'), 'training images: ratio must be'),
        (('--train-crop-mode', 'rkrc', '--crop', 'none'), '--train-crop-mode rkrc and --crop none: give one of them'),
        (('--cutmix-minmax', '0.5', '0.5'), 'cutmix_minmax must be two shares that leave a range of edges'),
        (('--aug-repeats', '0.5'), '--aug-repeats must be 0 or at least 1, got 0.5'),
        (('--aug-repeats', '2.5', '--mixup', '1', '--batch-size', '4'), 'at least 6, twice --aug-repeats 2.5, got 4'),
        (('--image-size', '0', '32'), '--image-size must be positive, got [0, 32]'),
        (('--train-interpolation', 'cubic'), 'training images: interpolation must be one of random'),
        (('--interpolation', 'cubic'), 'evaluation images: interpolation must be one of nearest'),
    ):
        assert what in error_of(capsys, '--workdir', str(tmp_path / 'never'), *flags)
    assert not (tmp_path / 'never').exists()
    message = error_of(capsys, '--workdir', str(workdir), '--lr', '0.3')
    assert 'holds a run with --lr 0.05' in message
    assert '--coordinator' in error_of(capsys, *new, '--process-id', '0')


@pytest.mark.parametrize(
    'error, message',
    [
        (
            jax.errors.JaxRuntimeError('RESOURCE_EXHAUSTED: Out of memory allocating 99 bytes.\n\nMore.'),
            'the devices have too little memory: RESOURCE_EXHAUSTED: Out of memory allocating 99 bytes. More. Try',
        ),
        (MemoryError('Unable to allocate 9 GiB'), 'this host has too little memory: Unable to allocate 9 GiB'),
    ],
)
def test_too_little_memory(error, message, tmp_path, monkeypatch, capsys):
    """The error that most users of a GPU meet first."""

    def train(*arguments, **options):
        raise error

    monkeypatch.setattr(loop, 'train', train)
    assert message in error_of(capsys, '--workdir', str(tmp_path), '--recipe', 'fashion_mnist')


def test_another_model_in_the_same_folder(uninterrupted, tmp_path):
    """By the configuration, and by the checkpoint if the description was changed."""
    workdir, _ = uninterrupted
    with pytest.raises(TrainingError, match='holds a run with --model test_resnet; resume it with its own'):
        loop.train(dataclasses.replace(TINY, model='test_tresnet'), workdir)
    shutil.copytree(workdir, tmp_path / 'run')
    text = (workdir / MODEL_FILE).read_text()
    (tmp_path / 'run' / MODEL_FILE).write_text(text.replace('test_resnet', 'test_tresnet'))
    with pytest.raises(TrainingError, match='cannot be resumed: '):
        loop.train(TINY, tmp_path / 'run')
    (tmp_path / 'run' / MODEL_FILE).write_text(text.replace('test_resnet', 'no_such'))
    with pytest.raises(ConversionError, match="architecture is 'no_such'; expected one of "):
        loop.train(TINY, tmp_path / 'run')


def test_command_line(tmp_path, capsys):
    """Recipe, then flags; a run's own configuration without either; unknown flags are errors."""
    new = ('--workdir', str(tmp_path))
    assert (
        command.main([*new, '--recipe', 'fashion_mnist', '--lr', '0.3', '--freeze', 'stem', 'layer1', '--print-config'])
        == 0
    )
    shown = json.loads(capsys.readouterr().out)
    assert (shown['lr'], shown['weight_decay'], shown['freeze']) == (0.3, 5e-4, ['stem', 'layer1'])
    assert (command.resolve_arguments([*new, '--image-size', '48', '32']).config.height_width) == (48, 32)
    saved = dataclasses.replace(
        recipe('fashion_mnist'), image_size=(48, 32), lr=0.3, num_classes=10, mean=(0.1, 0.2, 0.3), checkpoint=tmp_path
    )
    save_config(saved, tmp_path)
    assert load_config(tmp_path) == saved
    assert command.resolve_arguments(new).config == saved
    (tmp_path / CHECKPOINTS / '3').mkdir(parents=True)
    resumed = command.resolve_arguments(
        [*new, '--recipe', 'fashion_mnist', '--image-size', '48', '32', '--lr', '0.3', '--checkpoint', str(tmp_path),
         '--log-every', '7']
    )  # fmt: skip
    assert resumed.config == dataclasses.replace(saved, log_every=7)
    save_config(dataclasses.replace(saved, stop_epoch=2.0), tmp_path)
    again = ['--recipe', 'fashion_mnist', '--image-size', '48', '32', '--lr', '0.3', '--checkpoint', str(tmp_path)]
    for flags, expected in (
        ([], 2.0), (again, 2.0), (['--stop-epoch', '3'], 3.0), ([*again, '--stop-epoch', '3'], 3.0),
        (['--stop-epoch', 'None'], None),
    ):  # fmt: skip
        assert command.resolve_arguments([*new, *flags]).config.stop_epoch == expected
    with pytest.raises(SystemExit) as stop:
        command.main([*new, '--no-such-flag'])
    assert stop.value.code == 2


def test_learning_rate_by_batch_size():
    """timm's rule: linear for SGD, the square root for AdamW."""
    assert TrainConfig(batch_size=1024).peak_lr == pytest.approx(0.4)
    assert TrainConfig(batch_size=1024, opt='adamw', lr_base=1e-3).peak_lr == pytest.approx(2e-3)
    assert TrainConfig(batch_size=1024, lr=0.7).peak_lr == 0.7
    assert TrainConfig(batch_size=1024, lr_base_size=512).peak_lr == pytest.approx(0.2)
    assert TrainConfig(batch_size=1024, lr_base_scale='sqrt').peak_lr == pytest.approx(0.2)


def test_a_run_that_resumes_keeps_its_head():
    """Its sizes come from model.json, whatever weights it began with."""
    stored = {'name': 'test_resnet', 'head': 'ml_decoder', 'num_of_groups': 3, 'decoder_embedding': 8}
    for head, network, expected in (
        (None, None, {}),
        ('linear', {'name': 'test_resnet'}, {}),
        ('ml_decoder', None, {**stored, 'num_of_groups': 5, 'decoder_embedding': 768}),
        (None, stored, stored),
    ):
        config = dataclasses.replace(TINY, head=head, num_of_groups=5 if head == 'ml_decoder' else None)
        options = loop._create_model(config, 10, network).head_options
        assert options == {key: value for key, value in expected.items() if key != 'name'}
