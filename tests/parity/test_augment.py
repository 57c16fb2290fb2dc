"""The augmentation of training against timm's, to the bit on the host; both draw from one generator."""

import functools
import itertools
import math
import random
from types import SimpleNamespace
from typing import Any, cast

import jax
import numpy as np
import pytest
import timm.data.auto_augment as timm_aa
import timm.data.mixup as timm_mixup
import timm.data.random_erasing as timm_erasing
import timm.data.transforms as timm_transforms
import torch
import torchvision
from PIL import Image, ImageOps
from timm.data.transforms_factory import transforms_imagenet_train
from torchvision.transforms import functional as torchvision_functional

from tests.helpers.closeness import assert_close
from tests.helpers.images import normal_images
from tests.helpers.timm_transforms import photograph
from tresnet_jax.data import train_transforms as crops
from tresnet_jax.data.auto_augment import OPERATIONS, POLICIES, auto_augment_transform
from tresnet_jax.data.train_transforms import create_train_transform
from tresnet_jax.training import batch_augment
from tresnet_jax.training.config import TrainConfig
from tresnet_jax.training.step import augment

FILL = (124, 116, 104)
AUGMIX = (
    'augmix', 'augmix-m5-w4-d2', 'augmix-m9-w1-d3-a0.5', 'augmix-mstd0', 'augmix-m8-mstd2-b1', 'augmix-b1-w5-a3-d0'
)  # fmt: skip
RAND = (
    'rand', 'rand-m9-mstd0.5-inc1', 'rand-m7-n3-p0.8', 'rand-m15-mmax30-inc1-p1', 'rand-mstd101-n4-p1',
    'rand-tweights-mstd1', 'rand-t3a-p1', 'rand-m6-n3-inc1-mstd0.5-t3aw',
)  # fmt: skip


@functools.cache
def images() -> dict[str, Image.Image]:
    """Return photographs of several shapes, small enough for hundreds of operations."""
    sizes = {'astronaut.png': (96, 96), 'coffee.png': (133, 89), 'rocket.jpg': (57, 101)}
    return {name: photograph(name).convert('RGB').resize(size) for name, size in sizes.items()}


class Draws:
    """The functions of Python's `random` that timm calls, drawn from a NumPy generator."""

    def __init__(self, rng: Any):
        self.rng, self.random, self.uniform, self.gauss = rng, rng.random, rng.uniform, rng.normal

    def randint(self, low, high):
        return int(self.rng.integers(low, high + 1))

    def choice(self, values):
        return values[self.rng.integers(len(values))]


class Fixed:
    """A generator that always returns the same share of its range."""

    def __init__(self, share: float):
        self.share = share

    def random(self) -> float:
        return self.share

    def uniform(self, low: float, high: float) -> float:
        return low + (high - low) * self.share

    normal = integers = None


@pytest.fixture
def drawn_from(monkeypatch):
    """drawn_from(generator) makes timm and torchvision draw from it instead of the process's generators."""

    def patch(rng: np.random.Generator) -> None:
        def choice(values, size, replace, p=None):
            return [values[index] for index in rng.choice(len(values), size, replace=replace, p=p)]

        def jitter(*ranges):
            order = rng.permutation(3).tolist()
            factors = {index: rng.uniform(*ranges[index]) for index in order if ranges[index]}
            return [*order, 3], *(factors.get(index) for index in range(4))

        for module in (timm_aa, timm_transforms, timm_erasing):
            monkeypatch.setattr(module, 'random', Draws(rng))
        used = ('array', 'sum', 'zeros_like', 'asarray', 'clip', 'float32', 'uint8')
        numpy = SimpleNamespace(**{name: getattr(np, name) for name in used})
        numpy.random = SimpleNamespace(choice=choice, dirichlet=rng.dirichlet, beta=rng.beta, randint=rng.integers)
        monkeypatch.setattr(timm_aa, 'np', numpy)
        monkeypatch.setattr(torch, 'rand', lambda *_: torch.tensor(rng.random(), dtype=torch.float64))
        monkeypatch.setattr(torchvision.transforms.ColorJitter, 'get_params', staticmethod(jitter))

    return patch


@pytest.fixture(autouse=True)
def _posterize_to_black(monkeypatch):
    """Return a black image where no bit is kept, as ours and older versions of Pillow do; Pillow 13 raises an error."""
    original = ImageOps.posterize
    monkeypatch.setattr(
        ImageOps, 'posterize', lambda p, bits: original(p, bits) if bits > 0 else p.point([0] * 256 * len(p.getbands()))
    )


def test_the_operations_are_timms():
    assert OPERATIONS.keys() == timm_aa.NAME_TO_OP.keys()


@pytest.mark.parametrize('name', sorted(OPERATIONS))
def test_an_operation_equals_timms(name, monkeypatch):
    operation, hparams = OPERATIONS[name], {'translate_const': 250}
    filters = (Image.Resampling.BILINEAR, Image.Resampling.BICUBIC, Image.Resampling.NEAREST)
    changed = 0
    for level, share, image in itertools.product((0, 1, 3.7, 5, 9, 10), (0.2, 0.8), images().values()):
        monkeypatch.setattr(timm_aa, 'random', Fixed(share))
        level_to_arg = timm_aa.LEVEL_TO_ARG[name]
        theirs = level_to_arg(level, hparams) if level_to_arg else ()
        ours = (operation.argument(level, Fixed(share)),) if operation.argument else ()  # pyright: ignore
        for resample in filters if operation.geometric else filters[:1]:
            how = {'resample': resample, 'fillcolor': FILL}
            expected = timm_aa.NAME_TO_OP[name](image, *theirs, **how)
            result = operation.apply(image, *ours, **(how if operation.geometric else {}))
            assert np.array_equal(np.asarray(result), np.asarray(expected)), (level, share, image.size, resample)
            changed += result.tobytes() != image.tobytes()
    assert changed >= 3


@pytest.mark.parametrize('name', sorted(set(OPERATIONS) - {'GaussianBlurRand'}))
def test_the_argument_of_every_level_is_timms(name, monkeypatch):
    """GaussianBlurRand is left out: timm draws its argument within the operation."""
    operation, level_to_arg = OPERATIONS[name], timm_aa.LEVEL_TO_ARG[name]
    assert (operation.argument is None) == (level_to_arg is None)
    for level, share in itertools.product([*range(31), *np.linspace(0, 30, 97).tolist()], (0.1, 0.5, 0.6)):
        if operation.argument and level_to_arg:
            monkeypatch.setattr(timm_aa, 'random', Fixed(share))
            expected = level_to_arg(level, {'translate_const': 250})
            assert (operation.argument(level, Fixed(share)),) == expected, (level, share)  # pyright: ignore


@pytest.mark.parametrize('config', [*POLICIES, 'original-mstd0.5', 'v0-mstd2', *RAND])
@pytest.mark.parametrize('interpolation', ['random', 'bicubic'])
def test_a_policy_gives_the_same_images(config, interpolation, drawn_from):
    """Probabilities, magnitudes, signs, filters and weights are timm's."""
    hparams: dict[str, Any] = {'translate_const': 250, 'img_mean': FILL}
    if interpolation != 'random':
        hparams['interpolation'] = Image.Resampling.BICUBIC
    create: Any = timm_aa.rand_augment_transform if config.startswith('rand') else timm_aa.auto_augment_transform
    theirs, ours = create(config, hparams), auto_augment_transform(config, interpolation=interpolation, fill=FILL)
    subpolicies = [[op] for op in theirs.ops] if config.startswith('rand') else theirs.policy
    assert ours.choices == tuple(tuple((op.name, op.prob, op.magnitude) for op in row) for row in subpolicies)
    seen = set()
    for seed in range(40):
        image = list(images().values())[seed % 3]
        drawn_from(np.random.default_rng(seed))
        expected, result = theirs(image), ours(image, np.random.default_rng(seed))
        assert np.array_equal(np.asarray(result), np.asarray(expected)), seed
        seen.add(result.tobytes())
    assert len(seen) >= 10  # from three images


@pytest.mark.parametrize('config', AUGMIX)
@pytest.mark.parametrize('mode', ['RGB', 'L'])
def test_augmix_gives_the_same_images(config, mode, drawn_from):
    """Chains, shares, magnitudes and the mixture; timm's scripts set `translate_pct`."""
    fill = FILL if mode == 'RGB' else FILL[:1]
    theirs = timm_aa.augment_and_mix_transform(config, {'translate_pct': 0.3, 'img_mean': fill})
    ours = auto_augment_transform(config, fill=fill)
    seen = set()
    for seed in range(30):
        image = list(images().values())[seed % 3].convert(mode)
        drawn_from(np.random.default_rng(seed))
        expected, rng = theirs(image), np.random.default_rng(seed)
        assert np.array_equal(np.asarray(ours(image, rng)), np.asarray(expected)), seed
        seen.add(expected.tobytes())
    assert len(seen) >= 28


@pytest.mark.parametrize(
    'options',
    [
        {'vflip': 0.3},
        {'interpolation': 'lanczos', 'scale': (0.5, 0.9), 'ratio': (0.5, 3.0), 'vflip': 0.5, 'color_jitter': None},
        {'auto_augment': 'rand-m9-mstd0.5-inc1', 'vflip': 0.1},
        {'auto_augment': 'original', 'interpolation': 'bilinear', 'vflip': 0.1},
        {'auto_augment': 'original', 'force_color_jitter': True, 'color_jitter': (0.1, 0.7, 1.5), 'vflip': 0.1},
        {'auto_augment': '3a', 'vflip': 0.1, 'mean': (0.0, 1.0, 0.5)},
        {'auto_augment': 'rand-t3aw-n1', 'vflip': 0.1},
        {'auto_augment': 'augmix-m5-w4-d2', 'vflip': 0.1, 'interpolation': 'bicubic'},
        {'crop': 'rkrc', 'interpolation': 'bicubic', 'vflip': 0.1},
        {'crop': 'rkrc', 'scale': (0.1, 0.2), 'ratio': (0.3, 3.0), 'color_jitter': None},
        {'crop': 'rkrr', 'interpolation': 'bilinear', 'vflip': 0.1},
        {'crop': 'rkrr', 'scale': (0.3, 1.0), 'ratio': (0.3, 3.0), 'color_jitter': None},
    ],
    ids=str,
)
@pytest.mark.parametrize('mode', ['RGB', 'L'])
def test_the_whole_transform_equals_timms(mode, options, drawn_from):
    """With boxes, flips and jitter, of colour and grey images."""
    if mode == 'L':
        options = {**options, 'mean': options.get('mean', (0.4,))[:1]}
    for size in (48, (40, 56)):
        height, width = (size, size) if isinstance(size, int) else size
        ours = create_train_transform((1, height, width) if mode == 'L' else size, **options)
        others = {name: value for name, value in options.items() if name != 'crop'}
        crop = options.get('crop')
        theirs: Any = transforms_imagenet_train(size, train_crop_mode=crop, **others, use_prefetcher=True)
        for seed, image in enumerate(list(images().values()) * 4):
            drawn_from(np.random.default_rng(seed))
            expected = theirs(image.convert(mode)).numpy().transpose(1, 2, 0)
            assert np.array_equal(ours(image, np.random.default_rng(seed)), expected), (size, seed)


def test_random_boxes_equal_timms(drawn_from):
    """The shapes include some for which none of ten boxes fits, where both take the middle."""
    middles = 0
    for seed, (width, height) in enumerate(itertools.product((20, 64, 301, 2000), repeat=2)):
        image = Image.new('L', (width, height))
        for scale, ratio in (((0.08, 1.0), (3 / 4, 4 / 3)), ((0.9, 1.0), (1.0, 1.0)), ((0.2, 0.2), (0.1, 8.0))):
            drawn_from(np.random.default_rng(seed))
            top, left, box_height, box_width = timm_transforms.RandomResizedCropAndInterpolation.get_params(
                image, scale, ratio
            )
            box = crops.random_resized_box(width, height, scale, ratio, np.random.default_rng(seed))
            assert box == (left, top, box_width, box_height)
            middles += box == crops.middle_box(width, height, ratio)
    assert 5 <= middles <= 30


@pytest.mark.parametrize('mode', crops.PADDINGS)
def test_pad_crop_equals_torchvisions(mode):
    for image, left, top in itertools.product(images().values(), (0, 3, 8), (0, 5, 8)):
        padded = torchvision_functional.pad(cast(Any, image), [4], padding_mode=mode)
        expected = torchvision_functional.crop(padded, top, left, image.height, image.width)
        assert np.array_equal(np.asarray(crops.pad_crop(image, 4, mode, left, top)), np.asarray(expected))


def batch(size: int = 4, height: int = 13, width: int = 17) -> tuple[np.ndarray, np.ndarray]:
    """Return normalised float64 images and their labels."""
    images = normal_images(size, height, width, dtype='float64')
    return images, np.random.default_rng(1).integers(0, 5, size)


def timm_mix(monkeypatch, images: np.ndarray, labels: np.ndarray, lam: float, is_cutmix: bool):
    """Return timm's mixture of four images. timm mixes the first and the last, we mix neighbours."""
    place = np.array([0, 3, 1, 2])
    order = np.argsort(place)
    mixed, targets = timm_mix_reversed(monkeypatch, images[order], labels[order], lam, is_cutmix)
    return mixed[place], targets[place]


def timm_mix_reversed(monkeypatch, images: np.ndarray, labels: np.ndarray, lam: float, is_cutmix: bool):
    theirs = timm_mixup.Mixup(1.0, 1.0, label_smoothing=0.1, num_classes=5)
    monkeypatch.setattr(theirs, '_params_per_batch', lambda: (lam, is_cutmix))
    mixed, targets = theirs(torch.from_numpy(images).permute(0, 3, 1, 2).clone(), torch.from_numpy(labels))
    return mixed.permute(0, 2, 3, 1).numpy(), targets.numpy()


def smoothed(labels: np.ndarray) -> np.ndarray:
    return timm_mixup.one_hot(torch.from_numpy(labels), 5, 1 - 0.1 + 0.1 / 5, 0.1 / 5).numpy().astype(np.float64)


@pytest.mark.usefixtures('x64')
class TestMixing:
    @pytest.mark.parametrize('lam', [0.0, 0.3, 0.71, 1.0])
    def test_mixup(self, lam, monkeypatch):
        images, labels = batch()
        expected, targets = timm_mix(monkeypatch, images, labels, lam, is_cutmix=False)
        result = batch_augment.mixup(jax.numpy.asarray(images), jax.numpy.asarray(smoothed(labels)), lam)
        assert result[0].dtype == result[1].dtype == np.float64
        assert_close(result[0], expected, 1e-15)
        assert_close(result[1], targets, 1e-7)  # timm's targets are float32

    @pytest.mark.parametrize('centre', [(0, 0), (6, 8), (12, 16), (1, 15)])
    @pytest.mark.parametrize('lam', [0.02, 0.3, 0.75, 0.999])
    def test_cutmix(self, lam, centre, monkeypatch):
        images, labels = batch()
        row, column = centre
        values = itertools.cycle(centre)
        monkeypatch.setattr(np.random, 'randint', lambda low, high, size=None: next(values))
        expected, targets = timm_mix(monkeypatch, images, labels, lam, is_cutmix=True)
        box = batch_augment.cutmix_box(lam, jax.numpy.int32(row), jax.numpy.int32(column), 13, 17)
        assert tuple(map(int, box)) == tuple(map(int, timm_mixup.rand_bbox((13, 17), lam)))
        result = batch_augment.cutmix(jax.numpy.asarray(images), jax.numpy.asarray(smoothed(labels)), box)
        assert np.array_equal(result[0], expected)
        assert_close(result[1], targets, 1e-7)

    @pytest.mark.parametrize('minmax', [None, (0.2, 0.8)])
    @pytest.mark.parametrize('mode', ['pair', 'elem'])
    def test_for_each(self, mode, minmax, monkeypatch):
        """Each pair or image with its own method, share and box; images 0 and 1, 2 and 3 are partners."""
        images, labels = batch()
        lam, cuts = np.array([0.3, 0.3, 0.71, 0.71]), np.array([False, False, True, True])
        if mode == 'elem':
            lam, cuts = np.array([0.3, 0.5, 0.71, 0.9]), np.array([False, True, True, False])
        draws = np.random.default_rng(0).random((4, 4))  # row, column, height, width of the box for each image
        if mode == 'pair':
            draws[:, 1::2] = draws[:, ::2]
        monkeypatch.setattr(
            batch_augment, '_uniform',
            lambda keys, count: jax.numpy.asarray([np.zeros(4), 1.0 - cuts, *draws[: count - 2]], jax.numpy.float32),
        )  # fmt: skip
        monkeypatch.setattr(batch_augment, '_beta', lambda keys, alpha: jax.numpy.asarray(lam, jax.numpy.float32))
        keys = jax.random.split(jax.random.key(0), 4)
        targets = jax.numpy.asarray(smoothed(labels))
        options: Any = {'mixup_alpha': 1.0, 'cutmix_alpha': 1.0, 'cutmix_minmax': minmax, 'mode': mode}
        result = batch_augment.mix(keys, jax.numpy.asarray(images), targets, **options)

        place = np.array([0, 3, 1, 2])  # timm mixes the first and the last
        order = np.argsort(place)
        drawn = [i for i in order[: 2 if mode == 'pair' else 4] if cuts[i]]
        # timm draws the box between limits before its place, and otherwise only its centre.
        numbers = iter([draws[k, i] for i in drawn for k in ((2, 3, 0, 1) if minmax else (0, 1))])
        monkeypatch.setattr(np.random, 'randint', lambda a, b, size=None: a + int((b - a) * np.float32(next(numbers))))
        theirs = timm_mixup.Mixup(1.0, 1.0, minmax, mode=mode, label_smoothing=0.1, num_classes=5)
        monkeypatch.setattr(theirs, '_params_per_elem', lambda n: (lam[order[:n]], cuts[order[:n]]))
        tensor = torch.from_numpy(images[order]).permute(0, 3, 1, 2).clone()
        expected, mixed = theirs(tensor, torch.from_numpy(labels[order]))
        assert next(numbers, None) is None
        assert_close(result[0], expected.permute(0, 2, 3, 1).numpy()[place], 1e-7)  # shares are float32
        assert_close(result[1], mixed.numpy()[place], 1e-7)


@pytest.mark.parametrize('options', [{}, {'max_area': 0.9, 'min_aspect': 0.1}], ids=str)
def test_the_rectangles_of_timm_erase_the_same_pixels(options, drawn_from):
    images = batch(8, 24, 32)[0].astype(np.float32)
    theirs = timm_erasing.RandomErasing(1.0, device='cpu', **options)
    for seed, image in enumerate(images):
        drawn_from(np.random.default_rng(seed))
        expected = theirs(torch.from_numpy(image.transpose(2, 0, 1)).clone()).numpy().transpose(1, 2, 0)
        rows, columns = np.nonzero((expected == 0).all(-1))
        sides = (rows.min(), rows.max() + 1, columns.min(), columns.max() + 1)
        box = [jax.numpy.asarray([side], np.int32) for side in sides]
        result = batch_augment.erase(jax.numpy.asarray(image[None]), (*box,), jax.numpy.zeros((1, 1, 1, 1)))  # pyright: ignore
        assert np.array_equal(result[0], expected)


def distance(a: np.ndarray, b: np.ndarray) -> float:
    """Return the largest difference of two samples' distribution functions."""
    points = np.concatenate([a, b])
    below = [np.searchsorted(np.sort(x), points, side='right') / len(x) for x in (a, b)]
    return float(np.abs(below[0] - below[1]).max())


@pytest.mark.parametrize(
    ('height', 'width', 'count', 'options'),
    [(40, 56, 1, {}), (48, 48, 1, {'max_area': 0.9, 'min_aspect': 0.15}), (40, 56, 3, {'min_area': 0.1})],
)
def test_erasing_has_the_same_distribution(height, width, count, options):
    """The share of images, the erased area, height over width, and the place agree for 3,000 images each."""
    size = 3000
    random.seed(0)
    theirs = timm_erasing.RandomErasing(0.6, max_count=count, min_count=1, device='cpu', **options)
    expected = theirs(torch.ones(size, 1, height, width))[:, 0].numpy() == 0
    erase = jax.jit(lambda key, x: batch_augment.random_erasing(key, x, probability=0.6, count=count, **options))
    result = np.asarray(erase(jax.random.key(0), jax.numpy.ones((size, height, width, 1))))[..., 0] == 0
    measured = []
    for erased in (expected, result):
        erased = erased[erased.any((1, 2))]
        area = erased.mean((1, 2))
        rows, columns = erased.any(2), erased.any(1)
        aspect = np.log(rows.sum(1) / columns.sum(1))
        measured.append((area, aspect, rows.argmax(1), columns.argmax(1)))
    shares = [len(areas) / size for areas, *_ in measured]
    assert abs(shares[0] - shares[1]) <= 5 * math.sqrt(2 * 0.6 * 0.4 / size)
    n, m = len(measured[0][0]), len(measured[1][0])
    bound = math.sqrt(math.log(2 / 1e-6) / 2 * (n + m) / (n * m))  # exceeded once in a million
    for what, a, b in zip(('area', 'aspect', 'top', 'left'), *measured, strict=True):
        assert distance(a, b) <= bound, what


def test_mixing_before_erasing_as_in_timms_default_loader(monkeypatch):
    """The mixed images are rounded to 8 bits, and each is erased by itself; `timm --no-prefetcher` mixes last."""
    rng = np.random.default_rng(0)
    images, labels = rng.integers(1, 256, (2, 13, 17, 3)).astype(np.uint8), np.array([1, 3], np.int32)
    theirs = timm_mixup.FastCollateMixup(1.0, label_smoothing=0.1, num_classes=5)
    monkeypatch.setattr(theirs, '_params_per_batch', lambda: (0.3, False))
    mixed, targets = theirs(
        [(image.transpose(2, 0, 1), int(label)) for image, label in zip(images, labels, strict=True)]
    )
    expected = mixed.numpy().transpose(0, 2, 3, 1)

    monkeypatch.setattr(jax.random, 'beta', lambda *_, **__: jax.numpy.float32(0.3))
    batch = {'image': jax.numpy.asarray(images), 'label': jax.numpy.asarray(labels)}
    key, image_keys = jax.random.key(1), jax.random.split(jax.random.key(2), 2)
    shares = []
    for reprob in (0.0, 1.0):
        config = TrainConfig(mixup=1.0, prefetcher=True, reprob=reprob, remode='const')
        found, smoothed = augment(key, image_keys, batch, config, 5, (0.0,) * 3, (1 / 255,) * 3)
        kept = np.asarray(found) != 0
        np.testing.assert_allclose(found, np.where(kept, expected, 0), atol=1e-3)
        np.testing.assert_allclose(smoothed, targets.numpy(), atol=1e-6)
        shares.append(kept.mean((1, 2, 3)))
    assert (shares[0] == 1).all() and (shares[1] < 1).all()
