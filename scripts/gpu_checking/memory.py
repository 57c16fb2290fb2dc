"""Part 2: gradients, peak memory and the largest batch of the memory modes. Everything runs in new processes."""

import dataclasses
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarking.contenders import CONTENDERS
from benchmarking.measures import ALONE, Bench
from benchmarking.processes import JobError, in_new_process
from gpu_reporting.results import read_report
from gpu_reporting.rows import memory_modes

from gpu_checking.machine import JOBS, ROOT
from gpu_checking.models import seeded_workload
from gpu_checking.records import Finding
from gpu_checking.sizes import Sizes

# A program that was read from a cache may not report what it needs.
UNCACHED = {'JAX_ENABLE_COMPILATION_CACHE': 'false'}
AGREE, PEAK, LARGEST = 'gradients of the modes', 'peak memory of a training step', 'largest batch of a training step'
MODE_CONTENDERS = {  # the benchmark's rows of the modes
    ('plain', False): 'ours',
    ('inplace', False): 'ours-inplace',
    ('lean', False): 'ours-lean',
    ('recompute', False): 'ours-recompute',
    ('plain', True): 'ours-remat',
}
# A mode rounds at other places; 'inplace' also divides by scales, of which seeded weights have some that are small.
AGREEMENT = 1e-4
EXPECTED = 0.1  # a peak may differ from the compiler's figure by this share: workspaces, and buffers of the runtime
REPORTED = {'16 GB': 16e9, '80 GB': 80e9}


def run(sizes: Sizes, folder: Path) -> Iterator[Finding]:
    """Yield whether the modes agree, then their peaks, then their largest batches."""
    for name in sizes.modes_of:
        yield from agreement(name)
    for name in sizes.peak_of:
        yield from peaks(folder, name, sizes)
    yield from largest_batches(folder, sizes)


def mode_name(abn_memory: str, remat: bool) -> str:
    return abn_memory + ', remat' * remat


def agreement(name: str) -> Iterator[Finding]:
    """Compare the gradients of every mode with those of 'plain', in float32 at the highest precision."""
    modes = [mode for mode in memory_modes(name) if mode != ('plain', False)]
    try:
        errors = in_new_process('mode_errors', {'architecture': name, 'modes': modes}, None, {}, JOBS)
    except JobError as error:
        yield Finding(AGREE, name, passed=False, note=str(error))
        return
    for mode, error in zip(modes, errors, strict=True):
        values = {'largest difference': error, 'bound': AGREEMENT}
        yield Finding(AGREE, f'{name}, {mode_name(*mode)}', values, passed=error <= AGREEMENT)


def peaks(folder: Path, name: str, sizes: Sizes) -> Iterator[Finding]:
    """Measure the peak of each mode in a process of its own, because a peak never falls."""
    batch = sizes.train_batches[0]
    workload = seeded_workload(folder, name, sizes.image_size, sizes.dtypes[0], os.cpu_count() or 1)
    for abn_memory, remat in memory_modes(name):
        label = f'{name}, {mode_name(abn_memory, remat)}, batch {batch}'
        options = {'abn_memory': abn_memory, 'remat': remat}
        arguments = {'workload': dataclasses.asdict(workload), 'batch': batch, 'options': options}
        try:
            found = in_new_process('peak', arguments, None, ALONE | UNCACHED, JOBS)
        except JobError as error:
            # A GPU may be too small for this batch, which is not a fault.
            yield Finding(PEAK, label, passed=None if error.out_of_memory else False, note=str(error))
            continue
        yield peak_finding(label, found)


def peak_finding(label: str, found: dict[str, Any]) -> Finding:
    """Return the row of a mode from what `jobs.peak` found."""
    needed = found['needed'] or {}
    values = {f'{what}, MB': value / 1e6 for what, value in needed.items()}
    if 'peak' not in found:
        return Finding(PEAK, label, values, note='unavailable: this device does not count its memory')
    ratio = found['peak'] / found['expected']
    values |= {'expected, MB': found['expected'] / 1e6, 'peak, MB': found['peak'] / 1e6, 'peak / expected': ratio}
    if not needed:
        return Finding(PEAK, label, values, note='unavailable: the compiler does not report what it needs')
    if found['after compiling'] >= found['peak']:
        return Finding(PEAK, label, values, note='no verdict: loading and autotuning took more than the steps')
    return Finding(PEAK, label, values, passed=abs(ratio - 1) <= EXPECTED)


def largest_batches(folder: Path, sizes: Sizes) -> Iterator[Finding]:
    """Search for the largest batches, first in mode 'plain' for each model, then in the other modes."""
    if not sizes.largest_of:
        yield Finding(LARGEST, 'all', note='left out: takes too long for this level; use --full')
        return
    memory = in_new_process('about', {}, None, ALONE, JOBS)['memory_bytes']
    if memory is None:
        yield Finding(LARGEST, 'all', note='unavailable: a CPU has no memory of its own to fill')
        return
    for mode, contender in MODE_CONTENDERS.items():
        for name in (name for name in sizes.largest_of if mode in memory_modes(name)):
            workload = seeded_workload(folder, name, sizes.image_size, sizes.dtypes[0], os.cpu_count() or 1)
            bench = Bench(workload, [CONTENDERS[contender]], None, folder)
            expected = expected_batch(f'train {name} {mode[0]}' + ' remat' * mode[1], memory)
            found = bench.largest_batch('train', max(8, int(0.9 * (expected or 9))))
            values = {'images': int(found[0].values[0]) if found else None, 'expected from docs/gpu_report': expected}
            note = '; '.join(message for _, message in bench.failures)
            yield Finding(LARGEST, f'{name}, {mode_name(*mode)}', values, passed=None if found else False, note=note)


def expected_batch(program: str, memory: int) -> int | None:
    """Return the batch that docs/gpu_report.json predicts for `memory` bytes; None if it has no such program."""
    largest = read_report(ROOT / 'docs' / 'gpu_report.json').get('largest', {}).get(program)
    if not largest:
        return None
    (small, few), (large, many) = ((REPORTED[limit], batch) for limit, batch in largest.items())
    return max(0, int(few + (memory - small) * (many - few) / (large - small)))
