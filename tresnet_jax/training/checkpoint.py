"""The checkpoints of a run: Orbax, written in the background, with the position in the data."""

import logging
from pathlib import Path
from typing import Any

import jax
from orbax.checkpoint import v1 as ocp

from tresnet_jax.checkpoints.run import BEST, CHECKPOINTS
from tresnet_jax.errors import TrainingError, reason
from tresnet_jax.training.devices import everywhere, to_global, to_local
from tresnet_jax.training.step import TrainState


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
        self._folder = workdir / CHECKPOINTS
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
                f'{self._folder / str(self.latest)}: cannot be resumed from: {reason(error)}'
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
            f'{self._folder}: the checkpoint of step {self._writing} cannot be written ({reason(error)}); {good}. '
            'Make room or mend the folder, then start the run again: it goes on from there'
        )


class _Always:
    """Save whenever asked: when that is, the loop says."""

    def should_save(self, step: Any, previous_steps: Any, *, context: Any) -> bool:
        del step, previous_steps, context
        return True
