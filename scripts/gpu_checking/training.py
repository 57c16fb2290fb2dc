"""Part 5: a real training on the images in the package, whose accuracy on a CPU is known.

``python -m gpu_checking.training`` trains on this machine's CPU and writes `CPU_FILE`.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from gpu_checking.machine import ROOT
from gpu_checking.records import CheckError, Finding
from gpu_checking.sizes import Sizes
from tresnet_jax.files import save_text
from tresnet_jax.training.metrics import read_records
from tresnet_jax.version import __version__

ACCURACY = 'top-1 accuracy on the 500 test images in the package, percent'
CPU_FILE = Path(__file__).parent / 'cpu_accuracy.json'
SETTINGS = {'recipe': 'fashion_mnist', 'model': 'test_resnet'}  # flags of train.py
SEEDS = 3
# Percentage points. 1.5 points are a standard error of 500 images, but the images and the seeds are the same here, so
# that only rounding differs: on a CPU, two devices change seed 0 by 0.4 points, bfloat16 changes seed 1 by 0.8.
MARGIN = 1.5


def run(sizes: Sizes, folder: Path) -> Iterator[Finding]:
    """Yield the accuracy of each seed, and how far their mean is from the CPU's with the same seeds."""
    cpu = [float(value) for value in json.loads(CPU_FILE.read_text(encoding='utf-8'))['accuracies'][: sizes.seeds]]
    found = []
    for seed, expected in enumerate(cpu):
        accuracy, images_per_second = train(folder / f'seed{seed}', seed, sizes.epochs)
        found.append(accuracy)
        values = {'here': accuracy, 'on a CPU': expected, 'images/s': images_per_second}
        yield Finding(ACCURACY, f'seed {seed}', values)
    difference = statistics.mean(found) - statistics.mean(cpu)
    values = {'here': statistics.mean(found), 'on a CPU': statistics.mean(cpu), 'difference': difference}
    if sizes.epochs is not None:
        yield Finding(ACCURACY, 'mean', values, note='no verdict: a short trial')
    else:
        yield Finding(ACCURACY, 'mean', values | {'bound': MARGIN}, passed=abs(difference) <= MARGIN)


def train(
    workdir: Path, seed: int, epochs: float | None = None, environment: Mapping[str, str] = os.environ
) -> tuple[float, float | None]:
    """Run train.py on one device; return the final accuracy in percent, and the images per second of its last line.

    Raises:
        CheckError: it failed.
    """
    flags = {**SETTINGS, 'seed': seed, 'devices': 1, 'workdir': workdir} | (
        {} if epochs is None else {'epochs': epochs}
    )
    command = [sys.executable, str(ROOT / 'scripts' / 'train.py')]
    command += [word for name, value in flags.items() for word in (f'--{name}', str(value))]
    done = subprocess.run(command, stdout=2, stderr=subprocess.PIPE, text=True, env=dict(environment))
    if done.returncode:
        raise CheckError(f'train.py: {(done.stderr.strip().splitlines() or ["it failed"])[-1]}')
    records = read_records(workdir)
    top1 = next(row['top1'] for row in reversed(records) if row['kind'] == 'eval')
    speeds: list[Any] = [row.get('images_per_second') for row in records if row['kind'] == 'train']
    return 100 * top1, speeds[-1] if speeds else None


def write_cpu_accuracy() -> None:
    """Train on this machine's CPU and write `CPU_FILE`."""
    environment = {**os.environ, 'JAX_PLATFORMS': 'cpu'}
    with tempfile.TemporaryDirectory() as folder:
        accuracies = [train(Path(folder) / str(seed), seed, environment=environment)[0] for seed in range(SEEDS)]
    document = {'settings': SETTINGS, 'tresnet_jax': __version__, 'seeds': [*range(SEEDS)], 'accuracies': accuracies}
    save_text(CPU_FILE, json.dumps(document, indent=1) + '\n')


if __name__ == '__main__':
    sys.exit(write_cpu_accuracy())
