"""Draw PNG files with Matplotlib, an optional dependency (extra `plot`)."""

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from tresnet_jax.errors import missing_extra
from tresnet_jax.files import written_beside

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ACCENT = '#e8710a'


def new_figure(width: float, height: float) -> 'Figure':
    """Return an empty figure; width and height are in inches.

    Raises:
        MissingExtraError: Matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise missing_extra(error) or error from None
    return Figure(figsize=(width, height), layout='constrained')


def save_figure(figure: Any, path: Path, dpi: int = 100) -> None:
    """Write a figure as PNG, whatever the suffix of `path`.

    Raises:
        ConversionError: the file cannot be written.
    """
    with written_beside(path) as beside:
        figure.savefig(beside, format='png', dpi=dpi)


def colours(values: np.ndarray, name: str = 'turbo') -> np.ndarray:
    """Return the colours of values from 0 to 1: (...) -> (..., 3) uint8.

    Args:
        values: any shape.
        name: a colour map of Matplotlib.

    Raises:
        MissingExtraError: Matplotlib is not installed.
    """
    try:
        from matplotlib import colormaps
    except ModuleNotFoundError as error:
        raise missing_extra(error) or error from None
    return colormaps[name](values, bytes=True)[..., :3]


def contact_sheet(
    images: Sequence[Image.Image | None],
    captions: Sequence[str],
    path: str | os.PathLike,
    *,
    columns: int | None = None,
    inches: float = 2.2,
    framed: Sequence[int] = (),
) -> None:
    """Write a PNG file with all images in a grid, each above its caption.

    Args:
        images: at least one image, of any sizes; None leaves a place empty.
        captions: one per image; line breaks are kept.
        path: the file to write, always as PNG.
        columns: images per row. None: as many as make the grid nearly square.
        inches: width of a column; 100 pixels each.
        framed: positions of images that get a frame.

    Raises:
        ValueError: there are no images, or the numbers of images and captions differ.
        MissingExtraError: (a ValueError) Matplotlib is not installed.
        convert.ConversionError: (a ValueError) the file cannot be written.
    """
    if not images or len(images) != len(captions):
        raise ValueError(f'expected one caption per image, got {len(images)} images and {len(captions)} captions')
    columns = columns or math.ceil(math.sqrt(len(images)))
    rows = math.ceil(len(images) / columns)
    lines = max(caption.count('\n') + 1 for caption in captions)
    tallest = max(min(image.height / image.width, 1.0) for image in images if image is not None)
    figure = new_figure(inches * columns, (inches * tallest + 0.16 * lines + 0.1) * rows)
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for axis in axes:
        axis.set_axis_off()
    used = axes[: len(images)]  # the last row may have empty places
    for place, (axis, image, caption) in enumerate(zip(used, images, captions, strict=True)):
        if image is not None:
            axis.imshow(image.convert('RGB'))
        if place in framed:
            axis.set_axis_on()
            axis.set(xticks=(), yticks=())
            for spine in axis.spines.values():
                spine.set(color=ACCENT, linewidth=4)
        # Captions may contain dollar signs, which Matplotlib would read as formulas.
        text = axis.text(0.5, -0.03, caption, fontsize=8, ha='center', va='top', transform=axis.transAxes)
        text.set_parse_math(False)
    save_figure(figure, Path(path))
