"""Image files of every format that Pillow reads: damaged, with lying headers, and bombs."""

import functools
import io
import random
import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image, features

from fuzzing import values
from fuzzing.children import Kind
from tresnet_jax.data.images import decode, load_image, narrow_range
from tresnet_jax.data.train_transforms import create_train_transform
from tresnet_jax.data.transforms import create_transform
from tresnet_jax.errors import ImageError

EXIF_ORIENTATION = 0x0112
FORMATS = (
    'JPEG',
    'PNG',
    'GIF',
    'WEBP',
    'TIFF',
    'AVIF',
    'JPEG2000',
    'BMP',
    'PPM',
    'ICO',
    'TGA',
    'DDS',
    'ICNS',
    'PCX',
    'SGI',
)


@functools.cache
def good() -> tuple[tuple[str, bytes], ...]:
    """Return the format and the bytes of good files, each small."""
    pixels = np.random.default_rng(0).integers(0, 256, (24, 36, 4), np.uint8)
    rgba = Image.fromarray(pixels)
    exif = Image.Exif()
    exif[EXIF_ORIENTATION] = 6
    exif[0x010E] = 'a description'
    deep = Image.fromarray(pixels[..., 0].astype(np.uint16) * 200)
    wide, real = deep.convert('I'), Image.fromarray(pixels[..., 0].astype(np.float32) / 255)
    rgb, grey, palette, two = rgba.convert('RGB'), rgba.convert('L'), rgba.convert('P'), rgba.convert('1')
    rows = [
        ('JPEG', rgb, {}), ('JPEG', rgb, {'progressive': True, 'exif': exif}), ('JPEG', grey, {}), ('JPEG',
        rgba.convert('CMYK'), {}),
        ('PNG', rgb, {'exif': exif}), ('PNG', rgba, {}), ('PNG', palette, {'transparency': 3}), ('PNG', deep, {}),
        ('PNG', two, {}),
        ('PNG', rgba.convert('LA'), {}), ('PNG', rgb, {'save_all': True, 'append_images': [rgb]}), ('GIF', palette,
        {'transparency': 3}),
        ('GIF', palette, {'save_all': True, 'append_images': [grey, two]}), ('WEBP', rgb, {}), ('WEBP', rgba,
        {'lossless': True, 'exif': exif}),
        ('WEBP', rgb, {'save_all': True, 'append_images': [rgb]}), ('TIFF', rgb, {'exif': exif}), ('TIFF', deep, {}),
        ('TIFF', wide, {}),
        ('TIFF', real, {}), ('TIFF', rgba.convert('CMYK'), {'compression': 'tiff_lzw'}), ('TIFF', two,
        {'compression': 'group4'}),
        *(('TIFF', rgb, {'compression': name}) for name in ('tiff_deflate', 'tiff_lzw', 'packbits', 'jpeg')), ('TIFF',
            rgb.convert('LAB'), {}),
        ('AVIF', rgb, {'exif': exif}), ('AVIF', rgba, {}), ('JPEG2000', rgb, {}), ('JPEG2000', deep, {'no_jp2': True}),
        ('JPEG2000', rgba, {}),
        ('BMP', rgb, {}), ('BMP', palette, {}), ('PPM', rgb, {}), ('PPM', wide, {}), ('ICO', rgba, {}), ('TGA', rgb,
        {'compression': 'tga_rle'}),
        ('DDS', rgba, {}), ('PCX', palette, {}), ('SGI', rgb, {}),
    ]  # fmt: skip
    found, supported = [], features.get_supported()
    for kind, image, options in rows:
        if {'AVIF': 'avif', 'JPEG2000': 'jpg_2000'}.get(kind, 'pil') not in supported:
            continue
        file = io.BytesIO()
        image.save(file, kind, **options)
        found.append((kind, file.getvalue()))
    return tuple(found)


def make(rng: random.Random, folder: Path) -> Path:
    """Write one file."""
    kind, data = rng.choice(good())
    data = bomb(rng) if rng.random() < 0.1 else values.damaged(rng, data, rng.choice((None, 40, 200)))
    if rng.random() < 0.1:  # the beginning of one format, and the rest of another
        data = data[: rng.randrange(len(data) + 1)] + rng.choice(good())[1][rng.randrange(100) :]
    path = folder / f'image.{rng.choice(("jpg", "png", kind.lower()))}'
    path.write_bytes(data)
    return path


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack('>I', len(data)) + kind + data + struct.pack('>I', zlib.crc32(kind + data))


def bomb(rng: random.Random) -> bytes:
    """Return a file whose header claims an enormous image, with or without the pixels."""
    width, height = rng.choice(
        (
            (60_000, 60_000),
            (9400, 9400),
            (13_000, 13_000),
            (65_535, 65_535),
            (2**31 - 1, 1),
            (1, 170_000_000),
            (8000, 8000),
        )
    )
    match rng.randrange(5):
        case 0 | 1:  # PNG; zeros that really are there, up to 200 MB
            depth, colour, share = rng.choice(((8, 2, 3), (16, 0, 2), (8, 0, 1), (1, 0, 0.125), (16, 6, 8), (8, 3, 1)))
            count = int(min(width * share + 1, 2**26)) * min(height, 2**16)
            squeezer = zlib.compressobj(1)
            pixels = (
                b''.join(squeezer.compress(bytes(2**20)) for _ in range(min(count, 2 * 10**8) // 2**20))
                + squeezer.flush()
            )
            header = struct.pack('>IIBBBBB', width, height, depth, colour, 0, 0, rng.choice((0, 1)))
            palette = _chunk(b'PLTE', bytes(768)) if colour == 3 else b''
            text = _chunk(b'zTXt', b'a\0\0' + zlib.compress(bytes(2**26), 1)) if rng.random() < 0.3 else b''
            return (
                b'\x89PNG\r\n\x1a\n'
                + _chunk(b'IHDR', header)
                + palette
                + text
                + _chunk(b'IDAT', pixels)
                + _chunk(b'IEND', b'')
            )
        case 2:
            size = struct.pack('<HH', min(width, 65_535), min(height, 65_535))
            return b'GIF89a' + size + b'\x80\0\0' + bytes(6) + b',' + bytes(4) + size + b'\0\2\2D\1\0;'
        case 3:  # TIFF: a header and no pixels, or few
            tags = [(256, 4, width), (257, 4, height), (258, 3, rng.choice((8, 16, 32))), (259, 3, rng.choice((1, 5,
                8))), (262, 3, 1),
                    (273, 4, 200), (277, 3, 1), (278, 4, height), (279, 4, 100), (339, 3, rng.choice((1,
                    3)))]  # fmt: skip
            entries = b''.join(struct.pack('<HHII', tag, form, 1, number % 2**32) for tag, form, number in tags)
            return b'II*\0\x08\0\0\0' + struct.pack('<H', len(tags)) + entries + bytes(4) + bytes(400)
        case _:
            return b'P5\n%d %d\n%d\n' % (width, height, rng.choice((255, 65535))) + bytes(1000)


def _predict(path: Path) -> object:
    """Read as `predict` does."""
    narrow_range(path)
    return create_transform((3, 32, 32))(load_image(path)).shape, load_image(path, channels=1).size


def _train(path: Path) -> object:
    """Read as training does, which decodes large JPEG files at a smaller size."""
    image = decode(path.read_bytes())
    return _transform()(image, np.random.default_rng(0)).shape


@functools.cache
def _transform():
    return create_train_transform((32, 32))


KIND = Kind('image', f'images: {", ".join(FORMATS[:7])} and others of Pillow', make, (_predict, _train), (ImageError,))
