"""The longest kernels of a program, from a profile, with the layers they belong to."""

import dataclasses
import re
import tempfile
import warnings
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from flax import nnx
from gpu_reporting.hlo import parse_instruction

from gpu_checking.programs import Compiled
from tresnet_jax.models.base import ImageModel
from tresnet_jax.models.batch_norm import BatchNormAct
from tresnet_jax.models.hooks import replace_layer
from tresnet_jax.models.pooling import AvgPool

OP = 'hlo_op'  # the statistic of an event that names the instruction it runs
STEPS = 3


class _Named(nnx.Module):
    """A layer whose operations have its name in the text of a compiled program."""

    def __init__(self, layer: Any, name: str):
        self.layer, self.name = layer, name

    def __call__(self, x: jax.Array) -> jax.Array:
        with jax.named_scope(self.name):
            return self.layer(x)


def name_layers(model: ImageModel) -> set[str]:
    """Put timm's names of the layers into what is compiled from a model in mode 'plain', and return the names.

    The model is changed in place.
    """
    modules = dict(nnx.iter_modules(model))
    names = {
        path: '.'.join(map(str, path))
        for path, layer in modules.items()
        if isinstance(layer, nnx.Conv | nnx.Linear | BatchNormAct | AvgPool)
    }
    for path, name in names.items():
        replace_layer(modules, path, _Named(modules[path], name))
    return set(names.values())


@dataclasses.dataclass(frozen=True)
class Kernel:
    """A kernel and its time.

    Attributes:
        name: of the instruction.
        layer: timm's name of the layer, and 'gradient' in the backward pass; '' if it belongs to none.
        operation: JAX's name of its operation.
        seconds: in one call of the program.
        share: of all kernels.
    """

    name: str
    layer: str
    operation: str
    seconds: float
    share: float


def longest_kernels(compiled: Compiled, layers: Collection[str], count: int = 10) -> list[Kernel]:
    """Profile a program with the names of these layers in it and return its longest kernels.

    Raises:
        ValueError: the profile has no kernels, for example because the system does not allow profiling.
    """
    compiled.call()
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            for _ in range(STEPS):
                compiled.call()
        profiles = sorted(Path(folder).rglob('*.xplane.pb'))
        if not profiles:
            raise ValueError('the profiler wrote no profile')
        seconds = kernel_seconds(jax.profiler.ProfileData.from_file(str(profiles[-1])))
    return ranked(seconds, origins(compiled.text), layers, count)


def kernel_seconds(profile: Any) -> Counter[str]:
    """Return the seconds of each instruction in a profile, over all its calls.

    Args:
        profile: a ``jax.profiler.ProfileData``. The streams of GPUs count if there are any, else what XLA runs on the
            host. A kernel of a CUDA graph may not name its instruction; then its own name is used.
    """
    with warnings.catch_warnings():
        # Python 3.13 warns of jaxlib 0.12's types, and where warnings are errors that ends the process.
        warnings.simplefilter('ignore', DeprecationWarning)
        return _sums(list(profile.planes))


def _sums(planes: Sequence[Any]) -> Counter[str]:
    """Return the seconds of each instruction in the planes of a profile."""
    streams = [
        line for plane in planes if 'GPU' in plane.name for line in plane.lines if line.name.startswith('Stream')
    ]
    found: Counter[str] = Counter()
    for line in streams or [line for plane in planes for line in plane.lines]:
        for event in line.events:
            name = dict(event.stats).get(OP)
            if name is not None:
                found[str(name).rpartition('::')[2]] += event.duration_ns / 1e9  # the innermost of nested ones
            elif streams:
                found[event.name] += event.duration_ns / 1e9
    return found


def origins(text: str) -> dict[str, str]:
    """Return JAX's `op_name` of each instruction in the text of a program; a fusion may have it from its root."""
    computations: dict[str, str] = {}  # name -> op_name of its last instruction that has one
    found: dict[str, str] = {}
    callers: dict[str, str] = {}
    current = ''
    for line in text.splitlines():
        if header := re.match(r'(?:ENTRY )?%?([\w.\-]+) \(.*\{$', line):
            current = header[1]
        elif instruction := parse_instruction(line):
            found[instruction.name] = instruction.op_name
            callers[instruction.name] = instruction.computation
            computations[current] = instruction.op_name or computations.get(current, '')
    return {name: origin or computations.get(callers[name], '') for name, origin in found.items()}


def ranked(seconds: Counter[str], names: Mapping[str, str], layers: Collection[str], count: int = 10) -> list[Kernel]:
    """Return the longest kernels of `STEPS` calls, with the layers in their names (`origins`).

    Raises:
        ValueError: there are none.
    """
    total = sum(seconds.values())
    if not total:
        raise ValueError('the profile has no kernels')
    found = []
    as_kernels = {re.sub(r'[.-]', '_', name): origin for name, origin in names.items()}  # names in CUDA
    for kernel, took in seconds.most_common(count):
        origin = names.get(kernel, as_kernels.get(kernel, ''))
        layer, operation = layer_of(origin, layers), origin.rpartition('/')[2]
        found.append(Kernel(kernel, layer, operation, took / STEPS, took / total))
    return found


def layer_of(op_name: str, layers: Collection[str]) -> str:
    """Return the layer in an `op_name`: 'jit(step)/transpose(jvp(layer1.0.conv1))/mul' -> 'layer1.0.conv1, gradient'.

    '' if none of the layers is in it.
    """
    for word in reversed(re.findall(r'[^/()]+', op_name)):
        if word in layers:
            return word + ', gradient' * ('transpose(' in op_name)
    return ''


def rows(kernels: Iterable[Kernel]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the name and the figures of each kernel, for a table, and then those of all kernels of the program."""
    kernels = list(kernels)
    for place, kernel in enumerate(kernels, start=1):
        yield (
            f'{place}. {kernel.name[:100]}',
            {
                'layer': kernel.layer,
                'operation': kernel.operation,
                'ms': 1e3 * kernel.seconds,
                'share': kernel.share,
            },
        )
    yield 'all kernels', {'ms': 1e3 * kernels[0].seconds / kernels[0].share, 'share': 1.0}
