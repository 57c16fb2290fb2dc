"""Part 2: gradients and peak memory of the memory modes. Everything runs in new processes."""

import dataclasses
import itertools
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarking.measures import ALONE
from benchmarking.processes import JobError, in_new_process
from gpu_reporting.program import Program
from gpu_reporting.results import read_report
from gpu_reporting.rows import memory_modes

from gpu_checking.machine import JOBS, ROOT
from gpu_checking.models import seeded_workload
from gpu_checking.parity import SIGN_CHANGE
from gpu_checking.records import Finding
from gpu_checking.sizes import Sizes

AGREE, PEAK = 'gradients of the modes', 'peak memory of a training step'
# A mode rounds at other places, and so does 'plain' with the images in another order, which shows what rounding alone
# does. Usually that is 1e-6, but see `parity.SIGN_CHANGE`.
NOISE_FACTOR = 5
EXPECTED = 0.1  # a peak may differ from the compiler's figure by this share: workspaces, and buffers of the runtime


def run(sizes: Sizes, folder: Path) -> Iterator[Finding]:
    """Yield whether the modes of the first network agree and the peaks of the first, then the same of the others."""
    for agreeing, peaking in itertools.zip_longest(sizes.modes_of, sizes.peak_of):
        if agreeing is not None:
            yield from agreement(agreeing)
        if peaking is not None:
            yield from peaks(folder, peaking, sizes)


def mode_name(abn_memory: str, remat: bool) -> str:
    return abn_memory + ', remat' * remat


def agreement(name: str) -> Iterator[Finding]:
    """Compare the gradients of every mode with those of 'plain', in float32 at the highest precision."""
    modes = [mode for mode in memory_modes(name) if mode != ('plain', False)]
    try:
        found = in_new_process('mode_errors', {'architecture': name, 'modes': modes}, None, {}, JOBS)
    except JobError as error:
        yield Finding(AGREE, name, passed=False, note=str(error))
        return
    bound = max(SIGN_CHANGE, NOISE_FACTOR * found['noise'])
    for mode, error in zip(modes, found['errors'], strict=True):
        values = {'largest difference': error, 'of another order': found['noise'], 'bound': bound}
        yield Finding(AGREE, f'{name}, {mode_name(*mode)}', values, passed=error <= bound)


def peaks(folder: Path, name: str, sizes: Sizes) -> Iterator[Finding]:
    """Measure the peak of each mode in a process of its own, because a peak never falls."""
    batch = sizes.train_batches[0]
    workload = seeded_workload(folder, name, sizes.image_size, sizes.dtypes[0], os.cpu_count() or 1)
    for abn_memory, remat in memory_modes(name):
        label = f'{name}, {mode_name(abn_memory, remat)}, batch {batch}'
        options = {'abn_memory': abn_memory, 'remat': remat}
        arguments = {'workload': dataclasses.asdict(workload), 'batch': batch, 'options': options}
        # A cache of this part's own: a program that was read from a cache may not report what it needs.
        environment = ALONE | {'JAX_COMPILATION_CACHE_DIR': str(folder / 'compiled')}
        try:
            found = in_new_process('peak', arguments, None, environment, JOBS)
            if is_hidden(found):  # a second process reads the program from the cache and tries no kernels
                found = in_new_process('peak', arguments, None, environment, JOBS) | {'needed': found['needed']}
        except JobError as error:
            # A GPU may be too small for this batch, which is not a fault.
            yield Finding(PEAK, label, passed=None if error.out_of_memory else False, note=str(error))
            continue
        program = Program('train', name, batch, sizes.image_size, workload.dtype, abn_memory=abn_memory, remat=remat)
        yield peak_finding(label, found, reported_bytes(program))


def reported_bytes(program: Program) -> int | None:
    """Return the temporaries in docs/gpu_report.json, for an H100 without autotuning; None if they are not there."""
    rows = read_report(ROOT / 'docs' / 'gpu_report.json')['programs']
    return next((row['figures']['temp_bytes'] for row in rows if Program(**row['program']) == program), None)


def is_hidden(found: dict[str, Any]) -> bool:
    """Return whether loading and compiling took more memory than the steps, in what `jobs.peak` found."""
    return 'peak' in found and found['after compiling'] >= found['peak']


def peak_finding(label: str, found: dict[str, Any], reported: int | None = None) -> Finding:
    """Return the row of a mode from what `jobs.peak` found, beside the temporaries in docs/gpu_report.json."""
    needed = found['needed'] or {}
    values = {f'{what}, MB': value / 1e6 for what, value in needed.items()}
    values |= {} if reported is None else {'temporaries in docs/gpu_report, MB': reported / 1e6}
    if 'peak' not in found:
        return Finding(PEAK, label, values, note='unavailable: this device does not count its memory')
    values['peak, MB'] = found['peak'] / 1e6
    if not needed:
        return Finding(PEAK, label, values, note='unavailable: the compiler does not report what it needs')
    expected = found['in use'] + needed['temporaries'] + needed['results']
    ratio = found['peak'] / expected
    values |= {'expected, MB': expected / 1e6, 'peak / expected': ratio}
    if is_hidden(found):
        return Finding(PEAK, label, values, note='no verdict: loading and autotuning took more than the steps')
    return Finding(PEAK, label, values, passed=abs(ratio - 1) <= EXPECTED)
