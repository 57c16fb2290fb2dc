"""What a run says of itself: lines or a bar, metrics.jsonl, TensorBoard, and curves.png."""

import json
import math
import sys
import time
from pathlib import Path
from typing import Any

import tqdm

from convert.write import save_text, written_beside

FILE = 'metrics.jsonl'


class Metrics:
    """Writes the metrics of a run below its folder. Only the first process of a run has one that writes.

    Args:
        workdir: the run's folder.
        start: the step the run goes on from; what was written of later ones is dropped.
        steps: of the whole run.
        active: False for the other processes, which say nothing.
    """

    def __init__(self, workdir: Path, *, start: int, steps: int, active: bool):
        self._active = active
        self._steps = steps
        self._workdir = workdir
        if not active:
            return
        from tensorboardX import SummaryWriter

        _drop_after(workdir / FILE, start)
        self._file = (workdir / FILE).open('a', encoding='utf-8')
        self._board = SummaryWriter(str(workdir / 'tensorboard'), purge_step=start + 1)
        self._bar = tqdm.tqdm(initial=start, total=steps, unit='step', disable=not sys.stderr.isatty())

    def advance(self) -> None:
        """One step more for the bar."""
        if self._active:
            self._bar.update()

    def say(self, line: str) -> None:
        """Print a line, above the bar where there is one."""
        if self._active:
            self._bar.write(line, file=sys.stdout)
            sys.stdout.flush()

    def train(self, values: dict[str, float], seconds_left: float) -> None:
        """The metrics of an interval: step, epoch, loss, lr, top1, images_per_second, wait (a share of the time)."""
        self._write('train', values)
        self.say(
            f'step {values["step"]:,}/{self._steps:,}  epoch {values["epoch"]:.2f}  loss {values["loss"]:.4f}  '
            f'top-1 {100 * values["top1"]:.1f} %  lr {values["lr"]:.3g}  {values["images_per_second"]:.0f} img/s  '
            f'waits {100 * values["wait"]:.0f} %  left {_time(seconds_left)}'
        )

    def evaluation(self, values: dict[str, float]) -> None:
        """Those of an evaluation: step, top1, top5, loss, count, and with a moving average ema_top1, ..."""
        self._write('eval', values)
        average = f'  (average: {100 * values["ema_top1"]:.2f} %)' if 'ema_top1' in values else ''
        self.say(
            f'step {values["step"]:,}: evaluation of {values["count"]:,.0f} pictures: '
            f'top-1 {100 * values["top1"]:.2f} %{average}  top-5 {100 * values["top5"]:.2f} %  '
            f'loss {values["loss"]:.4f}'
        )
        if self._active:
            plot(self._workdir)

    def _write(self, kind: str, values: dict[str, float]) -> None:
        if not self._active:
            return
        finite = {name: value if math.isfinite(value) else None for name, value in values.items()}  # JSON has no NaN
        self._file.write(json.dumps({'kind': kind, 'time': time.time(), **finite}) + '\n')
        self._file.flush()
        for name, value in values.items():
            if name != 'step':
                self._board.add_scalar(f'{kind}/{name}', value, int(values['step']))

    def close(self) -> None:
        if self._active:
            self._bar.close()
            self._board.close()
            self._file.close()


def read(workdir: Path) -> list[dict[str, Any]]:
    """The records of metrics.jsonl in order; a last line that was cut off is left out."""
    path = workdir / FILE
    lines = path.read_text(encoding='utf-8').split('\n') if path.exists() else []
    return [json.loads(line) for line in lines[:-1]]


def _drop_after(path: Path, step: int) -> None:
    """Keep the records up to a step: a run that goes on makes the later ones again."""
    if path.exists():
        kept = [json.dumps(record) + '\n' for record in read(path.parent) if record['step'] <= step]
        save_text(path, ''.join(kept))


def plot(workdir: Path) -> None:
    """Draw loss, accuracy and learning rate of a run over its steps: curves.png."""
    from matplotlib.figure import Figure

    records = read(workdir)
    figure = Figure(figsize=(12, 3.6), layout='constrained')
    axes = figure.subplots(1, 3)
    for axis, names, scale, title in (
        (axes[0], {'loss': 'loss'}, 1, 'loss'),
        (axes[1], {'top1': 'top-1', 'ema_top1': 'top-1 of the average'}, 100, 'accuracy in percent'),
        (axes[2], {'lr': 'learning rate'}, 1, 'learning rate'),
    ):
        for kind, label in (('train', 'training'), ('eval', 'evaluation')):
            for name, what in names.items():
                of_kind = [r for r in records if r['kind'] == kind and r.get(name) is not None]
                points = [(r['step'], scale * r[name]) for r in of_kind]
                if points:
                    axis.plot(*zip(*points, strict=True), '.-' if kind == 'eval' else '-', label=f'{what}, {label}')
        axis.set_title(title)
        axis.set_xlabel('step')
        axis.grid(alpha=0.3)
        if axis.lines:
            axis.legend(fontsize=8)
    with written_beside(workdir / 'curves.png') as beside:
        figure.savefig(beside, format='png', dpi=120)


def _time(seconds: float) -> str:
    """12 s, 3:05 min, 2:03 h or 1 d 4 h."""
    if not math.isfinite(seconds):
        return 'unknown'
    minutes, hours = divmod(int(seconds), 60)[0], int(seconds) // 3600
    if seconds < 60:
        return f'{seconds:.0f} s'
    if hours == 0:
        return f'{minutes}:{int(seconds) % 60:02} min'
    return f'{hours}:{minutes % 60:02} h' if hours < 48 else f'{hours // 24} d {hours % 24} h'
