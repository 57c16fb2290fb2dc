"""Images from files of any sort, and back: reading, finding, and a contact sheet."""

import contextlib
import io
import math
import os
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from tresnet_jax.errors import ImageError, reason

SUFFIXES = frozenset('.jpg .jpeg .png .webp .bmp .gif .tif .tiff .ppm .pgm .pbm .jp2 .avif'.split())


def load_image(path: str | os.PathLike) -> Image.Image:
    """The image of a file, upright, in mode 'RGB'; of an animation the first frame.

    As in timm, transparency is dropped and what lies beneath it shows. Unlike in timm, images are turned as
    their EXIF data asks, and grey ones of more than 8 bits are scaled instead of cut off at 255. White is
    65535 in 16 bits. In wider integers it is 65535 or 2^31 - 1, in floats 1, 255, 65535 or 2^31 - 1: the
    first that no pixel is above, or else the highest pixel. Negative numbers are black.

    Raises:
        ImageError: the file is missing, empty, truncated, no image, or larger than Pillow's limit.
    """
    path = Path(path)
    try:
        if path.is_dir():
            raise ValueError('a folder, not an image')
        if not path.stat().st_size:
            raise ValueError('the file is empty')
        with Image.open(path) as image:
            image.load()
            return to_rgb(upright(image))
    except UnidentifiedImageError:
        raise ImageError(f'{path}: not an image, or of a kind that Pillow cannot read') from None
    except Exception as error:  # A damaged file can raise nearly anything out of Pillow's decoders.
        reason = getattr(error, 'strerror', None) or ' '.join(str(error).split()) or type(error).__name__
        raise ImageError(f'{path}: {reason}') from error


def upright(image: Image.Image) -> Image.Image:
    # Pillow writes the EXIF data anew when it turns an image; where that fails the pixels are still good.
    with contextlib.suppress(Exception):
        return ImageOps.exif_transpose(image)
    return image


def to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == 'P':
        # `convert` takes the colours of the palette either way, but warns about transparency.
        image.info.pop('transparency', None)
    if image.mode == 'F' or image.mode.startswith('I'):
        image = Image.fromarray(_to_8_bits(np.asarray(image)))
    return image.convert('RGB')


def _to_8_bits(pixels: np.ndarray) -> np.ndarray:
    """(H, W) integers or floats -> uint8; `load_image` says what is white."""
    highest = float(pixels.max())
    if not math.isfinite(highest + float(pixels.min())):
        raise ValueError('some pixels are not finite numbers')
    is_float = np.issubdtype(pixels.dtype, np.floating)
    scales = (1, 255, 65535, 2**31 - 1) if is_float else (65535, 2**31 - 1)
    white = next((scale for scale in scales if highest <= scale), highest)
    return np.rint(np.clip(pixels / white, 0, 1) * 255).astype(np.uint8)


def find_images(paths: Iterable[str | os.PathLike]) -> list[Path]:
    """Files as they are given, whatever they are called; of each folder its images at any depth, sorted.

    Images are told by their suffix; hidden ones ('._dog.jpg', which macOS leaves in archives) are left out.
    """
    found: list[Path] = []
    for path in map(Path, paths):
        found += sorted(filter(_is_image, path.rglob('*'))) if path.is_dir() else [path]
    return found


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES and not path.name.startswith('.') and path.is_file()


_ORIENTATION = 0x0112  # of EXIF; 1 is upright


def decode(data: bytes | np.ndarray) -> Image.Image:
    """An image of mode 'RGB', upright, from an encoded one or from (H, W), (H, W, 1), (H, W, 3) or (H, W, 4) uint8.

    It is the image that `load_image` reads. An upright RGB JPEG is only opened: its pixels are decoded when
    they are first asked for, so that a transform can have them decoded smaller (`Image.draft`).

    Raises:
        ImageError: it cannot be read; the message is the reason, without the image's name.
    """
    if isinstance(data, np.ndarray):
        return Image.fromarray(data[..., 0] if data.shape[2:] == (1,) else data).convert('RGB')
    if not data:
        raise ImageError('the file is empty')
    try:
        image = Image.open(io.BytesIO(data))
        if image.format == 'JPEG' and image.mode == 'RGB' and image.getexif().get(_ORIENTATION, 1) == 1:
            return image
        image.load()
        return to_rgb(upright(image))
    except UnidentifiedImageError:
        raise ImageError('not an image, or of a kind that Pillow cannot read') from None
    except Exception as error:  # A damaged file can raise nearly anything out of Pillow's decoders.
        raise ImageError(reason(error)) from error
