"""The charts of `evaluate.py --report`. With more than 50 classes they omit the names, which would be unreadable."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tresnet_jax.plotting import ACCENT, new_figure, save_figure

NAMED, COUNTED = 50, 15  # the most classes with names, and with the numbers of images
NAME = 28  # letters of a name
LIGHT = '#9ecae1'


def draw_confusion(path: Path, matrix: np.ndarray, rows: Sequence[str], columns: Sequence[str], title: str) -> None:
    """Draw a confusion matrix as the shares of each row.

    Args:
        path: the PNG file.
        matrix: (rows, columns), numbers of images.
        rows, columns: the names.
        title: the title.

    Raises:
        ConversionError: the file cannot be written.
    """
    count = len(rows)
    edge = 2.6 + max(0.3 * count, 3) if count <= NAMED else 10.0
    figure = new_figure(edge + 1.2, edge)
    axis = figure.subplots()
    shares = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    # The square root shows the small shares of a matrix whose diagonal is large.
    if count <= NAMED:
        drawn = axis.imshow(np.sqrt(shares), cmap='Blues', vmin=0, vmax=1, aspect='auto')
    else:  # cells of a pixel or less would vanish: draw dots, the darkest last
        row, column = np.nonzero(matrix)
        order = np.argsort(shares[row, column], kind='stable')
        row, column = row[order], column[order]
        size = max(2.5, (500 / count) ** 2)
        drawn = axis.scatter(column, row, size, np.sqrt(shares[row, column]), cmap='Blues', vmin=0, vmax=1)
        axis.set(xlim=(-0.5, len(columns) - 0.5), ylim=(count - 0.5, -0.5))
    bar = figure.colorbar(drawn, ax=axis, shrink=0.8, label='share of the images of the class')
    ticks = np.array([0, 0.01, 0.05, 0.1, 0.25, 0.5, 1])
    bar.set_ticks(list(np.sqrt(ticks)), labels=[f'{100 * tick:g} %' for tick in ticks])
    bar.outline.set_visible(False)
    if count <= NAMED:
        axis.set_xticks(range(len(columns)), [_cut(name) for name in columns], rotation=60, ha='right')
        axis.set_yticks(range(count), [_cut(name) for name in rows])
    if count <= COUNTED:
        for (row, column), number in np.ndenumerate(matrix):
            if number:
                colour = 'white' if shares[row, column] > 0.3 else 'black'
                axis.text(column, row, f'{number:,}', ha='center', va='center', fontsize=8, color=colour)
    axis.set(xlabel='predicted', ylabel='class')
    axis.tick_params(length=0)
    axis.spines[:].set_visible(False)
    _finish(figure, axis, title, path)


def draw_scores(
    path: Path, precisions: np.ndarray, f1: np.ndarray, names: Sequence[str], title: str, threshold: float
) -> None:
    """Draw the average precision of each class as a bar and its F1 as a dot, sorted by average precision.

    Args:
        path: the PNG file.
        precisions, f1: (classes,).
        names: of the classes.
        title: the title.
        threshold: probability from which a class counts as predicted in F1.

    Raises:
        ConversionError: the file cannot be written.
    """
    order = np.argsort(precisions, kind='stable')
    places = np.arange(len(order))
    if len(order) <= NAMED:
        figure = new_figure(7, 1.6 + 0.26 * len(order))
        axis = figure.subplots()
        axis.barh(places, precisions[order], 0.7, color=LIGHT, label='average precision')
        axis.plot(f1[order], places, 'o', color=ACCENT, markersize=5, label=f'F1 from probability {threshold:g}')
        axis.set_yticks(places, [_cut(names[int(index)]) for index in order])
        axis.set(xlim=(0, 1), ylim=(-0.6, len(order) - 0.4))
        axis.grid(axis='x', color='0.9')
    else:
        figure = new_figure(10, 4.5)
        axis = figure.subplots()
        axis.fill_between(places, precisions[order], step='mid', color=LIGHT, label='average precision')
        axis.plot(places, f1[order], '.', color=ACCENT, markersize=3, label=f'F1 from probability {threshold:g}')
        axis.set(xlim=(0, len(order) - 1), ylim=(0, 1), xlabel='classes, sorted by average precision')
        axis.grid(axis='y', color='0.9')
    axis.set_axisbelow(True)
    axis.tick_params(length=0)
    axis.spines[:].set_visible(False)
    figure.legend(loc='outside lower center', ncols=2, frameon=False)
    _finish(figure, axis, title, path)


def _cut(name: str) -> str:
    return name if len(name) <= NAME else f'{name[: NAME - 1]}…'


def _finish(figure: Any, axis: Any, title: str, path: Path) -> None:
    """Add the title and write the file. Dollar signs in names are not formulas."""
    heading = axis.set_title(title, fontsize=11)
    for text in (heading, *axis.get_xticklabels(), *axis.get_yticklabels()):
        text.set_parse_math(False)
    save_figure(figure, path)
