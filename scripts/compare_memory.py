"""Train the same tiny TResNet in every memory mode, and draw how far their losses part.

    python scripts/compare_memory.py --out memory_modes

The modes are the same mathematics rounded differently, and training spreads small differences. So beside them stands
'plain' on two devices, whose sums are rounded in another order: the noise that any of them may have.
"""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import tyro
from matplotlib.figure import Figure

from tresnet_jax.files import save_text, written_beside
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
    losses: np.ndarray  # of each step
    top1: float  # at the end, a share


def train(folder: Path, flags: list[str], steps: int, model: str) -> Curve:
    """A run of its own process, since the number of devices cannot change in one."""
    command = [sys.executable, str(TRAIN), '--recipe', 'fashion_mnist', '--model', model, '--dtype', 'bfloat16']
    command += ['--devices', '1', '--steps', str(steps), '--log-every', '1', '--eval-every', '1e9', *flags]
    subprocess.run([*command, '--workdir', str(folder)], check=True, stdout=subprocess.DEVNULL)
    rows = read_records(folder)
    losses = [row['loss'] for row in rows if row['kind'] == 'train']
    return Curve(np.array(losses), next(row['top1'] for row in reversed(rows) if row['kind'] == 'eval'))


def smooth(values: np.ndarray, over: int = 10) -> np.ndarray:
    return np.convolve(values, np.full(over, 1 / over), 'valid')


def plot(curves: dict[str, Curve], out: Path) -> None:
    figure = Figure(figsize=(9, 4), layout='constrained')
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
    with written_beside(out.with_suffix('.png')) as beside:
        figure.savefig(beside, format='png', dpi=120)


def main(out: Path = Path('memory_modes'), steps: int = 200, model: str = 'test_tresnet') -> int:
    """Train in every mode below OUT/, and write OUT.json and OUT.png.

    Args:
        out: the folder of the runs, and the files without their suffixes.
        steps: of each run.
        model: a TResNet.
    """
    curves = {}
    for i, (name, flags) in enumerate(RUNS.items()):
        print(f'{name} ({i + 1} of {len(RUNS)})', flush=True)
        curves[name] = train(out / name.replace(', ', '_').replace(' ', '_'), flags, steps, model)
    distances = {name: np.abs(curve.losses - curves['plain'].losses) for name, curve in curves.items()}
    print(f'{"":18}{"first 20 steps":>16}{"all steps":>12}{"last loss":>12}{"top-1":>10}')
    for name, curve in curves.items():
        first, mean = distances[name][:20].mean(), distances[name].mean()
        last = curve.losses[-20:].mean()
        print(f'{name:18}{first:16.5f}{mean:12.5f}{last:12.4f}{100 * curve.top1:8.2f} %')
    save_text(out.with_suffix('.json'), json.dumps({name: list(curve.losses) for name, curve in curves.items()}))
    plot(curves, out)
    return 0


if __name__ == '__main__':
    sys.exit(tyro.cli(main))
