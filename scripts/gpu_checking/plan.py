"""The parts of the check and their shares of the time."""

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path

from gpu_checking import autotuning, determinism, memory, parity, speed, training
from gpu_checking.records import Finding
from gpu_checking.sizes import Level, Sizes

Run = Callable[[Sizes, Path], Iterator[Finding]]


@dataclasses.dataclass(frozen=True)
class Part:
    """A part of the check, which runs in a process of its own.

    Attributes:
        title: for the page.
        run: yields findings, the most important first; the process is ended when its time is over. It may write into
            the folder.
        share: of the time of the whole check. Time that a part does not use goes to later parts.
        quick_share: the same for `quick`; 0: left out there, because starting its processes takes too long.
        needs: optional packages without which the whole part is left out, by the names they are imported by.
        on_device: its own process computes on the device. Otherwise only those that it starts do, and it must take no
            memory of the device from them.
    """

    title: str
    run: Run
    share: float
    quick_share: float
    needs: tuple[str, ...] = ()
    on_device: bool = False

    def share_of(self, level: Level) -> float:
        """Return the share of the time of a level."""
        return self.quick_share if level == 'quick' else self.share


PARTS: dict[str, Part] = {
    'parity': Part('Parity with timm', parity.run, 0.2, 0.3, on_device=True),
    'memory': Part('Memory', memory.run, 0.18, 0.2),
    'speed': Part('Speed', speed.run, 0.26, 0.3, on_device=True),
    'determinism': Part('Determinism', determinism.run, 0.12, 0),
    'training': Part('A real training', training.run, 0.1, 0.2, needs=('grain', 'orbax', 'tensorboardX')),
    'autotuning': Part('Autotuning', autotuning.run, 0.14, 0),
}


def parts_of(level: Level) -> list[str]:
    """Return the names of the parts of a level."""
    return [name for name, part in PARTS.items() if part.share_of(level) > 0]
