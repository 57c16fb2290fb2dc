"""Check that images and reports can be written, before the work begins."""

import os
from pathlib import Path

from tresnet_jax.errors import ConversionError, reason
from tresnet_jax.plotting import new_figure


def check_plot(flag: str, path: Path, made: Path | None = None) -> None:
    """Raise ValueError if a PNG file cannot be written there, or if Matplotlib is not installed.

    Args:
        flag: the flag that names the file.
        path: the file. Its folder must exist.
        made: a folder that the program makes before it writes the file; None: there is none.
    """
    folder = path.parent
    if made is not None and folder.absolute() == made.absolute() and not path.is_dir():
        return check_plot_folder(flag, folder)
    if path.is_dir() or not folder.is_dir() or not os.access(folder, os.W_OK):
        raise ValueError(f'{flag} {path}: cannot be written there')
    new_figure(1, 1)  # raises if Matplotlib is not installed


def check_plot_folder(flag: str, folder: Path) -> None:
    """Raise ValueError if a folder of PNG files cannot be made or written, or if Matplotlib is not installed."""
    nearest = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not nearest.is_dir() or not os.access(nearest, os.W_OK | os.X_OK):
        raise ValueError(f'{flag} {folder}: is not a folder and cannot be made')
    new_figure(1, 1)


def make_folder(folder: Path) -> None:
    """Make a folder and those above it.

    Raises:
        ConversionError: it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConversionError(f'{folder}: cannot be made: {reason(error)}') from error
