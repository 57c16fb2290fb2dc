"""The convolutions of a compiled program: their layers, and what each cuDNN call includes."""

import dataclasses
import json
import math
import re
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

from gpu_reporting.hlo import NO_KERNEL, Hlo, Instruction, dimensions

CONVOLUTION = '__cudnn$conv'
FUSED = '__cudnn$convBiasActivationForward'
ACTIVATIONS = {'kNone': (), 'kRelu': ('ReLU',), 'kLeakyRelu': ('leaky ReLU',)}

LEAKY_RELU, BLUR, PRODUCT, MEAN = 'leaky ReLU', 'blur', 'squeeze-excite', 'mean'
OPERATIONS = {  # JAX's name of an operation -> what a kernel with it computes; in the order of the models
    'gt': LEAKY_RELU,
    'pad': BLUR,
    'reduce_sum': MEAN,
    'exp': PRODUCT,
    'max': 'ReLU',
    'reduce_window_max': 'max pool',
}
NO_BIAS = 'all'
REASONS = {  # why the next operation runs in another kernel
    NO_BIAS: 'XLA finds no bias to add in the call',
    LEAKY_RELU: 'XLA includes a leaky ReLU only in float16, with `--xla_gpu_use_runtime_fusion=true`',
    MEAN: 'squeeze-excite needs the mean of the whole map before the sum with the shortcut and its ReLU',
    PRODUCT: 'the call supports neither a sigmoid nor a product with another map',
}


@dataclasses.dataclass(frozen=True)
class Convolution:
    """One cuDNN call.

    Attributes:
        layer: timm's name of the layer if its kernel is an argument of the program; '' otherwise, as for gradients.
        fused: whether the call also adds a bias.
        holds: what the call includes: 'bias', 'sum' (with another map), 'ReLU', 'leaky ReLU'.
        then: what the other kernels that read its output compute, among the values of `OPERATIONS`.
        operations: two per multiply-accumulate.
    """

    layer: str
    fused: bool
    holds: tuple[str, ...]
    then: tuple[str, ...]
    operations: int

    @property
    def left(self) -> str:
        """The next operation that the call does not include, a key of `REASONS`; '' if there is none."""
        if not self.fused:
            return NO_BIAS
        active = set(self.holds) - {'bias'}
        return '' if active else next((word for word in self.then if word in REASONS), '')


def convolutions(hlo: Hlo) -> list[Convolution]:
    """Return all convolutions of the entry computation, in the order of execution."""
    readers: defaultdict[str, list[Instruction]] = defaultdict(list)
    for instruction in hlo.entry:
        for name in instruction.operands:
            readers[name].append(instruction)
    return [_convolution(hlo, readers, call) for call in hlo.entry if call.target.startswith(CONVOLUTION)]


def unfused(found: Iterable[Convolution]) -> list[dict[str, Any]]:
    """Group the convolutions whose next operation runs in another kernel.

    Returns:
        One dict per group: 'holds' (what the call includes), 'left' (the next operation), 'why' (the reason), 'count',
        and 'layers', where consecutive blocks are one range.
    """
    groups: defaultdict[tuple[str, str], list[str]] = defaultdict(list)
    for one in found:
        if one.left:
            groups[', '.join(one.holds), one.left].append(one.layer)
    return [
        {'holds': holds, 'left': left, 'why': REASONS[left], 'count': len(layers), 'layers': in_ranges(layers)}
        for (holds, left), layers in groups.items()
    ]


def in_ranges(layers: Iterable[str]) -> list[str]:
    """Join the names of consecutive blocks: 'layer1.0.conv1', 'layer1.1.conv1' -> 'layer1.0-1.conv1'."""
    blocks: dict[tuple[str, str], list[int]] = {}
    for layer in layers:
        parts = re.fullmatch(r'(.*layer\d)\.(\d+)(\..*)', layer)
        start, number, end = parts.groups() if parts else (layer, '-1', '')
        blocks.setdefault((start, end), []).append(int(number))
    return [start + _ranges(sorted(set(numbers))) + end for (start, end), numbers in blocks.items()]


def _ranges(numbers: list[int]) -> str:
    """[0, 1, 2, 5] -> '.0-2,5'; [-1], which stands for no number, -> ''."""
    if numbers[0] < 0:
        return ''
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return '.' + ','.join(str(run[0]) if len(run) == 1 else f'{run[0]}-{run[-1]}' for run in runs)


def _convolution(hlo: Hlo, readers: dict[str, list[Instruction]], call: Instruction) -> Convolution:
    config = json.loads(call.attributes.partition('backend_config=')[2])['cudnn_conv_backend_config']
    fused = call.target == FUSED
    holds = ('bias',) if fused else ()
    holds += ('sum',) if config['side_input_scale'] else ()
    holds += ACTIVATIONS.get(config['activation_mode'], (config['activation_mode'],))
    sizes = [dimensions(hlo.by_name[name].shape)[0] for name in call.operands[:2]]
    count = operations(call.target, sizes, dimensions(call.shape)[0], call.attributes)
    return Convolution(_layer(hlo, call.operands[1]), fused, holds, _then(hlo, readers, call.name), count)


def operations(target: str, operands: list[tuple[int, ...]], result: tuple[int, ...], attributes: str) -> int:
    """Return two operations per multiply-accumulate of a convolution or of one of its two gradients.

    Each gradient takes as many operations as the convolution itself.

    Args:
        target: the custom-call target; it distinguishes the convolution and its gradients.
        operands, result: array sizes.
        attributes: text of the call's attributes, with `dim_labels` of the convolution itself: input_kernel->output.

    Raises:
        ValueError: `dim_labels` is missing.
    """
    kernel, output = {
        '__cudnn$convBackwardInput': (operands[1], operands[0]),
        '__cudnn$convBackwardFilter': (result, operands[1]),
    }.get(target, (operands[1], result))
    labels = re.search(r'dim_labels=\w+_(\w+)->', attributes)
    if labels is None:
        raise ValueError(f'a convolution without dim_labels: {attributes[:200]}')
    return 2 * math.prod(output) * math.prod(kernel) // kernel[labels[1].index('o')]


def _layer(hlo: Hlo, name: str) -> str:
    """Return timm's name of the layer whose kernel an operand is computed from; '' for none or several."""
    seen, waiting, layers = {name}, [name], set()
    while waiting:
        instruction = hlo.by_name[waiting.pop()]
        waiting += set(instruction.operands) - seen
        seen |= set(instruction.operands)
        if instruction.opcode == 'parameter':
            *path, leaf = re.findall(r"\['?([^'\]]+)'?\]", instruction.op_name) or ['']
            layers.add('.'.join(path[1:]) if leaf == 'kernel' else '')  # the first is the position of the argument
    return layers.pop() if len(layers) == 1 else ''


def _then(hlo: Hlo, readers: dict[str, list[Instruction]], name: str) -> tuple[str, ...]:
    """Return what the kernels compute that read an output, directly or through another view of it."""
    found: set[str] = set()
    waiting = [name]
    while waiting:
        for reader in readers.get(waiting.pop(), []):
            if reader.opcode in NO_KERNEL:
                waiting.append(reader.name)
            elif not reader.target.startswith(CONVOLUTION):
                found |= {i.op_name.rpartition('/')[2] for i in hlo.computations.get(reader.computation, [reader])}
    return tuple(word for operation, word in OPERATIONS.items() if operation in found)
