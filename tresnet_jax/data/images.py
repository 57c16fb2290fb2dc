"""Decoding of image files to upright 'RGB' images, and the range of grey images of more than 8 bits."""

import contextlib
import io
import logging
import math
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from tresnet_jax.errors import ImageError, reason, shown

ORIENTATION = 0x0112  # EXIF tag; 1 is upright
NARROW = 4096  # a 16-bit image whose values stay below probably has 12 bits
PROBED = 32  # images of a data set whose range is looked at


@contextlib.contextmanager
def _image_errors(prefix: str = '') -> Iterator[None]:
    """Turn any exception into an ImageError of one line."""
    try:
        yield
    except UnidentifiedImageError:
        raise ImageError(f'{prefix}not an image, or of a kind that Pillow cannot read') from None
    except Exception as error:  # A damaged file can raise nearly anything in Pillow's decoders.
        raise ImageError(f'{prefix}{reason(error)}') from error


def _orientation(image: Image.Image) -> int:
    """Return the EXIF orientation, 1 to 8; 1 (upright) if there is none or the EXIF data is damaged."""
    try:
        return image.getexif().get(ORIENTATION, 1)
    except Exception:  # Pillow's parser raises struct.error, SyntaxError and others.
        return 1


def _to_8_bits(pixels: np.ndarray, max_value: float | None) -> np.ndarray:
    """Scale (H, W) integers or floats to uint8; `load_image` says which value is white."""
    highest = float(pixels.max())
    if not math.isfinite(highest + float(pixels.min())):
        raise ValueError('some pixels are not finite numbers')
    is_float = np.issubdtype(pixels.dtype, np.floating)
    scales = (1, 255, 65535, 2**31 - 1) if is_float else (65535, 2**31 - 1)
    white = max_value or next((scale for scale in scales if highest <= scale), highest)
    return np.rint(np.clip(pixels / white, 0, 1) * 255).astype(np.uint8)


def _is_deep(image: Image.Image) -> bool:
    """Return whether an image is grey with more than 8 bits: integers of 16 or 32 bits, or floats."""
    return image.mode == 'F' or image.mode.startswith('I')


def to_rgb(image: Image.Image, max_value: float | None = None) -> Image.Image:
    """Convert an image of any mode to 'RGB', as `load_image` describes."""
    if image.mode == 'P':
        # `convert` uses the palette's colours either way, but warns about transparency.
        image.info.pop('transparency', None)
    if _is_deep(image):
        image = Image.fromarray(_to_8_bits(np.asarray(image), max_value))
    return image.convert('RGB')


def _upright_rgb(image: Image.Image, max_value: float | None) -> Image.Image:
    """Decode the pixels of an opened image, rotate it upright and convert it to 'RGB'."""
    image.load()
    if _orientation(image) != 1:
        # Pillow rewrites the EXIF data when it rotates. If that fails, the pixels are still good.
        with contextlib.suppress(Exception):
            image = ImageOps.exif_transpose(image)
    return to_rgb(image, max_value)


def load_image(path: str | os.PathLike, *, max_value: float | None = None) -> Image.Image:
    """Read an image file: upright, mode 'RGB', the first frame of an animation.

    As in timm, transparency is dropped and the colours under it show. Unlike in timm, images are rotated as their
    EXIF data says, and grey images of more than 8 bits are scaled instead of clipped at 255. White is 65535 in
    16 bits. In wider integers it is 65535 or 2^31 - 1, in floats 1, 255, 65535 or 2^31 - 1: the first that no pixel
    exceeds, or else the highest pixel. Negative numbers are black.

    Args:
        path: the file.
        max_value: the value that is white in grey images of more than 8 bits, for example 4095 for 12 bits in files
            of 16. None: as above.

    Raises:
        ImageError: the file is missing, empty, truncated, not an image, or larger than Pillow's limit.
    """
    path = Path(path)
    with _image_errors(f'{path}: '):
        if path.is_dir():
            raise ValueError('a folder, not an image')
        if not path.stat().st_size:
            raise ValueError('the file is empty')
        with Image.open(path) as image:
            return _upright_rgb(image, max_value)


def decode(data: bytes | np.ndarray, max_value: float | None = None) -> Image.Image:
    """Decode an image as `load_image` does: upright, mode 'RGB'.

    An upright RGB JPEG is only opened. Its pixels are decoded on first access, so that a transform can decode it at
    a smaller size (`Image.draft`).

    Args:
        data: the bytes of an image file, or (H, W), (H, W, 1), (H, W, 3) or (H, W, 4) uint8.
        max_value: as in `load_image`.

    Raises:
        ImageError: the image cannot be decoded; the message is the reason alone, without a file name.
    """
    if isinstance(data, np.ndarray):
        return Image.fromarray(data[..., 0] if data.shape[2:] == (1,) else data).convert('RGB')
    with _image_errors():
        if not data:
            raise ValueError('the file is empty')
        image = Image.open(io.BytesIO(data))
        if image.format == 'JPEG' and image.mode == 'RGB' and _orientation(image) == 1:
            return image
        return _upright_rgb(image, max_value)


def finish_decoding(image: Image.Image) -> Image.Image:
    """Decode the pixels of an image that `decode` has only opened; convert an image of another mode to 'RGB'.

    Raises:
        ImageError: the image cannot be decoded.
    """
    with _image_errors():
        image.load()
        return image if image.mode == 'RGB' else to_rgb(image)


def narrow_range(data: bytes | str | os.PathLike) -> tuple[int, int] | None:
    """Return the lowest and highest value of an integer image of more than 8 bits that stays below 4096.

    Such an image is probably of 10 or 12 bits, and nearly black if 65535 is white.

    Args:
        data: the bytes of an image file, or its path.

    Returns:
        None for every other image, and for a file that cannot be read.
    """
    try:
        with Image.open(io.BytesIO(data) if isinstance(data, bytes) else data) as image:
            if not _is_deep(image) or image.mode == 'F':
                return None
            pixels = np.asarray(image)
            lowest, highest = int(pixels.min()), int(pixels.max())
    except Exception:  # a damaged file can raise nearly anything; it is reported when it is read
        return None
    return (lowest, highest) if 0 < highest < NARROW else None


def warn_narrow_range(read: Callable[[int], Any], count: int, where: str) -> None:
    """Log one warning if 16-bit images would be nearly black, with the range of their values.

    At most `PROBED` of the images, evenly spaced, are read.

    Args:
        read: returns the bytes or the path of the image file of an index. Other results, such as arrays, and files
            that cannot be read are ignored here.
        count: the number of images.
        where: the data set, for the warning.
    """
    indices = sorted({round(place) for place in np.linspace(0, count - 1, min(PROBED, count))})
    ranges = []
    for index in indices:
        with contextlib.suppress(Exception):  # reported when the image is read for use
            data = read(index)
            if isinstance(data, bytes | str | os.PathLike) and (values := narrow_range(data)):
                ranges.append(values)
    if ranges:
        lowest, highest = min(low for low, _ in ranges), max(high for _, high in ranges)
        logging.getLogger(__name__).warning(
            '%s: %d of %d images looked at have 16 bits, but values from %d to %d only. White is 65535, so they are '
            'nearly black; set white with --max-value, for example 4095 for 12 bits',
            shown(where), len(ranges), len(indices), lowest, highest,
        )  # fmt: skip
