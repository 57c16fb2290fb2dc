"""The parts of the check and their shares of the time."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from gpu_checking import autotuning, determinism, largest, memory, parity, speed, training
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
        shares: of the time of each level. Time that a part does not use goes to later parts. 0: the level has no time
            for it.
        needs: optional packages without which the whole part is left out, by the names they are imported by.
        on_device: its own process computes on the device. Otherwise only those that it starts do, and it must take no
            memory of the device from them.
        together: it times nothing and needs little memory, and may run at the same time as other such parts. Compiling
            takes most of its time, on few cores.
    """

    title: str
    run: Run
    shares: Mapping[Level, float]
    needs: tuple[str, ...] = ()
    on_device: bool = False
    together: bool = False


def _shares(quick: float, default: float, full: float) -> dict[Level, float]:
    return {'quick': quick, 'default': default, 'full': full}


PARTS: dict[str, Part] = {
    'parity': Part('Parity with timm', parity.run, _shares(0.2, 0.16, 0.12), on_device=True, together=True),
    'memory': Part('Memory', memory.run, _shares(0.2, 0.18, 0.12), together=True),
    'speed': Part('Speed', speed.run, _shares(0.4, 0.36, 0.3), on_device=True),
    'determinism': Part('Determinism', determinism.run, _shares(0, 0.1, 0.08), together=True),
    'training': Part(
        'A real training', training.run, _shares(0.2, 0.08, 0.06), needs=('grain', 'orbax', 'tensorboardX'),
        together=True,
    ),
    'autotuning': Part('Autotuning', autotuning.run, _shares(0, 0.12, 0.14)),
    'largest': Part('Largest batches', largest.run, _shares(0, 0, 0.18)),
}  # fmt: skip


def parts_of(level: Level) -> list[str]:
    """Return the names of the parts of a level."""
    return [name for name, part in PARTS.items() if part.shares[level] > 0]
