"""Checkpoints that are damaged: the run resumes from the one before, and says so; wrong weights are never loaded."""

import shutil
from collections.abc import Callable
from pathlib import Path

import grain
import jax
import numpy as np
import optax
import pytest

from tests.helpers.runs import make_run
from tresnet_jax.checkpoints.digests import METADATA_PART
from tresnet_jax.checkpoints.run import CHECKPOINTS, load_weights
from tresnet_jax.errors import ConversionError, TrainingError
from tresnet_jax.training.checkpoint import DAMAGED, NOT_DAMAGE, Checkpoints
from tresnet_jax.training.devices import replicate
from tresnet_jax.training.lock import LOCK_FILE
from tresnet_jax.training.step import TrainState, create_state


def batches() -> grain.DatasetIterator:
    return iter(grain.MapDataset.source(range(9)).to_iter_dataset())


def weight_of(step: int) -> np.ndarray:
    """A parameter that cannot be compressed, so that each bit of its file matters."""
    return np.random.default_rng(step).normal(size=50_000).astype(np.float32)


def state_of(step: int) -> TrainState:
    values = {'a': {'w': weight_of(step)}, 'b': np.ones(3, np.float32)}
    state = create_state(values, {}, optax.sgd(0.1), False)
    state = jax.tree.map(np.asarray, state)
    return replicate(TrainState(**{**vars(state), 'step': np.int32(step)}), jax.devices()[:1])


@pytest.fixture(scope='module')
def run(tmp_path_factory) -> Path:
    """Two checkpoints, after which one and two batches were taken."""
    folder = tmp_path_factory.mktemp('run')
    checkpoints, data = Checkpoints(folder, keep_last=5, keep_best=0), batches()
    for step in (1, 2):
        next(data)
        checkpoints.save(step, state_of(step), data)
    checkpoints.close()
    return folder


def resume(folder: Path) -> tuple[int, int, list[str]]:
    """Return the step, the next batch and the lines of a run that resumes; it can save the next steps."""
    checkpoints, data = Checkpoints(folder, keep_last=5, keep_best=0), batches()
    try:
        state, lines = checkpoints.restore(state_of(0), data)
        step, batch = int(state.step), next(data)
        assert (np.asarray(state.params['a']['w']) == weight_of(step)).all()
        for later in range(step + 1, 4):
            checkpoints.save(later, state_of(later), data)
    finally:
        checkpoints.close()
    return step, batch, lines


def largest(folder: Path) -> Path:
    return max(folder.rglob('ocdbt.process_0/d/*'), key=lambda path: path.stat().st_size)


def flip(file: Path, where: float = 0.5) -> None:
    content = bytearray(file.read_bytes())
    content[int(where * len(content))] ^= 16
    file.write_bytes(content)


def change(old: bytes, new: bytes) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        file = next(path for path in (folder / 'data').iterdir() if old in path.read_bytes())
        file.write_bytes(file.read_bytes().replace(old, new))

    return damage


def exchange(folder: Path) -> None:
    shutil.rmtree(folder)
    shutil.copytree(folder.with_name('1'), folder)


DAMAGE: dict[str, Callable[[Path], object]] = {
    'a bit of an array': lambda folder: flip(largest(folder)),
    'half of an array': lambda folder: largest(folder).write_bytes(largest(folder).read_bytes()[:99]),
    'no arrays': lambda folder: shutil.rmtree(folder / 'state'),
    'no names of the arrays': lambda folder: (folder / 'state/_METADATA').unlink(),
    'no position': lambda folder: shutil.rmtree(folder / 'data'),
    'another position': change(b'2', b'7'),
    'no digests': lambda folder: (folder / METADATA_PART).unlink(),
    'a bit of the digests': lambda folder: flip(folder / METADATA_PART, 0.9),
    'empty': lambda folder: [shutil.rmtree(folder), folder.mkdir()],
    'another checkpoint': exchange,
}


@pytest.mark.parametrize('damage', DAMAGE.values(), ids=DAMAGE)
def test_the_one_before_is_taken(damage, run, tmp_path):
    """The damaged one is moved away, so that the run can save this step again."""
    folder = tmp_path / 'run'
    shutil.copytree(run, folder)
    damage(folder / CHECKPOINTS / '2')
    step, batch, lines = resume(folder)
    assert (step, batch, len(lines)) == (1, 1, 1)
    source, target = folder / CHECKPOINTS / '2', folder / DAMAGED / '2'
    assert lines[0].startswith(f'{source} is damaged (') and '\n' not in lines[0]
    assert lines[0].endswith(f') and now in {target}; the run resumes at step 1')
    assert target.is_dir() and sorted(path.name for path in (folder / CHECKPOINTS).iterdir()) == ['1', '2', '3']
    assert resume(folder)[0] == 3


def test_an_undamaged_run(run, tmp_path):
    shutil.copytree(run, tmp_path / 'run')
    assert resume(tmp_path / 'run') == (2, 2, [])


def test_all_are_damaged(run, tmp_path):
    """One line about the last; nothing is moved, because the configuration may be what is wrong."""
    shutil.copytree(run, tmp_path / 'run')
    for name in ('1', '2'):
        flip(largest(tmp_path / 'run' / CHECKPOINTS / name))
    found = (
        f'^{tmp_path}/run/{CHECKPOINTS}/2: cannot be resumed: params.a.w is not what was saved; the files are damaged$'
    )
    with pytest.raises(TrainingError, match=found):
        resume(tmp_path / 'run')
    assert not (tmp_path / 'run' / DAMAGED).exists()


@pytest.mark.parametrize('error', [MemoryError(), PermissionError(13, 'Permission denied'), ValueError(NOT_DAMAGE[0])])
def test_what_is_not_damage(error, run, tmp_path, monkeypatch):
    """A lack of memory or of permissions does not cost the last checkpoint."""
    shutil.copytree(run, tmp_path / 'run')

    def fail(folder: Path) -> None:
        if folder.parent.name == '2':
            raise error

    monkeypatch.setattr('tresnet_jax.training.checkpoint.check_arrays', fail)
    with pytest.raises(
        TrainingError, match=f'^{tmp_path}/run/{CHECKPOINTS}/2: cannot be resumed: .*start the run again$'
    ):
        resume(tmp_path / 'run')
    monkeypatch.undo()
    assert resume(tmp_path / 'run') == (2, 2, [])


def test_damage_that_only_another_process_sees(run, tmp_path, monkeypatch):
    """The processes agree before Orbax loads, because in its load they wait for each other."""
    shutil.copytree(run, tmp_path / 'run')
    answers = iter([False, False])  # about the latest checkpoint, before and after its load
    monkeypatch.setattr('tresnet_jax.training.checkpoint.everywhere_true', lambda value: next(answers, value))
    digests = []
    monkeypatch.setattr('tresnet_jax.training.checkpoint.check_digests', lambda folder, *_: digests.append(folder.name))
    assert resume(tmp_path / 'run')[0] == 1
    assert digests == ['1'], 'the latest checkpoint is not loaded'


def test_weights_with_a_flipped_bit_are_not_loaded(tmp_path):
    """Neither for evaluation nor for conversion."""
    make_run(tmp_path, steps={3: None})
    file = largest(tmp_path)
    for where in np.linspace(0.05, 0.95, 7):
        flip(file, where)
        with pytest.raises(ConversionError, match=f'^{tmp_path}/{CHECKPOINTS}/3: cannot be read: ') as error:
            for ema in (True, False):
                load_weights(tmp_path, ema=ema)
        assert '\n' not in str(error.value)
        flip(file, where)
    load_weights(tmp_path)


def test_a_folder_that_has_gone(tmp_path):
    """It is not made again, perhaps where another file system is mounted later."""
    folder, away = tmp_path / 'run', tmp_path / 'away'
    folder.mkdir()
    (folder / LOCK_FILE).touch()
    checkpoints, data = Checkpoints(folder, keep_last=2, keep_best=0), batches()
    checkpoints.save(1, state_of(1), data)
    checkpoints.wait()
    folder.rename(away)
    for _ in range(2):
        with pytest.raises(TrainingError, match=r'\(the folder has gone\).* Start the run again when it is back'):
            checkpoints.save(2, state_of(2), data)
        assert not folder.exists()
        (folder / CHECKPOINTS).mkdir(parents=True)  # as where the file system was mounted
        with pytest.raises(TrainingError, match='the folder has gone'):
            checkpoints.save(2, state_of(2), data)
        shutil.rmtree(folder)
    away.rename(folder)
    checkpoints.save(2, state_of(2), data)
    checkpoints.close()
    assert resume(folder)[0] == 2
