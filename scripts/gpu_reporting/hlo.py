"""Kernels and memory traffic of a compiled program, from the text of its scheduled HLO."""

import dataclasses
import math
import re
from collections.abc import Iterator

BYTES = {
    'pred': 1, 's8': 1, 'u8': 1, 's16': 2, 'u16': 2, 'f16': 2, 'bf16': 2,
    's32': 4, 'u32': 4, 'f32': 4, 's64': 8, 'u64': 8, 'f64': 8,
}  # fmt: skip
NO_KERNEL = ('parameter', 'constant', 'tuple', 'get-tuple-element', 'bitcast', 'after-all')
LOOPS = ('while', 'conditional', 'call')  # the text does not say how often their bodies run


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of a computation: ``%name = shape opcode(%operands), attributes``."""

    name: str
    shape: str
    opcode: str
    operands: tuple[str, ...]
    attributes: str

    @property
    def target(self) -> str:
        """The target of a custom call; '' for other instructions."""
        return self._attribute(r'custom_call_target="([^"]*)"')

    @property
    def computation(self) -> str:
        """The name of the computation that a fusion runs; '' for other instructions."""
        return self._attribute(r'calls=%?([\w.\-]+)')

    @property
    def op_name(self) -> str:
        """The origin in JAX: the functions and the operation, or the path of an argument."""
        return self._attribute(r'op_name="((?:[^"\\]|\\.)*)"').replace("\\'", "'")

    def _attribute(self, pattern: str) -> str:
        found = re.search(pattern, self.attributes)
        return found[1] if found else ''


class Hlo:
    """A parsed program.

    Args:
        text: the result of ``compiled.as_text()``.

    Attributes:
        computations: the instructions of every computation, by its name.
        entry: the instructions of the entry computation, in the order of execution.
        by_name: the instructions of the entry computation, by name.

    Raises:
        ValueError: there is no entry computation, or it has loops, whose kernels cannot be counted.
    """

    def __init__(self, text: str):
        self.computations: dict[str, list[Instruction]] = {}
        self.entry: list[Instruction] = []
        current: list[Instruction] | None = None
        for line in text.splitlines():
            header = re.match(r'(ENTRY )?%?([\w.\-]+) \(.*\{$', line)
            if header:
                current = self.computations[header[2]] = []
                self.entry = current if header[1] else self.entry
            elif line.startswith('}'):
                current = None
            elif current is not None and (instruction := parse_instruction(line)):
                current.append(instruction)
        if not self.entry:
            raise ValueError('this is not the text of a compiled program: it has no ENTRY computation')
        loops = sorted({i.opcode for i in self.entry if i.opcode in LOOPS})
        if loops:
            raise ValueError(f'the program has {", ".join(loops)}: the kernels in them cannot be counted')
        self.by_name = {instruction.name: instruction for instruction in self.entry}

    def kernels(self) -> list[Instruction]:
        """Return everything that is launched: fusions, library calls, copies."""
        return [instruction for instruction in self.entry if instruction.opcode not in NO_KERNEL]

    def traffic(self) -> int:
        """Return the bytes that the kernels read and write: operands and result of each, in full, without caches."""
        return sum(
            shape_bytes(kernel.shape) + sum(shape_bytes(self.by_name[name].shape) for name in kernel.operands)
            for kernel in self.kernels()
        )


def parse_instruction(line: str) -> Instruction | None:
    """Parse a line of a computation; return None for any other line."""
    found = re.match(r'\s+(?:ROOT )?%?([\w.\-]+) = (\(.*?\)|\S+) ([\w\-]+)\((.*)', line)
    if found is None:
        return None
    name, shape, opcode, rest = found.groups()
    operands, _, attributes = rest.partition(')')
    return Instruction(name, shape, opcode, tuple(re.findall(r'%([\w.\-]+)', operands)), attributes)


def dimensions(shape: str) -> list[tuple[int, ...]]:
    """Return the sizes of each array in the text of a shape: '(f32[2,3]{1,0}, u8[0]{0})' -> [(2, 3), (0,)]."""
    return [sizes for _, sizes in _arrays(shape)]


def shape_bytes(shape: str) -> int:
    """Return the bytes of all arrays in the text of a shape: '(bf16[8,4]{1,0}, u8[0]{0})' -> 64."""
    return sum(BYTES[dtype] * math.prod(sizes) for dtype, sizes in _arrays(shape))


def _arrays(shape: str) -> Iterator[tuple[str, tuple[int, ...]]]:
    for dtype, sizes in re.findall(r'([a-z]\w*)\[([\d,]*)\]', shape):
        yield dtype, tuple(int(size) for size in sizes.split(',') if size)
