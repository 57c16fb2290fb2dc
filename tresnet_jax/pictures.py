"""Pictures from files of any sort, and back: reading, finding, and a contact sheet."""

import contextlib
import math
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

SUFFIXES = frozenset('.jpg .jpeg .png .webp .bmp .gif .tif .tiff .ppm .pgm .pbm .jp2 .avif'.split())


class PictureError(ValueError):
    """A file that cannot be read as a picture; the message is one line with the file and the reason."""


def load_picture(path: str | os.PathLike) -> Image.Image:
    """The picture of a file, upright, in mode 'RGB'; of an animation the first frame.

    As in timm, transparency is dropped and what lies beneath it shows. Unlike in timm, pictures are turned as
    their EXIF data asks, and grey ones of more than 8 bits are scaled instead of cut off at 255. White is
    65535 in 16 bits. In wider integers it is 65535 or 2^31 - 1, in floats 1, 255, 65535 or 2^31 - 1: the
    first that no pixel is above, or else the highest pixel. Negative numbers are black.

    Raises:
        PictureError: the file is missing, empty, truncated, no picture, or larger than Pillow's limit.
    """
    path = Path(path)
    try:
        if path.is_dir():
            raise ValueError('a folder, not a picture')
        if not path.stat().st_size:
            raise ValueError('the file is empty')
        with Image.open(path) as picture:
            picture.load()
            return to_rgb(upright(picture))
    except UnidentifiedImageError:
        raise PictureError(f'{path}: not a picture, or of a kind that Pillow cannot read') from None
    except Exception as error:  # A damaged file can raise nearly anything out of Pillow's decoders.
        reason = getattr(error, 'strerror', None) or ' '.join(str(error).split()) or type(error).__name__
        raise PictureError(f'{path}: {reason}') from error


def upright(picture: Image.Image) -> Image.Image:
    # Pillow writes the EXIF data anew when it turns a picture; where that fails the pixels are still good.
    with contextlib.suppress(Exception):
        return ImageOps.exif_transpose(picture)
    return picture


def to_rgb(picture: Image.Image) -> Image.Image:
    if picture.mode == 'P':
        # `convert` takes the colours of the palette either way, but warns about transparency.
        picture.info.pop('transparency', None)
    if picture.mode == 'F' or picture.mode.startswith('I'):
        picture = Image.fromarray(_to_8_bits(np.asarray(picture)))
    return picture.convert('RGB')


def _to_8_bits(pixels: np.ndarray) -> np.ndarray:
    """(H, W) integers or floats -> uint8; `load_picture` says what is white."""
    highest = float(pixels.max())
    if not math.isfinite(highest + float(pixels.min())):
        raise ValueError('some pixels are not finite numbers')
    is_float = np.issubdtype(pixels.dtype, np.floating)
    scales = (1, 255, 65535, 2**31 - 1) if is_float else (65535, 2**31 - 1)
    white = next((scale for scale in scales if highest <= scale), highest)
    return np.rint(np.clip(pixels / white, 0, 1) * 255).astype(np.uint8)


def find_pictures(paths: Iterable[str | os.PathLike]) -> list[Path]:
    """Files as they are given, whatever they are called; of each folder its pictures at any depth, sorted.

    Pictures are told by their suffix; hidden ones ('._dog.jpg', which macOS leaves in archives) are left out.
    """
    found: list[Path] = []
    for path in map(Path, paths):
        found += sorted(filter(_is_picture, path.rglob('*'))) if path.is_dir() else [path]
    return found


def _is_picture(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES and not path.name.startswith('.') and path.is_file()


def contact_sheet(pictures: Sequence[Image.Image], captions: Sequence[str], path: str | os.PathLike) -> None:
    """Write a PNG file with all pictures in a grid, about as wide as it is high, each above its caption.

    The file appears whole or not at all: it is written under another name beside it first.

    Args:
        pictures: at least one, of any size.
        captions: one a picture; lines are kept.
        path: of the file to write, whatever its suffix.

    Raises:
        ValueError: no pictures, or not as many captions.
        convert.ConversionError: (a ValueError) the file cannot be written.
    """
    from matplotlib.figure import Figure

    # Here, not above: the converter needs the library.
    from convert.write import written_beside

    if not pictures or len(pictures) != len(captions):
        raise ValueError(f'one caption a picture, got {len(pictures)} pictures and {len(captions)} captions')
    columns = math.ceil(math.sqrt(len(pictures)))
    rows = math.ceil(len(pictures) / columns)
    lines = max(caption.count('\n') + 1 for caption in captions)
    figure = Figure(figsize=(2.2 * columns, (2.2 + 0.16 * lines) * rows), layout='constrained')
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for axis in axes:
        axis.set_axis_off()
    places = axes[: len(pictures)]  # The last row may have empty ones.
    for axis, picture, caption in zip(places, pictures, captions, strict=True):
        axis.imshow(picture.convert('RGB'))
        # Names may hold dollar signs, which are no formulas.
        text = axis.text(0.5, -0.03, caption, fontsize=8, ha='center', va='top', transform=axis.transAxes)
        text.set_parse_math(False)
    with written_beside(Path(path)) as beside:
        figure.savefig(beside, format='png', dpi=100)
