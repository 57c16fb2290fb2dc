"""Decoding of image files to upright images, and the range of grey images of more than 8 bits.

Images have 3 channels (mode 'RGB') or 1 (mode 'L', grey), as timm's ``input_img_mode``. Arrays may have any number.
"""

import contextlib
import io
import logging
import math
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from tresnet_jax.errors import ImageError, amount, reason, shown

MODES = {1: 'L', 3: 'RGB'}  # channels: mode of an image
ORIENTATION = 0x0112  # EXIF tag; 1 is upright
NARROW = 4096  # a 16-bit image whose values stay below probably has 12 bits
# A small file can claim an enormous image. These are the bytes that decoding takes per pixel, also for images of more
# than 8 bits; the memory that is always allowed; and the most pixels per byte of the file of an image that takes more.
BYTES_OF_PIXEL, BYTES_OF_DEEP_PIXEL = 8, 16
ALWAYS_ALLOWED = 280 * 2**20
MOST_PIXELS_OF_BYTE = 50  # 10 are usual in photographs, 40 in drawings
ROWS = 256  # of a deep image that are scaled at a time
PROBED = 32  # images of a data set whose range is checked


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
    scaled = np.empty(pixels.shape, np.uint8)
    for row in range(0, len(pixels), ROWS):  # the numbers between are float64, eight times the size of the image
        scaled[row : row + ROWS] = np.rint(np.clip(pixels[row : row + ROWS] / white, 0, 1) * 255)
    return scaled


def _is_deep(image: Image.Image) -> bool:
    """Return whether an image is grey with more than 8 bits: integers of 16 or 32 bits, or floats."""
    return image.mode == 'F' or image.mode.startswith('I')


def _check_claim(image: Image.Image, size: int) -> None:
    """Raise ValueError if a file of `size` bytes claims an image that takes very much more memory."""
    pixels = image.width * image.height
    needed = pixels * (BYTES_OF_DEEP_PIXEL if _is_deep(image) else BYTES_OF_PIXEL)
    if needed > ALWAYS_ALLOWED and pixels > MOST_PIXELS_OF_BYTE * size:
        raise ValueError(f'claims {image.width} x {image.height} pixels, and has {size:,} bytes')


def to_mode(image: Image.Image, mode: str, max_value: float | None = None) -> Image.Image:
    """Convert an image of any mode to 'RGB' or 'L', as `load_image` describes."""
    if image.mode == 'P':
        # `convert` uses the palette's colours either way, but warns about transparency.
        image.info.pop('transparency', None)
    if _is_deep(image):
        image = Image.fromarray(_to_8_bits(np.asarray(image), max_value))
    return image.convert(mode)


def _upright(image: Image.Image, mode: str, max_value: float | None) -> Image.Image:
    """Decode the pixels of an opened image, rotate it upright and convert it to a mode."""
    image.load()
    if _orientation(image) != 1:
        # Pillow rewrites the EXIF data when it rotates. If that fails, the pixels are still good.
        with contextlib.suppress(Exception):
            image = ImageOps.exif_transpose(image)
    return to_mode(image, mode, max_value)


def load_image(path: str | os.PathLike, *, max_value: float | None = None, channels: int = 3) -> Image.Image:
    """Read an image file: upright, mode 'RGB' or 'L', the first frame of an animation.

    As in timm, transparency is dropped and the colours under it show. Unlike in timm, images are rotated as their
    EXIF data says, and grey images of more than 8 bits are scaled instead of clipped at 255. White is 65535 in
    16 bits. In wider integers it is 65535 or 2^31 - 1, in floats 1, 255, 65535 or 2^31 - 1: the first that no pixel
    exceeds, or else the highest pixel. Negative numbers are black.

    Args:
        path: the file.
        max_value: the value that is white in grey images of more than 8 bits, for example 4095 for 12 bits in files
            of 16. None: as above.
        channels: 3, or 1 for a grey image, for which Pillow weighs the colours as timm does.

    Raises:
        ImageError: the file is missing, empty, truncated, not an image, or larger than Pillow's limit.
    """
    path = Path(path)
    with _image_errors(f'{path}: '):
        if path.is_dir():
            raise ValueError('a folder, not an image')
        size = path.stat().st_size
        if not size:
            raise ValueError('the file is empty')
        with Image.open(path) as image:
            _check_claim(image, size)
            return _upright(image, MODES[channels], max_value)


def decode(data: bytes | np.ndarray, max_value: float | None = None, channels: int = 3) -> Image.Image:
    """Decode an image as `load_image` does: upright, mode 'RGB', or 'L' for 1 channel.

    An upright RGB JPEG is only opened, and for 1 channel a grey one too. Its pixels are decoded on first access, so
    that a transform can decode it at a smaller size (`Image.draft`) before `finish_decoding` converts it.

    Args:
        data: the bytes of an image file; or (H, W), (H, W, 1), (H, W, 3) or (H, W, 4) uint8, grey, RGB or RGBA.
        max_value: as in `load_image`.
        channels: 1 or 3.

    Raises:
        ImageError: the image cannot be decoded; the message is the reason alone, without a file name.
    """
    if isinstance(data, np.ndarray):
        if problem := channels_problem(data, channels):
            raise ImageError(problem)
        return Image.fromarray(data[..., 0] if data.shape[2:] == (1,) else data).convert(MODES[channels])
    with _image_errors():
        if not data:
            raise ValueError('the file is empty')
        image = Image.open(io.BytesIO(data))
        _check_claim(image, len(data))
        if image.format == 'JPEG' and image.mode in ('RGB', MODES[channels]) and _orientation(image) == 1:
            return image
        return _upright(image, MODES[channels], max_value)


def channels_problem(data: bytes | np.ndarray, channels: int) -> str:
    """Return why images like this one cannot have a number of channels; '' if they can."""
    if not isinstance(data, np.ndarray):
        if channels in MODES:
            return ''
        return f'the model takes {amount(channels, "channel")}; image files have 1 (grey) or 3 (RGB)'
    found = 1 if data.ndim == 2 else data.shape[2]
    fits = found == channels or (channels in MODES and found in (1, 3, 4))
    return '' if fits else f'the images have {amount(found, "channel")}, but the model takes {channels}'


def planes(image: np.ndarray | Image.Image, channels: int) -> list[Image.Image]:
    """Return the channels of an array as images of mode 'L'.

    Raises:
        ValueError: it is not (H, W, channels) uint8.
    """
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != channels:
        got = f'{image.dtype} {image.shape}' if isinstance(image, np.ndarray) else type(image).__name__
        raise ValueError(f'expected an array (height, width, {channels}) uint8, got {got}')
    return [Image.fromarray(np.ascontiguousarray(image[..., channel])) for channel in range(channels)]


def pixels_of(images: Sequence[Image.Image]) -> np.ndarray:
    """Return the pixels of one image, or of the channels of one: (H, W, channels) uint8."""
    if len(images) > 1:
        return np.stack([np.asarray(image) for image in images], -1)
    pixels = np.array(images[0])
    return pixels[..., None] if pixels.ndim == 2 else pixels


def finish_decoding(image: Image.Image, mode: str = 'RGB') -> Image.Image:
    """Decode the pixels of an image that `decode` has only opened; convert an image of another mode.

    Raises:
        ImageError: the image cannot be decoded.
    """
    with _image_errors():
        image.load()
        return image if image.mode == mode else to_mode(image, mode)


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
            _check_claim(image, len(data) if isinstance(data, bytes) else os.stat(data).st_size)
            pixels = np.asarray(image)
            lowest, highest = int(pixels.min()), int(pixels.max())
    except Exception:  # a damaged file can raise nearly anything; it is reported when it is read
        return None
    return (lowest, highest) if 0 < highest < NARROW else None


def warn_narrow_range(read: Callable[[int], Any], count: int, where: str) -> None:
    """Log one warning if 16-bit images would be nearly black, with the range of their values.

    At most `PROBED` of the images, evenly spaced, are read.

    Args:
        read: returns the bytes or the path of the image file at an index. Other results, such as arrays, and files
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
