"""Options of the models: output stride, drop path, dropout, pools, heads, feature maps."""

# pyright: reportPrivateImportUsage=false
# timm does not mark what it exports.

import copy
import functools
import itertools
import unittest.mock
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import timm
import timm.models.tresnet
import torch
from flax import nnx

import tresnet_jax
from convert.golden import timm_model
from tests.helpers.comparisons.registry import EXACT, comparison, error_of, timm_reference
from tests.helpers.models import SMALL
from tests.helpers.reference import images, nhwc, ours
from tests.helpers.tolerances import EVALUATION
from tresnet_jax import variants
from tresnet_jax.models import pooling
from tresnet_jax.models.build import build_model
from tresnet_jax.models.initializers import ShapesOnly
from tresnet_jax.models.tresnet import TResNet


@functools.cache
def timm_dilated() -> tuple[Any, np.ndarray]:
    theirs = timm_reference('test_resnet', output_stride=8)
    return theirs, nhwc(theirs(images(1, 3, 43, 64)))


@comparison('test_options.test_output_stride', EVALUATION)
def output_stride() -> float:
    theirs, expected = timm_dilated()
    return error_of(ours(theirs, 'test_resnet', dtype='float64', output_stride=8)(nhwc(images(1, 3, 43, 64))), expected)


@comparison('test_options.test_output_stride', EXACT)
def reductions() -> float:
    theirs, _ = timm_dilated()
    mine = build_model('test_resnet', num_classes=0, in_chans=3, output_stride=8, rngs=ShapesOnly())
    return sum(a != b['reduction'] for a, b in zip(mine.feature_info.reduction(), theirs.feature_info, strict=True))


@functools.cache
def expected_of_drop_path(name: str) -> np.ndarray:
    draws = itertools.count()

    def timm_drop_path(x, drop_prob=0.0, training=False, scale_by_keep=True):
        assert training and scale_by_keep
        kept = np.random.default_rng(next(draws)).random((len(x), 1, 1, 1)) < 1 - drop_prob
        return x * torch.from_numpy(kept) / (1 - drop_prob)

    theirs = copy.deepcopy(timm_reference(name, drop_path_rate=0.4)).train()
    with unittest.mock.patch.object(timm.layers.drop, 'drop_path', timm_drop_path):
        return nhwc(theirs(images(4, 3, 64, 64)))


@comparison('test_options.test_drop_path_with_the_same_masks', EVALUATION)
def drop_path() -> float:
    """Return the largest error of a training step for which both sides draw the same numbers.

    A mask of another shape gets other numbers.
    """
    errors = []
    for name in SMALL:
        draws = itertools.count()

        def bernoulli(key, p, shape, draws=draws):
            return jnp.asarray(np.random.default_rng(next(draws)).random(shape) < p)

        mine = ours(timm_reference(name, drop_path_rate=0.4), name, dtype='float64', drop_path_rate=0.4)
        apply, params, stats = tresnet_jax.functional(mine)
        with unittest.mock.patch.object(jax.random, 'bernoulli', bernoulli):
            x = nhwc(images(4, 3, 64, 64))
            got, _ = apply(params, stats, x, train=True, rngs={'dropout': jax.random.key(0)})
        errors.append(error_of(got, expected_of_drop_path(name)))
    return max(errors)


RATES = (0.1, 0.2, 0.35)


@functools.cache
def timm_rates(rate: float) -> dict[str, list[float]]:
    """Return the drop path rates of tresnet_m's stages at a narrow width, and of resnet18d."""
    models = {
        'tresnet': timm.models.tresnet.TResNet([3, 4, 11, 3], width_factor=0.125, drop_path_rate=rate),
        'resnet': timm.create_model('resnet18d', drop_path_rate=rate),
    }
    return {
        name: [getattr(m.drop_path, 'drop_prob', 0.0) for m in theirs.modules() if hasattr(m, 'drop_path')]
        for name, theirs in models.items()
    }


@comparison('test_options.test_drop_path_rates', EXACT)
def drop_path_rates() -> float:
    """Return the largest relative error of the blocks' rates."""
    error = 0.0
    for rate in RATES:
        options = {'num_classes': 0, 'drop_path_rate': rate, 'rngs': ShapesOnly()}
        narrow = variants.TResNetConfig((3, 4, 11, 3), width_factor=0.125)
        models = {
            'tresnet': TResNet(narrow, **options),
            'resnet': build_model('resnet18d', in_chans=3, **options),
        }
        for name, mine in models.items():
            rates = [block.drop_path.rate for stage in mine._stages() for block in stage]
            error = max(error, error_of(rates, timm_rates(rate)[name]))
    return error


@comparison('test_options.test_dropout_keeps_the_mean_and_is_off_in_evaluation', EVALUATION)
def dropout() -> float:
    """Return the error of the scale, or of the dropped share where chance does not explain it.

    At a rate of one half, dropping and keeping look alike; this is another rate.
    """
    mine = build_model('test_resnet', num_classes=4, in_chans=3, drop_rate=0.3, dtype='float64', rngs=nnx.Rngs(0))
    ones = jnp.ones((8, 3, 3, mine.num_features))
    got = mine.train().forward_head(ones, pre_logits=True, rngs=nnx.Rngs(dropout=0))
    theirs = torch.nn.functional.dropout(torch.ones(got.shape, dtype=torch.float64), 0.3, training=True)
    dropped = float((got == 0).mean())
    deviation = (0.3 * 0.7 / got.size) ** 0.5
    return max(error_of(got.max(), theirs.max()), abs(dropped - 0.3) if abs(dropped - 0.3) > 6 * deviation else 0.0)


@functools.cache
def timm_pooled(kind: str) -> np.ndarray:
    pool = timm.layers.SelectAdaptivePool2d(pool_type=kind, flatten=bool(kind))
    return nhwc(pool(images(2, 96, 3, 2)))


@comparison('test_options.test_global_pool', EVALUATION)
def global_pools() -> float:
    errors = []
    for kind in pooling.POOL_TYPES:
        mine = build_model('test_resnet', num_classes=0, in_chans=3, global_pool=kind, rngs=ShapesOnly())
        errors.append(error_of(mine.forward_head(nhwc(images(2, 96, 3, 2))), timm_pooled(kind)))
    return max(errors)


@functools.cache
def timm_wide(name: str) -> Any:
    return timm_model(name, num_classes=4, global_pool='catavgmax').double().eval()


@comparison('test_options.test_global_pool', EVALUATION)
def wide_heads() -> float:
    """Return the error of a head whose pooling doubles the classifier's width."""
    theirs, x = timm_wide('test_resnet'), images(2, 96, 3, 2)
    return error_of(ours(theirs, 'test_resnet', dtype='float64').forward_head(nhwc(x)), nhwc(theirs.forward_head(x)))


RESETS = ((7, None), (5, 'catavgmax'), (3, None), (0, ''), (4, 'max'), (2, None))


@functools.cache
def timm_resets(name: str) -> list[tuple[int, ...]]:
    theirs, shapes = timm_model(name), []
    for classes, pool in RESETS:
        theirs.reset_classifier(classes, pool)
        fc = theirs.get_classifier()
        shapes.append((classes, *getattr(fc, 'weight', torch.empty(0)).shape, theirs.global_pool.pool_type))
    return shapes


@comparison(None, EXACT)
def reset_pooling() -> float:
    """Return after how many resets the pooling's name or the classifier's shape differs."""
    mine = build_model('test_resnet', num_classes=9, in_chans=3, rngs=ShapesOnly())
    wrong = 0
    for (classes, pool), expected in zip(RESETS, timm_resets('test_resnet'), strict=True):
        mine.reset_classifier(classes, pool)
        fc = mine.get_classifier()
        shape = fc.kernel.shape[::-1] if isinstance(fc, nnx.Linear) else (0,)
        wrong += (classes, *shape, mine.global_pool) != expected
    return wrong


# Arguments of forward_intermediates: the last n, an order, negative indices, and an early stop.
ASKED = ((2, False), ((3, 1), False), ((-1, -4), False), ((1, 2), True))


@functools.cache
def timm_intermediates() -> list[list[np.ndarray]]:
    results = []
    for indices, stop_early in ASKED:
        asked = list(indices) if isinstance(indices, tuple) else indices
        last, maps = timm_reference('test_resnet').forward_intermediates(
            images(1, 3, 64, 49), asked, stop_early=stop_early
        )
        results.append([nhwc(m) for m in (last, *maps)])
    return results


@comparison('test_options.test_forward_intermediates', EVALUATION)
def intermediates() -> float:
    mine, errors = ours(timm_reference('test_resnet'), 'test_resnet', dtype='float64'), []
    for (indices, stop_early), expected in zip(ASKED, timm_intermediates(), strict=True):
        last, maps = mine.forward_intermediates(nhwc(images(1, 3, 64, 49)), indices, stop_early=stop_early)
        errors += [error_of(a, b) for a, b in zip((last, *maps), expected, strict=True)]
    return max(errors)


@functools.cache
def timm_backbone(name: str) -> tuple[int, ...]:
    return tuple(timm_model(name, features_only=True).feature_info.out_indices)


@comparison('test_options.test_features_only', EXACT)
def backbones() -> float:
    """Return how many backbones give other maps than timm's."""
    return sum(tresnet_jax.create_model(name, features_only=True).out_indices != timm_backbone(name) for name in SMALL)
