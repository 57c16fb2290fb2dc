"""Output files of a benchmark: CSV and a bar chart. A file is written completely or not at all."""

import csv
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tresnet_jax.files import written_beside
from tresnet_jax.plotting import new_figure, save_figure


def write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Write a CSV file; None becomes an empty cell."""
    with written_beside(path) as beside, beside.open('w', newline='', encoding='utf-8') as file:
        writer = csv.writer(file)
        writer.writerow(header)
        writer.writerows(rows)


def write_bars(
    path: Path,
    groups: Sequence[str],
    bars: Mapping[str, Sequence[float | None]],
    label: str,
    title: str,
    *,
    line: float | None = 1,
    logarithmic: bool = False,
    numbers: str = '%.2f',
) -> None:
    """Write a PNG of horizontal bars.

    Args:
        path: file to write.
        groups: names of the groups of bars, from top to bottom.
        bars: for each name, the length of its bar in each group; None for no bar.
        label: label of the horizontal axis.
        title: title of the chart.
        line: a value that a line marks; None: no line.
        logarithmic: the scale of the axis.
        numbers: format of the lengths that follow the bars.
    """
    thickness = 0.8 / max(len(bars), 1)
    figure = new_figure(8, 1.5 + 0.25 * len(groups) * (len(bars) + 1))
    axis = figure.subplots()
    for i, (name, lengths) in enumerate(bars.items()):
        places = np.arange(len(groups)) + (i - (len(bars) - 1) / 2) * thickness
        present = [(place, length) for place, length in zip(places, lengths, strict=True) if length is not None]
        drawn = axis.barh([p for p, _ in present], [length for _, length in present], thickness, label=name)
        axis.bar_label(drawn, fmt=numbers, padding=2, fontsize='small')
    if line is not None:
        axis.axvline(line, color='black', linewidth=0.8)
    if logarithmic:
        axis.set_xscale('log')
    axis.set_yticks(range(len(groups)), groups)
    axis.invert_yaxis()
    axis.set_xlabel(label)
    axis.set_title(title, fontsize='medium')
    axis.margins(x=0.12)
    figure.legend(loc='outside lower center', ncols=4)
    save_figure(figure, path)
