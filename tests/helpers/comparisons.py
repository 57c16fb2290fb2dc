"""Small versions of the suite's comparisons with timm, for `test_mutants.py`.

Each uses the smallest network or layer that shows a quirk. The decorator names the full test, whose tolerance it has.
Our side runs operation by operation: operations are compiled once for all mutants, and no cached program can replace
patched code.
"""

# pyright: reportPrivateImportUsage=false
# timm does not mark what it exports.

import copy
import functools
import itertools
import unittest.mock
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import timm
import timm.layers.drop
import timm.models.resnet
import timm.models.tresnet
import torch
from flax import nnx

import convert
import tresnet_jax
from convert.golden import timm_model
from tests.helpers import timm_transforms
from tests.helpers.closeness import relative_error
from tests.helpers.layouts import COUNTER, inplace_abn_state
from tests.helpers.models import SMALL
from tests.helpers.reference import (
    TIMM_ARCHITECTURES,
    TIMM_TAGS,
    images,
    nhwc,
    our_outputs,
    ours,
    randomise,
    reference,
    state_of,
    statistics,
    timm_outputs,
    to_numpy,
)
from tests.helpers.timm_transforms import timm_transform
from tests.helpers.tolerances import EVALUATION, LAYER, TRAINING
from tests.helpers.torch_layers import batch_norms, torch_gradient
from tresnet_jax import variants
from tresnet_jax.checkpoints.names import flax_key_to_torch, flax_to_torch_layout
from tresnet_jax.data import transforms
from tresnet_jax.models import batch_norm as abn
from tresnet_jax.models import initializers, layers, pooling
from tresnet_jax.models.build import build_model
from tresnet_jax.models.initializers import ShapesOnly
from tresnet_jax.models.tresnet import TResNet

# Both sides round in the same way or not at all.
EXACT = 0.0
# float32 constants against Python's numbers.
SINGLE = 1e-6

COMPARISONS: dict[str, 'Comparison'] = {}


class Comparison:
    """An error against timm, with the suite's tolerance and test.

    A call returns the error. It is infinite if our side cannot hold the weights or has another shape.

    Args:
        function: computes the error.
        suite: 'module.function' of the full test in tests/parity; None if there is none.
        tolerance: the largest error that the test allows.
    """

    def __init__(self, function: Callable[[], float], suite: str | None, tolerance: float):
        self.function, self.suite, self.tolerance = function, suite, tolerance

    def __call__(self) -> float:
        try:
            return float(self.function())
        except convert.ConversionError:
            return float('inf')


def comparison(suite: str | None, tolerance: float) -> Callable[[Callable[[], float]], Comparison]:
    """Register a function as the comparison of its name."""

    def register(function: Callable[[], float]) -> Comparison:
        COMPARISONS[function.__name__] = Comparison(function, suite, tolerance)
        return COMPARISONS[function.__name__]

    return register


def error_of(a: Any, b: Any) -> float:
    """Return the relative error; infinite if the shapes differ or ours is not finite."""
    a, b = np.asarray(a), np.asarray(b)
    return relative_error(a, b) if a.shape == b.shape and np.isfinite(a).all() else float('inf')


def largest_error(ours: dict[str, Any], theirs: dict[str, Any]) -> float:
    """Return the largest relative error of two dicts; infinite if their keys differ."""
    if ours.keys() != theirs.keys():
        return float('inf')
    return max(error_of(ours[key], theirs[key]) for key in theirs)


def differing(ours: dict, theirs: dict) -> float:
    """Return how many keys are missing on one side or have another value."""
    missing = object()
    return sum(ours.get(key, missing) != theirs.get(key, missing) for key in ours.keys() | theirs.keys())


# Networks with the features that SMALL lacks: the second version's blocks at a width that it rounds, and a bottleneck's
# shortcut of stride 1.
SMALL_ROWS = {
    'small_v2': variants.TResNetConfig((1, 1, 1, 1), width_factor=0.3, v2=True),
    'small_bottlenecks': variants.ResNetDConfig((1, 1, 1, 1), variants.ALL_BOTTLENECK, 8, (8, 12, 16, 24)),
}
SIZES = {
    'test_tresnet': (36, 48), 'small_v2': (40, 48), 'test_resnet': (64, 49), 'small_bottlenecks': (64, 49),
}  # fmt: skip


@functools.cache
def timm_reference(name: str, **options: Any) -> Any:
    if name not in SMALL_ROWS:
        return reference(name, **options)
    torch.manual_seed(0)
    if name == 'small_v2':
        made = timm.models.tresnet.TResNet([1, 1, 1, 1], width_factor=0.3, v2=True)
    else:
        bottleneck: Any = timm.models.resnet.Bottleneck
        made = timm.models.resnet.ResNet(
            bottleneck, (1, 1, 1, 1), stem_width=8, stem_type='deep', avg_down=True,
            channels=(8, 12, 16, 24),
        )  # fmt: skip
    made = made.double()
    randomise(made, 0)
    return made


@functools.cache
def expected_outputs(name: str) -> dict[str, np.ndarray]:
    with torch.no_grad():
        outputs = timm_outputs(timm_reference(name), images(2, 3, *SIZES[name]))
    return to_numpy(outputs)


def evaluation(name: str) -> float:
    """Return the largest error of the feature maps and logits."""
    apply, params, stats = tresnet_jax.functional(ours(timm_reference(name), name, dtype='float64'))
    outputs, _ = our_outputs(apply, params, stats, nhwc(images(2, 3, *SIZES[name])))
    return largest_error(outputs, expected_outputs(name))


@comparison('test_models.test_evaluation_float64', EVALUATION)
def tresnet() -> float:
    return evaluation('test_tresnet')


@comparison('test_models.test_evaluation_float64', EVALUATION)
def tresnet_v2() -> float:
    return evaluation('small_v2')


@comparison('test_models.test_evaluation_float64', EVALUATION)
def resnet() -> float:
    return evaluation('test_resnet')


@comparison('test_models.test_evaluation_float64', EVALUATION)
def bottlenecks() -> float:
    return evaluation('small_bottlenecks')


@functools.cache
def expected_step(name: str) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Return timm's logits and gradients of a training step, and the state after it."""
    theirs = copy.deepcopy(timm_reference(name)).train()
    logits = theirs(images(2, 3, *SIZES[name], seed=2))
    logits.square().sum().backward()
    gradients = {key: p.grad.numpy() for key, p in theirs.named_parameters()}
    return {'logits': logits.detach().numpy(), **gradients}, state_of(theirs).tensors


@comparison('test_models.test_training_float64', TRAINING)
def training_step() -> float:
    """Return the largest error of logits, gradients and running statistics."""
    expected, after = expected_step('test_tresnet')
    mine = ours(timm_reference('test_tresnet'), 'test_tresnet', dtype='float64')
    apply, params, stats = tresnet_jax.functional(mine)

    def loss(params):
        logits, new = apply(params, stats, nhwc(images(2, 3, *SIZES['test_tresnet'], seed=2)), train=True)
        return jnp.square(logits).sum(), (logits, new)

    grads, (logits, new) = jax.grad(loss, has_aux=True)(params)
    outputs = {'logits': logits, **convert.to_torch(grads)}
    return max(
        largest_error(outputs, expected), largest_error(convert.to_torch(params, new, num_batches_tracked=2), after)
    )


@functools.cache
def expected_of_another_slope() -> np.ndarray:
    theirs = copy.deepcopy(timm_reference('test_tresnet'))
    for module in theirs.modules():
        if isinstance(module, torch.nn.LeakyReLU):
            module.negative_slope = 1e-6
    return nhwc(theirs(images(2, 3, 36, 48)))


@comparison('test_options.test_abn_slope', EVALUATION)
def another_slope() -> float:
    mine = ours(timm_reference('test_tresnet'), 'test_tresnet', dtype='float64', abn_slope=1e-6)
    return error_of(mine(nhwc(images(2, 3, 36, 48))), expected_of_another_slope())


def pool_error(function: Callable[[jax.Array], jax.Array], theirs: torch.nn.Module) -> float:
    """Return the largest error of a pool's values and gradients.

    All values are negative, so that a border of zeros would win a maximum.
    """
    errors = []
    for size in ((8, 6), (7, 9)):
        x, weight = images(2, 6, *size) - 6.0, images(2, 6, 10, 10, seed=4)
        expected, gradient = torch_gradient(theirs, x, weight)
        got = function(nhwc(x))
        if got.shape != nhwc(expected).shape:
            return float('inf')
        cotangent = nhwc(weight)[:, : got.shape[1], : got.shape[2]]
        got_gradient = jax.grad(lambda x, w=cotangent: (function(x) * w).sum())(nhwc(x))
        errors += [error_of(got, nhwc(expected)), error_of(got_gradient, nhwc(gradient))]
    return max(errors)


@comparison('test_layers.test_pooling', LAYER)
def blur_pool() -> float:
    return pool_error(pooling.BlurPool(), timm.layers.BlurPool2d(6).double())


@comparison('test_layers.test_pooling', LAYER)
def average_pool() -> float:
    return pool_error(pooling.AvgPool(2), torch.nn.AvgPool2d(2, 2, ceil_mode=True, count_include_pad=False))


@comparison('test_layers.test_pooling', LAYER)
def dilated_average_pool() -> float:
    return pool_error(pooling.AvgPool(1), timm.layers.AvgPool2dSame(2, 1, ceil_mode=True, count_include_pad=False))


@comparison('test_layers.test_pooling', LAYER)
def max_pool() -> float:
    return pool_error(lambda x: pooling.max_pool(x), torch.nn.MaxPool2d(3, 2, 1))


@comparison('test_layers.test_space_to_depth', EXACT)
def space_to_depth() -> float:
    x = images(1, 3, 8, 20)
    return error_of(layers.space_to_depth(jnp.asarray(nhwc(x))), nhwc(timm.layers.SpaceToDepth()(x)))


@functools.cache
def timm_squeeze_excite() -> torch.nn.Module:
    torch.manual_seed(0)
    return timm.layers.SEModule(24, rd_channels=10).double()


@comparison('test_layers.test_squeeze_excite', LAYER)
def squeeze_excite() -> float:
    theirs, mine = timm_squeeze_excite(), layers.SqueezeExcite(24, 10, dtype=jnp.dtype('float64'), rngs=nnx.Rngs(0))
    for name in ('fc1', 'fc2'):
        layer, other = getattr(mine, name), getattr(theirs, name)
        layer.kernel[...] = jnp.asarray(other.weight.detach().numpy().transpose(2, 3, 1, 0))
        layer.bias[...] = jnp.asarray(other.bias.detach().numpy())
    x = 3 * images(2, 24, 5, 7)
    return error_of(mine(nhwc(x)), nhwc(theirs(x)))


@comparison('test_layers.test_batch_norm', LAYER)
def batch_norm() -> float:
    theirs, mine = batch_norms(1e-2)
    x = images(2, 5, 3, 4) * 2 + 1
    return error_of(mine(nhwc(x)), nhwc(theirs.eval()(x)))


def batch_norm_step() -> tuple[dict[str, Any], dict[str, Any]]:
    """Return outputs and running statistics of a training step: ours, and torch's."""
    theirs, mine = batch_norms(1e-2)
    x = images(2, 5, 3, 4) * 2 + 1
    mine.train()
    output = nhwc(theirs.train()(x))
    mean, var = statistics(theirs[0])
    expected = {'output': output, 'mean': mean.numpy(), 'var': var.numpy()}
    return {'output': mine(nhwc(x)), 'mean': mine.mean[...], 'var': mine.var[...]}, expected


@comparison('test_layers.test_batch_norm', LAYER)
def batch_norm_training() -> float:
    got, expected = batch_norm_step()
    return error_of(got['output'], expected['output'])


@comparison('test_layers.test_batch_norm', LAYER)
def running_statistics() -> float:
    got, expected = batch_norm_step()
    return max(error_of(got[key], expected[key]) for key in ('mean', 'var'))


@comparison('test_layers.test_a_large_mean_does_not_cancel', 10)
def large_mean() -> float:
    """Return the float32 error as a multiple of torch's own."""
    x = (100 + 0.01 * images(8, 4, 9, 9)).float()
    exact = nhwc(torch.nn.BatchNorm2d(4).double().train()(x.double()))
    noise = relative_error(nhwc(torch.nn.BatchNorm2d(4).train()(x)), exact)
    mine = abn.BatchNormAct(4, slope=None, dtype=jnp.dtype('float32'), axis_name=None)
    mine.train()
    return error_of(mine(jnp.asarray(nhwc(x))), exact) / noise


@comparison('test_layers.test_the_activation_has_torchs_derivative_at_zero', EXACT)
def activation_at_zero() -> float:
    errors = []
    for slope in (0.0, 1e-2):
        x = torch.zeros(1, dtype=torch.float64, requires_grad=True)
        torch.nn.functional.leaky_relu(x, slope).sum().backward()
        assert x.grad is not None
        errors.append(abs(float(jax.grad(abn.activate)(0.0, slope)) - x.grad.item()))
    return max(errors)


@functools.cache
def timm_shapes(name: str) -> dict[str, tuple[int, ...]]:
    with torch.device('meta'):
        state = timm_model(name).state_dict()
    return {key: tuple(value.shape) for key, value in state.items() if not key.endswith(COUNTER)}


@comparison('test_variants.test_state_dict_has_timms_keys_and_shapes', EXACT)
def keys_and_shapes() -> float:
    """Return how many tensors are missing, unexpected, or misshapen."""
    count = 0.0
    for name in ('test_tresnet', 'tresnet_xl', 'resnet18d'):
        state = nnx.to_flat_state(nnx.state(build_model(name, num_classes=1000, in_chans=3, rngs=ShapesOnly())))
        shapes = {}
        for path, leaf in state:
            key = '.'.join(map(str, path))
            shapes[flax_key_to_torch(key)] = flax_to_torch_layout(key, np.broadcast_to(False, leaf.shape)).shape
        count += differing(shapes, timm_shapes(name))
    return count


SIZES_TRIED = (
    *(('test_tresnet', size) for size in ((16, 16), (16, 40), (20, 20), (20, 36), (33, 32), (32, 34))),
    ('test_resnet', (1, 1)),
)


@functools.cache
def timm_takes(name: str, size: tuple[int, int]) -> bool:
    try:
        timm_reference(name)(images(1, 3, *size))
    except RuntimeError:
        return False
    return True


@comparison('test_options.test_sizes_that_a_tresnet_refuses', EXACT)
def sizes_taken() -> float:
    """Return how many sizes one side accepts and the other refuses."""
    models = {name: ours(timm_reference(name), name, dtype='float64') for name in SMALL}
    count = 0
    for name, size in SIZES_TRIED:
        try:
            jax.eval_shape(models[name], np.zeros((1, *size, 3)))
            taken = True
        except (ValueError, TypeError):
            taken = False
        count += taken != timm_takes(name, size)
    return count


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


class Ends:
    """A generator that reveals the distribution: a normal number is 1, a uniform one the lower end."""

    def standard_normal(self, shape: Any, dtype: Any) -> np.ndarray:
        return np.ones(shape, dtype)

    def random(self, shape: Any, dtype: Any) -> np.ndarray:
        return np.zeros(shape, dtype)


def show_ends() -> unittest.mock._patch:
    """Patch our initialisers to draw a normal tensor as its deviation and a uniform one as its lower end."""
    return unittest.mock.patch.object(
        initializers, '_sample', lambda draw, key, shape, dtype: draw(Ends(), tuple(shape)).astype(dtype)
    )


def show_timms_ends() -> unittest.mock._patch:
    """Patch torch's in the same way."""
    return unittest.mock.patch.multiple(
        torch.Tensor,
        normal_=lambda self, mean=0.0, std=1.0, *, generator=None: self.fill_(mean + std),
        uniform_=lambda self, a=0.0, b=1.0, *, generator=None: self.fill_(a),
    )


@functools.cache
def timm_scales(name: str, reset: bool = False) -> dict[str, np.ndarray]:
    with show_timms_ends():
        theirs = timm_model(name, num_classes=5)
        if reset:
            theirs.reset_classifier(6)
    return state_of(theirs).tensors


@comparison(None, SINGLE)
def initial_scales() -> float:
    """Return the error of the deviations and bounds themselves; the suite's test of samples allows several percent."""
    with show_ends():
        mine = {name: build_model(name, num_classes=5, in_chans=3, rngs=nnx.Rngs(0)) for name in SMALL}
    return max(largest_error(convert.to_torch(mine[name]), timm_scales(name)) for name in SMALL)


@comparison('test_variants.test_a_reset_classifier_is_initialised_as_torchs', SINGLE)
def reset_scales() -> float:
    with show_ends():
        mine = build_model('test_tresnet', num_classes=5, in_chans=3, rngs=nnx.Rngs(0)).reset_classifier(6)
    return largest_error(convert.to_torch(mine), timm_scales('test_tresnet', reset=True))


@functools.cache
def timm_initial_state(name: str) -> dict[str, np.ndarray]:
    torch.manual_seed(0)
    return state_of(timm_model(name)).tensors


@comparison('test_variants.test_initial_weights_are_distributed_as_timms', 1)
def initial_distributions() -> float:
    """Return the largest error of a deviation over the suite's tolerance; infinite if only one side has tails."""
    errors = []
    for name in SMALL:
        theirs = timm_initial_state(name)
        for key, value in convert.to_torch(tresnet_jax.create_model(name)).items():
            other = theirs[key]
            if value.size <= 1000:  # a smaller sample cannot differ tenfold
                continue
            errors.append(abs(value.std() / other.std() - 1) * value.size**0.5 / 6)
            if (np.abs(value).max() > 3 * value.std()) != (np.abs(other).max() > 3 * other.std()):
                return float('inf')
    return max(errors)


@functools.cache
def single(name: str) -> convert.Checkpoint:
    """Return a float32 checkpoint of timm's."""
    tensors = {
        key: value.astype(np.float32) if value.dtype == np.float64 else value
        for key, value in state_of(timm_reference(name)).tensors.items()
    }
    return convert.Checkpoint(Path('timm'), 'torch', tensors, {})


def adapted_stem(name: str, key: str, in_chans: int) -> np.ndarray:
    params, stats, _ = convert.to_flax(single(name), name, in_chans=in_chans)
    return convert.to_torch(params, stats)[key]


@functools.cache
def timm_stem(name: str, key: str, in_chans: int) -> np.ndarray:
    """Return timm's stem of a ResNet, or a TResNet's with each of its 16 positions adapted in the same way."""
    weight = torch.from_numpy(single(name).tensors[key])
    parts = [timm.models._manipulate.adapt_input_conv(in_chans, part) for part in weight.split(3, dim=1)]
    return torch.cat(parts, dim=1).numpy()


@comparison('test_options.test_in_chans_of_a_resnet', EXACT)
def in_chans() -> float:
    name, key = 'test_resnet', 'conv1.0.weight'
    return max(error_of(adapted_stem(name, key, n), timm_stem(name, key, n)) for n in (1, 2, 4, 6, 7))


@comparison('test_options.test_in_chans_of_a_tresnet', 1e-6)
def in_chans_of_a_tresnet() -> float:
    name, key = 'test_tresnet', 'body.conv1.conv.weight'
    return max(error_of(adapted_stem(name, key, n), timm_stem(name, key, n)) for n in (1, 2, 4))


@functools.cache
def old_state() -> dict[str, torch.Tensor]:
    """Return test_tresnet in the layout of in-place ABN, with blur filters and gammas of both signs."""
    return inplace_abn_state('test_tresnet', True)


@functools.cache
def timms_filter(half: bool) -> dict[str, np.ndarray]:
    state = {k: v.half().float() if half else v for k, v in old_state().items() if not k.endswith('.filt')}
    return {k: v.numpy() for k, v in timm.models.tresnet.checkpoint_filter_fn(state, None).items()}


def converted(tensors: dict[str, np.ndarray], wrapper: str | None = None) -> dict[str, np.ndarray]:
    params, stats, _ = convert.to_flax(convert.Checkpoint(Path('old'), 'torch', tensors, {}, wrapper))
    state = convert.to_torch(params, stats)
    return {key: value for key, value in state.items() if not key.endswith(COUNTER)}


@comparison('test_layouts.test_inplace_abn_layout', EXACT)
def inplace_abn() -> float:
    return largest_error(converted({k: v.numpy() for k, v in old_state().items()}), timms_filter(False))


@comparison('test_layouts.test_half_precision_gammas_keep_the_epsilon', EXACT)
def half_gammas() -> float:
    return largest_error(converted({k: v.half().numpy() for k, v in old_state().items()}), timms_filter(True))


@comparison('test_layouts.test_gammas_are_converted_once_and_only_once', EXACT)
def converted_gammas() -> float:
    """Return the error of a second conversion against the first; timm's filter, applied twice, is wrong."""
    return largest_error(converted(timms_filter(False), 'model'), timms_filter(False))


# Images whose edges and configurations whose crops round to halves of a pixel.
IMAGES = ('coffee.png', '257x303', '33x31', '225x313', '160x169')
CONFIGS = (
    ('tresnet_m.miil_in1k', {}),  # bilinear, 256 -> 224
    ('resnet50d.a1_in1k', {}),  # 235.8 -> 224
    ('resnet101d.ra2_in1k', {}),  # 269.5 -> 256; half of the margin, 6.5, is rounded to even
    ('resnet50d.ra2_in1k', {'input_size': (3, 160, 225)}),  # a rectangle
    ('resnet50d.ra2_in1k', {'input_size': (3, 160, 225), 'crop_pct': 1.13}),  # a border of 9.5
    ('resnet50d.ra2_in1k', {'crop_mode': 'squash'}),
)


@functools.cache
def timm_pixels(config_index: int, image: str) -> np.ndarray:
    name, changes = CONFIGS[config_index]
    config = {**timm_config(name, False), **changes}
    return timm_transform(timm_transforms.images()[image], **config)


@functools.cache
def data_config(config_index: int) -> dict[str, Any]:
    name, changes = CONFIGS[config_index]
    return {**transforms.resolve_data_config(name), **changes}


@comparison('test_transforms.test_the_transform_of_every_tag', EXACT)
def pixels() -> float:
    errors = []
    for index, image in itertools.product(range(len(CONFIGS)), IMAGES):
        x = transforms.create_transform(**data_config(index))(timm_transforms.images()[image])
        errors.append(error_of(x, timm_pixels(index, image)))
    return max(errors)


@functools.cache
def timm_config(name: str, use_test_size: bool) -> dict[str, Any]:
    return timm_transforms.timm_config(name, use_test_size)


@comparison('test_transforms.test_resolve_data_config', EXACT)
def data_configs() -> float:
    """Return how many fields of the tags' configurations differ."""
    return sum(
        differing(transforms.resolve_data_config(name, use_test_size), timm_config(name, use_test_size))
        for name, use_test_size in itertools.product(TIMM_TAGS, (False, True))
    )


@functools.cache
def timm_default_tags() -> dict[str, str | None]:
    configs = {name: timm.models.get_pretrained_cfg(name) for name in TIMM_ARCHITECTURES}
    return {name: config.tag for name, config in configs.items() if config is not None}


@comparison('test_variants.test_the_default_tag_is_timms', EXACT)
def default_tags() -> float:
    ours_ = {name: variants.pretrained_config(name).tag for name in TIMM_ARCHITECTURES}
    return differing(ours_, timm_default_tags())
