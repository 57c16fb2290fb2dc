"""Which checkpoints of a run are kept, and damaged ratings of them."""

import re

import grain
import jax
import numpy as np
import optax
import pytest

from tests.helpers.runs import change_arrays
from tresnet_jax.errors import ConversionError, TrainingError
from tresnet_jax.training.checkpoint import Checkpoints
from tresnet_jax.training.devices import replicate
from tresnet_jax.training.step import create_state

RATINGS = {1: 0.5, 2: 0.9, 3: 0.1, 4: 0.9, 5: 0.7, 6: 0.2, 7: 0.3}


@pytest.mark.parametrize(
    'keep_last, keep_best, expected',
    [(1, 0, [7]), (1, 1, [4, 7]), (2, 3, [2, 4, 5, 6, 7]), (1, 5, [1, 2, 4, 5, 6, 7]), (1, 9, [*RATINGS])],
)
def test_the_latest_and_the_best_are_kept(keep_last, keep_best, expected, tmp_path):
    """Of equal ones, the later; all, while no more than `keep_best` are rated. The next save deletes the others."""
    state = create_state({'w': np.zeros(2, np.float32)}, {}, optax.sgd(0.1), False)
    data = iter(grain.MapDataset.source([0]).to_iter_dataset())
    checkpoints = Checkpoints(tmp_path, keep_last=keep_last, keep_best=keep_best)
    for step, rating in RATINGS.items():
        checkpoints.save(step, replicate(jax.tree.map(np.asarray, state), jax.devices()[:1]), data)
        checkpoints.rate(step, rating)
    checkpoints.close()
    assert sorted(int(path.name) for path in (tmp_path / 'checkpoints').iterdir()) == expected


def test_damaged_arrays_are_named(tmp_path):
    """Orbax would name its handler, and at times print a traceback for each array."""
    state = create_state({'w': np.ones(9, np.float32), 'v': np.ones(9, np.float32)}, {}, optax.sgd(0.1), False)
    state = replicate(jax.tree.map(np.asarray, state), jax.devices()[:1])
    data = iter(grain.MapDataset.source([0]).to_iter_dataset())
    checkpoints = Checkpoints(tmp_path, keep_last=1, keep_best=1)
    checkpoints.save(3, state, data)
    checkpoints.wait()
    change_arrays(tmp_path / 'checkpoints/3/state', '/c/0', lambda data: b'junk')
    with pytest.raises(TrainingError) as error:
        checkpoints.restore(state, data)
    checkpoints.close()
    assert re.match(f'{tmp_path}/checkpoints/3: cannot be resumed: DATA_LOSS: .*"params.[vw]/c/0"', str(error.value))
    assert '\n' not in str(error.value)


def test_no_empty_folder_is_left(tmp_path):
    """Other programs take a folder with checkpoints/ for a run."""
    Checkpoints(tmp_path, keep_last=1, keep_best=1).close()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize('text', ['junk', '[1]', '{"top1": null}', '{"top1": "a"}', '{"top1": ' + '9' * 400 + '}'])
def test_damaged_metrics_are_named(text, tmp_path):
    file = tmp_path / 'checkpoints/3/metrics/metrics'
    file.parent.mkdir(parents=True)
    file.write_text(text)
    with pytest.raises(ConversionError) as error:
        Checkpoints(tmp_path, keep_last=1, keep_best=1)
    assert str(error.value).startswith(f'{file}: ') and 'JSON' in str(error.value)
    assert f'delete the folder {file.parent}' in str(error.value) and '\n' not in str(error.value)
