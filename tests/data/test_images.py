"""Decoding images of every mode and with every kind of damage, from files and from bytes."""

import struct
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image

from tests.helpers.images import encode, noise_image
from tresnet_jax.data.images import decode, finish_decoding, load_image, narrow_range, warn_narrow_range
from tresnet_jax.errors import ImageError

ORIENTATION = 0x0112


@pytest.fixture(autouse=True)
def no_warnings():
    with warnings.catch_warnings(action='error'):
        yield


@pytest.fixture
def noise() -> Image.Image:
    return noise_image(36, 24)


def pixels(path) -> np.ndarray:
    """Return the pixels of an image file, after checking that its bytes decode to the same ones."""
    image, decoded = load_image(path), decode(path.read_bytes())
    assert image.mode == decoded.mode == 'RGB' and np.array_equal(np.asarray(image), np.asarray(decoded))
    return np.asarray(image)


@pytest.mark.parametrize(
    ('mode', 'suffix'),
    [('1', 'png'), ('L', 'png'), ('L', 'jpg'), ('LA', 'png'), ('P', 'png'), ('P', 'gif'), ('RGB', 'png'),
     ('RGB', 'jpg'), ('RGB', 'bmp'), ('RGB', 'webp'), ('RGBA', 'png'), ('RGBA', 'webp'), ('CMYK', 'jpg'),
     ('CMYK', 'tiff'), ('LAB', 'tiff')],  # not YCbCr, which Pillow before 13 writes but does not read
)  # fmt: skip
def test_modes_are_converted_as_pillow_does(tmp_path, noise, mode, suffix):
    path = tmp_path / f'image.{suffix}'
    noise.convert(mode).save(path)
    with Image.open(path) as saved:
        expected = np.asarray(saved.convert('RGB'))
    assert np.array_equal(pixels(path), expected)
    assert expected.shape == (24, 36, 3) and expected.std() > 10
    if mode != 'LAB':  # which Pillow does not convert to grey
        with Image.open(path) as saved:
            grey = np.asarray(saved.convert('L'))
        for image in (load_image(path, channels=1), finish_decoding(decode(path.read_bytes(), channels=1), 'L')):
            assert image.mode == 'L' and np.array_equal(np.asarray(image), grey)


def test_transparency_is_dropped_as_in_timm(tmp_path):
    image = Image.new('RGBA', (2, 1), (10, 20, 30, 0))
    image.putpixel((1, 0), (40, 50, 60, 128))
    image.save(tmp_path / 'rgba.png')
    assert pixels(tmp_path / 'rgba.png').tolist() == [[[10, 20, 30], [40, 50, 60]]]


def test_palettes_with_transparency(tmp_path):
    image = Image.new('P', (2, 1))
    image.putpalette([1, 2, 3, 4, 5, 6])
    image.putpixel((1, 0), 1)
    image.save(tmp_path / 'palette.png', transparency=bytes([0, 128]))
    assert pixels(tmp_path / 'palette.png').tolist() == [[[1, 2, 3], [4, 5, 6]]]


def grey(path, values, dtype) -> list[int]:
    """Write an image of one row with these values and return the grey levels that are read."""
    Image.fromarray(np.array([values], dtype)).save(path)
    x = pixels(path)
    assert (x == x[..., :1]).all()
    return x[0, :, 0].tolist()


@pytest.mark.parametrize('suffix', ['png', 'tiff'])
def test_16_bits_are_scaled(tmp_path, suffix):
    values = [0, 128, 129, 257, 32768, 65535]
    assert grey(tmp_path / f'grey.{suffix}', values, np.uint16) == [0, 0, 1, 1, 128, 255]
    assert grey(tmp_path / f'dark.{suffix}', [0, 257 * 3], np.uint16) == [0, 3]


def test_16_bit_pgm(tmp_path):
    (tmp_path / 'grey.pgm').write_bytes(b'P5 3 1 65535\n' + struct.pack('>3H', 0, 257 * 100, 65535))
    assert pixels(tmp_path / 'grey.pgm')[0, :, 0].tolist() == [0, 100, 255]


def test_12_bits_in_16(tmp_path, caplog):
    """White is what `max_value` says; without it, a warning names the range of the data set."""
    values = [0, 17, 2048, 4095]
    for number, row in enumerate((values, [3, 3971, 5, 5], [0, 0, 0, 0], [0, 4096, 1, 1])):
        Image.fromarray(np.array([row], np.uint16)).save(tmp_path / f'{number}.png')
    noise_image(4, 4).save(tmp_path / '4.png')
    path = tmp_path / '0.png'
    for image in (load_image(path, max_value=4095), decode(path.read_bytes(), 4095)):
        assert np.asarray(image)[0, :, 0].tolist() == [0, 1, 128, 255]
    assert np.asarray(load_image(tmp_path / '3.png', max_value=4095))[0, 1, 0] == 255
    assert pixels(path)[0, :, 0].max() == 16
    files = [tmp_path / f'{number}.png' for number in range(6)]  # the last does not exist
    assert [narrow_range(file) for file in files] == [(0, 4095), (3, 3971), None, None, None, None]
    for read in (files.__getitem__, lambda index: files[index].read_bytes()):
        caplog.clear()
        warn_narrow_range(read, 6, 'folder:scans')
        (message,) = caplog.messages
        assert message.startswith('folder:scans: 2 of 6 images looked at have 16 bits, but values from 0 to 4095 only.')
        assert '--max-value, for example 4095' in message
    caplog.clear()
    warn_narrow_range(lambda index: files[index + 2], 3, 'folder:others')
    warn_narrow_range(lambda index: np.zeros((2, 2), np.uint8), 3, 'npz:arrays')
    warn_narrow_range(files.__getitem__, 0, 'nothing')
    assert caplog.messages == []


@pytest.mark.parametrize('mode', ['L', 'RGB', 'P', '1'])
def test_max_value_is_for_more_than_8_bits_only(tmp_path, noise, mode):
    noise.convert(mode).save(tmp_path / 'image.png')
    image = load_image(tmp_path / 'image.png', max_value=100)
    assert np.array_equal(np.asarray(image), pixels(tmp_path / 'image.png'))


def test_32_bit_integers(tmp_path):
    assert grey(tmp_path / 'a.tiff', [-5, 257, 65535], np.int32) == [0, 1, 255]
    assert grey(tmp_path / 'b.tiff', [0, 2**30, 2**31 - 1], np.int32) == [0, 128, 255]


def test_floats(tmp_path):
    path = tmp_path / 'float.tiff'
    assert grey(path, [-1, 0, 0.5, 1], np.float32) == [0, 0, 128, 255]
    assert grey(path, [0, 1, 254.6], np.float32) == [0, 1, 255]
    assert grey(path, [0, 257, 65535], np.float32) == [0, 1, 255]
    assert grey(path, [0, 2.0**39, 2.0**40], np.float32) == [0, 128, 255]
    assert grey(path, [0, 0], np.float32) == [0, 0]


@pytest.mark.parametrize('bad', [np.nan, np.inf, -np.inf])
def test_floats_that_are_not_finite(tmp_path, bad):
    Image.fromarray(np.array([[0, bad]], np.float32)).save(tmp_path / 'float.tiff')
    assert refuse(tmp_path / 'float.tiff') == 'some pixels are not finite numbers'


@pytest.mark.parametrize(('orientation', 'turns'), [(1, 0), (3, 2), (6, 3), (8, 1)])
@pytest.mark.parametrize('suffix', ['png', 'tiff', 'webp'])
def test_exif_orientation(tmp_path, noise, suffix, orientation, turns):
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    noise.save(tmp_path / f'turned.{suffix}', exif=exif, lossless=True)
    assert np.array_equal(pixels(tmp_path / f'turned.{suffix}'), np.rot90(np.asarray(noise), turns))


def test_exif_orientation_of_jpegs(tmp_path, noise):
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    noise.save(tmp_path / 'turned.jpg', exif=exif)
    noise.save(tmp_path / 'plain.jpg')
    assert np.array_equal(pixels(tmp_path / 'turned.jpg'), np.rot90(pixels(tmp_path / 'plain.jpg'), 3))


def test_16_bit_images_are_rotated_too(tmp_path):
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    Image.fromarray(np.array([[0, 65535]], np.uint16)).save(tmp_path / 'turned.png', exif=exif)
    assert pixels(tmp_path / 'turned.png')[..., 0].tolist() == [[0], [255]]


@pytest.mark.parametrize('suffix', ['png', 'jpg'])
@pytest.mark.parametrize('exif', [b'garbage', b'II*\0\x08', b'XX*\0\x08\0\0\0\1\0'])
def test_damaged_exif_data_is_ignored(tmp_path, noise, suffix, exif):
    path = tmp_path / f'image.{suffix}'
    noise.save(path, dpi=(72, 72))  # so that Pillow does not look for the resolution in the EXIF data of a JPEG
    expected = pixels(path)
    noise.save(path, dpi=(72, 72), exif=b'Exif\0\0' + exif)
    with Image.open(path) as image, pytest.raises(Exception):  # noqa: B017, which exception depends on Pillow's version
        image.getexif()
    assert np.array_equal(pixels(path), expected)


@pytest.mark.parametrize('suffix', ['gif', 'png', 'webp', 'tiff'])
def test_the_first_frame_of_an_animation(tmp_path, suffix):
    first, second = (Image.new('RGB', (8, 8), colour) for colour in ('red', 'blue'))
    path = tmp_path / f'moving.{suffix}'
    first.save(path, save_all=True, append_images=[second], duration=100, lossless=True)
    assert (pixels(path) == (255, 0, 0)).all()


def refuse(path) -> str:
    """Return the reason of the error, after checking that it is one line that begins with the file."""
    with pytest.raises(ImageError) as caught:
        load_image(path)
    file, _, reason = str(caught.value).partition(': ')
    assert file == str(path) and '\n' not in reason
    return reason


@pytest.mark.parametrize('suffix', ['jpg', 'png', 'gif', 'webp', 'tiff', 'bmp'])
def test_truncated_files(tmp_path, noise, suffix):
    path = tmp_path / f'cut.{suffix}'
    noise.save(path)
    whole = path.read_bytes()
    for length in (len(whole) // 2, len(whole) * 9 // 10):
        path.write_bytes(whole[:length])
        reason = refuse(path)
        with pytest.raises(ImageError) as caught:  # a JPEG fails when its pixels are first accessed
            finish_decoding(decode(whole[:length]))
        assert str(caught.value) == reason != ''


def test_files_that_are_not_images(tmp_path):
    path = tmp_path / 'a.jpg'
    assert refuse(path) == 'No such file or directory'
    for content, reason in (
        (b'', 'the file is empty'),
        (b'not an image\n', 'not an image, or of a kind that Pillow cannot read'),
    ):
        path.write_bytes(content)
        assert refuse(path) == reason
        with pytest.raises(ImageError, match=f'^{reason}$'):
            decode(content)
    assert refuse(tmp_path) == 'a folder, not an image'
    assert refuse(path / 'b.jpg') == 'Not a directory'


def test_decompression_bombs(tmp_path):
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack('>I', len(data)) + kind + data + struct.pack('>I', zlib.crc32(kind + data))

    header = chunk(b'IHDR', struct.pack('>IIBBBBB', 60000, 60000, 8, 2, 0, 0, 0))
    content = header + chunk(b'IDAT', b'') + chunk(b'IEND', b'')
    (tmp_path / 'bomb.png').write_bytes(b'\x89PNG\r\n\x1a\n' + content)
    assert '3600000000 pixels' in refuse(tmp_path / 'bomb.png')


def png(width: int, height: int, depth: int, colour: int, pixels: bytes) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack('>I', len(data)) + kind + data + struct.pack('>I', zlib.crc32(kind + data))

    header = chunk(b'IHDR', struct.pack('>IIBBBBB', width, height, depth, colour, 0, 0, 0))
    return b'\x89PNG\r\n\x1a\n' + header + chunk(b'IDAT', pixels) + chunk(b'IEND', b'')


@pytest.mark.parametrize('depth, colour, edge', [(8, 2, 6200), (8, 6, 6200), (8, 0, 6200), (16, 0, 4400)])
def test_small_files_cannot_claim_enormous_images(depth, colour, edge, tmp_path):
    """Below Pillow's limit of 179 million pixels; decoding takes up to 16 bytes for each."""
    for pixels, refused in ((b'', True), (bytes(edge * edge // 50), False)):
        data = png(edge, edge, depth, colour, pixels)
        (tmp_path / 'a.png').write_bytes(data)
        claim = f'claims {edge} x {edge} pixels, and has {len(data):,} bytes'
        with pytest.raises(ImageError) as error:
            load_image(tmp_path / 'a.png')
        assert (str(error.value) == f'{tmp_path}/a.png: {claim}') == refused
        with pytest.raises(ImageError) as error:
            decode(data)
        assert (str(error.value) == claim) == refused
    (tmp_path / 'a.png').write_bytes(png(4000, 4000, depth, colour, b''))
    with pytest.raises(ImageError, match='truncated'):
        load_image(tmp_path / 'a.png')


@pytest.mark.parametrize('shape', [(3, 4), (3, 4, 1), (3, 4, 3), (3, 4, 4)])
def test_arrays_are_decoded_too(shape):
    array = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    decoded = decode(array)
    expected = np.broadcast_to(array.reshape(3, 4, -1)[..., :3], (3, 4, 3))
    assert decoded.mode == 'RGB' and np.array_equal(np.asarray(decoded), expected)
    grey = decode(array, channels=1)
    assert grey.mode == 'L' and np.array_equal(np.asarray(grey), np.asarray(decoded.convert('L')))
    with pytest.raises(ImageError, match='the images have 2 channels, but the model takes 3'):
        decode(np.zeros((3, 4, 2), np.uint8))


def test_only_upright_rgb_jpegs_stay_undecoded(noise):
    """A transform can have the others only in full size."""
    exif = Image.Exif()
    exif[ORIENTATION] = 3
    for data, undecoded in (
        (encode(noise, 'JPEG'), True),
        (encode(noise.convert('L'), 'JPEG'), False),
        (encode(noise, 'JPEG', exif=exif), False),
        (encode(noise), False),
    ):
        image = decode(data)
        assert (image.draft('RGB', (9, 6)) is not None) == undecoded
        assert image.size == ((9, 6) if undecoded else (36, 24))
