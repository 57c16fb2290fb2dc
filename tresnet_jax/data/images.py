"""Image files: which files are images, and how they are decoded to upright 'RGB' images."""

import contextlib
import io
import math
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from tresnet_jax.errors import ImageError, reason

SUFFIXES = frozenset('.jpg .jpeg .png .webp .bmp .gif .tif .tiff .ppm .pgm .pbm .jp2 .avif'.split())
ORIENTATION = 0x0112  # EXIF tag; 1 is upright


def is_hidden(name: str) -> bool:
    """Return whether a file or folder is skipped: '.cache', or '._dog.jpg', which macOS leaves in archives."""
    return name.startswith('.')


def is_image(name: str) -> bool:
    """Return whether a file name is that of an image: it has one of `SUFFIXES` and is not hidden."""
    return os.path.splitext(name)[1].lower() in SUFFIXES and not is_hidden(name)


def find_images(paths: Iterable[str | os.PathLike]) -> list[Path]:
    """Return the given files, whatever their names, and the images of the given folders, at any depth, sorted.

    `is_image` decides which files of a folder are images.
    """
    found: list[Path] = []
    for path in map(Path, paths):
        if path.is_dir():
            found += sorted(file for file in path.rglob('*') if is_image(file.name) and file.is_file())
        else:
            found.append(path)
    return found


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


def _to_8_bits(pixels: np.ndarray) -> np.ndarray:
    """Scale (H, W) integers or floats to uint8; `load_image` says which value is white."""
    highest = float(pixels.max())
    if not math.isfinite(highest + float(pixels.min())):
        raise ValueError('some pixels are not finite numbers')
    is_float = np.issubdtype(pixels.dtype, np.floating)
    scales = (1, 255, 65535, 2**31 - 1) if is_float else (65535, 2**31 - 1)
    white = next((scale for scale in scales if highest <= scale), highest)
    return np.rint(np.clip(pixels / white, 0, 1) * 255).astype(np.uint8)


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert an image of any mode to 'RGB', as `load_image` describes."""
    if image.mode == 'P':
        # `convert` uses the palette's colours either way, but warns about transparency.
        image.info.pop('transparency', None)
    if image.mode == 'F' or image.mode.startswith('I'):
        image = Image.fromarray(_to_8_bits(np.asarray(image)))
    return image.convert('RGB')


def _upright_rgb(image: Image.Image) -> Image.Image:
    """Decode the pixels of an opened image, rotate it upright and convert it to 'RGB'."""
    image.load()
    if _orientation(image) != 1:
        # Pillow rewrites the EXIF data when it rotates. If that fails, the pixels are still good.
        with contextlib.suppress(Exception):
            image = ImageOps.exif_transpose(image)
    return to_rgb(image)


def load_image(path: str | os.PathLike) -> Image.Image:
    """Read an image file: upright, mode 'RGB', the first frame of an animation.

    As in timm, transparency is dropped and the colours under it show. Unlike in timm, images are rotated as their
    EXIF data says, and grey images of more than 8 bits are scaled instead of clipped at 255. White is 65535 in
    16 bits. In wider integers it is 65535 or 2^31 - 1, in floats 1, 255, 65535 or 2^31 - 1: the first that no pixel
    exceeds, or else the highest pixel. Negative numbers are black.

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
            return _upright_rgb(image)


def decode(data: bytes | np.ndarray) -> Image.Image:
    """Decode an image as `load_image` does: upright, mode 'RGB'.

    An upright RGB JPEG is only opened. Its pixels are decoded on first access, so that a transform can decode it at
    a smaller size (`Image.draft`).

    Args:
        data: the bytes of an image file, or (H, W), (H, W, 1), (H, W, 3) or (H, W, 4) uint8.

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
        return _upright_rgb(image)


def finish_decoding(image: Image.Image) -> Image.Image:
    """Decode the pixels of an image that `decode` has only opened; convert an image of another mode to 'RGB'.

    Raises:
        ImageError: the image cannot be decoded.
    """
    with _image_errors():
        image.load()
        return image if image.mode == 'RGB' else to_rgb(image)
