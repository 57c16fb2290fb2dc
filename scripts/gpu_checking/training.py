"""Part 5: a real training on the images in the package, whose accuracy on a CPU is known.

``python -m gpu_checking.training`` trains on this machine's CPU and writes `CPU_FILE`.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from gpu_checking.machine import ROOT
from gpu_checking.records import CheckError, Finding, last_error
from gpu_checking.sizes import Sizes
from tresnet_jax.files import save_text
from tresnet_jax.training.metrics import read_records
from tresnet_jax.version import __version__

ACCURACY = 'top-1 accuracy on the 500 test images in the package, percent'
CPU_FILE = Path(__file__).parent / 'cpu_accuracy.json'
SETTINGS = {'recipe': 'fashion_mnist', 'model': 'test_resnet'}  # flags of train.py
SEEDS = 3
# Percentage points, of the mean of `SEEDS` runs. 1.5 points are a standard error of 500 images, but the images and the
# seeds are the same here, so that only rounding differs: on a CPU, two devices change seed 0 by 0.4 points, bfloat16
# changes seed 1 by 0.8. A mean of fewer runs varies more.
MARGIN = 1.5


def run(sizes: Sizes, folder: Path) -> Iterator[Finding]:
    """Yield after each seed how far the mean of the accuracies is from that of the CPU with the same seeds."""
    cpu = [float(value) for value in json.loads(CPU_FILE.read_text(encoding='utf-8'))['accuracies'][: sizes.seeds]]
    found: list[float] = []
    for seed in range(len(cpu)):
        found.append(train(folder / f'seed{seed}', seed, sizes.epochs))
        yield verdict(found, cpu, is_whole=sizes.epochs is None)


def verdict(found: Sequence[float], cpu: Sequence[float], *, is_whole: bool) -> Finding:
    """Return the row of the last of the runs that are done: its accuracy, and the mean of all of them."""
    count = len(found)
    difference, bound = statistics.mean(found) - statistics.mean(cpu[:count]), MARGIN * (SEEDS / count) ** 0.5
    values = {
        'here': found[-1],
        'on a CPU': cpu[count - 1],
        'mean difference so far': difference,
        'bound': bound if is_whole else None,
    }
    name = f'seed {count - 1}'
    if not is_whole:
        return Finding(ACCURACY, name, values, note='no verdict: a short trial')
    return Finding(ACCURACY, name, values, passed=abs(difference) <= bound)


def train(workdir: Path, seed: int, epochs: float | None = None, environment: Mapping[str, str] = os.environ) -> float:
    """Run train.py on one device; return the final accuracy in percent.

    Raises:
        CheckError: it failed.
    """
    flags = {**SETTINGS, 'seed': seed, 'devices': 1, 'workdir': workdir} | (
        {} if epochs is None else {'epochs': epochs}
    )
    command = [sys.executable, str(ROOT / 'scripts' / 'train.py')]
    command += [word for name, value in flags.items() for word in (f'--{name}', str(value))]
    done = subprocess.run(command, stdout=2, stderr=subprocess.PIPE, text=True, env=dict(environment))
    print(done.stderr, file=sys.stderr)
    if done.returncode:
        raise CheckError(f'train.py: {last_error(done.stderr)}')
    records = read_records(workdir)
    return 100 * next(row['top1'] for row in reversed(records) if row['kind'] == 'eval')


def write_cpu_accuracy() -> None:
    """Train on this machine's CPU and write `CPU_FILE`."""
    environment = {**os.environ, 'JAX_PLATFORMS': 'cpu'}
    with tempfile.TemporaryDirectory() as folder:
        accuracies = [train(Path(folder) / str(seed), seed, environment=environment) for seed in range(SEEDS)]
    document = {'settings': SETTINGS, 'tresnet_jax': __version__, 'seeds': [*range(SEEDS)], 'accuracies': accuracies}
    save_text(CPU_FILE, json.dumps(document, indent=1) + '\n')


if __name__ == '__main__':
    sys.exit(write_cpu_accuracy())
