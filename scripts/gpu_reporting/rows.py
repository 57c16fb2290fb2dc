"""What the report is about: which models, in which modes, at which batch."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping

from gpu_reporting.largest import largest_batches
from gpu_reporting.program import Program
from gpu_reporting.running import Figures
from tresnet_jax.models.memory import MODES, memory_mode
from tresnet_jax.variants import family_of, list_models

TRAIN_BATCH, INFER_BATCH = 128, 256
IN_EVERY_MODE = ('tresnet_m', 'tresnet_l', 'tresnet_xl', 'resnet50d')  # and the largest batch of each
UNFOLDED_TOO = ('tresnet_m', 'resnet50d')
LIMITS = {'16 GB': 16_000_000_000, '80 GB': 80_000_000_000}  # of 2^30 bytes cards have 7 % more, which CUDA needs


@dataclasses.dataclass(frozen=True)
class Row:
    """A program of the report, and whether its largest batch is looked for."""

    program: Program
    largest: bool = False

    @property
    def compilations(self) -> int:
        """About how many there are."""
        return 3 + len(LIMITS) if self.largest else 1

    def figures(self, get: Callable[[Program], Figures]) -> Figures:
        """What `get` says of the program; with 'largest', a batch for each of `LIMITS`, where that is looked for."""
        figures = get(self.program)
        return figures | {'largest': self._largest(get)} if self.largest else figures

    def known(self, figures: Mapping[Program, Figures]) -> Figures | None:
        """The same from what is compiled; None where something is not."""
        try:
            return self.figures(figures.__getitem__)
        except KeyError:
            return None

    def _largest(self, get: Callable[[Program], Figures]) -> dict[str, int]:
        base = self.program.batch

        def total(batch: int) -> int:
            figures = get(dataclasses.replace(self.program, batch=batch, roomy=batch > base))
            return figures['temp_bytes'] + figures['argument_bytes'] + figures['output_bytes']

        return dict(zip(LIMITS, largest_batches(total, list(LIMITS.values()), base), strict=True))


def rows(device: str) -> list[Row]:
    """All of the report, in its order."""
    return [*_training(device), *_inference(device)]


def memory_modes(model: str) -> list[tuple[str, bool]]:
    """(abn_memory, remat) of each mode that the model has, without those that come to the same."""
    found = {}
    for remat in (False, True):
        for name in MODES:
            memory = memory_mode(name, remat)
            if family_of(model).default_slope is not None or not memory.invert:  # a ReLU cannot be inverted
                found.setdefault(memory, (name, remat))
    return list(found.values())


def _training(device: str) -> Iterator[Row]:
    for model in (*IN_EVERY_MODE, *(name for name in list_models() if name not in IN_EVERY_MODE)):
        every = model in IN_EVERY_MODE
        for abn_memory, remat in memory_modes(model) if every else [('plain', False)]:
            program = Program('train', model, TRAIN_BATCH, abn_memory=abn_memory, remat=remat, device=device)
            yield Row(program, largest=every)


def _inference(device: str) -> Iterator[Row]:
    for model in list_models():
        yield Row(Program('infer', model, INFER_BATCH, device=device))
        if model in UNFOLDED_TOO:
            yield Row(Program('infer', model, INFER_BATCH, fold=False, device=device))
