"""A picture as a data set holds it -> Pillow's picture."""

import io

import numpy as np
from PIL import Image, UnidentifiedImageError

from tresnet_jax.pictures import PictureError, to_rgb, upright

_ORIENTATION = 0x0112  # of EXIF; 1 is upright


def decode(data: bytes | np.ndarray) -> Image.Image:
    """A picture of mode 'RGB', upright, from an encoded one or from (H, W), (H, W, 1), (H, W, 3) or (H, W, 4) uint8.

    It is the picture that `load_picture` reads. An upright RGB JPEG is only opened: its pixels are decoded when
    they are first asked for, so that a transform can have them decoded smaller (`Image.draft`).

    Raises:
        PictureError: it cannot be read; the message is the reason, without the picture's name.
    """
    if isinstance(data, np.ndarray):
        return Image.fromarray(data[..., 0] if data.shape[2:] == (1,) else data).convert('RGB')
    if not data:
        raise PictureError('the file is empty')
    try:
        picture = Image.open(io.BytesIO(data))
        if picture.format == 'JPEG' and picture.mode == 'RGB' and picture.getexif().get(_ORIENTATION, 1) == 1:
            return picture
        picture.load()
        return to_rgb(upright(picture))
    except UnidentifiedImageError:
        raise PictureError('not a picture, or of a kind that Pillow cannot read') from None
    except Exception as error:  # A damaged file can raise nearly anything out of Pillow's decoders.
        raise PictureError(reason(error)) from error


def reason(error: Exception) -> str:
    """What an error says, in one line."""
    return getattr(error, 'strerror', None) or ' '.join(str(error).split()) or type(error).__name__
