"""``explain.py``: the files and lines it writes, classes by name, the crop in the image, and how it fails."""

from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

import tresnet_jax
from tests.helpers.images import noise_image
from tests.helpers.paths import EMBEDDED
from tresnet_jax.cli import explain as command
from tresnet_jax.cli.explain import Explained, file_names, find_class, main
from tresnet_jax.data.transforms import create_transform, resolve_data_config
from tresnet_jax.labels import class_names, class_synsets

NAME = 'test_resnet.fashion_mnist'
BAG = EMBEDDED / 'pictures' / '8_bag.png'


@pytest.fixture
def run(capsys):
    """Run the command line; gives exit code, standard output, standard error."""

    def run(*argv) -> tuple[int, str, str]:
        code = main([str(a) for a in argv])
        return code, *capsys.readouterr()

    return run


def test_one_file_per_image_and_a_contact_sheet(run, tmp_path):
    photos, out = tmp_path / 'photos', tmp_path / 'new' / 'maps'
    photos.mkdir()
    noise_image(50, 30).save(photos / 'a.jpg')
    (photos / 'b.jpg').write_text('no image')
    argv = (photos, BAG, '--model', NAME, '--out', out, '--topk', 2, '--layer', 'layer2', '--batch-size', 3)
    code, said, err = run(*argv)
    assert code == 1 and err.startswith(f'{photos / "b.jpg"}: not an image') and err.count('\n') == 1
    lines = said.splitlines()
    assert (lines[0], lines[3]) == (f'{photos / "a.jpg"} -> {out / "a.png"}', f'{BAG} -> {out / "8_bag.png"}')
    assert lines[4].startswith('  Bag 0.99') and len(lines) == 6
    assert sorted(path.name for path in out.iterdir()) == ['8_bag.png', 'a.png', 'contact_sheet.png']
    assert all(path.read_bytes().startswith(b'\x89PNG') for path in out.iterdir())


def test_maps_are_those_of_the_library(monkeypatch, run, tmp_path):
    """For chosen classes, with probabilities as of any number of classes per image."""
    drawn = []
    monkeypatch.setattr(command, '_draw', lambda image, transform, explained, *rest: drawn.append(explained))
    flags = ('--class', 'Sandal', 8, '--image-size', 64, 96, '--batch-size', 1, '--task', 'multilabel')
    assert run(BAG, '--model', NAME, '--out', tmp_path, *flags)[0] == 0
    model = tresnet_jax.create_model(NAME, pretrained=True)
    transform = create_transform(**{**resolve_data_config(model), 'input_size': (64, 96)})
    x = transform(Image.open(BAG))[None]
    expected = jax.jit(tresnet_jax.grad_cam)(model, x, np.array([[5, 8]]))
    logits = jax.jit(lambda model, x: model(x))(model, x)[0, np.array([5, 8])]
    np.testing.assert_allclose(drawn[0].probabilities, jax.nn.sigmoid(logits), rtol=1e-4)
    assert drawn[0].classes.tolist() == [5, 8] and drawn[0].maps.shape == (2, 2, 3)
    np.testing.assert_allclose(drawn[0].maps, expected[0], rtol=1e-3, atol=1e-4)


def test_the_heat_lies_over_the_crop(monkeypatch, tmp_path):
    """The map of a network that sees brightness is brightest where the crop is, at every shape of image."""
    panels = []
    monkeypatch.setattr(command, 'contact_sheet', lambda images, *rest, **options: panels.extend(images))
    pixels = np.zeros((60, 90, 3), np.uint8)
    pixels[10:18, 56:64] = 255
    transform = create_transform((32, 40), crop_pct=0.8)
    crop = transform.crop_image(Image.fromarray(pixels)).mean(-1)
    cam = crop.reshape(8, 4, 10, 4).mean((1, 3))
    explained = Explained(np.array([0]), np.array([1.0]), cam[None])
    command._draw(Image.fromarray(pixels), transform, explained, ['x'], 'layer4', Path('x'), tmp_path / 'x')
    whole, heat, over = (np.asarray(panel).astype(int) for panel in panels)
    assert heat.shape == over.shape == (8 * 32, 8 * 40, 3)
    brightest = np.argwhere(crop == crop.max()).mean(0)
    reddest = np.argwhere(heat[..., 0] - heat[..., 2] == (heat[..., 0] - heat[..., 2]).max()).mean(0)
    np.testing.assert_allclose(reddest / 8, brightest + 0.5, atol=2)
    left, top, right, bottom = transform.crop_box(90, 60)
    assert not np.array_equal(whole, pixels) and 0 < left < right < 90 and 0 < top < bottom < 60


FASHION = class_names(NAME)
IMAGENET = (class_names(1000), class_synsets(1000))


@pytest.mark.parametrize(
    'text, names, synsets, expected',
    [
        ('8', FASHION, None, 8),
        ('bag', FASHION, None, 8),
        ('n02111889', *IMAGENET, 258),
        ('Samoyed', *IMAGENET, 258),
        ('2', None, None, 2),
        ('1', ('0', '1', '2'), None, 1),
        ('Bags', FASHION, None, "--class Bags: expected a name or an index from 0 to 9; did you mean 'Bag'?"),
        ('10', FASHION, None, '--class 10: expected a name or an index from 0 to 9'),
        ('-1', None, None, '--class -1: expected an index from 0 to 9'),
        ('n0', *IMAGENET, '--class n0: expected a name, a synset or an index from 0 to 999'),
        ('crane', ('crane', 'Crane', 'x'), None, 'may be class 0 (crane) or 1 (Crane); give index:0 or index:1'),
        ('2', ('2', '1', '0'), None, '--class 2: may be class 0 (2) or 2 (0); give index:0 or index:2'),
        ('index:2', ('2', '1', '0'), None, 2),
        ('name:2', ('2', '1', '0'), None, 0),
        ('name:2', ('2', '1', 'Name:2'), None, 2),
        ('index:3', ('2', '1', '0'), None, '--class index:3: expected a name or an index from 0 to 2'),
        ('name:bag', FASHION, None, 8),
        ('index:٢', None, None, 2),
    ],
)
def test_classes_by_name(text, names, synsets, expected):
    count = len(names) if names else 10
    if isinstance(expected, int):
        assert find_class(text, names, synsets, count) == expected
        return
    with pytest.raises(ValueError) as error:
        find_class(text, names, synsets, count)
    assert expected in str(error.value)


def test_names_of_files_do_not_clash():
    paths = [Path('a/dog.jpg'), Path('b/DOG.png'), Path('contact_sheet.png'), Path('dog_2.jpg')]
    names = file_names(paths, taken=('contact_sheet',))
    assert names == ['dog.png', 'DOG_2.png', 'contact_sheet_2.png', 'dog_2_2.png']


@pytest.mark.parametrize(
    'argv, message',
    [
        ((BAG, '--out', 'new'), '--layer layer4: its map has only one pixel for images of 32 x 32; give an earlier'),
        ((BAG, '--out', 'new', '--class', 'Cat'), '--class Cat: expected a name or an index from 0 to 9'),
        ((BAG, '--out', 'new', '--class', '1', '--topk', '2'), '--class names the classes, and --topk counts'),
        ((BAG, '--out', 'new', '--topk', '0'), '--topk must be positive, got 0'),
        ((BAG, '--out', 'file/maps'), '--out file/maps: is not a folder and cannot be made'),
        (('.', '--out', '.', '--layer', 'layer2'), '--out .: bag.png is an image to explain; give another folder'),
    ],
)
def test_wrong_flags_are_one_line_and_leave_nothing(run, tmp_path, monkeypatch, argv, message):
    monkeypatch.chdir(tmp_path)
    Path('file').write_text('')
    Path('bag.png').write_bytes(BAG.read_bytes())
    code, said, err = run(*argv, '--model', NAME)
    assert (code, said) == (2, '') and err.startswith('error: ') and err.count('\n') == 1 and message in err
    assert sorted(path.name for path in tmp_path.iterdir()) == ['bag.png', 'file']
