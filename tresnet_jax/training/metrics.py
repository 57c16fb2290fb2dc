"""Run logging: console, metrics.jsonl, TensorBoard, wandb and curves.png; and the metrics of steps in flight."""

import collections
import contextlib
import json
import math
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tqdm

from tresnet_jax.checkpoints.checkpoint import METRICS
from tresnet_jax.errors import TrainingError, amount, missing_extra, reason
from tresnet_jax.files import save_text
from tresnet_jax.plotting import new_figure, save_figure
from tresnet_jax.training.board import Board

METRICS_FILE = 'metrics.jsonl'
FREE = 'Free disk space or fix permissions, then start the run again; it resumes from its last checkpoint'


class RunLog:
    """Prints the metrics of a run and writes them to its folder.

    Args:
        workdir: folder of the run.
        start: the step the run starts or resumes from; records of later steps are dropped.
        steps: number of steps of the whole run.
        active: False makes every method do nothing; for all processes of a run except the first.
        wandb: a run at Weights & Biases that gets the metrics too, as `open_wandb` yields it.

    Raises:
        MissingExtraError: tensorboardX or Matplotlib is not installed.
        TrainingError: a file cannot be written; the methods raise it too.
    """

    def __init__(self, workdir: Path, *, start: int, steps: int, active: bool, wandb: Any = None):
        self._active = active
        self._wandb = wandb
        self._steps = steps
        self._workdir = workdir
        if not active:
            return
        try:
            import matplotlib.figure  # noqa: F401  not needed before the first evaluation; report its absence now
            import tensorboardX  # noqa: F401
        except ModuleNotFoundError as error:
            raise missing_extra(error) or error from None

        _drop_after(workdir / METRICS_FILE, start)
        with self._writes():
            self._file = (workdir / METRICS_FILE).open('a', encoding='utf-8')
            self._board = Board(workdir / 'tensorboard', start)
        self._bar = tqdm.tqdm(initial=start, total=steps, unit='step', disable=not sys.stderr.isatty())

    def advance(self) -> None:
        """Advance the progress bar by one step."""
        if self._active:
            self._bar.update()

    def say(self, line: str) -> None:
        """Print a line, above the progress bar if there is one."""
        if self._active:
            self._bar.write(line, file=sys.stdout)
            sys.stdout.flush()

    def train(self, values: dict[str, float], seconds_left: float) -> None:
        """Log the metrics of an interval.

        Args:
            values: `Interval.summary`: step, epoch, loss, lr, images_per_second, wait (share of the time), maybe top1,
                task_loss and kd_loss.
            seconds_left: estimated seconds to the end of the run.
        """
        self._write('train', values)
        accuracy = f'top-1 {100 * values["top1"]:.1f} %  ' if 'top1' in values else ''
        if 'kd_loss' in values:
            accuracy = f'({values["task_loss"]:.4f} of the labels, {values["kd_loss"]:.4f} of the teacher)  {accuracy}'
        self.say(
            f'step {values["step"]:,}/{self._steps:,}  epoch {values["epoch"]:.2f}  loss {values["loss"]:.4f}  '
            f'{accuracy}lr {values["lr"]:.3g}  {values["images_per_second"]:.0f} img/s  '
            f'waits {100 * values["wait"]:.0f} %  left {_time(seconds_left)}'
        )

    def evaluation(self, values: dict[str, float]) -> None:
        """Log the metrics of an evaluation: step, loss, count, some of METRICS; with a moving average, ema_top1 etc."""
        self._write('eval', values)
        found = [f'{title} {100 * values[name]:.2f} %' for name, title in METRICS.items() if name in values]
        first = next(name for name in METRICS if name in values)
        if f'ema_{first}' in values:
            found[0] += f'  (average: {100 * values[f"ema_{first}"]:.2f} %)'
        self.say(
            f'step {values["step"]:,}: evaluation of {amount(round(values["count"]), "image")}: {"  ".join(found)}  '
            f'loss {values["loss"]:.4f}'
        )
        if self._active:
            plot_curves(self._workdir)

    def _write(self, kind: str, values: dict[str, float]) -> None:
        if not self._active:
            return
        finite = {name: value if math.isfinite(value) else None for name, value in values.items()}  # JSON has no NaN
        with self._writes():
            self._file.write(json.dumps({'kind': kind, 'time': time.time(), **finite}) + '\n')
            self._file.flush()
            scalars = {f'{kind}/{name}': value for name, value in values.items() if name != 'step'}
            self._board.add(int(values['step']), scalars)
        if self._wandb is not None:
            self._wandb.log({'step' if name == 'step' else f'{kind}/{name}': value for name, value in values.items()})

    def close(self) -> None:
        """Close the progress bar and the files."""
        if self._active:
            self._bar.close()
            for file in (self._board, self._file):
                with contextlib.suppress(OSError):  # all was flushed, or reported
                    file.close()

    @contextlib.contextmanager
    def _writes(self) -> Iterator[None]:
        """Turn errors of the file system into a TrainingError."""
        try:
            yield
        except OSError as error:
            raise TrainingError(f'{self._workdir}: the metrics cannot be written: {reason(error)}. {FREE}') from error


class Interval:
    """Mean metrics, throughput and waiting time of the steps between two log lines.

    Args:
        batch_size: images per step.
        names: the metrics that are NaN if no step is finite.

    Attributes:
        last: metrics of the last finite step.
        waited: seconds spent waiting for data.
    """

    def __init__(self, batch_size: int, names: tuple[str, ...] = ('loss', 'top1')):
        self._batch_size = batch_size
        self._names = names
        self._rate = math.nan
        self.last: dict[str, float] = {}
        self.restart()

    def restart(self) -> None:
        """Begin a new interval."""
        self._values: list[dict[str, float]] = []
        self.restart_clock()

    def restart_clock(self) -> None:
        """Exclude the steps so far from the throughput, but not from the mean metrics."""
        self.waited = 0.0
        self._began = time.perf_counter()
        self._untimed = len(self._values)

    def add(self, values: dict[str, float]) -> None:
        """Add the metrics of one step."""
        self.last = values
        self._values.append(values)

    def summary(self, step: int, epoch: float, lr: float) -> dict[str, float]:
        """Return the mean metrics of the interval, which are NaN if it has no finite step."""
        seconds = time.perf_counter() - self._began
        self._rate = (len(self._values) - self._untimed) / seconds
        means = {name: float(np.mean([v[name] for v in self._values])) for name in self.last if self._values}
        return {
            'step': step,
            'epoch': epoch,
            **dict.fromkeys(self._names, math.nan),
            **means,
            'lr': lr,
            'images_per_second': self._rate * self._batch_size,
            'wait': self.waited / seconds,
        }

    def seconds_left(self, steps: int) -> float:
        """Return the time that `steps` more steps take at the rate of the last summary; infinity if it is 0."""
        return steps / self._rate if self._rate > 0 else math.inf


class PendingSteps:
    """Metrics of steps in flight. They are fetched late, so that the devices never wait for the host.

    Args:
        log: reports skipped steps.
        interval: gets the metrics of finite steps.
        skip_nonfinite: number of steps with a non-finite loss or gradient that the run may skip.
        nonfinite: number of steps it has skipped so far.
    """

    def __init__(self, log: RunLog, interval: Interval, skip_nonfinite: int, nonfinite: int):
        self._log = log
        self._interval = interval
        self._skip_nonfinite = skip_nonfinite
        self._nonfinite = nonfinite
        self._steps: collections.deque[tuple[int, dict[str, Any], Any]] = collections.deque()

    def add(self, step: int, values: dict[str, Any], indices: Any) -> None:
        """Add a step that was dispatched: its number, its metrics, and the indices of its images in the source."""
        self._steps.append((step, values, indices))

    def fetch(self, keep: int = 0) -> None:
        """Fetch the metrics of pending steps until only the last `keep` remain.

        Raises:
            TrainingError: more than `skip_nonfinite` steps had a non-finite loss or gradient.
        """
        while len(self._steps) > keep:
            step, values, indices = self._steps.popleft()
            if values.pop('finite'):
                self._interval.add({name: float(value) for name, value in values.items()})
            else:
                self._nonfinite += 1
                self._report(step, values, indices)

    def _report(self, step: int, values: dict[str, Any], indices: Any) -> None:
        found = ', '.join(f'{name} {float(value):.4g}' for name, value in values.items())
        images = ' '.join(str(i) for i in np.concatenate([np.ravel(s.data) for s in indices.addressable_shards]))
        before = ', '.join(f'{name} {value:.4g}' for name, value in self._interval.last.items()) or 'none'
        what = f'step {step}: {found}; last finite: {before}; images of the batch, by index: {images}'
        allowed = self._skip_nonfinite
        if self._nonfinite > allowed:
            raise TrainingError(
                f'{what}. The weights are as they were before this step. Lower --lr, clip with --clip-grad, '
                f'or skip such steps with --skip-nonfinite N (now {allowed})'
            )
        self._log.say(f'skipped {what} ({self._nonfinite} of at most {allowed})')


def read_records(workdir: Path) -> list[dict[str, Any]]:
    """Return the records of metrics.jsonl in order, without a truncated last line; [] if there is no file.

    Raises:
        TrainingError: the file cannot be read, or another line is not a record.
    """
    path = workdir / METRICS_FILE
    try:
        lines = path.read_bytes().split(b'\n') if path.exists() else []
    except OSError as error:
        raise TrainingError(f'{path}: cannot be read: {reason(error)}') from error
    return [_read_record(line, f'{path}: line {number}') for number, line in enumerate(lines[:-1], 1)]


def _read_record(line: bytes, where: str) -> dict[str, Any]:
    """Return a line of metrics.jsonl. Raises TrainingError if it is not a record."""
    try:
        record = json.loads(line)
        if isinstance(record['kind'], str) and type(record['step']) is int:
            return record
    except (ValueError, KeyError, TypeError, RecursionError):
        pass
    raise TrainingError(f'{where} is not a record of metrics; delete the line, or the file, to continue without it')


def has_evaluation(workdir: Path, step: int) -> bool:
    """Return whether metrics.jsonl has the evaluation of a step."""
    return any(record['kind'] == 'eval' and record['step'] == step for record in read_records(workdir))


def _drop_after(path: Path, step: int) -> None:
    """Drop records after `step`; a resumed run writes them again."""
    if path.exists():
        kept = [json.dumps(record) + '\n' for record in read_records(path.parent) if record['step'] <= step]
        save_text(path, ''.join(kept))


def plot_curves(workdir: Path) -> None:
    """Plot loss, accuracy and learning rate of a run over its steps to curves.png."""
    records = read_records(workdir)
    figure = new_figure(12, 3.6)
    axes = figure.subplots(1, 3)
    rated = {name: METRICS[name] for name in ('top1', 'semantic_top1', 'map')}
    accuracies = rated | {f'ema_{name}': f'{title} of the average' for name, title in rated.items()}
    for axis, names, scale, title in (
        (axes[0], {'loss': 'loss'}, 1, 'loss'),
        (axes[1], accuracies, 100, 'accuracy in percent'),
        (axes[2], {'lr': 'learning rate'}, 1, 'learning rate'),
    ):
        for kind, label in (('train', 'training'), ('eval', 'evaluation')):
            for name, what in names.items():
                found = [record for record in records if record['kind'] == kind and record.get(name) is not None]
                points = [(record['step'], scale * record[name]) for record in found]
                if points:
                    axis.plot(*zip(*points, strict=True), '.-' if kind == 'eval' else '-', label=f'{what}, {label}')
        axis.set_title(title)
        axis.set_xlabel('step')
        axis.grid(alpha=0.3)
        if axis.lines:
            axis.legend(fontsize=8)
    save_figure(figure, workdir / 'curves.png', dpi=120)


def _time(seconds: float) -> str:
    """Format a duration: 12 s, 3:05 min, 2:03 h or 1 d 4 h."""
    if not math.isfinite(seconds):
        return 'unknown'
    minutes = int(seconds) // 60
    hours = minutes // 60
    if minutes == 0:
        return f'{int(seconds)} s'
    if hours == 0:
        return f'{minutes}:{int(seconds) % 60:02} min'
    return f'{hours}:{minutes % 60:02} h' if hours < 48 else f'{hours // 24} d {hours % 24} h'
