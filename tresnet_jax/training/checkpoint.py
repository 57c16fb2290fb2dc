"""Checkpoints of a run, written by Orbax in the background: the training state and the position in the data."""

from pathlib import Path
from typing import Any

import jax
from orbax.checkpoint import v1 as ocp

from tresnet_jax.checkpoints.run import BEST, CHECKPOINTS
from tresnet_jax.errors import TrainingError, reason
from tresnet_jax.training.devices import everywhere, to_global, to_local
from tresnet_jax.training.step import TrainState


class Checkpoints:
    """The checkpoints in RUN/checkpoints, one folder per step. A checkpoint is complete or absent.

    Args:
        workdir: folder of the run.
        keep_last: number of latest checkpoints to keep.
        keep_best: number of checkpoints with the best top-1 to keep in addition.
    """

    def __init__(self, workdir: Path, *, keep_last: int, keep_best: int):
        policies: Any = ocp.training.preservation_policies
        best = policies.BestN(
            get_metric_fn=lambda metrics: metrics[BEST], n=keep_best, keep_checkpoints_without_metrics=False
        )
        self._folder = workdir / CHECKPOINTS
        self._writing = 0
        self._checkpointer = ocp.training.Checkpointer(
            str(self._folder.absolute()),
            save_decision_policy=_SaveAlways(),
            preservation_policy=policies.AnyPreservationPolicy([policies.LatestN(keep_last), best]),
            cleanup_tmp_directories=True,  # left by a process that was killed while saving
        )

    @property
    def latest(self) -> int | None:
        """The step of the latest checkpoint; None if there is none."""
        latest = self._checkpointer.latest
        return None if latest is None else latest.step

    @property
    def is_rated(self) -> bool:
        """Whether the latest checkpoint was saved with the metrics of an evaluation."""
        return BEST in (getattr(self._checkpointer.latest, 'metrics', None) or {})

    def save(self, step: int, state: TrainState, data: Any, metrics: dict[str, Any] | None = None) -> None:
        """Wait until the previous checkpoint is written, then start to write this one.

        Args:
            step: number of the step.
            state: on every device.
            data: the batch iterator; its position is saved.
            metrics: {BEST: top-1} if the step was evaluated.

        Raises:
            TrainingError: this checkpoint, or the previous one, cannot be written.
        """
        try:
            self._checkpointer.wait()
            self._writing = step
            self._checkpointer.save_checkpointables_async(
                step, {'state': to_global(state), 'data': data}, overwrite=True, metrics=metrics
            )
        except Exception as error:  # Orbax wraps the errors of the file system in many classes
            raise self._write_error(error) from error

    def wait(self) -> None:
        """Wait until the last checkpoint is written.

        Raises:
            TrainingError: it cannot be written.
        """
        try:
            self._checkpointer.wait()
        except Exception as error:
            raise self._write_error(error) from error

    def restore(self, state: TrainState, data: Any) -> TrainState:
        """Return the state of the latest checkpoint, and set `data` to its position.

        Args:
            state: a state with the same structure, shapes and dtypes.
            data: the batch iterator.

        Raises:
            TrainingError: the checkpoint cannot be read, or does not fit the configuration.
        """
        abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=everywhere()), state)
        try:
            loaded = self._checkpointer.load_checkpointables(self.latest, {'state': abstract, 'data': data})
        except Exception as error:
            raise TrainingError(f'{self._folder / str(self.latest)}: cannot be resumed: {reason(error)}') from error
        return to_local(loaded['state'])

    def close(self) -> None:
        """Wait until the last checkpoint is written, and release the folder.

        Raises:
            TrainingError: it cannot be written.
        """
        try:
            self._checkpointer.close()
        except Exception as error:
            raise self._write_error(error) from error

    def _write_error(self, error: Exception) -> TrainingError:
        complete = sorted(int(path.name) for path in self._folder.iterdir() if path.name.isdecimal())
        last = f'the last good checkpoint is step {complete[-1]}' if complete else 'there is no earlier one'
        return TrainingError(
            f'{self._folder}: the checkpoint of step {self._writing} cannot be written ({reason(error)}); {last}. '
            'Free disk space or fix permissions, then start the run again; it resumes from there'
        )


class _SaveAlways:
    """Save on every call of `save`; the loop decides when to call it."""

    def should_save(self, step: Any, previous_steps: Any, *, context: Any) -> bool:
        del step, previous_steps, context
        return True
