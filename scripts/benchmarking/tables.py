"""Files that a benchmark leaves: CSV and a bar chart, each written whole or not at all."""

import csv
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tresnet_jax.files import written_beside


def write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """None becomes an empty cell."""
    with written_beside(path) as beside, beside.open('w', newline='', encoding='utf-8') as file:
        writer = csv.writer(file)
        writer.writerow(header)
        writer.writerows(rows)


def write_bars(
    path: Path, groups: Sequence[str], bars: Mapping[str, Sequence[float | None]], label: str, title: str
) -> None:
    """A PNG of horizontal bars.

    Args:
        path: the file.
        groups: what stands together, from top to bottom.
        bars: by their name the length of the bar in each group; None leaves it out.
        label: of the lengths; where they are 1 there is a line.
        title: above all.
    """
    from matplotlib.figure import Figure

    thickness = 0.8 / max(len(bars), 1)
    figure = Figure(figsize=(8, 1.5 + 0.25 * len(groups) * (len(bars) + 1)), layout='constrained')
    axis = figure.subplots()
    for i, (name, lengths) in enumerate(bars.items()):
        places = np.arange(len(groups)) + (i - (len(bars) - 1) / 2) * thickness
        there = [(place, length) for place, length in zip(places, lengths, strict=True) if length is not None]
        drawn = axis.barh([p for p, _ in there], [length for _, length in there], thickness, label=name)
        axis.bar_label(drawn, fmt='%.2f', padding=2, fontsize='small')
    axis.axvline(1, color='black', linewidth=0.8)
    axis.set_yticks(range(len(groups)), groups)
    axis.invert_yaxis()
    axis.set_xlabel(label)
    axis.set_title(title, fontsize='medium')
    axis.margins(x=0.12)
    figure.legend(loc='outside lower center', ncols=4)
    with written_beside(path) as beside:
        figure.savefig(beside, format='png', dpi=100)
