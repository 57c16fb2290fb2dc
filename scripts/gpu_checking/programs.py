"""Compiled programs of this library on the device: what the compiler reports, and calls that can be timed."""

import dataclasses
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from benchmarking.inputs import random_inputs
from benchmarking.jax_side import JaxSide
from benchmarking.sides import Workload
from gpu_reporting.convolutions import CONVOLUTION, FUSED, convolutions
from gpu_reporting.hlo import Hlo

UNTOLD = (NotImplementedError, jax.errors.JaxRuntimeError)  # what a compiler does not offer
CUDNN_FUSION, TRITON_FUSION = '__cudnn$fusion', re.compile(r'"kind":"__triton[\w]*"')


@dataclasses.dataclass(frozen=True)
class Compiled:
    """A compiled program with arguments for one call.

    Attributes:
        executable: what JAX compiled.
        call: runs it once more and waits; a training step continues from the state of the call before.
    """

    executable: Any
    call: Callable[[], object]

    @property
    def text(self) -> str:
        """The text of the optimised program; '' if this compiler does not show it."""
        try:
            return self.executable.as_text() or ''
        except UNTOLD:
            return ''


def compile_program(side: JaxSide, workload: Workload, what: str, batch: int) -> Compiled:
    """Compile inference or a training step; `batch` images are shared by the devices of `side`."""
    images, labels = random_inputs(workload, what, batch, 1)
    if what == 'inference':
        args = side.params, side.batch_stats, jnp.asarray(images[0], side.dtype)
        executable = side.forward.lower(*args).compile()
        return Compiled(executable, lambda: jax.block_until_ready(executable(*args)))
    training = side.training(images, labels)
    shares = next(training.batches)
    executable = side.train_step.lower(training.state, shares).compile()  # pyright: ignore[reportFunctionMemberAccess]

    def step() -> object:
        training.state, metrics = jax.block_until_ready(executable(training.state, shares))
        return metrics

    return Compiled(executable, step)


def needed_bytes(executable: Any) -> dict[str, int] | None:
    """Return the compiler's temporaries, arguments and new results in bytes; None if it does not report them."""
    try:
        memory = executable.memory_analysis()
    except UNTOLD:
        memory = None
    if memory is None:
        return None
    return {
        'temporaries': memory.temp_size_in_bytes,
        'arguments': memory.argument_size_in_bytes,
        'results': memory.output_size_in_bytes - memory.alias_size_in_bytes,
    }


@dataclasses.dataclass(frozen=True)
class Work:
    """What one call of a program does.

    Attributes:
        moved: bytes that its kernels read and write.
        operations: two per multiply-accumulate.
        source: who counted: this library, from the program's kernels, or XLA's cost analysis.
    """

    moved: float
    operations: float
    source: str


def work_of(compiled: Compiled) -> Work | None:
    """Count a program's work as docs/gpu_report.md does; from XLA's cost analysis where that is impossible.

    That is so for programs with loops, as all are on a CPU, and where autotuning replaced cuDNN's calls with fusions,
    which have no count. None: XLA does not report it either.
    """
    try:
        hlo = Hlo(compiled.text)
        found = convolutions(hlo)
        if found and not fusion_counts(compiled.text)['cuDNN fusions']:
            return Work(hlo.traffic(), sum(one.operations for one in found), 'kernels')
    except (ValueError, KeyError, IndexError):  # a loop, or an unknown kind of kernel
        pass
    try:
        cost = compiled.executable.cost_analysis()
    except UNTOLD:
        cost = None
    if not cost or 'flops' not in cost:
        return None
    return Work(cost.get('bytes accessed', 0.0), cost['flops'], "XLA's cost analysis")


def fusion_counts(text: str) -> dict[str, int]:
    """Return the numbers of fusions that cuDNN and Triton compile, in the text of an optimised program."""
    return {'cuDNN fusions': text.count(f'"kind":"{CUDNN_FUSION}"'), 'Triton fusions': len(TRITON_FUSION.findall(text))}


def kernel_counts(text: str) -> dict[str, int]:
    """Return the numbers of cuDNN's convolutions, of those with a bias, and of the fusions of cuDNN and Triton."""
    targets = re.findall(r'custom_call_target="([^"]*)"', text)
    return {
        'convolutions': sum(target.startswith(CONVOLUTION) for target in targets),
        'with bias': targets.count(FUSED),
        **fusion_counts(text),
    }
