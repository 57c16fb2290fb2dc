"""Charts of a check, if Matplotlib is installed."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from benchmarking.tables import write_bars

from gpu_checking import memory, parity, speed
from gpu_checking.records import Finding, Report, Value


@dataclasses.dataclass(frozen=True)
class Chart:
    """Horizontal bars of the rows of one kind of table.

    Attributes:
        file: its name beside the page.
        part: the part that it belongs to.
        title: the title of the chart.
        group: how the title of the table begins.
        columns: the figures that are drawn, one bar each.
        logarithmic: the scale of the axis.
    """

    file: str
    part: str
    title: str
    group: str
    columns: tuple[str, ...]
    logarithmic: bool = False


MOST = 40  # rows of a chart; the page has all

CHARTS = (
    Chart('parity.png', 'parity', 'largest relative error and its bound', parity.OUTPUTS, ('its error', 'bound'), True),
    Chart('memory.png', 'memory', 'peak memory, MB', memory.PEAK, ('expected, MB', 'peak, MB', 'temporaries, MB')),
    Chart('speed.png', 'speed', 'images per second', speed.SPEED, ('images/s',), True),
    Chart('bound.png', 'speed', 'share of the bound that is reached', speed.BOUND, ('share of the bound',)),
    Chart('kernels.png', 'speed', 'longest kernels, ms', speed.KERNELS, ('ms',)),
)


def draw(report: Report, folder: Path) -> list[str]:
    """Write the charts for which there are figures, and return their file names.

    Raises:
        MissingExtraError: Matplotlib is not installed.
    """
    drawn = []
    for chart in CHARTS:
        result = report.parts.get(chart.part)
        rows = [
            finding
            for finding in (result.findings if result else ())
            if finding.group.startswith(chart.group) and any(finding.values.get(name) for name in chart.columns)
        ]
        if rows:
            _bars(chart, rows[:MOST], folder / chart.file)
            drawn.append(chart.file)
    return drawn


def _bars(chart: Chart, rows: Sequence[Finding], path: Path) -> None:
    bars = {name: [_number(finding.values.get(name)) for finding in rows] for name in chart.columns}
    names = [finding.name for finding in rows]
    write_bars(path, names, bars, '', chart.title, line=None, logarithmic=chart.logarithmic, numbers='%.3g')


def _number(value: Value) -> float | None:
    return value if isinstance(value, int | float) else None
