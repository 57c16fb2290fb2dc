"""Train a tiny TResNet in every memory mode and plot the differences of the losses.

    python scripts/compare_memory.py --out memory_modes

The modes compute the same function with different rounding, and training amplifies small differences. As a reference
for this noise, 'plain' is also trained on two devices, which changes the order of summation.
"""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import tyro

from tresnet_jax.cli.common import program_name
from tresnet_jax.files import save_text
from tresnet_jax.plotting import new_figure, save_figure
from tresnet_jax.training.metrics import read_records

RUNS = {
    'plain': [],
    'plain, 2 devices': ['--devices', '2'],
    'plain, float32': ['--dtype', 'float32'],
    'inplace': ['--abn-memory', 'inplace'],
    'lean': ['--abn-memory', 'lean'],
    'recompute': ['--abn-memory', 'recompute'],
    'lean, remat': ['--abn-memory', 'lean', '--remat'],
}
TRAIN = Path(__file__).parent / 'train.py'


@dataclasses.dataclass(frozen=True)
class Curve:
    """The loss of each step, and the final top-1 accuracy as a fraction."""

    losses: np.ndarray
    top1: float


def train_mode(folder: Path, flags: list[str], steps: int, model: str) -> Curve:
    """Train in a new process, because the number of devices is fixed within one."""
    command = [sys.executable, str(TRAIN), '--recipe', 'fashion_mnist', '--model', model, '--dtype', 'bfloat16']
    command += ['--devices', '1', '--steps', str(steps), '--log-every', '1', '--eval-every', '1e9', *flags]
    subprocess.run([*command, '--workdir', str(folder)], check=True, stdout=subprocess.DEVNULL)
    rows = read_records(folder)
    losses = [row['loss'] for row in rows if row['kind'] == 'train']
    return Curve(np.array(losses), next(row['top1'] for row in reversed(rows) if row['kind'] == 'eval'))


def smooth(values: np.ndarray, over: int = 10) -> np.ndarray:
    """Return the moving average of `over` values."""
    return np.convolve(values, np.full(over, 1 / over), 'valid')


def plot_losses(curves: dict[str, Curve], out: Path) -> None:
    """Write a PNG of the losses and of their distances from those of 'plain'."""
    figure = new_figure(9, 4)
    left, right = figure.subplots(1, 2)
    for name, curve in curves.items():
        style = {'linewidth': 1, 'linestyle': '--' if name.startswith('plain') else '-', 'label': name}
        left.plot(smooth(curve.losses), **style)
        if name != 'plain':
            right.plot(smooth(np.abs(curve.losses - curves['plain'].losses)), **style)
    left.set(xlabel='step', ylabel='loss, mean of 10 steps')
    right.set(xlabel='step', ylabel='distance from the loss of plain, mean of 10 steps', yscale='log')
    for axis in (left, right):
        axis.grid(alpha=0.3)
        axis.legend(fontsize='small')
    save_figure(figure, out.with_suffix('.png'), dpi=120)


def main(out: Path = Path('memory_modes'), steps: int = 200, model: str = 'test_tresnet') -> int:
    """Train in every mode in folders below OUT/, print a table, and write OUT.json and OUT.png.

    Args:
        out: folder of the runs, and path of the two files without suffix.
        steps: steps of each run.
        model: a TResNet architecture.
    """
    curves = {}
    for i, (name, flags) in enumerate(RUNS.items()):
        print(f'{name} ({i + 1} of {len(RUNS)})', flush=True)
        curves[name] = train_mode(out / name.replace(', ', '_').replace(' ', '_'), flags, steps, model)
    distances = {name: np.abs(curve.losses - curves['plain'].losses) for name, curve in curves.items()}
    print(f'{"":18}{"first 20 steps":>16}{"all steps":>12}{"last loss":>12}{"top-1":>10}')
    for name, curve in curves.items():
        first, mean = distances[name][:20].mean(), distances[name].mean()
        last = curve.losses[-20:].mean()
        print(f'{name:18}{first:16.5f}{mean:12.5f}{last:12.4f}{100 * curve.top1:8.2f} %')
    save_text(out.with_suffix('.json'), json.dumps({name: list(curve.losses) for name, curve in curves.items()}))
    plot_losses(curves, out)
    return 0


if __name__ == '__main__':
    sys.exit(tyro.cli(main, prog=program_name()))
