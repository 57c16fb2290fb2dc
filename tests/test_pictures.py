"""Reading pictures of every mode and every sort of damage, finding them, and the contact sheet."""

import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

import convert
from tresnet_jax import pictures


@pytest.fixture(autouse=True)
def no_warnings():
    with warnings.catch_warnings(action='error'):
        yield


@pytest.fixture
def noise() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (24, 36, 3), np.uint8))


def pixels(path) -> np.ndarray:
    picture = pictures.load_picture(path)
    assert picture.mode == 'RGB'
    return np.asarray(picture)


@pytest.mark.parametrize(
    ('mode', 'suffix'),
    [('1', 'png'), ('L', 'png'), ('LA', 'png'), ('P', 'png'), ('P', 'gif'), ('RGB', 'png'), ('RGB', 'jpg'),
     ('RGB', 'bmp'), ('RGB', 'webp'), ('RGBA', 'png'), ('RGBA', 'webp'), ('CMYK', 'jpg'), ('CMYK', 'tiff'),
     ('LAB', 'tiff')],  # and no YCbCr, which Pillow before 13 writes but does not read
)  # fmt: skip
def test_modes_are_converted_as_pillow_does(tmp_path, noise, mode, suffix):
    path = tmp_path / f'picture.{suffix}'
    noise.convert(mode).save(path)
    with Image.open(path) as saved:
        expected = np.asarray(saved.convert('RGB'))
    assert np.array_equal(pixels(path), expected)
    assert expected.shape == (24, 36, 3) and expected.std() > 10


def test_transparency_is_dropped_as_in_timm(tmp_path):
    picture = Image.new('RGBA', (2, 1), (10, 20, 30, 0))
    picture.putpixel((1, 0), (40, 50, 60, 128))
    picture.save(tmp_path / 'rgba.png')
    assert pixels(tmp_path / 'rgba.png').tolist() == [[[10, 20, 30], [40, 50, 60]]]


def test_palettes_with_transparency(tmp_path):
    picture = Image.new('P', (2, 1))
    picture.putpalette([1, 2, 3, 4, 5, 6])
    picture.putpixel((1, 0), 1)
    picture.save(tmp_path / 'palette.png', transparency=bytes([0, 128]))
    assert pixels(tmp_path / 'palette.png').tolist() == [[[1, 2, 3], [4, 5, 6]]]


def grey(path, values, dtype) -> list[int]:
    """What a picture of one row with these values is read as."""
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
def test_floats_that_are_no_numbers(tmp_path, bad):
    Image.fromarray(np.array([[0, bad]], np.float32)).save(tmp_path / 'float.tiff')
    with pytest.raises(pictures.PictureError, match='float.tiff: some pixels are not finite'):
        pictures.load_picture(tmp_path / 'float.tiff')


@pytest.mark.parametrize(('orientation', 'turns'), [(1, 0), (3, 2), (6, 3), (8, 1)])
@pytest.mark.parametrize('suffix', ['png', 'tiff', 'webp'])
def test_exif_orientation(tmp_path, noise, suffix, orientation, turns):
    exif = Image.Exif()
    exif[0x0112] = orientation
    noise.save(tmp_path / f'turned.{suffix}', exif=exif, lossless=True)
    assert np.array_equal(pixels(tmp_path / f'turned.{suffix}'), np.rot90(np.asarray(noise), turns))


def test_16_bits_are_turned_too(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.array([[0, 65535]], np.uint16)).save(tmp_path / 'turned.png', exif=exif)
    assert pixels(tmp_path / 'turned.png')[..., 0].tolist() == [[0], [255]]


def test_broken_exif_does_not_matter(tmp_path, noise):
    noise.save(tmp_path / 'picture.png', exif=b'Exif\0\0garbage')
    assert np.array_equal(pixels(tmp_path / 'picture.png'), np.asarray(noise))


@pytest.mark.parametrize('suffix', ['gif', 'png', 'webp', 'tiff'])
def test_the_first_frame_of_an_animation(tmp_path, suffix):
    first, second = (Image.new('RGB', (8, 8), colour) for colour in ('red', 'blue'))
    path = tmp_path / f'moving.{suffix}'
    first.save(path, save_all=True, append_images=[second], duration=100, lossless=True)
    assert (pixels(path) == (255, 0, 0)).all()


def refuse(path) -> str:
    """The reason, from the one line that names the file."""
    with pytest.raises(pictures.PictureError) as caught:
        pictures.load_picture(path)
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
        assert refuse(path)


def test_files_that_are_no_pictures(tmp_path):
    path = tmp_path / 'a.jpg'
    assert refuse(path) == 'No such file or directory'
    path.write_bytes(b'')
    assert refuse(path) == 'the file is empty'
    path.write_text('not a picture\n')
    assert refuse(path) == 'not a picture, or of a kind that Pillow cannot read'
    assert refuse(tmp_path) == 'a folder, not a picture'
    assert refuse(path / 'b.jpg') == 'Not a directory'


def test_decompression_bombs(tmp_path):
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack('>I', len(data)) + kind + data + struct.pack('>I', zlib.crc32(kind + data))

    header = chunk(b'IHDR', struct.pack('>IIBBBBB', 60000, 60000, 8, 2, 0, 0, 0))
    content = header + chunk(b'IDAT', b'') + chunk(b'IEND', b'')
    (tmp_path / 'bomb.png').write_bytes(b'\x89PNG\r\n\x1a\n' + content)
    assert '3600000000 pixels' in refuse(tmp_path / 'bomb.png')


def test_find_pictures(tmp_path):
    found = ['b/1.png', 'b/2.JPG', 'b/deep/er/3.webp', 'b/folder.png/4.gif']
    for name in ('b/notes.txt', 'b/._1.png', 'a.xyz', *reversed(found)):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    given = [tmp_path / 'a.xyz', str(tmp_path / 'b'), tmp_path / 'missing.png', tmp_path / 'b/1.png']
    expected = ['a.xyz', *found, 'missing.png', 'b/1.png']
    assert pictures.find_pictures(given) == [tmp_path / name for name in expected]
    assert pictures.find_pictures([]) == []


def test_contact_sheet(tmp_path):
    colours = ((200, 30, 30), (30, 200, 30), (30, 30, 200))
    path = tmp_path / 'sheet.png'
    path.write_text('the old one')
    squares = [Image.new('RGB', (40, 40), colour) for colour in colours]
    pictures.contact_sheet(squares, ['one', 'two\nlines', 'a formula? $\\frac{$'], path)
    with Image.open(path) as saved:
        assert saved.format == 'PNG'
        sheet = np.asarray(saved.convert('RGB'))
    assert [p.name for p in tmp_path.iterdir()] == ['sheet.png']
    centres = [np.argwhere((sheet == colour).all(-1)).mean(0) for colour in colours]
    # Two columns: the second right of the first, the third below the first.
    assert centres[0][1] < centres[1][1] and abs(centres[0][0] - centres[1][0]) < 5
    assert centres[0][0] < centres[2][0] and abs(centres[0][1] - centres[2][1]) < 5
    below = sheet[int(centres[0][0]) :, : sheet.shape[1] // 2][: int(centres[2][0] - centres[0][0]) // 2 + 20]
    assert (below.max(-1) < 100).any(), 'no black letters below the first picture'


def test_contact_sheet_fails_without_leavings(tmp_path, monkeypatch):
    square = Image.new('RGB', (4, 4))
    with pytest.raises(ValueError, match='1 pictures and 0 captions'):
        pictures.contact_sheet([square], [], tmp_path / 'a.png')
    with pytest.raises(ValueError, match='0 pictures'):
        pictures.contact_sheet([], [], tmp_path / 'a.png')
    with pytest.raises(convert.ConversionError, match='a.png: the folder .*missing does not exist'):
        pictures.contact_sheet([square], ['x'], tmp_path / 'missing' / 'a.png')
    (tmp_path / 'folder').mkdir()
    with pytest.raises(convert.ConversionError, match='folder: is a folder'):
        pictures.contact_sheet([square], ['x'], tmp_path / 'folder')
    assert [p.name for p in tmp_path.iterdir()] == ['folder']

    def fill_the_disk(figure: Figure, path: Path, **options):
        path.write_text('half of it')
        raise OSError('no space left')

    monkeypatch.setattr(Figure, 'savefig', fill_the_disk)
    (tmp_path / 'folder' / 'a.png').write_text('the old one')
    with pytest.raises(convert.ConversionError, match='a.png: cannot be written: no space left'):
        pictures.contact_sheet([square], ['x'], tmp_path / 'folder' / 'a.png')
    assert [(p.name, p.read_text()) for p in (tmp_path / 'folder').iterdir()] == [('a.png', 'the old one')]
