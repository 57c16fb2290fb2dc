"""Medians, ratios and spreads of the measurements, as Markdown, CSV and a chart."""

import dataclasses
import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path

from markdown_table import table

from benchmarking.contenders import CONTENDERS, TIMM
from benchmarking.tables import write_bars, write_csv
from benchmarking.turns import spread
from tresnet_jax.files import save_text


@dataclasses.dataclass(frozen=True)
class Kind:
    """How a measure is shown: its values times `scale`, in `unit`; and whether more is better."""

    unit: str
    scale: float
    more_is_better: bool = False


KINDS = {
    'inference': Kind('ms', 1e3),
    'train': Kind('ms', 1e3),
    'build': Kind('s', 1),
    'first_call': Kind('s', 1),
    'memory, inference': Kind('MB', 1e-6),
    'memory, train': Kind('MB', 1e-6),
    'largest_batch, inference': Kind('images', 1, more_is_better=True),
    'largest_batch, train': Kind('images', 1, more_is_better=True),
}


@dataclasses.dataclass(frozen=True)
class Measurement:
    """The values of one contender in one case: seconds, bytes or images, one value per round.

    `batch` is 0 for measures without a batch.
    """

    model: str
    what: str
    batch: int
    contender: str
    values: tuple[float, ...]

    @property
    def case(self) -> tuple[str, str, int]:
        return self.model, self.what, self.batch


@dataclasses.dataclass(frozen=True)
class ResultRow:
    """A measurement compared with timm's.

    `ratio` is timm's median over this median, or the inverse for measures where more is better; above 1, this contender
    is ahead. For timm the better of its contenders counts. Spreads are the interquartile range over the median; the
    spread of the ratio is taken over the ratios of the rounds.
    """

    model: str
    what: str
    batch: int
    contender: str
    unit: str
    median: float
    spread: float
    images_per_second: float | None
    ratio: float | None
    ratio_spread: float | None
    rounds: int

    @property
    def case(self) -> tuple[str, str, int]:
        return self.model, self.what, self.batch


def result_rows(measurements: Sequence[Measurement]) -> list[ResultRow]:
    """Return one row per measurement, in the same order."""
    return [_row(m, best_timm(m, measurements)) for m in measurements]


def best_timm(compared: Measurement, measurements: Sequence[Measurement]) -> Measurement | None:
    """Return the better of timm's measurements in the same case; None if there is none."""
    theirs = [m for m in measurements if m.case == compared.case and m.contender in TIMM]
    better = max if KINDS[compared.what].more_is_better else min
    return better(theirs, key=lambda m: statistics.median(m.values), default=None)


def _row(ours: Measurement, timm: Measurement | None) -> ResultRow:
    kind, median = KINDS[ours.what], statistics.median(ours.values)
    ratio = ratio_spread = None
    if timm is not None:
        ratios = [a / b for a, b in zip(timm.values, ours.values, strict=True)]
        ratio = statistics.median(timm.values) / median
        if kind.more_is_better:
            ratios, ratio = [1 / value for value in ratios], 1 / ratio
        ratio_spread = spread(ratios)
    return ResultRow(
        ours.model,
        ours.what,
        ours.batch,
        ours.contender,
        kind.unit,
        median * kind.scale,
        spread(ours.values),
        ours.batch / median if ours.what in ('inference', 'train') else None,
        ratio,
        ratio_spread,
        len(ours.values),
    )


def _cases(rows: Sequence[ResultRow]) -> Iterator[tuple[list[str], dict[str, ResultRow]]]:
    """Yield the cells that name a case, and its rows by contender."""
    for case in dict.fromkeys(row.case for row in rows):
        model, what, batch = case
        yield [model, what, str(batch or '')], {row.contender: row for row in rows if row.case == case}


def results_page(rows: Sequence[ResultRow], about: str) -> str:
    """Return Markdown with medians, ratios to timm, and images per second, as far as they exist."""
    present = {row.contender for row in rows}
    names = [name for name in CONTENDERS if name in present]
    others = [name for name in names if name not in TIMM]
    tables: dict[str, tuple[list[str], list[list[str]]]] = {
        'Medians': ([*names, 'timm'] if present & set(TIMM) else names, []),
        'Ratios to timm, above 1 if better than timm': (others, []),
        'Images per second': (names, []),
    }
    for case, by_name in _cases(rows):
        timm = next((row for name, row in by_name.items() if name in TIMM and row.ratio == 1), None)
        shown = by_name | ({'timm': timm} if timm else {})
        for (columns, lines), cell in zip(tables.values(), (_median, _ratio, _speed), strict=True):
            cells = [cell(shown[name]) if name in shown else '' for name in columns]
            if any(cells):
                lines.append([*case, *cells])
    text = about
    for title, (columns, lines) in tables.items():
        if lines:
            text += f'\n\n{title}:\n\n' + table(['model', 'what', 'batch', *columns], lines)
    return text


def _median(row: ResultRow) -> str:
    return f'{_short(row.median)} {row.unit}' + (f' ± {row.spread:.0%}' if row.rounds > 1 else '')


def _ratio(row: ResultRow) -> str:
    if row.ratio is None:
        return ''
    return f'{row.ratio:.2f}' + (f' ± {row.ratio_spread:.0%}' if row.rounds > 1 else '')


def _speed(row: ResultRow) -> str:
    return '' if row.images_per_second is None else _short(row.images_per_second)


def _short(value: float) -> str:
    """Format with three significant digits, or as an integer from 1000 on."""
    return f'{value:.3g}' if value < 999.5 else f'{value:.0f}'


def write_files(out: Path, rows: Sequence[ResultRow], text: str, title: str) -> None:
    """Write benchmark.md, benchmark.csv and, if there are ratios, benchmark.png to the folder `out`."""
    save_text(out / 'benchmark.md', text)
    header = [field.name for field in dataclasses.fields(ResultRow)]
    write_csv(out / 'benchmark.csv', header, [dataclasses.astuple(row) for row in rows])
    groups, bars = [], {row.contender: [] for row in rows if row.contender not in TIMM and row.ratio is not None}
    for (model, what, batch), by_name in _cases(rows):
        groups.append(f'{model}\n{what}{f", batch {batch}" if batch else ""}')
        for name, lengths in bars.items():
            lengths.append(by_name[name].ratio if name in by_name else None)
    if bars:
        write_bars(out / 'benchmark.png', groups, bars, 'times as good as timm in PyTorch', title)
