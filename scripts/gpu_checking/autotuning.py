"""Part 6: time with and without autotuning, what it chooses, and 1x1 convolutions as matrix products."""

import dataclasses
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarking.measures import ALONE
from benchmarking.processes import JobError, in_new_process
from gpu_reporting.devices import AUTOTUNING_OFF

from gpu_checking.machine import JOBS
from gpu_checking.models import seeded_workload
from gpu_checking.records import Finding
from gpu_checking.sizes import Sizes

CHOICES = 'autotuning, and 1x1 convolutions as matrix products'
PAYS = 0.97  # products pay off at this ratio of times or less; a smaller gain is noise


@dataclasses.dataclass(frozen=True)
class Choice:
    """A way to compile a program."""

    name: str
    autotune: bool = True
    products: bool = False


CONVOLUTIONS = Choice('convolutions')
CHOICE_ROWS = (CONVOLUTIONS, Choice('convolutions, no autotuning', autotune=False), Choice('products', products=True))


def run(sizes: Sizes, folder: Path) -> Iterator[Finding]:
    """Yield a row for each program and way to compile it, each in a process of its own."""
    batches = {'inference': sizes.infer_batches[0], 'train': sizes.train_batches[0]}
    for model in sizes.models:
        workload = seeded_workload(folder, model, sizes.image_size, sizes.dtypes[0], os.cpu_count() or 1)
        for what, batch in batches.items():
            label = f'{model}, {what}, {workload.dtype}, batch {batch}'
            seconds: float | None = None
            for choice in CHOICE_ROWS:
                arguments = {'what': what, 'batch': batch, 'products': choice.products, 'seconds': sizes.turn_seconds}
                try:
                    found = in_new_process(
                        'time_program',
                        {'workload': dataclasses.asdict(workload), **arguments},
                        None,
                        environment(choice),
                        JOBS,
                    )
                except JobError as error:
                    yield Finding(CHOICES, f'{label}: {choice.name}', passed=False, note=str(error))
                    continue
                seconds = found['call seconds'] if choice == CONVOLUTIONS else seconds
                yield finding(f'{label}: {choice.name}', found, seconds, choice)


def environment(choice: Choice) -> dict[str, str]:
    """Return the environment variables of the process that compiles; a cache on disk would hide the compilation."""
    found = {**ALONE, 'JAX_ENABLE_COMPILATION_CACHE': 'false'}
    if not choice.autotune:
        found['XLA_FLAGS'] = f'{os.environ.get("XLA_FLAGS", "")} {AUTOTUNING_OFF}'.strip()
    return found


def finding(name: str, found: dict[str, Any], convolutions: float | None, choice: Choice) -> Finding:
    """Return the row of a program; `convolutions` are the seconds of `CONVOLUTIONS`."""
    took = found.pop('call seconds')
    ratio = convolutions and took / convolutions
    values = {'ms': 1e3 * took, 'time / that of convolutions': ratio, **found}
    note = ''
    if choice.products and ratio:
        note = 'products pay here' if ratio <= PAYS else 'convolutions, the default on GPUs, are right here'
    return Finding(CHOICES, name, values, note=note)
