"""Part 3: images per second beside other libraries, the bounds of the device, scaling, and the longest kernels."""

import dataclasses
import os
import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
from benchmarking import jobs
from benchmarking.contenders import CONTENDERS, Contender
from benchmarking.jax_side import JaxSide, ours
from benchmarking.measures import SHARED
from benchmarking.processes import JobError, failure, in_new_process, is_out_of_memory
from benchmarking.sides import Workload

import tresnet_jax
from gpu_checking import kernels, rates
from gpu_checking.attempts import attempt
from gpu_checking.machine import JOBS, missing_packages, pip_line
from gpu_checking.models import seeded_workload
from gpu_checking.programs import compile_program, work_of
from gpu_checking.records import Finding, Value
from gpu_checking.sizes import Sizes

BOUND, SCALING, KERNELS, RATES = (
    'bound of the device', 'scaling over devices', 'longest kernels', 'rates of the device'
)  # fmt: skip
SPEED = 'images per second'
TITLES = {
    'main': SPEED,
    'modes': f'{SPEED} of the memory modes',
    'timm': f"{SPEED} beside all of timm's forms",
}
# What takes turns, by table and measure; those that are not installed are left out. Separate tables, because each
# contender takes long to compile, and the first table should be there even if the time is short.
CONTENDING = {
    'main': {
        'train': ('ours', 'timm-channels-last', 'jax-resnet'),
        'inference': ('ours-folded', 'ours', 'timm-channels-last', 'jax-resnet'),
    },
    'modes': {'train': ('ours', 'ours-inplace', 'ours-lean', 'ours-recompute', 'ours-remat')},
    'timm': {
        'train': ('ours', 'timm-eager', 'timm-channels-last', 'timm-compile'),
        'inference': ('ours-folded', 'timm-eager', 'timm-channels-last', 'timm-compile'),
    },
}
OURS = {'inference': 'ours-folded', 'train': 'ours'}  # whose bound is counted


@dataclasses.dataclass(frozen=True)
class Rates:
    """Bytes and operations per second of the device, by dtype."""

    moving: float
    computing: dict[str, float]


def run(sizes: Sizes, folder: Path) -> Iterator[Finding]:
    """Yield the rates of the device, then the speeds and the bound of each case.

    The longest kernels follow the cases of the first model, whose kernels are then tuned, and scaling follows them.
    """
    yield from left_out()
    measured = Rates(
        rates.bandwidth(sizes.stream_bytes, sizes.turn_seconds),
        {dtype: rates.arithmetic(sizes.product_edge, dtype, sizes.turn_seconds) for dtype in sizes.dtypes},
    )
    yield from rate_findings(measured)
    cases = list(ordered_cases(sizes))
    for place, case in enumerate(cases):
        yield from attempt(TITLES[case.contenders], case.name, time_case(sizes, folder, case, measured))
        if place + 1 == len(CONTENDING['main']):
            yield from attempt(KERNELS, 'all', profile(folder, sizes))
            yield from attempt(SCALING, 'all', scaling(folder, sizes))


@dataclasses.dataclass(frozen=True)
class Case:
    """What contenders take turns at, and who they are, a key of `CONTENDING`."""

    contenders: str
    what: str
    model: str
    dtype: str
    batch: int

    @property
    def name(self) -> str:
        return f'{self.model}, {self.what}, {self.dtype}, batch {self.batch}'


def ordered_cases(sizes: Sizes) -> Iterator[Case]:
    """Yield all cases, the most important first: by dtype the first table, the other tables and the other batches."""
    batches = {'train': sizes.train_batches, 'inference': sizes.infer_batches}
    for dtype in sizes.dtypes:
        for which in sizes.contenders:
            for model in sizes.models:
                for what in CONTENDING[which]:
                    yield Case(which, what, model, dtype, batches[what][0])
        for place in range(1, max(map(len, batches.values()))):
            for model in sizes.models:
                for what in (what for what, numbers in batches.items() if place < len(numbers)):
                    yield Case('main', what, model, dtype, batches[what][place])


def left_out() -> Iterator[Finding]:
    """Name the libraries that could take part but are not installed."""
    if missing := missing_packages(('torch', 'timm', 'jax_resnet')):
        yield Finding(SPEED, 'other libraries', note=f'left out: {pip_line(missing)}')


def rate_findings(measured: Rates) -> Iterator[Finding]:
    """Show the measured rates beside the data sheet's."""
    kind = jax.local_devices()[0].device_kind
    sheet = rates.data_sheet(kind)
    note = '' if sheet else f'no data sheet of {kind} is known here'
    values: dict[str, Value] = {'measured': measured.moving / 1e9, 'data sheet': sheet and sheet.bandwidth / 1e9}
    yield Finding(RATES, 'memory, GB/s', values, note=note)
    for dtype, computing in measured.computing.items():
        values = {'measured': computing / 1e12, 'data sheet': sheet and sheet.peak(dtype) / 1e12}
        yield Finding(RATES, f'products in {dtype}, TFLOP/s', values, note=note)


def time_case(sizes: Sizes, folder: Path, case: Case, measured: Rates) -> Iterator[Finding]:
    """Let the contenders of a case take turns, and count the bound of our program."""
    workload = seeded_workload(folder, case.model, sizes.image_size, case.dtype, os.cpu_count() or 1)
    taking_part = [row.name for row in contenders(case, workload)]
    if len(taking_part) < 2 and case.contenders != 'main':
        return
    found = jobs.side_by_side(
        dataclasses.asdict(workload), taking_part, {case.what: [case.batch]}, sizes.rounds, sizes.turn_seconds, False
    )
    seconds = {name: statistics.median(values) for _, _, name, values in found['seconds']}
    yield from speeds(case, seconds)
    for name, message in found['failures']:
        # A GPU may be too small for this batch, and other libraries are not what is checked.
        passed = False if name.startswith('ours') and not is_out_of_memory(message) else None
        yield Finding(TITLES[case.contenders], f'{case.name}: {name}', passed=passed, note=message)
    if case.contenders == 'main' and OURS[case.what] in seconds:
        yield from attempt(BOUND, case.name, bound(case, workload, seconds[OURS[case.what]], measured))


def contenders(case: Case, workload: Workload) -> list[Contender]:
    """Return the installed contenders that take part in a case."""
    rows = [CONTENDERS[name] for name in CONTENDING[case.contenders][case.what]]
    return [row for row in rows if row.is_installed() and row.takes(workload) and case.what in row.measures]


def speeds(case: Case, seconds: dict[str, float]) -> Iterator[Finding]:
    """Yield a row for each contender, with its ratio to timm's best."""
    timm = min((value for name, value in seconds.items() if name.startswith('timm')), default=None)
    for name, value in seconds.items():
        values: dict[str, Value] = {'images/s': case.batch / value, 'ms': 1e3 * value}
        values['times as fast as timm'] = timm and timm / value
        yield Finding(TITLES[case.contenders], f'{case.name}: {name}', values)


def bound(case: Case, workload: Workload, seconds: float, measured: Rates) -> Iterator[Finding]:
    """Compile our program once more, which the compilation cache spares, and compare its time with the bound."""
    side = ours(workload, folded=case.what == 'inference')
    work = work_of(compile_program(side, workload, case.what, case.batch))
    values = rates.bound(work, seconds, measured.moving, measured.computing[case.dtype])
    yield Finding(BOUND, case.name, values, note='' if work else 'unavailable: this compiler counts nothing')


def scaling(folder: Path, sizes: Sizes) -> Iterator[Finding]:
    """Time a training step on 1, 2, 4, ... devices with the same batch on each (weak scaling)."""
    count, batch = len(jax.local_devices()), sizes.train_batches[0]
    if count == 1:
        yield Finding(SCALING, 'all', note='unavailable: there is one device')
        return
    workload = seeded_workload(folder, sizes.models[0], sizes.image_size, sizes.dtypes[0], os.cpu_count() or 1)
    alone: float | None = None
    for devices in device_counts(count):
        arguments = {'devices': devices, 'batch': batch, 'seconds': sizes.turn_seconds}
        name = f'{workload.architecture}, {workload.dtype}, {batch} images on each of {devices}'
        try:
            seconds = in_new_process(
                'scale', {'workload': dataclasses.asdict(workload), **arguments}, None, SHARED, JOBS
            )
        except JobError as error:
            yield Finding(SCALING, name, passed=False, note=str(error))
            continue
        alone = seconds if devices == 1 else alone
        values = {'images/s': devices * batch / seconds, 'efficiency': alone and alone / seconds}
        yield Finding(SCALING, name, values)


def device_counts(count: int) -> Sequence[int]:
    """Return 1, 2, 4, ... and the number of all devices."""
    powers = [2**i for i in range(count.bit_length()) if 2**i < count]
    return [*powers, count]


def profile(folder: Path, sizes: Sizes) -> Iterator[Finding]:
    """Yield the longest kernels of a training step of the first model."""
    workload = seeded_workload(folder, sizes.models[0], sizes.image_size, sizes.dtypes[0], os.cpu_count() or 1)
    model = tresnet_jax.create_model(workload.architecture, checkpoint=workload.weights, dtype=workload.dtype)
    layers = kernels.name_layers(model)
    side = JaxSide(*tresnet_jax.functional(model), workload.dtype)
    batch = sizes.train_batches[0]
    title = f'{KERNELS}, training step of {workload.architecture}, {workload.dtype}, batch {batch}'
    try:
        found: Any = kernels.longest_kernels(compile_program(side, workload, 'train', batch), layers)
    except Exception as error:  # the profiler depends on the driver and on the user's rights
        yield Finding(title, 'all', note=f'unavailable: {failure(error)[0]}')
        return
    for name, values in kernels.rows(found):
        yield Finding(title, name, values)
