"""Plots: PNG files that are complete or absent, and one line if Matplotlib is missing."""

import sys
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

import convert
from tresnet_jax.errors import MissingExtraError
from tresnet_jax.plotting import contact_sheet, new_figure


def test_a_missing_matplotlib_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, 'matplotlib.figure', None)
    monkeypatch.setitem(sys.modules, 'matplotlib', None)
    with pytest.raises(MissingExtraError, match=r"matplotlib is not installed; run: pip install 'tresnet_jax\[plot\]'"):
        new_figure(1, 1)


def test_a_contact_sheet_shows_images_and_captions(tmp_path):
    colours = ((200, 30, 30), (30, 200, 30), (30, 30, 200))
    path = tmp_path / 'sheet.png'
    path.write_text('earlier')
    squares = [Image.new('RGB', (40, 40), colour) for colour in colours]
    contact_sheet(squares, ['one', 'two\nlines', 'a formula? $\\frac{$'], path)
    with Image.open(path) as saved:
        assert saved.format == 'PNG'
        sheet = np.asarray(saved.convert('RGB'))
    assert [p.name for p in tmp_path.iterdir()] == ['sheet.png']
    centres = [np.argwhere((sheet == colour).all(-1)).mean(0) for colour in colours]
    # Two columns: the second image is right of the first, the third below it.
    assert centres[0][1] < centres[1][1] and abs(centres[0][0] - centres[1][0]) < 5
    assert centres[0][0] < centres[2][0] and abs(centres[0][1] - centres[2][1]) < 5
    below = sheet[int(centres[0][0]) :, : sheet.shape[1] // 2][: int(centres[2][0] - centres[0][0]) // 2 + 20]
    assert (below.max(-1) < 100).any(), 'no black letters below the first image'


def test_columns_frames_and_empty_places(tmp_path):
    path = tmp_path / 'sheet.png'
    square = Image.new('RGB', (40, 20), (200, 30, 30))
    contact_sheet([square, None, square, square], ['a', '', 'b', 'c'], path, columns=2, inches=1, framed=[3])
    with Image.open(path) as saved:
        sheet = np.asarray(saved.convert('RGB')).astype(int)
    height, width = sheet.shape[:2]
    assert 195 <= width <= 205 and height < 250
    red = (abs(sheet - (200, 30, 30)).max(-1) < 5).reshape(height, width)
    frame = abs(sheet - (232, 113, 10)).max(-1) < 5
    quarters = [(slice(0, height // 2), half) for half in (slice(0, width // 2), slice(width // 2, width))]
    assert red[quarters[0]].any() and not red[quarters[1]].any()
    assert frame[height // 2 :, width // 2 :].any() and not frame[:, : width // 2].any()


def test_a_contact_sheet_that_fails_leaves_no_file(tmp_path, monkeypatch):
    square = Image.new('RGB', (4, 4))
    with pytest.raises(ValueError, match='1 images and 0 captions'):
        contact_sheet([square], [], tmp_path / 'a.png')
    with pytest.raises(ValueError, match='0 images'):
        contact_sheet([], [], tmp_path / 'a.png')
    with pytest.raises(convert.ConversionError, match='a.png: the folder .*missing does not exist'):
        contact_sheet([square], ['x'], tmp_path / 'missing' / 'a.png')
    (tmp_path / 'folder').mkdir()
    with pytest.raises(convert.ConversionError, match='folder: is a folder'):
        contact_sheet([square], ['x'], tmp_path / 'folder')
    assert [p.name for p in tmp_path.iterdir()] == ['folder']

    def fill_the_disk(figure: Figure, path: Path, **options):
        path.write_text('half of it')
        raise OSError('no space left')

    monkeypatch.setattr(Figure, 'savefig', fill_the_disk)
    (tmp_path / 'folder' / 'a.png').write_text('earlier')
    with pytest.raises(convert.ConversionError, match='a.png: cannot be written: no space left'):
        contact_sheet([square], ['x'], tmp_path / 'folder' / 'a.png')
    assert [(p.name, p.read_text()) for p in (tmp_path / 'folder').iterdir()] == [('a.png', 'earlier')]
