"""Part 4: the same bits twice with --deterministic, also after a kill; without it, how much two runs differ."""

import dataclasses
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
from benchmarking.processes import JobError, in_new_process

from convert.comparison import relative_error
from gpu_checking.machine import JOBS, ROOT, missing_packages, pip_line
from gpu_checking.models import seeded_workload
from gpu_checking.records import CheckError, Finding, last_error
from gpu_checking.sizes import Sizes
from tresnet_jax.checkpoints.run import CHECKPOINTS, load_weights

STEPS, RESUME = 'two trainings from the same weights', 'kill and resume'
LOOP_PACKAGES = ('grain', 'orbax', 'tensorboardX')  # of train.py
FLAGS = (
    '--recipe',
    'fashion_mnist',
    '--deterministic',
    '--checkpoint-every',
    '1',
    '--eval-every',
    '100',
    '--seed',
    '1',
)


def run(sizes: Sizes, folder: Path) -> Iterator[Finding]:
    """Yield two deterministic trainings, a run that was killed, and two trainings without the flag."""
    first, *others = sizes.deterministic_of
    yield twice(sizes, folder, first, deterministic=True)
    if missing := missing_packages(LOOP_PACKAGES):
        yield Finding(RESUME, 'train.py', note=f'left out: {pip_line(missing)}')
    else:
        yield killed_and_resumed(folder, sizes.steps)
    yield twice(sizes, folder, first, deterministic=False)
    for name in others:
        yield twice(sizes, folder, name, deterministic=True)
        yield twice(sizes, folder, name, deterministic=False)


def twice(sizes: Sizes, folder: Path, name: str, *, deterministic: bool) -> Finding:
    """Train twice in new processes and compare the weights."""
    batch = sizes.train_batches[-1]
    workload = seeded_workload(folder, name, sizes.image_size, sizes.dtypes[0], os.cpu_count() or 1)
    label = f'{name}, {workload.dtype}, {sizes.steps} steps' + ', deterministic' * deterministic
    # Autotuning may choose other kernels in each process, which a compilation cache would hide.
    environment = {'JAX_ENABLE_COMPILATION_CACHE': 'false'}
    paths = [folder / f'{deterministic}{i}.npz' for i in range(2)]
    try:
        found = [
            in_new_process(
                'train_some',
                {'workload': dataclasses.asdict(workload), 'batch': batch, 'steps': sizes.steps}
                | {'deterministic': deterministic, 'keep': str(path)},
                None,
                environment,
                JOBS,
            )
            for path in paths
        ]
    except JobError as error:
        return Finding(STEPS, label, passed=False, note=str(error))
    same = found[0]['digest'] == found[1]['digest']
    values = {'same bits': 'yes' if same else 'no', 'largest relative difference': distance(*paths)}
    return Finding(STEPS, label, values | {'loss': found[0]['loss']}, passed=same if deterministic else None)


def distance(one: Path, other: Path) -> float:
    """Return the largest relative difference of the arrays in two .npz files."""
    with np.load(one) as ours, np.load(other) as theirs:
        return max(relative_error(ours[name], theirs[name]) for name in theirs.files)


def killed_and_resumed(folder: Path, steps: int) -> Finding:
    """Train with train.py, once undisturbed, and once killed after a checkpoint and resumed; compare the weights."""
    label = f'train.py, test_resnet, {steps} steps'
    try:
        finish(start(folder / 'whole', steps), folder / 'whole')
        process = start(folder / 'killed', steps)
        reached = wait_for_checkpoint(process, folder / 'killed')
        process.send_signal(signal.SIGKILL)
        process.wait()
        finish(start(folder / 'killed', steps), folder / 'killed')
        whole, resumed = (weights(folder / name) for name in ('whole', 'killed'))
    except ValueError as error:
        return Finding(RESUME, label, passed=False, note=str(error))
    same = all(np.array_equal(a, b) for a, b in zip(whole, resumed, strict=True))
    values = {'killed after step': reached, 'same bits': 'yes' if same else 'no'}
    return Finding(RESUME, label, values, passed=same)


def start(workdir: Path, steps: int) -> subprocess.Popen:
    """Start, or resume, a run of train.py on the images in the package. Its errors go to WORKDIR.log."""
    command = [sys.executable, str(ROOT / 'scripts' / 'train.py'), *FLAGS, '--steps', str(steps), '--devices', '1']
    with workdir.with_suffix('.log').open('w') as errors:  # not a pipe, which would have to be read meanwhile
        return subprocess.Popen([*command, '--workdir', str(workdir)], stdout=2, stderr=errors)


def finish(process: subprocess.Popen, workdir: Path) -> None:
    """Wait for a run. Raises CheckError if it fails."""
    if process.wait():
        errors = workdir.with_suffix('.log').read_text(encoding='utf-8', errors='replace')
        print(errors, file=sys.stderr)
        raise CheckError(f'train.py: {last_error(errors)}')


def wait_for_checkpoint(process: subprocess.Popen, workdir: Path) -> int:
    """Return the step of the first complete checkpoint. Raises CheckError if the run ends before."""
    while True:
        folder = workdir / CHECKPOINTS
        steps = [int(path.name) for path in folder.glob('*') if path.name.isdecimal()]
        if steps:
            return max(steps)
        if process.poll() is not None:
            finish(process, workdir)
            raise CheckError('train.py ended before its first checkpoint was seen')
        time.sleep(0.01)


def weights(workdir: Path) -> list[np.ndarray]:
    """Return the weights and statistics of the last checkpoint of a run."""
    found = load_weights(workdir, 'latest')
    return [np.asarray(leaf) for leaf in jax.tree.leaves((found.params, found.batch_stats))]
