"""Augmentation of batches on the devices: how often what is drawn, fixed parameters by hand, and wrong arguments."""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.helpers.distributions import distance, likely, normal_cdf
from tests.helpers.images import normal_images
from tresnet_jax.training import batch_augment


def batch(dtype: Any = jnp.float32) -> tuple[jax.Array, jax.Array]:
    """Return four normalised images and their one-hot targets."""
    return jnp.asarray(normal_images(4, 12, 10), dtype), jax.nn.one_hot(jnp.arange(4), 4, dtype=dtype)


NEIGHBOURS = [1, 0, 3, 2]  # the partner of each image


class TestMixing:
    def test_shares(self):
        """Over many batches: how often, which kind, and the distribution of the share that an image keeps."""
        images = jnp.stack([jnp.zeros((16, 16, 1)), jnp.ones((16, 16, 1))])
        targets = jnp.eye(2)
        options = {'mixup_alpha': 0.4, 'cutmix_alpha': 1.0, 'probability': 0.8, 'switch_probability': 0.3}
        keys = jax.random.split(jax.random.key(0), 4000)
        mixed, shares = jax.jit(jax.vmap(lambda key: batch_augment.mix(key, images, targets, **options)))(keys)
        mixed, lam = np.asarray(mixed[:, 0]), np.asarray(shares[:, 0, 0])
        np.testing.assert_allclose(shares, np.stack([[lam, 1 - lam], [1 - lam, lam]]).transpose(2, 0, 1), atol=1e-6)
        np.testing.assert_allclose(mixed.mean((1, 2, 3)), 1 - lam, atol=1e-6)
        is_cutmix = np.ptp(mixed, (1, 2, 3)) > 0
        is_mixup = ~is_cutmix & (lam < 1)
        # A box smaller than a pixel does not change the batch: 1 - lam < 1 / 256.
        assert likely(is_cutmix.sum(), 4000, 0.8 * 0.3 * (1 - 1 / 256))
        # With lam near 1 mixup does not change the batch either.
        assert abs(is_mixup.sum() - 4000 * 0.8 * 0.7) <= 5 * math.sqrt(4000 * 0.8 * 0.7 * 0.44) + 40
        reference = np.sort(np.random.default_rng(0).beta(0.4, 0.4, 400000))
        assert distance(lam[is_mixup], lambda x: np.searchsorted(reference, x) / len(reference)) <= 1.2
        assert np.unique(np.round(lam[is_cutmix] * 256, 3) % 1) == [0]

    @pytest.mark.parametrize('dtype', [jnp.float32, jnp.bfloat16])
    def test_fixed(self, dtype):
        images, targets = batch(dtype)
        mixed, labels = jax.jit(batch_augment.mixup)(images, targets, 0.3)
        wide = np.asarray(images, np.float32)
        expected = 0.3 * wide + 0.7 * wide[NEIGHBOURS]
        assert mixed.dtype == labels.dtype == dtype
        rounding = 0.5 * float(jnp.finfo(dtype).eps) * np.abs(expected)  # computed in float32, rounded once
        assert (np.abs(np.asarray(mixed, np.float32) - expected) <= rounding + 1e-6).all()
        box = jnp.asarray([2, 5, 0, 10], jnp.int32)
        mixed, labels = jax.jit(batch_augment.cutmix)(images, targets, tuple(box))
        expected = np.asarray(images).copy()
        expected[:, 2:5] = expected[NEIGHBOURS, 2:5]
        assert np.array_equal(mixed, expected)
        assert np.array_equal(labels[0], jnp.asarray([0.75, 0.25, 0, 0], dtype))

    def test_only_one_kind(self, monkeypatch):
        images, targets = batch()
        key = jax.random.key(1)
        assert batch_augment.mix(key, images, targets) == (images, targets)
        monkeypatch.setattr(jax.random, 'beta', lambda key, a, b, dtype: a / (a + b + a))  # compiles for seconds
        mixed, labels = batch_augment.mix(key, images, targets, mixup_alpha=1.0, switch_probability=1.0)
        assert np.array_equal(mixed, batch_augment.mixup(images, targets, 1 / 3)[0])
        assert labels[0].tolist()[2:] == [0, 0]
        cut, labels = batch_augment.mix(key, images, targets, cutmix_alpha=1.0, switch_probability=0.0)
        partners = np.asarray(images)[NEIGHBOURS]
        exchanged = (np.asarray(cut) == partners).all(-1)
        assert np.array_equal(np.where(exchanged[..., None], partners, images), cut)
        np.testing.assert_allclose(exchanged.mean((1, 2)), 1 - labels[0, 0], rtol=1e-6)
        assert 0 < exchanged.mean() < 1

    @pytest.mark.parametrize('mode', ['pair', 'elem'])
    @pytest.mark.parametrize('minmax', [None, (0.25, 0.75)])
    def test_for_each(self, mode, minmax, monkeypatch):
        """Each pair or image draws its own method, share and box, and mixes with its unmixed neighbour."""
        monkeypatch.setattr(batch_augment, '_beta', lambda keys, alpha: batch_augment._uniform(keys, 1)[0])
        count, size = 1200, 16
        images = jnp.broadcast_to(jnp.arange(count, dtype=jnp.float32)[:, None, None, None], (count, size, size, 1))
        targets = jnp.stack([jnp.ones(count), jnp.arange(count, dtype=jnp.float32)], 1)
        options = {'mixup_alpha': 1.0, 'cutmix_alpha': 0.0 if minmax else 1.0, 'cutmix_minmax': minmax}
        mix = functools.partial(batch_augment.mix, probability=0.8, switch_probability=0.3, mode=mode, **options)
        mixed, labels = map(np.asarray, jax.jit(mix)(jax.random.split(jax.random.key(0), count), images, targets))
        own = np.arange(count, dtype=np.float32)
        other = own.reshape(-1, 2)[:, ::-1].ravel()
        lam = (labels[:, 1] - other) / (own - other)
        np.testing.assert_allclose(mixed.mean((1, 2, 3)), labels[:, 1], rtol=1e-5)
        is_cutmix = np.ptp(mixed, (1, 2, 3)) > 0
        for i in np.flatnonzero(is_cutmix):
            assert np.unique(mixed[i]).tolist() == sorted({own[i], other[i]})
        drawn = count // 2 if mode == 'pair' else count
        shares, cuts = (lam[::2], is_cutmix[::2]) if mode == 'pair' else (lam, is_cutmix)
        assert likely((shares > 1 - 1e-4).sum(), drawn, 0.2)
        # A box around a pixel may be empty; one between a quarter and three quarters is not.
        assert likely(cuts.sum(), drawn, 0.8 * 0.3 * (1 if minmax else 1 - 1 / 256))
        if mode == 'pair':
            np.testing.assert_allclose(lam[::2], lam[1::2], atol=1e-3)
            assert (is_cutmix[::2] == is_cutmix[1::2]).all()
        else:
            assert likely((is_cutmix[::2] & is_cutmix[1::2]).sum(), drawn // 2, 0.24**2)
        if minmax:
            edges = [np.ptp(np.nonzero((mixed[i] == other[i]).any((1, 2)))[0]) + 1 for i in np.flatnonzero(is_cutmix)]
            assert {*edges} == {*range(4, 12)}

    def test_not_any_more(self, monkeypatch):
        monkeypatch.setattr(jax.random, 'beta', lambda key, a, b, dtype: a / (a + b + a))
        images, targets = batch()
        for minmax in (None, (0.5, 0.75)):
            mix = functools.partial(batch_augment.mix, mixup_alpha=1.0, cutmix_alpha=1.0, cutmix_minmax=minmax)
            for on in (True, False):
                mixed, labels = mix(jax.random.key(1), images, targets, enabled=jnp.asarray(on))
                assert np.array_equal(mixed, images) is not on and np.array_equal(labels, targets) is not on

    def test_wrong_arguments(self):
        images, targets = batch()
        key = jax.random.key(0)
        for minmax in ((0.5, 0.5), (0.6, 0.2), (0.0, 0.05)):
            with pytest.raises(ValueError, match='leave a range of edges'):
                batch_augment.mix(key, images, targets, cutmix_minmax=minmax)
        with pytest.raises(ValueError, match='mode must be one of batch, pair, elem'):
            batch_augment.mix(key, images, targets, mixup_alpha=1.0, mode='half')
        with pytest.raises(ValueError, match="'pair' needs a key for each image"):
            batch_augment.mix(key, images, targets, mixup_alpha=1.0, mode='pair')
        for wrong in ((images[0], targets), (images, targets[0]), (images[:2], targets)):
            with pytest.raises(ValueError, match='expected images'):
                batch_augment.mix(key, *wrong, mixup_alpha=1.0)
        with pytest.raises(ValueError, match='a batch of 3 images cannot be mixed: each needs a neighbour'):
            batch_augment.mix(key, images[:3], targets[:3], cutmix_alpha=1.0)
        with pytest.raises(ValueError, match='floating point'):
            batch_augment.mix(key, images.astype(jnp.uint8), targets, mixup_alpha=1.0)
        for options in ({'mixup_alpha': -1.0}, {'mixup_alpha': 1.0, 'probability': 2.0}):
            with pytest.raises(ValueError, match='alphas'):
                batch_augment.mix(key, images, targets, **options)


class TestErasing:
    def test_boxes(self):
        """Area, aspect and place of one rectangle, in images so large that nearly all rectangles fit."""
        size, edge = 20000, 10000
        draws = jnp.asarray(np.random.default_rng(0).random((22, size)), jnp.float32)
        erasing_box = jax.jit(lambda x: batch_augment.erasing_box(x, jnp.full(size, 2), edge, edge, (0.1, 0.4), 0.5))
        top, bottom, left, right = map(np.asarray, erasing_box(draws))
        height, width = bottom - top, right - left
        assert distance(height * width / edge**2, lambda x: (x - 0.05) / 0.15) <= 1
        assert distance(np.log(height / width), lambda x: 0.5 + x / (2 * math.log(2))) <= 1
        assert distance(top / (edge - height), lambda x: x) <= 1 and distance(left / (edge - width), lambda x: x) <= 1

    def test_boxes_reach_all_borders(self):
        first, last = (jnp.full((22, 1), 0.5).at[-2:].set(draw) for draw in (0.0, 1 - 2**-23))
        for draws, expected in ((first, (0, 4, 0, 4)), (last, (4, 8, 2, 6))):
            box = batch_augment.erasing_box(draws, jnp.ones(1, jnp.int32), 8, 6, (1 / 3, 1 / 3), 0.3)
            assert tuple(int(side[0]) for side in box) == expected

    def test_counts_and_probability(self):
        images = jnp.ones((3000, 12, 12, 1))
        erase = functools.partial(batch_augment.random_erasing, probability=0.3, min_area=0.3)
        one = np.asarray(jax.jit(erase)(jax.random.key(0), images))
        assert likely((one == 0).any((1, 2, 3)).sum(), 3000, 0.3)
        many = np.asarray(jax.jit(functools.partial(erase, mode='rand', count=3))(jax.random.key(0), images))
        colours = np.array([len(np.unique(image)) - 1 for image in many])
        assert likely((colours > 0).sum(), 3000, 0.3) and set(colours) == {0, 1, 2, 3}
        # A rectangle that a later one covers is not counted; a single rectangle always is.
        assert likely((colours == 1).sum(), 3000, 0.1) and (colours == 3).sum() > 100

    def test_fills(self):
        erase = functools.partial(batch_augment.random_erasing, probability=1.0)
        erase_all = jax.jit(lambda key, x: {mode: erase(key, x, mode=mode) for mode in batch_augment.MODES})
        for mode, erased in erase_all(jax.random.key(2), jnp.full((64, 16, 12, 3), 9.0)).items():
            erased = np.asarray(erased)
            for image in erased:
                rows, columns = np.nonzero((image != 9).any(-1))
                patch = image[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
                assert (patch != 9).all() and (image != 9).sum() == patch.size
                varies = np.ptp(patch, (0, 1))
                assert {'const': not patch.any(), 'rand': not varies.any(), 'pixel': varies.all()}[mode]
            values = np.unique(erased[erased != 9])
            assert values.tolist() == [0] if mode == 'const' else distance(values, normal_cdf) <= 1

    def test_cutout(self):
        height, width, size = 20, 30, 20000
        cut = functools.partial(batch_augment.cutout, size=0.3)
        erased = np.asarray(jax.jit(cut)(jax.random.key(0), jnp.ones((size, height, width, 1))))[..., 0] == 0
        # Pixel (y, x) is covered by centres up to half an edge (6 rows, 9 columns) away.
        rows = [sum(max(c - 3, 0) <= y < min(c + 3, height) for c in range(height)) for y in range(height)]
        columns = [sum(max(c - 4, 0) <= x < min(c + 5, width) for c in range(width)) for x in range(width)]
        expected = np.outer(rows, columns) / (height * width)
        assert (np.abs(erased.mean(0) - expected) <= 6 * np.sqrt(expected * (1 - expected) / size)).all()

    def test_cutout_colours_are_uniform_before_normalising(self):
        mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
        images = jnp.full((2000, 4, 4, 3), 99.0)
        cut = functools.partial(batch_augment.cutout, size=1.0, fill='random', mean=mean, std=std)
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
                batch_augment.random_erasing(key, images_, probability=0.5, **options)
        with pytest.raises(ValueError, match='fill must be one of zero, random'):
            batch_augment.cutout(key, images, size=0.5, fill='const')
        with pytest.raises(ValueError, match='size must be a share'):
            batch_augment.cutout(key, images, size=16)


def augment(
    key: jax.Array, image_keys: jax.Array, images: jax.Array, targets: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Apply every augmentation once."""
    keys = jax.vmap(lambda key: jax.random.split(key, 4), out_axes=1)(image_keys)
    images = batch_augment.cutout(keys[0], images, size=0.5, fill='random')
    images = batch_augment.random_erasing(keys[1], images, probability=0.5, mode='pixel', count=2)
    images = batch_augment.random_erasing(keys[2], images, probability=0.5, mode='rand')
    images, targets = batch_augment.mix(keys[3], images, targets, mixup_alpha=0.2, cutmix_alpha=1.0, mode='pair')
    return batch_augment.mix(key, images, targets, mixup_alpha=0.2, cutmix_alpha=1.0)


def test_on_several_devices(monkeypatch):
    """Two devices with a pair of images each do what one device does with all four."""
    monkeypatch.setattr(batch_augment, '_beta', lambda keys, alpha: batch_augment._uniform(keys, 1)[0])
    keys = jax.random.split(jax.random.key(3), 4)
    arguments = keys, *batch(jnp.bfloat16)
    one, two = (
        jax.pmap(augment, in_axes=(None, 0, 0, 0))(
            jax.random.key(5), *(x.reshape(n, 4 // n, *x.shape[1:]) for x in arguments)
        )
        for n in (1, 2)
    )
    for whole, parts in zip(one, two, strict=True):
        assert parts.dtype == jnp.bfloat16 and np.array_equal(whole[0], parts.reshape(whole.shape[1:]))
    assert not np.array_equal(one[0][0], arguments[1])


@pytest.mark.parametrize('dtype', [jnp.float32, jnp.float64])
def test_types(x64, dtype):
    images, targets = (jax.ShapeDtypeStruct(x.shape, dtype) for x in batch())
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), 4))
    assert jax.eval_shape(augment, jax.random.key(0), keys, images, targets) == (images, targets)
