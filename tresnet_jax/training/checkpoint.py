"""The checkpoints of a run: Orbax, written in the background, with the position in the data."""

import dataclasses
import logging
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
from orbax.checkpoint import v1 as ocp

from tresnet_jax.model import Tree
from tresnet_jax.training.config import TrainingError
from tresnet_jax.training.distributed import everywhere, to_global, to_local
from tresnet_jax.training.step import TrainState

FOLDER = 'checkpoints'
BEST = 'top1'


class Checkpoints:
    """The checkpoints below RUN/checkpoints, one folder a step, each whole or not there.

    Args:
        workdir: the run's folder.
        keep_last: how many of the latest are kept.
        keep_best: how many of the best are kept beside them, by the top-1 they were saved with.
    """

    def __init__(self, workdir: Path, *, keep_last: int, keep_best: int):
        logging.getLogger('absl').setLevel(logging.CRITICAL)  # Orbax tells of every step of a save
        policies: Any = ocp.training.preservation_policies
        best = policies.BestN(
            get_metric_fn=lambda metrics: metrics[BEST], n=keep_best, keep_checkpoints_without_metrics=False
        )
        self._folder = workdir / FOLDER
        self._writing = 0
        self._checkpointer = ocp.training.Checkpointer(
            str(self._folder.absolute()),
            save_decision_policy=_Always(),
            preservation_policy=policies.AnyPreservationPolicy([policies.LatestN(keep_last), best]),
            cleanup_tmp_directories=True,  # of a save that was killed
        )

    @property
    def latest(self) -> int | None:
        """The last step that was saved; None before the first."""
        latest = self._checkpointer.latest
        return None if latest is None else latest.step

    @property
    def is_rated(self) -> bool:
        """Whether the last one was saved with an evaluation."""
        return BEST in (getattr(self._checkpointer.latest, 'metrics', None) or {})

    def save(self, step: int, state: TrainState, data: Any, metrics: dict[str, Any] | None = None) -> None:
        """Begin to write state and data position; what is still being written of an earlier one is waited for.

        Raises:
            TrainingError: this one, or the one before, cannot be written.
        """
        try:
            self._checkpointer.wait()
            self._writing = step
            self._checkpointer.save_checkpointables_async(
                step, {'state': to_global(state), 'data': data}, overwrite=True, metrics=metrics
            )
        except Exception as error:  # the file system's errors come wrapped in many classes
            raise self._failed(error) from error

    def wait(self) -> None:
        """Until what was begun is written.

        Raises:
            TrainingError: it cannot be written.
        """
        try:
            self._checkpointer.wait()
        except Exception as error:
            raise self._failed(error) from error

    def restore(self, state: TrainState, data: Any) -> TrainState:
        """The latest state, as the given one is laid out; `data`, an iterator, is set to its position.

        Raises:
            TrainingError: it does not fit the configuration, or cannot be read.
        """
        abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=everywhere()), state)
        try:
            loaded = self._checkpointer.load_checkpointables(self.latest, {'state': abstract, 'data': data})
        except Exception as error:
            raise TrainingError(
                f'{self._folder / str(self.latest)}: cannot be resumed from: {_first(error)}'
            ) from error
        return to_local(loaded['state'])

    def close(self) -> None:
        """Wait, and let go of the folder.

        Raises:
            TrainingError: what was begun cannot be written.
        """
        try:
            self._checkpointer.close()
        except Exception as error:
            raise self._failed(error) from error

    def _failed(self, error: Exception) -> TrainingError:
        whole = sorted(int(path.name) for path in self._folder.iterdir() if path.name.isdecimal())
        good = f'the last good checkpoint is step {whole[-1]}' if whole else 'there is no earlier one'
        return TrainingError(
            f'{self._folder}: the checkpoint of step {self._writing} cannot be written ({_first(error)}); {good}. '
            'Make room or mend the folder, then start the run again: it goes on from there'
        )


class _Always:
    """Save whenever asked: when that is, the loop says."""

    def should_save(self, step: Any, previous_steps: Any, *, context: Any) -> bool:
        del step, previous_steps, context
        return True


def _first(error: BaseException) -> str:
    """The first line of an error, and of the one behind it."""
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0][:300]


@dataclasses.dataclass(frozen=True)
class Weights:
    """What a run has learned by a step, as NumPy arrays.

    Attributes:
        step: steps done.
        top1: what it was saved with: the share of the evaluation just before, None where there was none.
        params, batch_stats: the model's trees, their keys as text.
        averaged: whether they are the moving average.
        has_ema: whether the run keeps one.
    """

    step: int
    top1: float | None
    params: Tree
    batch_stats: Tree
    averaged: bool
    has_ema: bool


def load_weights(workdir: Path, which: int | Literal['best', 'latest'] = 'best', *, ema: bool = True) -> Weights:
    """The weights of a run, on whatever devices it trained. A run that goes on meanwhile is not disturbed.

    Args:
        workdir: the run's folder.
        which: a step, 'latest', or 'best': the one with the best top-1, the latest where none was evaluated.
        ema: the moving average if the run has one.

    Raises:
        TrainingError: there is no such checkpoint, or it cannot be read.
    """
    folder = workdir / FOLDER
    if not folder.is_dir():
        raise TrainingError(f'{workdir}: has no {FOLDER}; give the folder of a training run')
    logging.getLogger('absl').setLevel(logging.CRITICAL)
    try:
        with ocp.training.Checkpointer(str(folder.absolute())) as checkpointer:
            found = {c.step: (c.metrics or {}).get(BEST) for c in checkpointer.checkpoints}
    except Exception as error:
        raise TrainingError(f'{folder}: cannot be read: {_first(error)}') from error
    if not found:
        raise TrainingError(f'{folder}: holds no checkpoint yet')
    step = _choose(found, which)
    if step not in found:
        there = ', '.join(map(str, sorted(found)))
        raise TrainingError(f'{folder}: holds no checkpoint of step {step}; there is {there}')
    path = str(folder.absolute() / str(step))
    try:
        saved = ocp.metadata(path, 'state').metadata
        averaged = bool(ema and saved.get('ema'))
        trees = saved['ema'] if averaged else saved
        wanted = {name: trees[name] for name in ('params', 'batch_stats')}
        # As NumPy arrays, since the devices that they were saved from may not be here; and nothing but them.
        wanted = jax.tree.map(lambda leaf: np.empty(leaf.shape, leaf.dtype), wanted)
        chosen = {'ema': wanted} if averaged else wanted
        left_out = {name: jax.tree.map(lambda _: ocp.PLACEHOLDER, saved[name]) for name in saved.keys() - chosen.keys()}
        state = ocp.load(path, left_out | chosen, checkpointable_name='state')
    except Exception as error:
        raise TrainingError(f'{path}: cannot be read: {_first(error)}') from error
    state = state['ema'] if averaged else state
    return Weights(step, found[step], state['params'], state['batch_stats'], averaged, bool(saved.get('ema')))


def _choose(found: dict[int, float | None], which: int | str) -> int:
    """The step that is meant, given the top-1 of each."""
    if isinstance(which, int):
        return which
    rated = {step: top1 for step, top1 in found.items() if which == 'best' and top1 is not None}
    return max(rated, key=lambda step: (rated[step], step)) if rated else max(found)
