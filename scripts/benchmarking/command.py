"""`benchmark.py`: what is asked for, checked; each part run in processes of its own; and the files."""

import dataclasses
import importlib.metadata
import importlib.util
import os
import platform
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

import jax
import numpy as np
from flax import nnx

import convert
from benchmarking import results
from benchmarking.contenders import CONTENDERS, Contender
from benchmarking.measures import SHARED, Bench
from benchmarking.processes import JobError, in_new_process
from benchmarking.sides import CLASSES, Subject
from convert.golden import seeded_weights
from tresnet_jax.checkpoints.write import save_safetensors
from tresnet_jax.cli.common import fail, parse
from tresnet_jax.models.build import build_model
from tresnet_jax.models.initializers import ShapesOnly
from tresnet_jax.profiling import profile
from tresnet_jax.variants import split_name

PACKAGES = ('tresnet_jax', 'jax', 'flax', 'torch', 'timm', 'jaxnn', 'jax-resnet', 'keras-hub', 'keras')


class BenchmarkError(ValueError):
    """What was asked for cannot be done; one line says why."""


@dataclasses.dataclass(frozen=True)
class Command:
    """Time TResNet and ResNet-D beside timm in PyTorch and other JAX libraries.

    Exit codes: 0; 1, outputs differ (with --check) or a contender failed; 2, it cannot be done as asked.
    """

    models: tuple[str, ...] = ('resnet50d', 'tresnet_m')
    """Architectures."""
    what: tuple[Literal['inference', 'train', 'build', 'first_call', 'memory', 'largest_batch'], ...] = (
        'inference', 'train', 'build', 'first_call', 'memory',
    )  # fmt: skip
    """Measures. On a GPU largest_batch is possible too, and takes long."""
    batch_sizes: tuple[int, ...] = (1, 8, 32)
    """Images in a batch of inference. The first call has the first of these, memory is measured with the largest."""
    train_batch_sizes: tuple[int, ...] = (8,)
    """Images in a training step."""
    image_size: int = 224
    """Edge of the square images in pixels."""
    dtype: Literal['float32', 'bfloat16', 'float16'] = 'float32'
    """Of the computation. Below float32 other JAX libraries are left out."""
    rounds: int = 7
    """In which contenders take turns; one more before is not counted."""
    fresh_rounds: int = 3
    """The same of build and first_call, where every turn is a process of its own."""
    turn_seconds: float = 0.5
    """How long a turn calls, at least once, after a call that does not count."""
    threads: int | None = None
    """Cores for either side; all that the process may use when left out."""
    contenders: tuple[str, ...] | None = None
    """Who takes part; all that are installed when left out. Memory modes such as ours-lean must be named."""
    out: Path | None = None
    """Folder for benchmark.md, benchmark.csv and benchmark.png."""
    check: bool = False
    """First compare the outputs with timm's in float64, and time no model whose outputs differ."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code; wrong usage and ``--help`` raise SystemExit."""
    command = parse(Command, arguments)
    try:
        return run(command)
    except (ValueError, JobError, OSError) as error:
        return fail(error)


def run(command: Command) -> int:
    """Measure, print, and write after each part.

    Raises:
        ValueError: it cannot be done as asked.
    """
    contenders = chosen(command)
    architectures = [architecture_of(name, command.image_size) for name in command.models]
    cores = cores_for(command.threads)
    check_counts(command)
    if command.out is not None:
        command.out.mkdir(parents=True, exist_ok=True)
    load = f'{os.getloadavg()[0]:.1f}' if hasattr(os, 'getloadavg') else 'unknown'
    woken = in_new_process(
        'devices', {'contenders': [row.name for row in contenders], 'threads': cores}, command.threads, SHARED
    )
    devices = woken['devices']
    contenders = [row for row in contenders if row.name in devices]
    if 'largest_batch' in command.what and 'cpu' in devices.values():
        raise BenchmarkError(f'largest_batch needs a GPU for all contenders; {said(devices)}')
    about = describe(command, cores, devices, load)
    problems = [f'{name} was left out: {message}' for name, message in woken['failures']]
    found: list[results.Measurement] = []
    text = about
    with tempfile.TemporaryDirectory() as folder:
        for architecture in architectures:
            weights = Path(folder) / f'{architecture}.safetensors'
            save_safetensors(weights, draw(architecture))
            subject = Subject(architecture, str(weights), command.image_size, command.dtype, cores)
            bench = Bench(subject, contenders, command.threads, Path(folder) / 'compiled')
            if not bench.contenders:
                raise BenchmarkError(f'none of {", ".join(devices) or "them"} has {architecture} in {command.dtype}')
            try:
                for part in measured(bench, command):
                    found += part
                    rows = results.rows(found)
                    text = results.report(rows, about)
                    if command.out is not None and rows:
                        results.write(command.out, rows, text, about.splitlines()[0])
            except JobError as error:
                problems.append(f'{architecture}: {error}')
            problems += [f'{architecture}: {check}' for check in bench.checks if not check.agrees]
            problems += [f'{architecture}: {name} was left out: {message}' for name, message in bench.failures]
    print(text)
    for problem in problems:
        print(f'error: {problem}', file=sys.stderr)
    return 1 if problems else 0


def measured(bench: Bench, command: Command) -> Iterator[list[results.Measurement]]:
    """All that was asked for of one model, part by part; nothing where outputs differ."""
    sizes = {'inference': command.batch_sizes, 'train': command.train_batch_sizes}
    together = {what: batches for what, batches in sizes.items() if what in command.what}
    if together or command.check:
        yield bench.side_by_side(together, command.rounds, command.turn_seconds, command.check)
        print(''.join(f'{bench.subject.architecture}: {check}\n' for check in bench.checks), end='', flush=True)
        if not all(check.agrees for check in bench.checks):
            return
    starts = [what for what in ('build', 'first_call') if what in command.what]
    if starts:
        yield bench.from_the_start(starts, command.batch_sizes[0], command.fresh_rounds)
    for what, batches in sizes.items():
        if 'memory' in command.what:
            yield bench.memory(what, max(batches))
        if 'largest_batch' in command.what:
            yield bench.largest_batch(what)


def chosen(command: Command) -> list[Contender]:
    """The contenders asked for, or those installed.

    Raises:
        BenchmarkError: an unknown one, or one that is not installed.
    """
    if importlib.util.find_spec('optax') is None:
        raise BenchmarkError("the training step needs optax: pip install 'tresnet_jax[train]'")
    for name in command.contenders or ():
        if name not in CONTENDERS:
            raise BenchmarkError(f'unknown contender {name!r}; expected some of {", ".join(CONTENDERS)}')
        if not CONTENDERS[name].is_installed():
            raise BenchmarkError(f'{name}: {CONTENDERS[name].package} is not installed')
    if command.check and not CONTENDERS['timm-eager'].is_installed():
        raise BenchmarkError('--check compares with timm: pip install timm torch torchvision')
    usual = [row.name for row in CONTENDERS.values() if row.is_installed() and not row.by_name]
    return [row for row in CONTENDERS.values() if row.name in (command.contenders or usual)]


def architecture_of(name: str, image_size: int) -> str:
    """Raises ValueError for an unknown model, and for images that it cannot take."""
    architecture, _ = split_name(name)
    profile(architecture, image_size)  # refuses such sizes
    return architecture


def cores_for(threads: int | None) -> int:
    """How many cores there are for either side.

    Raises:
        BenchmarkError: more than there are, or a system that cannot keep a process to some.
    """
    if not hasattr(os, 'sched_getaffinity'):
        if threads is not None:
            raise BenchmarkError('--threads needs Linux: XLA has as many threads as the process may use cores')
        return os.cpu_count() or 1
    there = len(os.sched_getaffinity(0))
    if threads is not None and not 1 <= threads <= there:
        raise BenchmarkError(f'--threads must be 1 to {there}, the cores that this process may use, got {threads}')
    return threads or there


def check_counts(command: Command) -> None:
    """Raises BenchmarkError for what must be positive and is not."""
    for name in ('rounds', 'fresh_rounds', 'batch_sizes', 'train_batch_sizes'):
        value = getattr(command, name)
        if min(value if isinstance(value, tuple) else (value,), default=0) < 1:
            raise BenchmarkError(f'--{name.replace("_", "-")} must be positive, got {value}')


def draw(architecture: str) -> dict[str, np.ndarray]:
    """Seeded weights with statistics and signs that hide nothing, under timm's names."""
    model = build_model(architecture, num_classes=CLASSES, in_chans=3, rngs=ShapesOnly())
    _, *trees = nnx.split(model, nnx.Param, nnx.BatchStat)
    zeros = [jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), nnx.to_pure_dict(tree)) for tree in trees]
    return seeded_weights({key: value.shape for key, value in convert.to_torch(*zeros).items()}, seed=0)


def describe(command: Command, cores: int, devices: dict[str, str], load: str) -> str:
    """What the figures are of, and how to read them."""
    installed = [name for name in PACKAGES if importlib.util.find_spec(name.replace('-', '_'))]
    versions = ', '.join(f'{name} {importlib.metadata.version(name)}' for name in installed)
    return (
        f'{command.image_size} px, {command.dtype}, {said(devices)}\n\n'
        f'{processor()}, {cores} core{"s" * (cores > 1)} for either side, load before {load}; {versions}. '
        f'Medians of {command.rounds} rounds (build and first call {command.fresh_rounds}, memory one) ± quartile '
        'distance over median; timm is the better of its columns. In the ratios, above 1 a contender is ahead of timm.'
    )


def said(devices: dict[str, str]) -> str:
    """'ours, timm-eager on cpu; ...', or 'on cpu' where all are."""
    by_device = {device: [name for name in devices if devices[name] == device] for device in devices.values()}
    if len(by_device) == 1:
        return f'on {next(iter(by_device))}'
    return '; '.join(f'{", ".join(names)} on {device}' for device, names in by_device.items())


def processor() -> str:
    """Its name, as far as the system tells."""
    try:
        lines = Path('/proc/cpuinfo').read_text(encoding='utf-8').splitlines()
        return next(line.partition(':')[2].strip() for line in lines if line.startswith('model name'))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
