"""The command line of ``gpu_report.py``: the cost of one program, or the whole report."""

import dataclasses
import fnmatch
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

from gpu_reporting.changes import changes
from gpu_reporting.chart import draw_memory_modes
from gpu_reporting.fingerprint import versions
from gpu_reporting.program import Program
from gpu_reporting.results import Results, figures_of, read_report
from gpu_reporting.rows import INFER_BATCH, TRAIN_BATCH, KnownRows, ReportRow, report_rows
from gpu_reporting.subprocesses import ReportError, measure_in_subprocess, require_plugin
from gpu_reporting.tables import markdown, programs_table
from tresnet_jax.cli.common import Progress, fail, parse
from tresnet_jax.files import save_text
from tresnet_jax.options import flag

NAME, PARTIAL = 'gpu_report', 'gpu_report.partial.json'
REPORT_FLAGS = ('only', 'diff', 'out')
PROGRAM_FLAGS = ('mode', 'batch', 'image_size', 'dtype', 'abn_memory', 'remat', 'fold', 'json')


@dataclasses.dataclass(frozen=True)
class GpuReportArguments:
    """Compile programs for a GPU that is not present and print their cost; without --model, make the whole report.

    A complete report is written to OUT/gpu_report.json, OUT/gpu_report.md and OUT/images/gpu_report.png. Figures are
    saved in OUT/gpu_report.partial.json as they are found; after an interruption, run the same command again to resume.
    Figures from this file and from an earlier report are reused while the traced modules (apart from comments and
    docstrings), the versions of JAX and cuDNN, and XLA_FLAGS are the same. If the modules differ, each program is
    traced, and compiled only if it differs.

    Exit codes: 0 for success; 1 if some programs failed, or after an interruption; 2 for user errors.
    """

    model: Annotated[str | None, flag('NAME', 'the whole report')] = None
    """Measure a single program of this architecture."""

    mode: Literal['train', 'infer'] = 'train'
    """A training step or a prediction. This flag and those down to --json require --model."""

    batch: Annotated[int | None, flag('N', '128 for training, 256 for inference')] = None
    """Number of images."""

    image_size: int = 224
    """Edge of the images in pixels."""

    dtype: Literal['bfloat16', 'float16', 'float32'] = 'bfloat16'
    """Compute dtype."""

    abn_memory: str = 'plain'
    """What training keeps for the backward pass: plain, inplace, lean or recompute."""

    remat: bool = False
    """Recompute each block in the backward pass."""

    fold: bool = True
    """Fold batch norm into the convolutions for inference."""

    json: bool = False
    """Print one JSON object instead of a table."""

    device: Literal['h100', 'a100'] = 'h100'
    """Target of the compilation. Use a separate --out for each device."""

    only: str = '*'
    """Compile only the programs of the report whose names match this pattern, e.g. 'train tresnet_m *'."""

    diff: Annotated[Path | None, flag('BASE.json', 'none')] = None
    """Print what changed since this earlier gpu_report.json, instead of the tables."""

    out: Path = Path('docs')
    """Folder of the report."""

    def check(self) -> None:
        """Raise ReportError for a flag that would have no effect."""
        idle = REPORT_FLAGS if self.model else PROGRAM_FLAGS
        given = [f for f in dataclasses.fields(self) if f.name in idle and getattr(self, f.name) != f.default]
        if given:
            flags = ', '.join(f'--{field.name.replace("_", "-")}' for field in given)
            raise ReportError(f'{flags}: not with --model' if self.model else f'{flags}: only with --model')

    @property
    def program(self) -> Program:
        """The program that --model selects."""
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
    """Run the command line and return its exit code; invalid usage and ``--help`` raise SystemExit."""
    parsed = parse(GpuReportArguments, arguments)
    try:
        parsed.check()
        return print_program(parsed) if parsed.model else update_report(parsed)
    except ValueError as error:  # ReportError, ConversionError: each a single readable line
        return fail(error)
    except KeyboardInterrupt:
        print('interrupted; run the same command again to resume', file=sys.stderr)
        return 1


def print_program(arguments: GpuReportArguments) -> int:
    """Compile one program and print its figures; return the exit code."""
    program = arguments.program
    figures = measure_in_subprocess(program)
    if arguments.json:
        print(json.dumps(dataclasses.asdict(program) | figures, indent=2))
    else:
        print(programs_table([(ReportRow(program), figures)]), end='')
    return 0


def update_report(arguments: GpuReportArguments) -> int:
    """Compile the selected rows that are missing, and write the report if it is complete; return the exit code."""
    plan = report_rows(arguments.device)
    chosen = [row for row in plan if fnmatch.fnmatch(row.program.name, arguments.only)]
    if not chosen:
        names = ', '.join(repr(row.program.name) for row in plan)
        raise ReportError(f'--only {arguments.only!r} matches none of {names}')
    before = figures_of(read_report(arguments.diff)) if arguments.diff else None
    results = Results(arguments.out / PARTIAL, arguments.out / f'{NAME}.json')
    failed = compile_missing(chosen, results)

    known = {row: figures for row in plan if (figures := row.known(results.figures))}
    if before is not None:
        print(changes([row for row in chosen if row in known], before, results.figures), end='')
    else:
        print(programs_table([(row, known[row]) for row in chosen if row in known]), end='')
    if len(known) == len(plan):
        write_report(arguments.out, results, list(known.items()))
    else:
        print(f'{len(known)} of {len(plan)} programs are done; {NAME}.md is written when all are', file=sys.stderr)
    return 1 if failed else 0


def compile_missing(chosen: Sequence[ReportRow], results: Results) -> bool:
    """Add the rows that `results` does not have, and show progress.

    Errors are printed and do not stop the other rows. Returns whether some rows failed.
    """
    missing = [row for row in chosen if row.known(results.figures) is None]
    if missing:
        require_plugin()
        results.partial.parent.mkdir(parents=True, exist_ok=True)
    done, failed = 0, False
    with Progress(sum(row.compilations for row in missing), 'programs') as progress:
        for row in missing:
            try:
                row.figures(results.get)
            except ValueError as error:
                failed = True
                progress.write(f'error: {error}', error=True)
            done += row.compilations
            progress.update(done)
    return failed


def write_report(out: Path, results: Results, rows: KnownRows) -> None:
    """Write the three files of a complete report."""
    (out / 'images').mkdir(exist_ok=True)
    draw_memory_modes(rows, out / 'images' / f'{NAME}.png')
    save_text(out / f'{NAME}.md', markdown(rows, versions()))
    batches = {row.program.name: figures['largest'] for row, figures in rows if row.largest}
    results.write(out / f'{NAME}.json', largest=batches)
    results.partial.unlink(missing_ok=True)
