"""Checkpoints of a run, written by Orbax in the background: the training state and the position in the data."""

import contextlib
import dataclasses
import json
import shutil
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from orbax.checkpoint import v1 as ocp

from tresnet_jax.checkpoints.digests import DIGESTS, check_digests, digests
from tresnet_jax.checkpoints.run import CHECKPOINTS, METRICS_PART, STATE_PART, stored_metrics
from tresnet_jax.checkpoints.run_arrays import check_arrays
from tresnet_jax.errors import ConversionError, TrainingError, reason
from tresnet_jax.files import save_text
from tresnet_jax.training.devices import everywhere, everywhere_true, to_global, to_local
from tresnet_jax.training.lock import LOCK_FILE
from tresnet_jax.training.step import TrainState

GONE = 'the folder has gone'
DAMAGED = 'damaged_checkpoints'  # the folder of a run for checkpoints that could not be resumed
NOT_DAMAGE = ('RESOURCE_EXHAUSTED', 'PERMISSION_DENIED')  # in errors of JAX and TensorStore


class Checkpoints:
    """The checkpoints in RUN/checkpoints, one folder per step. A checkpoint is complete or absent.

    Args:
        workdir: folder of the run.
        keep_last: number of latest checkpoints to keep.
        keep_best: number of the best checkpoints to keep in addition.
        metric: the metric that decides which are the best, one of `checkpoints.checkpoint.METRICS`.

    Raises:
        ConversionError: the metrics of a checkpoint are damaged.
        TrainingError: the folder cannot be read, or made.
    """

    def __init__(self, workdir: Path, *, keep_last: int, keep_best: int, metric: str = 'top1'):
        found = stored_metrics(workdir)
        self._ratings = {step: metrics[metric] for step, metrics in found.items() if metric in metrics}
        self._metric = metric
        self._always: set[int] = set()
        self._folder = workdir / CHECKPOINTS
        self._lock = workdir / LOCK_FILE
        self._locked = self._lock.exists()
        self._writing = 0
        try:
            self._checkpointer = ocp.training.Checkpointer(
                str(self._folder.absolute()),
                save_decision_policy=_SaveAlways(),
                preservation_policy=_Kept(keep_last, keep_best, self._ratings, self._always),
                cleanup_tmp_directories=True,  # left by a process that was killed while saving
            )
        except Exception as error:  # Orbax wraps the file system's errors in many classes
            raise TrainingError(f'{self._folder}: cannot be read or made: {reason(error)}') from error

    @property
    def latest(self) -> int | None:
        """The step of the latest checkpoint; None if there is none."""
        latest = self._checkpointer.latest
        return None if latest is None else latest.step

    def keep(self, steps: Iterable[int]) -> None:
        """Never delete the checkpoints of these steps."""
        self._always.update(steps)

    def save(self, step: int, state: TrainState, data: Any) -> None:
        """Wait until the previous checkpoint is written, then start to write this one.

        Args:
            step: number of the step.
            state: on every device.
            data: the batch iterator; its position is saved.

        Raises:
            TrainingError: this checkpoint, or the previous one, cannot be written.
        """
        state = to_global(state)
        metadata: dict[str, Any] = {DIGESTS: digests(_checked(state, data))}
        with self._writes():
            self._checkpointer.wait()
            if self._is_gone():  # Orbax would create it, perhaps where a file system is no longer mounted
                raise FileNotFoundError(GONE)
            self._writing = step
            items = {'state': state, 'data': data}
            self._checkpointer.save_checkpointables_async(step, items, custom_metadata=metadata)

    def rate(self, step: int, value: float) -> None:
        """Add the result of an evaluation to a checkpoint, after waiting until it is written.

        The file is the one in which Orbax writes and reads the metrics of a checkpoint. Orbax itself would save the
        whole checkpoint again.

        Args:
            step: number of a step that was saved.
            value: its metric.

        Raises:
            TrainingError: the checkpoint or the file cannot be written.
        """
        self.wait()
        self._ratings[step] = value
        if jax.process_index() == 0:
            file = self._folder / str(step) / METRICS_PART
            try:
                file.parent.mkdir(exist_ok=True)
                save_text(file, json.dumps({self._metric: value}))
            except (OSError, ConversionError) as error:
                raise TrainingError(f'{file}: cannot be written: {reason(error)}') from error

    def wait(self) -> None:
        """Wait until the last checkpoint is written.

        Raises:
            TrainingError: it cannot be written.
        """
        with self._writes():
            self._checkpointer.wait()

    def restore(self, state: TrainState, data: Any) -> tuple[TrainState, list[str]]:
        """Return the state of the latest checkpoint that is not damaged, and set `data` to its position.

        Damaged ones after it are moved to the folder DAMAGED of the run.

        Args:
            state: a state with the same structure, shapes and dtypes.
            data: the batch iterator.

        Returns:
            The state, and a line about each damaged checkpoint.

        Raises:
            TrainingError: no checkpoint can be read, or they do not fit the configuration, or memory or a permission
                is missing, or a damaged one cannot be moved.
        """
        abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=everywhere()), state)
        problems: dict[int, str] = {}
        for step in sorted((checkpoint.step for checkpoint in self._checkpointer.checkpoints), reverse=True):
            problem, loaded = '', None
            try:
                loaded = self._load(step, abstract, data)
            except Exception as error:  # Orbax's and TensorStore's classes; ours for wrong digests or structure
                problem = reason(error)
                if isinstance(error, MemoryError | PermissionError) or any(code in str(error) for code in NOT_DAMAGE):
                    raise TrainingError(
                        f'{self._folder / str(step)}: cannot be resumed: {problem}; it may be undamaged, so '
                        'the run does not go back to the one before. Free memory or fix permissions, then start the '
                        'run again'
                    ) from error
            if everywhere_true(not problem):
                assert loaded is not None
                return loaded, self._move_damaged(problems, step)
            problems[step] = problem or 'another process of the run cannot read it'
        latest, problem = next(iter(problems.items()))
        raise TrainingError(f'{self._folder / str(latest)}: cannot be resumed: {problem}')

    def _load(self, step: int, abstract: Any, data: Any) -> TrainState:
        """Return the state of one checkpoint, and set `data` to its position. Raises an error if it is damaged."""
        unreadable = None
        try:
            check_arrays(self._folder.absolute() / str(step) / STATE_PART)  # before Orbax, which would print tracebacks
        except Exception as error:  # TensorStore's classes
            unreadable = error
        if not everywhere_true(unreadable is None):  # while loading, they would wait for it
            raise unreadable or ValueError('another process of the run cannot read it')
        loaded = self._checkpointer.load_checkpointables(step, {'state': abstract, 'data': data})
        state = to_local(loaded['state'])
        if int(state.step) != step:
            raise ValueError(f'it has the state of step {int(state.step)}')
        check_digests(self._folder / str(step), _checked(state, data))
        return state

    def _move_damaged(self, problems: dict[int, str], resumed: int) -> list[str]:
        """Move damaged checkpoints out of the way of those that the run will save. Return a line about each."""
        lines = []
        for step, problem in problems.items():
            source, target = self._folder / str(step), self._folder.parent / DAMAGED / str(step)
            if jax.process_index() == 0:
                try:
                    target.parent.mkdir(exist_ok=True)
                    shutil.rmtree(target, ignore_errors=True)  # left by an earlier resume
                    source.rename(target)
                except OSError as error:
                    raise TrainingError(
                        f'{source}: is damaged ({problem}), and cannot be moved: {reason(error)}'
                    ) from error
            self._ratings.pop(step, None)
            lines.append(f'{source} is damaged ({problem}) and now in {target}; the run resumes at step {resumed:,}')
        if problems and everywhere_true(True):  # after the first process has moved them
            self._checkpointer.reload()
        return lines

    def close(self) -> None:
        """Wait until the last checkpoint is written, and release the folder. It is removed if it is empty.

        Raises:
            TrainingError: it cannot be written.
        """
        with self._writes():
            self._checkpointer.close()
        if jax.process_index() == 0:  # Orbax creates the folder even for a run that is refused
            with contextlib.suppress(OSError):
                self._folder.rmdir()

    @contextlib.contextmanager
    def _writes(self) -> Iterator[None]:
        """Turn the errors of Orbax, which writes in the background, into a TrainingError."""
        try:
            yield
        except Exception as error:  # Orbax and TensorStore wrap the errors of the file system in many classes
            names = [path.name for path in self._folder.iterdir()] if self._folder.is_dir() else []
            complete = sorted(int(name) for name in names if name.isdecimal())
            last = f'the last good checkpoint is step {complete[-1]}' if complete else 'there is no earlier one'
            why, remedy = reason(error), 'Free disk space or fix permissions, then start the run again'
            if self._is_gone():
                last, why, remedy = 'the earlier ones are in it', GONE, 'Start the run again when it is back'
            raise TrainingError(
                f'{self._folder}: the checkpoint of step {self._writing} cannot be written ({why}); {last}. '
                f'{remedy}; it resumes from there'
            ) from error

    def _is_gone(self) -> bool:
        """Return whether the folder is no longer there. A save in progress creates it again, without the lock."""
        return not self._folder.is_dir() or (self._locked and not self._lock.exists())


def _checked(state: TrainState, data: Any) -> dict[str, Any]:
    """Return what the digests of a checkpoint are made of: the state, and the position of the batch iterator."""
    position = json.dumps(data.get_state(), sort_keys=True, default=str).encode()
    fields = {field.name: getattr(state, field.name) for field in dataclasses.fields(state)}
    return fields | {'data': np.frombuffer(position, np.uint8)}


class _Kept:
    """Keep the latest checkpoints, the best of those that were rated (of equal ones, the later), and some steps."""

    def __init__(self, latest: int, best: int, ratings: dict[int, float], always: Collection[int]):
        self._latest, self._best, self._ratings, self._always = latest, best, ratings, always

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        del context
        steps = [checkpoint.step for checkpoint in checkpoints]
        rated = sorted(((self._ratings[step], step) for step in steps if step in self._ratings), reverse=True)
        kept = {*sorted(steps)[-self._latest :], *(step for _, step in rated[: self._best])}
        return [step in kept or step in self._always for step in steps]


class _SaveAlways:
    """Save on every call of `save`; the loop decides when to call it."""

    def should_save(self, step: Any, previous_steps: Any, *, context: Any) -> bool:
        del step, previous_steps, context
        return True
