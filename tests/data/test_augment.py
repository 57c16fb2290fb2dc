"""Training's augmentation by itself: what is drawn how often, fixed parameters by hand, wrong input, draft decoding."""

import collections
import functools
import io
import math
import pickle
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from tresnet_jax.data import auto_augment as augment_ops
from tresnet_jax.data import train_transforms as crops
from tresnet_jax.data.auto_augment import OPERATIONS, RAND_SETS, auto_augment_transform
from tresnet_jax.data.images import decode
from tresnet_jax.data.train_transforms import create_train_transform
from tresnet_jax.errors import ImageError
from tresnet_jax.training import batch_augment as erasing
from tresnet_jax.training import batch_augment as mixing

BILINEAR = Image.Resampling.BILINEAR


@pytest.fixture(autouse=True, scope='module')
def _compile_sooner():
    """Random numbers compile for seconds, and here they run once."""
    jax.config.update('jax_disable_most_optimizations', True)
    yield
    jax.config.update('jax_disable_most_optimizations', False)
    jax.clear_caches()


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def noise(width: int = 40, height: int = 30) -> Image.Image:
    return Image.fromarray(rng().integers(0, 256, (height, width, 3), np.uint8))


def smooth(width: int, height: int) -> Image.Image:
    """Waves of several hundred pixels, which survive being decoded at an eighth of the size."""
    x, y = np.meshgrid(np.arange(width) / 97, np.arange(height) / 131)
    return Image.fromarray(np.stack([120 + 100 * np.sin(x + k) * np.cos(y - k) for k in range(3)], -1).astype(np.uint8))


def jpeg(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, 'JPEG', quality=95)
    return file.getvalue()


def decoded(data: bytes) -> Image.Image:
    image = decode(data)
    image.load()
    return image


def likely(count: float, draws: int, probability: float) -> bool:
    """Within five standard deviations of a binomial distribution."""
    return abs(count - draws * probability) <= 5 * math.sqrt(draws * probability * (1 - probability))


def distance(sample: np.ndarray, cdf) -> float:
    """Largest difference between a sample's distribution function and another, over what one in a million exceeds."""
    sample = np.sort(sample)
    below = np.arange(len(sample) + 1) / len(sample)
    expected = np.asarray(cdf(sample))
    largest = max(np.abs(expected - below[1:]).max(), np.abs(expected - below[:-1]).max())
    return float(largest / math.sqrt(math.log(2 / 1e-6) / 2 / len(sample)))


@pytest.fixture
def applied(monkeypatch) -> list[tuple[str, Any, dict]]:
    """Every operation applied: its name, its argument, and filter and colour; images stay as they are."""
    calls: list[tuple[str, Any, dict]] = []

    def record(name: str, image: Image.Image, *argument, **how) -> Image.Image:
        calls.append((name, argument[0] if argument else None, how))
        return image

    for name, operation in OPERATIONS.items():
        row = operation._replace(apply=functools.partial(record, name))
        monkeypatch.setitem(augment_ops.OPERATIONS, name, row)
    return calls


class TestOperations:
    def test_by_hand(self):
        image = Image.fromarray(np.array([[[0, 100, 127], [128, 200, 255]]], np.uint8))
        for name, argument, expected in (
            ('Invert', (), [[255, 155, 128], [127, 55, 0]]),
            ('Solarize', (128,), [[0, 100, 127], [127, 55, 0]]),
            ('SolarizeAdd', (110,), [[110, 210, 237], [128, 200, 255]]),
            ('Posterize', (0,), [[0, 0, 0], [0, 0, 0]]),
            ('Posterize', (2,), [[0, 64, 64], [128, 192, 192]]),
            ('Posterize', (12,), [[0, 100, 127], [128, 200, 255]]),
            ('Brightness', (0.5,), [[0, 50, 63], [64, 100, 127]]),
            ('Desaturate', (1.0,), [[73, 73, 73], [185, 185, 185]]),
        ):
            assert np.asarray(OPERATIONS[name].apply(image, *argument))[0].tolist() == expected, name

    def test_shifts_fill_with_the_colour(self):
        image, how = noise(), {'resample': Image.Resampling.NEAREST, 'fillcolor': (1, 2, 3)}
        pixels = np.asarray(image)
        moved = np.asarray(OPERATIONS['TranslateXRel'].apply(image, 0.25, **how))
        assert np.array_equal(moved[:, :30], pixels[:, 10:]) and (moved[:, 30:] == (1, 2, 3)).all()
        moved = np.asarray(OPERATIONS['TranslateY'].apply(image, -7, **how))
        assert np.array_equal(moved[7:], pixels[:-7]) and (moved[:7] == (1, 2, 3)).all()


class TestPolicies:
    def test_rand_augment(self, applied):
        policy = auto_augment_transform('rand-m9-mstd0.5-inc1', fill=(9, 8, 7))
        assert pickle.loads(pickle.dumps(policy)) == policy
        assert len({policy, auto_augment_transform('rand-m9-mstd0.5-inc1', fill=(9, 8, 7))}) == 1
        generator, image, draws = rng(), noise(2, 2), 6000
        for _ in range(draws):
            policy(image, generator)
        assert likely(len(applied), 2 * draws, 0.5)
        counts = collections.Counter(name for name, *_ in applied)
        assert len(counts) == 15 and all(likely(count, 2 * draws, 0.5 / 15) for count in counts.values())
        assert 'PosterizeIncreasing' in counts and 'Posterize' not in counts
        degrees = np.array([argument for name, argument, _ in applied if name == 'Rotate'])
        signed = np.array([argument for *_, argument, how in applied if how])
        assert len(signed) > 1500 and likely((signed > 0).sum(), len(signed), 0.5)
        assert distance(np.abs(degrees), lambda x: np.where(x >= 30, 1, normal((x / 3 - 9) / 0.5))) <= 1
        assert np.abs(degrees).max() == 30  # magnitudes are cut off at 10
        hows = [how for *_, how in applied if how]
        assert likely(sum(how['resample'] == BILINEAR for how in hows), len(hows), 0.5)
        assert {how['fillcolor'] for how in hows} == {(9, 8, 7)}

    def test_uniform_magnitudes_and_a_higher_limit(self, applied):
        policy, generator = auto_augment_transform('rand-m20-mmax30-mstd101-n1-p1'), rng()
        for _ in range(20000):
            policy(noise(2, 2), generator)
        assert len(applied) == 20000
        shear = np.abs([argument for name, argument, _ in applied if name == 'ShearX'])
        assert distance(shear, lambda x: x / 0.6) <= 1

    @pytest.mark.parametrize('name', ['weights', '3aw'])
    def test_weights(self, applied, name):
        policy, generator, draws = auto_augment_transform(f'rand-p1-n1-t{name}'), rng(), 6000
        for _ in range(draws):
            policy(noise(2, 2), generator)
        counts = collections.Counter(name for name, *_ in applied)
        weights: Any = RAND_SETS[name]
        assert counts.keys() == weights.keys()
        for operation, weight in weights.items():
            assert likely(counts[operation], draws, weight / sum(weights.values())), operation
        applied.clear()
        auto_augment_transform(f'rand-p1-n14-t{name}')(noise(2, 2), generator)
        assert len({name for name, *_ in applied}) == 14  # none is drawn twice

    def test_auto_augment(self, applied):
        policy, generator, draws = auto_augment_transform('original'), rng(), 8000
        assert len(policy.choices) == 25
        for _ in range(draws):
            policy(noise(2, 2), generator)
        counts = collections.Counter(name for name, *_ in applied)
        expected: dict[str, float] = collections.defaultdict(float)
        for choice in policy.choices:
            for step in choice:
                expected[step.name] += step.probability / 25
        for name, share in expected.items():
            assert abs(counts[name] - draws * share) <= 5 * math.sqrt(2 * draws * share), name
        # Magnitudes 8 and 9 of these are fixed: 24 and 27 degrees.
        degrees = {round(abs(argument), 6) for name, argument, _ in applied if name == 'Rotate'}
        assert degrees == {9.0, 24.0, 27.0}

    @pytest.mark.parametrize(
        ('config', 'message'),
        [
            ('random', "'random' must begin with one of original, .*, rand"),
            ('augmix-m5', "'augmix-m5' must begin"),
            ('rand-x9', "'x9' is unknown .* Allowed are m: magnitude"),
            ('rand-w0', "'w0' is unknown .* t: set of operations: weights"),
            ('rand-m9.5', "'m9.5' is unknown or its value impossible"),
            ('rand-mstd', "'mstd' is unknown"),
            ('rand-m9-m8', "'m8' is given twice"),
            ('rand-p1.5', "'p1.5'"),
            ('rand-inc2', "'inc2'"),
            ('rand-mmax0', "'mmax0'"),
            ('rand-tcolour', "'tcolour'"),
            ('rand--m9', "''"),
            ('rand-n16-tweights', 'at most 15'),
            ('original-m9', "'m9' is unknown .* Allowed are mstd"),
        ],
    )
    def test_bad_strings(self, config, message):
        with pytest.raises(ValueError, match=message):
            auto_augment_transform(config)
        with pytest.raises(ValueError, match=message):
            create_train_transform(auto_augment=config)

    def test_filters_that_cannot_rotate(self):
        with pytest.raises(ValueError, match="random, nearest, bilinear, bicubic, got 'lanczos'"):
            create_train_transform(auto_augment='original', interpolation='lanczos')


def normal(x: np.ndarray) -> np.ndarray:
    """Distribution function of the normal distribution."""
    return np.array([0.5 * (1 + math.erf(value / math.sqrt(2))) for value in x])


class TestCrops:
    def test_boxes(self):
        generator = rng()
        boxes = np.array([
            crops.random_resized_box(1000, 1000, (0.08, 0.5), (3 / 4, 4 / 3), generator) for _ in range(4000)
        ])  # fmt: skip
        left, top, width, height = boxes.T
        assert boxes.min() >= 0 and (left + width).max() <= 1000 and (top + height).max() <= 1000
        assert distance(width * height / 1e6, lambda x: (x - 0.08) / 0.42) <= 1
        assert distance(np.log(width / height), lambda x: 0.5 + x / (2 * math.log(4 / 3))) <= 1
        assert distance((left + 0.5) / (1001 - width), lambda x: x) <= 1
        assert distance((top + 0.5) / (1001 - height), lambda x: x) <= 1

    @pytest.mark.parametrize(
        ('size', 'box'), [((10, 100), (0, 43, 10, 13)), ((100, 10), (43, 0, 13, 10)), ((1, 1), (0, 0, 1, 1))]
    )
    def test_the_middle_where_nothing_fits(self, size, box):
        assert crops.random_resized_box(size[0], size[1], (1.0, 1.0), (3 / 4, 4 / 3), rng()) == box

    def test_thin_images(self):
        for seed in range(100):
            *_, width, height = crops.random_resized_box(1, 300, (0.001, 0.01), (0.01, 100), rng(seed))
            assert width == 1 and 1 <= height <= 300

    def test_resized_crop_sees_nothing_outside(self):
        pixels = np.zeros((20, 20, 3), np.uint8)
        pixels[5:15, 4:12] = 200
        crop = crops.resized_crop(Image.fromarray(pixels), (4, 5, 8, 10), (33, 31), Image.Resampling.BICUBIC)
        assert crop.size == (33, 31) and (np.asarray(crop) == 200).all()

    def test_pad_crop(self):
        pixels = np.asarray(noise(7, 5))
        for mode in crops.PADDINGS:
            assert np.array_equal(np.asarray(crops.pad_crop(noise(7, 5), 2, mode, 2, 2)), pixels)
        constant, reflect = (np.asarray(crops.pad_crop(noise(7, 5), 2, mode, 0, 1)) for mode in ('constant', 'reflect'))
        assert np.array_equal(constant[1:, 2:], pixels[:4, :5]) and not constant[0].any() and not constant[:, :2].any()
        assert np.array_equal(reflect[1:, :2], pixels[:4, 2:0:-1]) and np.array_equal(reflect[0], reflect[2])


class TestTransform:
    def test_result(self):
        transform = create_train_transform((3, 20, 24), auto_augment='rand-m9-mstd0.5-inc1', vflip=0.5)
        transform = pickle.loads(pickle.dumps(transform))
        for mode in ('RGB', 'L', 'P', 'RGBA', 'CMYK', '1', 'I;16'):
            image = noise().convert('I').convert('I;16') if mode == 'I;16' else noise().convert(mode)
            x = transform(image, rng(1))
            assert (x.shape, x.dtype, x.flags.writeable) == ((20, 24, 3), np.uint8, True)
            assert np.array_equal(x, transform(image, rng(1)))
            assert not np.array_equal(x, transform(image, rng(2)))

    @pytest.mark.parametrize(('hflip', 'vflip'), [(0.5, 0.0), (0.2, 0.9)])
    def test_flips(self, hflip, vflip):
        image, generator, draws = noise(4, 4), rng(), 2000
        transform = create_train_transform(4, crop='none', hflip=hflip, vflip=vflip, color_jitter=None)
        pixels = np.asarray(image)
        found = collections.Counter(transform(image, generator).tobytes() for _ in range(draws))
        for flipped, probability in (
            (pixels, (1 - hflip) * (1 - vflip)),
            (pixels[:, ::-1], hflip * (1 - vflip)),
            (pixels[::-1], (1 - hflip) * vflip),
            (pixels[::-1, ::-1], hflip * vflip),
        ):
            assert likely(found[flipped.tobytes()], draws, probability)

    def test_jitter(self):
        """Brightness alone scales a grey image; it is left out beside a policy unless that is 3-Augment or forced."""
        image, generator = Image.new('RGB', (2, 2), (100, 100, 100)), rng()
        options: dict[str, Any] = {'crop': 'none', 'color_jitter': (0.4, 0.0, 0.0)}
        transform = create_train_transform(2, **options)
        levels = np.array([transform(image, generator)[0, 0, 0] for _ in range(2000)])
        assert distance(levels, lambda x: (x - 60 + 0.5) / 80) <= 1.2  # whole levels widen the distance
        jitters = [
            create_train_transform(2, **options, auto_augment=config, force_color_jitter=force).color_jitter
            for config, force in (('original', False), ('rand-m9', False), ('original', True), ('3a', False))
        ]
        assert jitters == [(0, 0, 0), (0, 0, 0), (0.4, 0, 0), (0.4, 0, 0)]
        assert create_train_transform().color_jitter == (0.4,) * 3

    def test_pad_shifts_every_way(self):
        transform, generator = create_train_transform(6, crop='pad', padding=2, hflip=0, color_jitter=0), rng()
        expected = {
            crops.pad_crop(noise(6, 6), 2, 'reflect', left, top).tobytes() for left in range(5) for top in range(5)
        }
        draws = collections.Counter(transform(noise(6, 6), generator).tobytes() for _ in range(2500))
        assert draws.keys() == expected and all(likely(count, 2500, 1 / 25) for count in draws.values())

    def test_none_takes_the_middle(self):
        transform = create_train_transform((10, 20), crop='none', hflip=0, color_jitter=0, interpolation='box')
        assert np.array_equal(
            transform(noise(40, 30), rng()), np.asarray(noise().crop((0, 5, 40, 25)).resize((20, 10), 4))
        )

    @pytest.mark.parametrize(
        'wrong',
        [
            {'input_size': (1, 2, 3)}, {'input_size': 0}, {'input_size': 2.5}, {'crop': 'center'},
            {'scale': (0.5, 0.1)}, {'scale': (0, 1)}, {'scale': (0.1, 2)}, {'ratio': (2, 1)}, {'ratio': (0, 1)},
            {'padding': -1}, {'padding_mode': 'edge'}, {'interpolation': 'cubic'}, {'hflip': 1.1}, {'vflip': -0.1},
            {'color_jitter': -0.1}, {'color_jitter': (0.1, 0.1)}, {'color_jitter': (0.1, 0.1, 0.1, 0.1)},
            {'mean': (0.5,)},
        ],
        ids=str,
    )  # fmt: skip
    def test_wrong_arguments(self, wrong):
        with pytest.raises(ValueError, match=f'^{next(iter(wrong))} must be'):
            create_train_transform(**wrong)


class TestDraft:
    @pytest.mark.parametrize('draft', [False, True])
    def test_damage(self, draft):
        data = jpeg(noise(200, 200))
        with pytest.raises(ImageError, match='truncated'):
            create_train_transform(8, draft=draft)(decode(data[: len(data) // 2]), rng())

    def test_never_smaller_than_the_crop_needs(self):
        data, generator, shrinks = jpeg(smooth(640, 481)), rng(), collections.Counter()
        for _ in range(150):
            size = tuple(generator.integers(1, 120, 2).tolist())
            box = crops.random_resized_box(640, 481, (0.02, 1.0), (0.3, 3.0), generator)
            drafted = decode(data)
            result = np.asarray(crops.draft_crop(drafted, box, size, BILINEAR), np.int16)
            shrink = round(640 / drafted.width)
            shrinks[shrink] += 1
            assert drafted.size == (math.ceil(640 / shrink), math.ceil(481 / shrink))
            assert shrink == 1 or (box[2] >= shrink * size[0] and box[3] >= shrink * size[1])
            assert shrink == 8 or min(box[2] / size[0], box[3] / size[1]) < 2.1 * shrink  # nor larger than it needs
            exact = np.asarray(crops.resized_crop(decode(data), box, size, BILINEAR), np.int16)
            # The same place of the image: the worst pixel within what a shift of half a pixel would do.
            assert np.abs(result - exact).max() <= 6
            if shrink == 1:
                assert np.array_equal(result, exact)
        assert all(shrinks[shrink] >= 10 for shrink in (1, 2, 4, 8))

    def test_only_undecoded_jpegs_change(self):
        file = io.BytesIO()
        smooth(640, 480).save(file, 'PNG')
        exact, draft = (create_train_transform(32, draft=draft) for draft in (False, True))
        for image in (decode(file.getvalue()), decoded(jpeg(smooth(640, 480)))):
            assert np.array_equal(draft(image, rng()), exact(image, rng()))
        data = jpeg(noise(640, 480))
        drafted, expected = (transform(decode(data), rng()) for transform in (draft, exact))
        assert not np.array_equal(drafted, expected)


def batch(dtype: Any = jnp.float32) -> tuple[jax.Array, jax.Array]:
    images = jnp.asarray(rng().standard_normal((4, 12, 10, 3)), dtype)
    return images, jax.nn.one_hot(jnp.arange(4), 4, dtype=dtype)


class TestMixing:
    def test_shares(self):
        """Over many batches: how often, which, and the distribution of the share that an image keeps."""
        images = jnp.stack([jnp.zeros((16, 16, 1)), jnp.ones((16, 16, 1))])
        targets = jnp.eye(2)
        options = {'mixup_alpha': 0.4, 'cutmix_alpha': 1.0, 'probability': 0.8, 'switch_probability': 0.3}
        keys = jax.random.split(jax.random.key(0), 4000)
        mixed, shares = jax.jit(jax.vmap(lambda key: mixing.mix(key, images, targets, **options)))(keys)
        mixed, lam = np.asarray(mixed[:, 0]), np.asarray(shares[:, 0, 0])
        np.testing.assert_allclose(shares, np.stack([[lam, 1 - lam], [1 - lam, lam]]).transpose(2, 0, 1), atol=1e-6)
        np.testing.assert_allclose(mixed.mean((1, 2, 3)), 1 - lam, atol=1e-6)
        is_cutmix = np.ptp(mixed, (1, 2, 3)) > 0
        is_mixup = ~is_cutmix & (lam < 1)
        # A box smaller than a pixel leaves the batch as it is: 1 - lam < 1 / 256.
        assert likely(is_cutmix.sum(), 4000, 0.8 * 0.3 * (1 - 1 / 256))
        assert abs(is_mixup.sum() - 4000 * 0.8 * 0.7) <= 5 * math.sqrt(4000 * 0.8 * 0.7 * 0.44) + 40  # and lam near 1
        reference = rng().beta(0.4, 0.4, 400000)
        assert distance(lam[is_mixup], lambda x: np.searchsorted(np.sort(reference), x) / len(reference)) <= 1.2
        assert np.unique(np.round(lam[is_cutmix] * 256, 3) % 1) == [0]

    @pytest.mark.parametrize('dtype', [jnp.float32, jnp.bfloat16])
    def test_fixed(self, dtype):
        images, targets = batch(dtype)
        mixed, labels = jax.jit(mixing.mixup)(images, targets, 0.3)
        wide = np.asarray(images, np.float32)
        expected = 0.3 * wide + 0.7 * wide[::-1]
        assert mixed.dtype == labels.dtype == dtype
        rounding = 0.5 * float(jnp.finfo(dtype).eps) * np.abs(expected)  # computed in float32, rounded once
        assert (np.abs(np.asarray(mixed, np.float32) - expected) <= rounding + 1e-6).all()
        box = jnp.asarray([2, 5, 0, 10], jnp.int32)
        mixed, labels = jax.jit(mixing.cutmix)(images, targets, tuple(box))
        expected = np.asarray(images).copy()
        expected[:, 2:5] = expected[::-1, 2:5]
        assert np.array_equal(mixed, expected)
        assert np.array_equal(labels[0], jnp.asarray([0.75, 0, 0, 0.25], dtype))

    def test_only_one_kind(self, monkeypatch):
        images, targets = batch()
        key = jax.random.key(1)
        assert mixing.mix(key, images, targets) == (images, targets)
        monkeypatch.setattr(jax.random, 'beta', lambda key, a, b, dtype: a / (a + b + a))  # compiles for seconds
        mixed, labels = mixing.mix(key, images, targets, mixup_alpha=1.0, switch_probability=1.0)
        assert np.array_equal(mixed, mixing.mixup(images, targets, 1 / 3)[0]) and labels[0].tolist()[1:3] == [0, 0]
        cut, labels = mixing.mix(key, images, targets, cutmix_alpha=1.0, switch_probability=0.0)
        exchanged = (np.asarray(cut) == np.asarray(images[::-1])).all(-1)
        assert np.array_equal(np.where(exchanged[..., None], images[::-1], images), cut)
        np.testing.assert_allclose(exchanged.mean((1, 2)), 1 - labels[0, 0], rtol=1e-6)
        assert 0 < exchanged.mean() < 1

    def test_wrong_arguments(self):
        images, targets = batch()
        key = jax.random.key(0)
        for wrong in ((images[0], targets), (images, targets[0]), (images[:2], targets)):
            with pytest.raises(ValueError, match='expected images'):
                mixing.mix(key, *wrong, mixup_alpha=1.0)
        with pytest.raises(ValueError, match='floating point'):
            mixing.mix(key, images.astype(jnp.uint8), targets, mixup_alpha=1.0)
        for options in ({'mixup_alpha': -1.0}, {'mixup_alpha': 1.0, 'probability': 2.0}):
            with pytest.raises(ValueError, match='alphas'):
                mixing.mix(key, images, targets, **options)


class TestErasing:
    def test_boxes(self):
        """Area, aspect and place of one rectangle, where all are likely to fit."""
        size, edge = 20000, 10000
        draws = jnp.asarray(rng().random((22, size)), jnp.float32)
        box = jax.jit(lambda x: erasing.erasing_box(x, jnp.full(size, 2), edge, edge, (0.1, 0.4), 0.5))(draws)
        top, bottom, left, right = map(np.asarray, box)
        height, width = bottom - top, right - left
        assert distance(height * width / edge**2, lambda x: (x - 0.05) / 0.15) <= 1
        assert distance(np.log(height / width), lambda x: 0.5 + x / (2 * math.log(2))) <= 1
        assert distance(top / (edge - height), lambda x: x) <= 1 and distance(left / (edge - width), lambda x: x) <= 1

    def test_boxes_reach_all_borders(self):
        first, last = (jnp.full((22, 1), 0.5).at[-2:].set(draw) for draw in (0.0, 1 - 2**-23))
        for draws, expected in ((first, (0, 4, 0, 4)), (last, (4, 8, 2, 6))):
            box = erasing.erasing_box(draws, jnp.ones(1, jnp.int32), 8, 6, (1 / 3, 1 / 3), 0.3)
            assert tuple(int(side[0]) for side in box) == expected

    def test_counts_and_probability(self):
        images = jnp.ones((3000, 12, 12, 1))
        erase = functools.partial(erasing.random_erasing, probability=0.3, min_area=0.3)
        one = np.asarray(jax.jit(erase)(jax.random.key(0), images))
        assert likely((one == 0).any((1, 2, 3)).sum(), 3000, 0.3)
        many = np.asarray(jax.jit(functools.partial(erase, mode='rand', count=3))(jax.random.key(0), images))
        colours = np.array([len(np.unique(image)) - 1 for image in many])
        assert likely((colours > 0).sum(), 3000, 0.3) and set(colours) == {0, 1, 2, 3}
        # Those that a later rectangle hides are not seen; with one only, none is.
        assert likely((colours == 1).sum(), 3000, 0.1) and (colours == 3).sum() > 100

    def test_fills(self):
        erase = functools.partial(erasing.random_erasing, probability=1.0)
        erase_all = jax.jit(lambda key, x: {mode: erase(key, x, mode=mode) for mode in erasing.MODES})
        for mode, erased in erase_all(jax.random.key(2), jnp.full((64, 16, 12, 3), 9.0)).items():
            erased = np.asarray(erased)
            for image in erased:
                rows, columns = np.nonzero((image != 9).any(-1))
                patch = image[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
                assert (patch != 9).all() and (image != 9).sum() == patch.size
                assert {'const': not patch.any(), 'rand': not np.ptp(patch, (0, 1)).any(), 'pixel': True}[mode]
            values = np.unique(erased[erased != 9])
            assert values.tolist() == [0] if mode == 'const' else distance(values, normal) <= 1

    def test_cutout(self):
        height, width, size = 20, 30, 20000
        cut = functools.partial(erasing.cutout, size=0.3)
        erased = np.asarray(jax.jit(cut)(jax.random.key(0), jnp.ones((size, height, width, 1))))[..., 0] == 0
        # Pixel (y, x) is covered by centres up to half an edge (6 rows, 9 columns) away.
        rows = [sum(max(c - 3, 0) <= y < min(c + 3, height) for c in range(height)) for y in range(height)]
        columns = [sum(max(c - 4, 0) <= x < min(c + 5, width) for c in range(width)) for x in range(width)]
        expected = np.outer(rows, columns) / (height * width)
        assert (np.abs(erased.mean(0) - expected) <= 6 * np.sqrt(expected * (1 - expected) / size)).all()

    def test_cutout_colours_are_uniform_before_normalising(self):
        mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
        images = jnp.full((2000, 4, 4, 3), 99.0)
        cut = functools.partial(erasing.cutout, size=1.0, fill='random', mean=mean, std=std)
        erased = np.asarray(jax.jit(cut)(jax.random.key(0), images))
        patches = [image[(image != 99).all(-1)] for image in erased]
        assert all(not np.ptp(patch, 0).any() for patch in patches)
        colours = np.array([patch[0] for patch in patches]) * std + mean
        assert all(distance(colours[:, channel], lambda x: x) <= 1 for channel in range(3))
        assert np.abs(np.corrcoef(colours.T) - np.eye(3)).max() < 0.12

    def test_wrong_arguments(self):
        images, key = batch()[0], jax.random.key(0)
        cases: Any = (
            (images[0], {}, 'images must be floating point'),
            (images.astype(jnp.uint8), {}, 'images must be floating point'),
            (images, {'mode': 'noise'}, 'mode must be one of const, rand, pixel'),
            (images, {'min_area': 0.5}, 'must be shares'),
            (images, {'count': 0}, 'must be shares'),
        )
        for images_, options, message in cases:
            with pytest.raises(ValueError, match=message):
                erasing.random_erasing(key, images_, probability=0.5, **options)
        with pytest.raises(ValueError, match='fill must be one of zero, random'):
            erasing.cutout(key, images, size=0.5, fill='const')
        with pytest.raises(ValueError, match='size must be a share'):
            erasing.cutout(key, images, size=16)


def augment(key: jax.Array, images: jax.Array, targets: jax.Array) -> tuple[jax.Array, jax.Array]:
    keys = jax.random.split(key, 4)
    images = erasing.cutout(keys[0], images, size=0.5, fill='random')
    images = erasing.random_erasing(keys[1], images, probability=0.5, mode='pixel', count=2)
    images = erasing.random_erasing(keys[2], images, probability=0.5, mode='rand')
    return mixing.mix(keys[3], images, targets, mixup_alpha=0.2, cutmix_alpha=1.0)


def test_on_several_devices():
    """Under pmap the result depends on the key and the batch, not on the device."""
    images, targets = batch(jnp.bfloat16)
    arguments = jax.random.split(jax.random.key(3)), images.reshape(2, 2, 12, 10, 3), targets.reshape(2, 2, 4)
    mapped = jax.pmap(augment)
    results, swapped = mapped(*arguments), mapped(*(x[::-1] for x in arguments))
    for result, other in zip(results, swapped, strict=True):
        assert result.dtype == jnp.bfloat16 and np.array_equal(result, other[::-1])
    assert not np.array_equal(results[0], arguments[1])


@pytest.mark.parametrize('dtype', [jnp.float32, jnp.float64])
def test_types(x64, dtype):
    images, targets = (jax.ShapeDtypeStruct(x.shape, dtype) for x in batch())
    assert jax.eval_shape(augment, jax.random.key(0), images, targets) == (images, targets)
