"""`gpu_report.py`: what a program costs on a GPU, or the whole report, without one."""

import dataclasses
import fnmatch
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import tqdm
import tyro

from gpu_reporting.changes import changes
from gpu_reporting.chart import draw
from gpu_reporting.program import Program
from gpu_reporting.rows import INFER_BATCH, TRAIN_BATCH, Row, rows
from gpu_reporting.running import ReportError, Results, figures_of, read_document, require_plugin, run, versions
from gpu_reporting.tables import Found, markdown, programs
from tresnet_jax.cli.common import fail, parse
from tresnet_jax.files import save_text

NAME, PARTIAL = 'gpu_report', 'gpu_report.partial.json'
BAR = '{l_bar}{bar}| {elapsed}<{remaining}'
OF_THE_REPORT = ('only', 'diff', 'out')
OF_A_PROGRAM = ('mode', 'batch', 'image_size', 'dtype', 'abn_memory', 'remat', 'fold', 'json')


@dataclasses.dataclass(frozen=True)
class Command:
    """Compile a program for a GPU that need not be there, and say what it costs; without --model all of the report.

    The report writes OUT/gpu_report.json, OUT/gpu_report.md and OUT/images/gpu_report.png once it is whole. What is
    compiled is kept in OUT/gpu_report.partial.json, so that the same command goes on where it was interrupted. Figures
    are taken from there and from an earlier report as long as the modules of the library (comments and docstrings
    aside), the versions of JAX and cuDNN and XLA_FLAGS are the same.

    Exit codes: 0; 1, some programs failed, or it was interrupted; 2, nothing was done.
    """

    model: Annotated[str | None, tyro.conf.arg(metavar='NAME')] = None
    """One program alone, of this architecture."""

    mode: Literal['train', 'infer'] = 'train'
    """A training step, or a prediction. With --model, as all to --json."""

    batch: int | None = None
    """Images; 128 in training and 256 in inference if not given."""

    image_size: int = 224
    """Edge of the images in pixels."""

    dtype: Literal['bfloat16', 'float16', 'float32'] = 'bfloat16'
    """That is computed in."""

    abn_memory: str = 'plain'
    """What training keeps: plain, inplace, lean or recompute."""

    remat: bool = False
    """Training computes each block again."""

    fold: bool = True
    """Fold batch norm into the convolutions for inference."""

    json: bool = False
    """Print one JSON object instead of a table."""

    device: Literal['h100', 'a100'] = 'h100'
    """What is compiled for; a report for another one belongs in another --out."""

    only: str = '*'
    """Of the report the programs that match: 'train tresnet_m *'."""

    diff: Annotated[Path | None, tyro.conf.arg(metavar='BASE.json')] = None
    """An earlier gpu_report.json: print what changed since, instead of the tables."""

    out: Path = Path('docs')
    """Folder of the report."""

    def check(self) -> None:
        """Raises ReportError for a flag that would say nothing."""
        idle = OF_THE_REPORT if self.model else OF_A_PROGRAM
        given = [f for f in dataclasses.fields(self) if f.name in idle and getattr(self, f.name) != f.default]
        if given:
            flags = ', '.join(f'--{field.name.replace("_", "-")}' for field in given)
            raise ReportError(f'{flags}: not with --model' if self.model else f'{flags}: only with --model')

    @property
    def program(self) -> Program:
        """The one that is asked for."""
        assert self.model is not None
        return Program(
            self.mode,
            self.model,
            (TRAIN_BATCH if self.mode == 'train' else INFER_BATCH) if self.batch is None else self.batch,
            self.image_size,
            self.dtype,
            self.abn_memory,
            self.remat,
            self.fold,
            self.device,
        )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code; wrong usage and ``--help`` raise SystemExit."""
    command = parse(Command, arguments)
    try:
        command.check()
        return one(command) if command.model else report(command)
    except ValueError as error:  # ReportError, ConversionError: each one readable line
        return fail(error)
    except KeyboardInterrupt:
        print('interrupted; the same command goes on', file=sys.stderr)
        return 1


def one(command: Command) -> int:
    """Compile one program and print its figures."""
    program = command.program
    figures = run(program)
    if command.json:
        print(json.dumps(dataclasses.asdict(program) | figures, indent=2))
    else:
        print(programs([(Row(program), figures)]), end='')
    return 0


def report(command: Command) -> int:
    """Compile what is missing of the rows that are asked for; write the report if then it is whole."""
    plan = rows(command.device)
    chosen = [row for row in plan if fnmatch.fnmatch(row.program.name, command.only)]
    if not chosen:
        names = ', '.join(repr(row.program.name) for row in plan)
        raise ReportError(f'--only {command.only!r} matches none of {names}')
    before = figures_of(read_document(command.diff)) if command.diff else None
    results = Results(command.out / PARTIAL, command.out / f'{NAME}.json')
    failed = compile_missing(chosen, results)

    known = {row: figures for row in plan if (figures := row.known(results.figures))}
    if before is not None:
        print(changes([row for row in chosen if row in known], before, results.figures), end='')
    else:
        print(programs([(row, known[row]) for row in chosen if row in known]), end='')
    if len(known) == len(plan):
        write(command.out, results, list(known.items()))
    else:
        print(f'{len(known)} of {len(plan)} programs are done; {NAME}.md is written once all are', file=sys.stderr)
    return 1 if failed else 0


def compile_missing(chosen: Sequence[Row], results: Results) -> bool:
    """Have `results` know the rows; a progress bar shows on a terminal. True if some failed, which is printed."""
    missing = [row for row in chosen if row.known(results.figures) is None]
    if missing:
        require_plugin()
        results.kept.parent.mkdir(parents=True, exist_ok=True)
    total, left = (sum(row.compilations for row in some) for some in (chosen, missing))
    failed = False
    # Smoothing 0: the time left is from the mean of all, since a model takes four times as long as another.
    with tqdm.tqdm(total=total, initial=total - left, bar_format=BAR, smoothing=0, disable=None) as bar:
        for row in missing:
            bar.set_description(row.program.name)
            try:
                row.figures(results.get)
            except ValueError as error:
                failed = True
                bar.write(f'error: {error}', file=sys.stderr)
            bar.update(row.compilations)
    return failed


def write(out: Path, results: Results, found: Found) -> None:
    """The three files of a report that is whole."""
    (out / 'images').mkdir(exist_ok=True)
    draw(found, out / 'images' / f'{NAME}.png')
    save_text(out / f'{NAME}.md', markdown(found, versions()))
    batches = {row.program.name: figures['largest'] for row, figures in found if row.largest}
    results.write(out / f'{NAME}.json', largest=batches)
    results.kept.unlink(missing_ok=True)
