"""The training transform of one image: crops, flips and colours as often as they should be, and draft decoding."""

import collections
import math
import pickle
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.helpers.distributions import distance, likely
from tests.helpers.images import encode, noise_image, pixels, wave_image
from tresnet_jax.data import train_transforms
from tresnet_jax.data.images import decode
from tresnet_jax.data.train_transforms import create_train_transform
from tresnet_jax.errors import ImageError

BILINEAR = Image.Resampling.BILINEAR


def generator(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def jpeg(image: Image.Image) -> bytes:
    return encode(image, 'JPEG', quality=95)


class TestCrops:
    def test_boxes(self):
        rng = generator()
        boxes = np.array([
            train_transforms.random_resized_box(1000, 1000, (0.08, 0.5), (3 / 4, 4 / 3), rng) for _ in range(4000)
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
    def test_the_middle_if_no_box_fits(self, size, box):
        assert train_transforms.random_resized_box(*size, (1.0, 1.0), (3 / 4, 4 / 3), generator()) == box

    def test_thin_images(self):
        for seed in range(100):
            box = train_transforms.random_resized_box(1, 300, (0.001, 0.01), (0.01, 100), generator(seed))
            assert box[2] == 1 and 1 <= box[3] <= 300

    def test_resized_crop_uses_no_pixel_outside_the_box(self):
        square = np.zeros((20, 20, 3), np.uint8)
        square[5:15, 4:12] = 200
        image = Image.fromarray(square)
        crop = train_transforms.resized_crop(image, (4, 5, 8, 10), (33, 31), Image.Resampling.BICUBIC)
        assert crop.size == (33, 31) and (np.asarray(crop) == 200).all()

    def test_pad_crop(self):
        image, expected = noise_image(7, 5), pixels(5, 7)
        for mode in train_transforms.PADDINGS:
            assert np.array_equal(np.asarray(train_transforms.pad_crop(image, 2, mode, 2, 2)), expected)
        constant, reflect = (
            np.asarray(train_transforms.pad_crop(image, 2, mode, 0, 1)) for mode in ('constant', 'reflect')
        )
        assert np.array_equal(constant[1:, 2:], expected[:4, :5])
        assert not constant[0].any() and not constant[:, :2].any()
        assert np.array_equal(reflect[1:, :2], expected[:4, 2:0:-1]) and np.array_equal(reflect[0], reflect[2])


class TestTransform:
    def test_result(self):
        transform = create_train_transform((3, 20, 24), auto_augment='rand-m9-mstd0.5-inc1', vflip=0.5)
        transform = pickle.loads(pickle.dumps(transform))
        for mode in ('RGB', 'L', 'P', 'RGBA', 'CMYK', '1', 'I;16'):
            image = noise_image(40, 30, mode='I' if mode == 'I;16' else mode).convert(mode)
            x = transform(image, generator(1))
            assert (x.shape, x.dtype, x.flags.writeable) == ((20, 24, 3), np.uint8, True)
            assert np.array_equal(x, transform(image, generator(1)))
            assert not np.array_equal(x, transform(image, generator(2)))

    @pytest.mark.parametrize(('hflip', 'vflip'), [(0.5, 0.0), (0.2, 0.9)])
    def test_flips(self, hflip, vflip):
        rng, draws = generator(), 2000
        transform = create_train_transform(4, crop='none', hflip=hflip, vflip=vflip, color_jitter=None)
        found = collections.Counter(transform(noise_image(4, 4), rng).tobytes() for _ in range(draws))
        plain = pixels(4, 4)
        for flipped, probability in (
            (plain, (1 - hflip) * (1 - vflip)),
            (plain[:, ::-1], hflip * (1 - vflip)),
            (plain[::-1], (1 - hflip) * vflip),
            (plain[::-1, ::-1], hflip * vflip),
        ):
            assert likely(found[flipped.tobytes()], draws, probability)

    def test_jitter(self):
        """Brightness scales a grey image. No jitter next to a policy, unless that is 3-Augment or it is forced."""
        image, rng = Image.new('RGB', (2, 2), (100, 100, 100)), generator()
        options: dict[str, Any] = {'crop': 'none', 'color_jitter': (0.4, 0.0, 0.0)}
        transform = create_train_transform(2, **options)
        levels = np.array([transform(image, rng)[0, 0, 0] for _ in range(2000)])
        assert distance(levels, lambda x: (x - 60 + 0.5) / 80) <= 1.2  # whole levels increase the distance
        jitters = [
            create_train_transform(2, **options, auto_augment=config, force_color_jitter=force).color_jitter
            for config, force in (('original', False), ('rand-m9', False), ('original', True), ('3a', False))
        ]
        assert jitters == [(0, 0, 0), (0, 0, 0), (0.4, 0, 0), (0.4, 0, 0)]
        assert create_train_transform().color_jitter == (0.4,) * 3

    def test_pad_shifts_in_every_direction(self):
        transform, rng = create_train_transform(6, crop='pad', padding=2, hflip=0, color_jitter=0), generator()
        image = noise_image(6, 6)
        expected = {
            train_transforms.pad_crop(image, 2, 'reflect', left, top).tobytes()
            for left in range(5)
            for top in range(5)
        }  # fmt: skip
        draws = collections.Counter(transform(image, rng).tobytes() for _ in range(2500))
        assert draws.keys() == expected and all(likely(count, 2500, 1 / 25) for count in draws.values())

    def test_none_takes_the_middle(self):
        transform = create_train_transform((10, 20), crop='none', hflip=0, color_jitter=0, interpolation='box')
        image = noise_image(40, 30)
        expected = image.crop((0, 5, 40, 25)).resize((20, 10), Image.Resampling.BOX)
        assert np.array_equal(transform(image, generator()), np.asarray(expected))

    @pytest.mark.parametrize(
        'wrong',
        [
            {'input_size': (0, 2, 3)}, {'input_size': 0}, {'input_size': 2.5}, {'crop': 'center'},
            {'scale': (0.5, 0.1)}, {'scale': (0, 1)}, {'scale': (0.1, 2)}, {'ratio': (2, 1)}, {'ratio': (0, 1)},
            {'padding': -1}, {'padding_mode': 'edge'}, {'interpolation': 'cubic'}, {'hflip': 1.1}, {'vflip': -0.1},
            {'color_jitter': -0.1}, {'color_jitter': (0.1, 0.1)}, {'color_jitter': (0.1, 0.1, 0.1, 0.1)},
            {'mean': (0.5, 0.5)}, {'mean': (0.5, 0.5, 0.5), 'input_size': (1, 8, 8)},
            {'color_jitter': 0.4, 'input_size': (4, 8, 8), 'mean': (0.5,)},
            {'auto_augment': 'original', 'input_size': (2, 8, 8), 'mean': (0.5,)},
        ],
        ids=str,
    )  # fmt: skip
    def test_wrong_arguments(self, wrong):
        with pytest.raises(ValueError, match=f'^{next(iter(wrong))} must be'):
            create_train_transform(**wrong)


class TestChannels:
    def test_each_channel_of_an_array_is_drawn_the_same_numbers(self):
        options: Any = {'crop': 'rkrr', 'vflip': 0.5, 'color_jitter': 0, 'mean': (0.5,)}
        image = np.random.default_rng(0).integers(0, 256, (40, 30, 5), np.uint8)
        many, one = (create_train_transform((channels, 20, 24), **options) for channels in (5, 1))
        assert pickle.loads(pickle.dumps(many)) == many
        rng = generator()
        for _ in range(10):
            state = rng.bit_generator.state
            result, after = many(image, rng), rng.bit_generator.state
            assert result.shape == (20, 24, 5) and after != state
            for channel in range(5):
                rng.bit_generator.state = state
                alone = one(Image.fromarray(image[..., channel]), rng)
                assert np.array_equal(alone[..., 0], result[..., channel]) and rng.bit_generator.state == after

    def test_grey_images(self):
        """Colours are converted as by Pillow before anything else happens."""
        options: Any = {'auto_augment': 'rand-m9-mstd0.5-inc1', 'force_color_jitter': True, 'mean': (0.4,)}
        transform = create_train_transform((1, 20, 24), **options)
        for seed in range(20):
            image = noise_image(40, 30, seed=seed)
            result = transform(image, generator(seed))
            assert result.shape == (20, 24, 1) and result.dtype == np.uint8
            assert np.array_equal(result, transform(image.convert('L'), generator(seed)))

    def test_images_of_another_kind(self):
        array = np.zeros((8, 8, 4), np.uint8)
        transform = create_train_transform((2, 8, 8), color_jitter=0, mean=(0.5,))
        for wrong in (array, array[..., :2].astype(np.float32), array[..., 0], Image.fromarray(array)):
            with pytest.raises(ValueError, match=r'expected an array \(height, width, 2\) uint8, got '):
                transform(wrong, generator())
        with pytest.raises(ValueError, match='expected a PIL image, got ndarray'):
            create_train_transform(8)(array, generator())


class TestDraft:
    @pytest.mark.parametrize('draft', [False, True])
    def test_damage(self, draft):
        data = jpeg(noise_image(200, 200))
        with pytest.raises(ImageError, match='truncated'):
            create_train_transform(8, draft=draft)(decode(data[: len(data) // 2]), generator())

    def test_never_smaller_than_the_crop_needs(self):
        data, rng, shrinks = jpeg(wave_image(640, 481)), generator(), collections.Counter()
        for _ in range(150):
            size = tuple(rng.integers(1, 120, 2).tolist())
            box = train_transforms.random_resized_box(640, 481, (0.02, 1.0), (0.3, 3.0), rng)
            drafted = decode(data)
            result = np.asarray(train_transforms.draft_crop(drafted, box, size, BILINEAR), np.int16)
            shrink = round(640 / drafted.width)
            shrinks[shrink] += 1
            assert drafted.size == (math.ceil(640 / shrink), math.ceil(481 / shrink))
            assert shrink == 1 or (box[2] >= shrink * size[0] and box[3] >= shrink * size[1])
            assert shrink == 8 or min(box[2] / size[0], box[3] / size[1]) < 2.1 * shrink  # no larger than needed
            exact = np.asarray(train_transforms.resized_crop(decode(data), box, size, BILINEAR), np.int16)
            # The same place of the image: the worst pixel differs by no more than a shift of half a pixel causes.
            assert np.abs(result - exact).max() <= 6
            if shrink == 1:
                assert np.array_equal(result, exact)
        assert all(shrinks[shrink] >= 10 for shrink in (1, 2, 4, 8))

    def test_changes_only_jpegs_that_are_not_decoded(self):
        exact, draft = (create_train_transform(32, draft=draft) for draft in (False, True))
        decoded = decode(jpeg(wave_image(640, 480)))
        decoded.load()
        for image in (decode(encode(wave_image(640, 480))), decoded):
            assert np.array_equal(draft(image, generator()), exact(image, generator()))
        data = jpeg(noise_image(640, 480))
        drafted, expected = (transform(decode(data), generator()) for transform in (draft, exact))
        assert not np.array_equal(drafted, expected)

    def test_grey_images(self):
        """A JPEG in colour or in grey is decoded at a smaller size; other images stay as they are."""
        options: Any = {'input_size': (1, 32, 32), 'crop': 'none', 'hflip': 0, 'color_jitter': 0, 'mean': (0.5,)}
        exact, draft = (create_train_transform(**options, draft=draft) for draft in (False, True))
        for mode in ('RGB', 'L'):
            data = jpeg(wave_image(640, 480).convert(mode))
            drafted = decode(data, channels=1)
            near, expected = draft(drafted, generator()), exact(decode(data, channels=1), generator())
            assert drafted.size == (80, 60) and near.shape == (32, 32, 1)
            difference = np.abs(near.astype(int) - expected)
            assert 0 < difference.max() <= 12
            png = encode(wave_image(640, 480).convert(mode))
            assert np.array_equal(*(create(decode(png, channels=1), generator()) for create in (exact, draft)))
