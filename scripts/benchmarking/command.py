"""The command line of ``benchmark.py``: check the arguments, run each part in new processes, write the files."""

import dataclasses
import importlib.metadata
import importlib.util
import os
import platform
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Literal

import jax
import numpy as np
from flax import nnx

import convert
from benchmarking import results
from benchmarking.contenders import CONTENDERS, Contender
from benchmarking.measures import SHARED, Bench
from benchmarking.processes import JobError, in_new_process
from benchmarking.sides import CLASSES, Workload
from convert.golden import seeded_weights
from tresnet_jax.checkpoints.write import save_safetensors
from tresnet_jax.cli.common import fail, parse
from tresnet_jax.models.build import build_model
from tresnet_jax.models.initializers import ShapesOnly
from tresnet_jax.options import flag
from tresnet_jax.profiling import profile
from tresnet_jax.variants import split_name

PACKAGES = ('tresnet_jax', 'jax', 'flax', 'torch', 'timm', 'jaxnn', 'jax-resnet', 'keras-hub', 'keras')


class BenchmarkError(ValueError):
    """The arguments ask for something impossible; the message is one line."""


@dataclasses.dataclass(frozen=True)
class BenchmarkArguments:
    """Time TResNet and ResNet-D, compared with timm in PyTorch and other JAX libraries.

    Exit codes: 0 for success; 1 if outputs differ (with --check) or a contender failed; 2 for user errors.
    """

    models: tuple[str, ...] = ('resnet50d', 'tresnet_m')
    """Architectures."""
    what: tuple[Literal['inference', 'train', 'build', 'first_call', 'memory', 'largest_batch'], ...] = (
        'inference', 'train', 'build', 'first_call', 'memory',
    )  # fmt: skip
    """Measures. largest_batch requires a GPU and takes long."""
    batch_sizes: tuple[int, ...] = (1, 8, 32)
    """Batch sizes of inference. first_call uses the first one, memory the largest."""
    train_batch_sizes: tuple[int, ...] = (8,)
    """Batch sizes of a training step. memory uses the largest."""
    image_size: int = 224
    """Edge of the square images in pixels."""
    dtype: Literal['float32', 'bfloat16', 'float16'] = 'float32'
    """Compute dtype. Other JAX libraries only take part in float32."""
    rounds: int = 7
    """Number of rounds in which the contenders take turns, after a warm-up round."""
    fresh_rounds: int = 3
    """Number of rounds for build and first_call, where each turn is a new process."""
    turn_seconds: float = 0.5
    """Duration of a turn in seconds; a turn is at least one call, after a call that is not timed."""
    threads: Annotated[int | None, flag('N', 'all that this process may use')] = None
    """Number of CPU cores for each contender."""
    contenders: Annotated[
        tuple[str, ...] | None, flag('NAME ...', 'all that are installed, except memory modes such as ours-lean')
    ] = None
    """Contenders to compare."""
    out: Annotated[Path | None, flag('DIR', 'none')] = None
    """Folder for benchmark.md, benchmark.csv and benchmark.png."""
    check: bool = False
    """First compare the outputs with timm's in float64. A model whose outputs differ is not timed."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code; invalid usage and ``--help`` raise SystemExit."""
    parsed = parse(BenchmarkArguments, arguments)
    try:
        return run_benchmark(parsed)
    except (ValueError, JobError, OSError) as error:
        return fail(error)


def run_benchmark(arguments: BenchmarkArguments) -> int:
    """Measure everything, update the files after each part, print the results, and return the exit code.

    Raises:
        ValueError: the arguments ask for something impossible.
    """
    contenders = choose_contenders(arguments)
    architectures = [architecture_of(name, arguments.image_size) for name in arguments.models]
    cores = cores_for(arguments.threads)
    check_counts(arguments)
    if arguments.out is not None:
        arguments.out.mkdir(parents=True, exist_ok=True)
    load = f'{os.getloadavg()[0]:.1f}' if hasattr(os, 'getloadavg') else 'unknown'
    woken = in_new_process(
        'devices', {'contenders': [row.name for row in contenders], 'threads': cores}, arguments.threads, SHARED
    )
    devices = woken['devices']
    contenders = [row for row in contenders if row.name in devices]
    if 'largest_batch' in arguments.what and 'cpu' in devices.values():
        raise BenchmarkError(f'largest_batch requires a GPU for every contender; {describe_devices(devices)}')
    about = describe(arguments, cores, devices, load)
    problems = [f'{name} was left out: {message}' for name, message in woken['failures']]
    found: list[results.Measurement] = []
    text = about
    with tempfile.TemporaryDirectory() as folder:
        for architecture in architectures:
            weights = Path(folder) / f'{architecture}.safetensors'
            save_safetensors(weights, draw_weights(architecture))
            workload = Workload(architecture, str(weights), arguments.image_size, arguments.dtype, cores)
            bench = Bench(workload, contenders, arguments.threads, Path(folder) / 'compiled')
            if not bench.contenders:
                names = ', '.join(devices) or 'the contenders'
                raise BenchmarkError(f'none of {names} supports {architecture} in {arguments.dtype}')
            try:
                for part in measure_parts(bench, arguments):
                    found += part
                    rows = results.result_rows(found)
                    text = results.results_page(rows, about)
                    if arguments.out is not None and rows:
                        results.write_files(arguments.out, rows, text, about.splitlines()[0])
            except JobError as error:
                problems.append(f'{architecture}: {error}')
            problems += [f'{architecture}: {check}' for check in bench.checks if not check.agrees]
            problems += [f'{architecture}: {name} was left out: {message}' for name, message in bench.failures]
    print(text)
    for problem in problems:
        print(f'error: {problem}', file=sys.stderr)
    return 1 if problems else 0


def measure_parts(bench: Bench, arguments: BenchmarkArguments) -> Iterator[list[results.Measurement]]:
    """Measure one model and yield the measurements part by part; stop if outputs differ."""
    sizes = {'inference': arguments.batch_sizes, 'train': arguments.train_batch_sizes}
    together = {what: batches for what, batches in sizes.items() if what in arguments.what}
    if together or arguments.check:
        yield bench.side_by_side(together, arguments.rounds, arguments.turn_seconds, arguments.check)
        print(''.join(f'{bench.workload.architecture}: {check}\n' for check in bench.checks), end='', flush=True)
        if not all(check.agrees for check in bench.checks):
            return
    starts = [what for what in ('build', 'first_call') if what in arguments.what]
    if starts:
        yield bench.from_the_start(starts, arguments.batch_sizes[0], arguments.fresh_rounds)
    for what, batches in sizes.items():
        if 'memory' in arguments.what:
            yield bench.memory(what, max(batches))
        if 'largest_batch' in arguments.what:
            yield bench.largest_batch(what)


def choose_contenders(arguments: BenchmarkArguments) -> list[Contender]:
    """Return the contenders named on the command line, or the default ones.

    Raises:
        BenchmarkError: a contender is unknown or not installed.
    """
    if importlib.util.find_spec('optax') is None:
        raise BenchmarkError("the training step needs optax: pip install 'tresnet_jax[train]'")
    for name in arguments.contenders or ():
        if name not in CONTENDERS:
            raise BenchmarkError(f'unknown contender {name!r}; expected some of {", ".join(CONTENDERS)}')
        if not CONTENDERS[name].is_installed():
            raise BenchmarkError(f'{name}: {CONTENDERS[name].package} is not installed')
    if arguments.check and not CONTENDERS['timm-eager'].is_installed():
        raise BenchmarkError('--check compares with timm: pip install timm torch torchvision')
    usual = [row.name for row in CONTENDERS.values() if row.is_installed() and not row.by_name]
    return [row for row in CONTENDERS.values() if row.name in (arguments.contenders or usual)]


def architecture_of(name: str, image_size: int) -> str:
    """Return the architecture of a model name.

    Raises:
        ValueError: the model is unknown, or it cannot take images of this size.
    """
    architecture, _ = split_name(name)
    profile(architecture, image_size)  # raises for such sizes
    return architecture


def cores_for(threads: int | None) -> int:
    """Return the number of cores for each contender.

    Raises:
        BenchmarkError: there are not as many cores, or the system cannot limit a process to some of them.
    """
    if not hasattr(os, 'sched_getaffinity'):
        if threads is not None:
            raise BenchmarkError('--threads requires Linux: XLA uses as many threads as the process may use cores')
        return os.cpu_count() or 1
    available = len(os.sched_getaffinity(0))
    if threads is not None and not 1 <= threads <= available:
        raise BenchmarkError(f'--threads must be 1 to {available}, the cores this process may use, got {threads}')
    return threads or available


def check_counts(arguments: BenchmarkArguments) -> None:
    """Raise BenchmarkError if a number that must be positive is not."""
    for name in ('rounds', 'fresh_rounds', 'batch_sizes', 'train_batch_sizes'):
        value = getattr(arguments, name)
        if min(value if isinstance(value, tuple) else (value,), default=0) < 1:
            raise BenchmarkError(f'--{name.replace("_", "-")} must be positive, got {value}')


def draw_weights(architecture: str) -> dict[str, np.ndarray]:
    """Return seeded weights under timm's names, with non-trivial statistics and gammas of both signs."""
    # Evaluated abstractly: JAX must not start here, where it would take a GPU's memory from the processes that measure.
    model = nnx.eval_shape(lambda: build_model(architecture, num_classes=CLASSES, in_chans=3, rngs=ShapesOnly()))
    _, *trees = nnx.split(model, nnx.Param, nnx.BatchStat)
    zeros = [jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), nnx.to_pure_dict(tree)) for tree in trees]
    return seeded_weights({key: value.shape for key, value in convert.to_torch(*zeros).items()}, seed=0)


def describe(arguments: BenchmarkArguments, cores: int, devices: dict[str, str], load: str) -> str:
    """Return the text above the results: what was measured, on what, and how to read it."""
    installed = [name for name in PACKAGES if importlib.util.find_spec(name.replace('-', '_'))]
    versions = ', '.join(f'{name} {importlib.metadata.version(name)}' for name in installed)
    return (
        f'{arguments.image_size} px, {arguments.dtype}, {describe_devices(devices)}\n\n'
        f'{processor()}, {cores} core{"s" * (cores > 1)} for each contender, load before: {load}; {versions}. '
        f'Medians of {arguments.rounds} rounds ({arguments.fresh_rounds} for build and first_call, 1 for memory) ± '
        'interquartile range over median. timm is the better of its columns. Ratios above 1 mean that a contender is '
        'ahead of timm.'
    )


def describe_devices(devices: dict[str, str]) -> str:
    """Return 'ours, timm-eager on cpu; ...', or 'on cpu' if all use the same device."""
    by_device = {device: [name for name in devices if devices[name] == device] for device in devices.values()}
    if len(by_device) == 1:
        return f'on {next(iter(by_device))}'
    return '; '.join(f'{", ".join(names)} on {device}' for device, names in by_device.items())


def processor() -> str:
    """Return the name of the processor, as far as the system provides it."""
    try:
        lines = Path('/proc/cpuinfo').read_text(encoding='utf-8').splitlines()
        return next(line.partition(':')[2].strip() for line in lines if line.startswith('model name'))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
