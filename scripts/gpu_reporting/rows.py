"""The rows of the report: which models, in which modes, with which batch."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence

from largest_batch import largest_by_bytes

from gpu_reporting.program import Figures, Program
from tresnet_jax.models.memory import MODES, memory_mode
from tresnet_jax.variants import ARCHITECTURES, family_of

TRAIN_BATCH, INFER_BATCH = 128, 256
IN_EVERY_MODE = ('tresnet_m', 'tresnet_l', 'tresnet_xl', 'resnet50d')  # with the largest batch of each mode
UNFOLDED_TOO = ('tresnet_m', 'resnet50d')
LIMITS = {'16 GB': 16_000_000_000, '80 GB': 80_000_000_000}  # cards count in 2^30: 7 % more, which CUDA needs


@dataclasses.dataclass(frozen=True)
class ReportRow:
    """A program of the report.

    Attributes:
        program: what is compiled.
        largest: also search for the largest batch within each of `LIMITS`.
    """

    program: Program
    largest: bool = False

    @property
    def compilations(self) -> int:
        """About how many programs are compiled for this row."""
        return 3 + len(LIMITS) if self.largest else 1

    def figures(self, get: Callable[[Program], Figures]) -> Figures:
        """Return the figures of the program, and under 'largest' the largest batch for each of `LIMITS`.

        Args:
            get: returns the figures of a program.
        """
        figures = get(self.program)
        return figures | {'largest': self._largest(get)} if self.largest else figures

    def known(self, figures: Mapping[Program, Figures]) -> Figures | None:
        """Return the same from figures that are known; None if some are missing."""
        try:
            return self.figures(figures.__getitem__)
        except KeyError:
            return None

    def _largest(self, get: Callable[[Program], Figures]) -> dict[str, int]:
        base = self.program.batch

        def total(batch: int) -> int:
            figures = get(dataclasses.replace(self.program, batch=batch, roomy=batch > base))
            return figures['temp_bytes'] + figures['argument_bytes'] + figures['output_bytes']

        return dict(zip(LIMITS, largest_by_bytes(total, list(LIMITS.values()), base), strict=True))


KnownRows = Sequence[tuple[ReportRow, Figures]]


def report_rows(device: str) -> list[ReportRow]:
    """Return all rows of the report, in order."""
    return [*_training(device), *_inference(device)]


def memory_modes(model: str) -> list[tuple[str, bool]]:
    """Return (abn_memory, remat) of each mode that the model supports, without duplicates under another name."""
    found = {}
    for remat in (False, True):
        for name in MODES:
            memory = memory_mode(name, remat)
            if family_of(model).default_slope is not None or not memory.invert:  # a ReLU cannot be inverted
                found.setdefault(memory, (name, remat))
    return list(found.values())


def _training(device: str) -> Iterator[ReportRow]:
    for model in (*IN_EVERY_MODE, *(name for name in sorted(ARCHITECTURES) if name not in IN_EVERY_MODE)):
        every = model in IN_EVERY_MODE
        for abn_memory, remat in memory_modes(model) if every else [('plain', False)]:
            program = Program('train', model, TRAIN_BATCH, abn_memory=abn_memory, remat=remat, device=device)
            yield ReportRow(program, largest=every)


def _inference(device: str) -> Iterator[ReportRow]:
    for model in sorted(ARCHITECTURES):
        yield ReportRow(Program('infer', model, INFER_BATCH, device=device))
        if model in UNFOLDED_TOO:
            yield ReportRow(Program('infer', model, INFER_BATCH, fold=False, device=device))
