"""Draw PNG files with Matplotlib, an optional dependency (extra `plot`)."""

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from tresnet_jax.errors import missing_extra
from tresnet_jax.files import written_beside

if TYPE_CHECKING:
    from matplotlib.figure import Figure


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


def contact_sheet(images: Sequence[Image.Image], captions: Sequence[str], path: str | os.PathLike) -> None:
    """Write a PNG file with all images in a nearly square grid, each above its caption.

    Args:
        images: at least one image, of any sizes.
        captions: one per image; line breaks are kept.
        path: the file to write, always as PNG.

    Raises:
        ValueError: there are no images, or the numbers of images and captions differ.
        MissingExtraError: (a ValueError) Matplotlib is not installed.
        convert.ConversionError: (a ValueError) the file cannot be written.
    """
    if not images or len(images) != len(captions):
        raise ValueError(f'expected one caption per image, got {len(images)} images and {len(captions)} captions')
    columns = math.ceil(math.sqrt(len(images)))
    rows = math.ceil(len(images) / columns)
    lines = max(caption.count('\n') + 1 for caption in captions)
    figure = new_figure(2.2 * columns, (2.2 + 0.16 * lines) * rows)
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for axis in axes:
        axis.set_axis_off()
    used = axes[: len(images)]  # the last row may have empty places
    for axis, image, caption in zip(used, images, captions, strict=True):
        axis.imshow(image.convert('RGB'))
        # Captions may contain dollar signs, which Matplotlib would read as formulas.
        text = axis.text(0.5, -0.03, caption, fontsize=8, ha='center', va='top', transform=axis.transAxes)
        text.set_parse_math(False)
    save_figure(figure, Path(path))
