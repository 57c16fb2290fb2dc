"""The command line of ``gpu_check.py``: run the parts, write the files, compare with an earlier check."""

import dataclasses
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

from benchmarking.processes import JobError

from gpu_checking.charts import draw
from gpu_checking.comparison import comparison
from gpu_checking.machine import describe_machine, has_room_for_several
from gpu_checking.page import page, summary_line
from gpu_checking.plan import PARTS, parts_of
from gpu_checking.records import (
    FINISHED,
    LEFT_OUT,
    UNFINISHED,
    CheckError,
    PartResult,
    Report,
    read_report,
)  # fmt: skip
from gpu_checking.runner import limit_of, run_parts, stages_of
from gpu_checking.sizes import SECONDS, Level
from tresnet_jax.cli.common import fail, parse
from tresnet_jax.errors import MissingExtraError
from tresnet_jax.files import save_text
from tresnet_jax.options import POSITIVE, check_options, flag

NAME, EARLIER = 'gpu_check', 'gpu_check.earlier.json'
LEAST_SECONDS = 15.0  # in less time, no part finds anything
PartName = Literal['parity', 'memory', 'speed', 'determinism', 'training', 'autotuning', 'largest']


@dataclasses.dataclass(frozen=True)
class GpuCheckArguments:
    """Check parity, memory, speed, determinism, training and autotuning on this machine's GPU, in 10 minutes.

    Each part runs in its own process with a share of the time; what it has found by then counts. OUT/gpu_check.json and
    OUT/gpu_check.md are written every few seconds, and with Matplotlib charts at the end. The same command resumes:
    parts that finished with the same device, versions, variables, commit and level are not run again.

    With JAX_PLATFORMS=cpu the sizes are tiny: a trial of the check itself.

    Exit codes: 0 if nothing is wrong; 1 if a check failed, a part ended with an error, or after Ctrl-C or SIGTERM; 2
    for user errors.
    """

    quick: bool = False
    """Take 2 minutes instead of 10: fewer networks and batches."""

    full: bool = False
    """Take 40 minutes instead of 10: more networks and batches, and the largest batches."""

    minutes: Annotated[float | None, POSITIVE, flag('MINUTES', 'the time of the level')] = None
    """Take this long instead, with the sizes of the level."""

    only: Annotated[tuple[PartName, ...] | None, flag('PART ...', 'all of the level')] = None
    """Parts to run. --quick has no determinism and autotuning, and only --full has largest."""

    again: bool = False
    """Run parts again that were already measured."""

    tiny: bool = False
    """Use tiny sizes on a GPU too, to see whether everything runs."""

    compare: Annotated[Path | None, flag('OLD.json', 'none')] = None
    """Show ratios of the figures to those of this earlier gpu_check.json."""

    out: Path = Path('gpu_check')
    """Folder of the results."""

    @property
    def level(self) -> Level:
        """Which sizes and how much time.

        Raises:
            CheckError: both levels are given.
        """
        if self.quick and self.full:
            raise CheckError('give --quick or --full, not both')
        return 'quick' if self.quick else 'full' if self.full else 'default'


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code; invalid usage and ``--help`` raise SystemExit."""
    parsed = parse(GpuCheckArguments, arguments)
    # The processes of the parts do not get these signals, so that this one has to end them, as after Ctrl-C.
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        for number in (number for number, action in before.items() if action != signal.SIG_IGN):  # as nohup sets
            signal.signal(number, signal.default_int_handler)
        return check(parsed)
    except (ValueError, JobError, OSError) as error:
        return fail(error)
    except KeyboardInterrupt:
        print('interrupted; run the same command again to resume', file=sys.stderr)
        return 1
    finally:
        for number, action in before.items():
            signal.signal(number, action)


def check(arguments: GpuCheckArguments) -> int:
    """Run the parts that are not measured yet, and return the exit code.

    Raises:
        CheckError: there is no GPU, or a file cannot be read.
    """
    began = time.monotonic()
    check_options(arguments, CheckError)
    level = arguments.level
    chosen = chosen_parts(arguments.only, level)
    old = read_report(arguments.compare) if arguments.compare else None
    about = describe_machine()
    settings = {'level': level, 'tiny': arguments.tiny or about['platform'] == 'cpu'}
    arguments.out.mkdir(parents=True, exist_ok=True)
    report = resumed(arguments.out, Report(about, settings, {}))
    waiting = [
        name for name in PARTS if name in chosen and (arguments.again or not is_measured(report.parts.get(name)))
    ]
    print(f'{about["device"]}, driver {about["driver"]}, {level}: {", ".join(waiting) or "everything is measured"}')
    seconds = SECONDS[level] if arguments.minutes is None else 60 * arguments.minutes
    stages = stages_of(waiting, has_room_for_several(about))
    while stages:
        earlier = report.parts
        limit, names = limit_of(stages, seconds - (time.monotonic() - began), level), stages.pop(0)
        late = (PartResult(name, UNFINISHED, 'not started: no time was left', 0.0, ()) for name in names)
        for result in run_parts(names, settings, limit, arguments.out) if limit >= LEAST_SECONDS else late:
            parts = report.parts | {result.part: result.after(earlier.get(result.part))}
            report = dataclasses.replace(report, parts={name: parts[name] for name in PARTS if name in parts})
            write_files(arguments.out, report, old, with_charts=False)
            if result.status != UNFINISHED:
                print(summary_line(result), flush=True)
    write_files(arguments.out, report, old)
    if old:
        print(comparison(old, report), end='')
    failures = [line for result in report.parts.values() for line in result.failures]
    for line in failures:
        print(f'failed: {line}', file=sys.stderr)
    print(arguments.out / f'{NAME}.md')
    return 1 if failures else 0


def chosen_parts(only: Sequence[str] | None, level: Level) -> list[str]:
    """Return the parts to run, in order; `only` None: all of the level.

    Raises:
        CheckError: the level has no time for one of them.
    """
    names = parts_of(level)
    if left_out := [name for name in only or () if name not in names]:
        longer = 'use --full' if 'largest' in left_out else 'leave out --quick'
        raise CheckError(f'--only {" ".join(left_out)}: this level has no time for it; {longer}')
    return [name for name in names if only is None or name in only]


def is_measured(result: PartResult | None) -> bool:
    """Return whether a part need not run again. One that ran out of time gets further: it compiles less."""
    return result is not None and result.status in (FINISHED, LEFT_OUT)


def resumed(out: Path, fresh: Report) -> Report:
    """Return the report in `out` if it was measured as `fresh` will be, else `fresh`; then keep the other as EARLIER.

    Raises:
        CheckError: there is a file, but it is not a report.
    """
    path = out / f'{NAME}.json'
    if not path.exists():
        return fresh
    found = read_report(path)
    if found.fits(fresh):
        return found
    path.replace(out / EARLIER)
    print(f'{path} is of another device, version, commit or level: kept as {out / EARLIER}')
    return fresh


def write_files(out: Path, report: Report, old: Report | None, *, with_charts: bool = True) -> None:
    """Write the results, the page and, if asked for, the charts."""
    report.write(out / f'{NAME}.json')
    charts: list[str] = []
    if with_charts:
        try:
            charts = draw(report, out)
        except MissingExtraError as error:
            print(f'no charts: {error}', file=sys.stderr)
    save_text(out / f'{NAME}.md', page(report, charts, comparison(old, report) if old else ''))
