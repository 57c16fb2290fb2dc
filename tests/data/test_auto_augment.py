"""AutoAugment, RandAugment, AugMix and 3-Augment: operations by hand, how often each is drawn, and wrong strings."""

import collections
import functools
import math
import pickle
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.helpers.distributions import distance, likely, normal_cdf
from tests.helpers.images import noise_image, pixels
from tresnet_jax.data.augment_ops import OPERATIONS
from tresnet_jax.data.augmix import blend_shares
from tresnet_jax.data.auto_augment import RAND_SETS, auto_augment_transform
from tresnet_jax.data.train_transforms import create_train_transform

TINY = noise_image(2, 2)


@pytest.fixture
def applied(monkeypatch) -> list[tuple[str, Any, dict]]:
    """Every operation applied: its name, its argument, and its filter and colour. Images stay unchanged."""
    calls: list[tuple[str, Any, dict]] = []

    def record(name: str, image: Image.Image, *argument, **options) -> Image.Image:
        calls.append((name, argument[0] if argument else None, options))
        return image

    for name, operation in OPERATIONS.items():
        monkeypatch.setitem(OPERATIONS, name, operation._replace(apply=functools.partial(record, name)))
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
        options = {'resample': Image.Resampling.NEAREST, 'fillcolor': (1, 2, 3)}
        image, expected = noise_image(40, 30), pixels(30, 40)
        moved = np.asarray(OPERATIONS['TranslateXRel'].apply(image, 0.25, **options))
        assert np.array_equal(moved[:, :30], expected[:, 10:]) and (moved[:, 30:] == (1, 2, 3)).all()
        moved = np.asarray(OPERATIONS['TranslateY'].apply(image, -7, **options))
        assert np.array_equal(moved[7:], expected[:-7]) and (moved[:7] == (1, 2, 3)).all()


class TestPolicies:
    def test_rand_augment(self, applied):
        policy = auto_augment_transform('rand-m9-mstd0.5-inc1', fill=(9, 8, 7))
        assert pickle.loads(pickle.dumps(policy)) == policy
        assert len({policy, auto_augment_transform('rand-m9-mstd0.5-inc1', fill=(9, 8, 7))}) == 1
        rng, draws = np.random.default_rng(0), 6000
        for _ in range(draws):
            policy(TINY, rng)
        assert likely(len(applied), 2 * draws, 0.5)
        counts = collections.Counter(name for name, *_ in applied)
        assert len(counts) == 15 and all(likely(count, 2 * draws, 0.5 / 15) for count in counts.values())
        assert 'PosterizeIncreasing' in counts and 'Posterize' not in counts
        degrees = np.array([argument for name, argument, _ in applied if name == 'Rotate'])
        signed = np.array([argument for *_, argument, options in applied if options])
        assert len(signed) > 1500 and likely((signed > 0).sum(), len(signed), 0.5)
        assert distance(np.abs(degrees), lambda x: np.where(x >= 30, 1, normal_cdf((x / 3 - 9) / 0.5))) <= 1
        assert np.abs(degrees).max() == 30  # magnitudes are clipped at 10
        geometric = [options for *_, options in applied if options]
        bilinear = sum(options['resample'] == Image.Resampling.BILINEAR for options in geometric)
        assert likely(bilinear, len(geometric), 0.5)
        assert {options['fillcolor'] for options in geometric} == {(9, 8, 7)}

    def test_uniform_magnitudes_and_a_higher_limit(self, applied):
        policy, rng = auto_augment_transform('rand-m20-mmax30-mstd101-n1-p1'), np.random.default_rng(0)
        for _ in range(20000):
            policy(TINY, rng)
        assert len(applied) == 20000
        shear = np.abs([argument for name, argument, _ in applied if name == 'ShearX'])
        assert distance(shear, lambda x: x / 0.6) <= 1

    @pytest.mark.parametrize('name', ['weights', '3aw'])
    def test_weights(self, applied, name):
        policy, rng, draws = auto_augment_transform(f'rand-p1-n1-t{name}'), np.random.default_rng(0), 6000
        for _ in range(draws):
            policy(TINY, rng)
        counts = collections.Counter(name for name, *_ in applied)
        weights: Any = RAND_SETS[name]
        assert counts.keys() == weights.keys()
        for operation, weight in weights.items():
            assert likely(counts[operation], draws, weight / sum(weights.values())), operation
        applied.clear()
        auto_augment_transform(f'rand-p1-n14-t{name}')(TINY, rng)
        assert len({name for name, *_ in applied}) == 14  # drawn without replacement

    def test_auto_augment(self, applied):
        policy, rng, draws = auto_augment_transform('original'), np.random.default_rng(0), 8000
        assert len(policy.choices) == 25
        for _ in range(draws):
            policy(TINY, rng)
        counts = collections.Counter(name for name, *_ in applied)
        expected: dict[str, float] = collections.defaultdict(float)
        for choice in policy.choices:
            for step in choice:
                expected[step.name] += step.probability / 25
        for name, share in expected.items():
            assert abs(counts[name] - draws * share) <= 5 * math.sqrt(2 * draws * share), name
        # The magnitudes are fixed: 3, 8 and 9 are 9, 24 and 27 degrees.
        degrees = {round(abs(argument), 6) for name, argument, _ in applied if name == 'Rotate'}
        assert degrees == {9.0, 24.0, 27.0}


class TestAugMix:
    def test_chains(self, applied):
        transform, rng, draws = auto_augment_transform('augmix-m5-w4', fill=(9, 8, 7)), np.random.default_rng(0), 1500
        assert pickle.loads(pickle.dumps(transform)) == transform
        for _ in range(draws):
            assert transform(TINY, rng).size == TINY.size
        counts = collections.Counter(name for name, *_ in applied)
        assert abs(len(applied) - 4 * 2 * draws) <= 5 * math.sqrt(4 * draws * 2 / 3)  # 1 to 3 operations a chain
        assert len(counts) == 13 and all(likely(count, len(applied), 1 / 13) for count in counts.values())
        moves = np.array([argument for name, argument, _ in applied if name == 'TranslateXRel'])
        assert distance(np.abs(moves), lambda x: x / 0.15) <= 1
        assert {options['fillcolor'] for *_, options in applied if options} == {(9, 8, 7)}

    def test_blends_give_each_image_its_share(self):
        shares = np.float32([0.2, 0.3, 0.1])
        value = np.eye(4)[0]
        for place, share in enumerate(blend_shares(shares), 1):
            value = (1 - share) * value + share * np.eye(4)[place]
        np.testing.assert_allclose(value, [0.4, *shares], atol=1e-7)


@pytest.mark.parametrize(
    ('config', 'message'),
    [
        ('random', "'random' must start with one of original, .*, rand, augmix"),
        ('augmix-m5-w0', "'w0' is unknown or has an impossible value. Allowed are m: magnitude, 3 by default"),
        ('augmix-a0', "'a0' is unknown"),
        ('augmix-n2', "'n2' is unknown"),
        ('augmix-b2', "'b2' is unknown"),
        ('augmix-d-1', "'d' is unknown"),
        ('augmix-m3-m4', "'m4' is given twice"),
        ('rand-x9', "'x9' is unknown .* Allowed are m: magnitude"),
        ('rand-w0', "'w0' is unknown .* t: set of operations: weights"),
        ('rand-m9.5', "'m9.5' is unknown or has an impossible value"),
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
def test_bad_strings(config, message):
    with pytest.raises(ValueError, match=message):
        auto_augment_transform(config)
    with pytest.raises(ValueError, match=message):
        create_train_transform(auto_augment=config)


def test_filters_that_cannot_rotate():
    with pytest.raises(ValueError, match="random, nearest, bilinear, bicubic with auto_augment, got 'lanczos'"):
        create_train_transform(auto_augment='original', interpolation='lanczos')
