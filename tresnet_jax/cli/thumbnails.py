"""Small images and short names for contact sheets."""

import re

import numpy as np
from PIL import Image

from tresnet_jax.data.images import decode, finish_decoding
from tresnet_jax.data.sources import Source
from tresnet_jax.errors import shown

PIXELS = 200
CAPTION = 32  # letters of a line below an image


def thumbnail(image: Image.Image) -> Image.Image:
    """Return a copy of at most 200 pixels."""
    small = image.copy()
    small.thumbnail((PIXELS, PIXELS))
    return small


def thumbnail_of(source: Source, index: int, max_value: float | None) -> Image.Image:
    """Return a small copy of an image of a data set. For an array of many channels it shows the first three.

    Args:
        source, index: the data set and the position of the image.
        max_value: white in grey images of more than 8 bits; see `load_image`.

    Raises:
        ImageError: it cannot be read.
    """
    data = source[index]['image']
    if isinstance(data, np.ndarray) and data.ndim == 3:
        data = data[..., :3] if data.shape[2] >= 3 else data[..., :1]
    return thumbnail(finish_decoding(decode(data, max_value)))


def short_name(name: str) -> str:
    """Return the end of the name of an image, without folders, for one line of a caption.

    Example:
        >>> short_name('photos/dogs/a.jpg')
        'a.jpg'
        >>> short_name('embedded:fashion_mnist test 7')
        'embedded:fashion_mnist test 7'
    """
    short = shown(re.split(r'[/\\]', name)[-1])
    return short if len(short) <= CAPTION else f'…{short[1 - CAPTION :]}'
