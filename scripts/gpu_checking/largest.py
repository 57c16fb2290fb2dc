"""Part 7: the largest batch of each memory mode. Everything runs in new processes."""

import os
from collections.abc import Iterator
from pathlib import Path

from benchmarking.contenders import CONTENDERS
from benchmarking.measures import ALONE, Bench
from benchmarking.processes import in_new_process
from gpu_reporting.results import read_report
from gpu_reporting.rows import memory_modes

from gpu_checking.machine import JOBS, ROOT
from gpu_checking.memory import mode_name
from gpu_checking.models import seeded_workload
from gpu_checking.records import Finding
from gpu_checking.sizes import Sizes

LARGEST = 'largest batch of a training step'
MODE_CONTENDERS = {  # the benchmark's rows of the modes
    ('plain', False): 'ours',
    ('inplace', False): 'ours-inplace',
    ('lean', False): 'ours-lean',
    ('recompute', False): 'ours-recompute',
    ('plain', True): 'ours-remat',
}
REPORTED = {'16 GB': 16e9, '80 GB': 80e9}


def run(sizes: Sizes, folder: Path) -> Iterator[Finding]:
    """Search for the largest batches, first in mode 'plain' for each model, then in the other modes."""
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
