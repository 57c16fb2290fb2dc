"""Initial weights, first convolutions of other images, the in-place ABN layout."""

# pyright: reportPrivateImportUsage=false
# timm does not mark what it exports.

import functools
import unittest.mock
from pathlib import Path
from typing import Any

import numpy as np
import timm.models.tresnet
import torch
from flax import nnx

import convert
import tresnet_jax
from convert.golden import timm_model
from tests.helpers.comparisons.registry import EXACT, SINGLE, comparison, error_of, largest_error, timm_reference
from tests.helpers.layouts import COUNTER, inplace_abn_state
from tests.helpers.models import SMALL
from tests.helpers.reference import state_of
from tresnet_jax.models import initializers
from tresnet_jax.models.build import build_model


class Ends:
    """A generator that reveals the distribution: a normal number is 1, a uniform one the lower end."""

    def standard_normal(self, shape: Any, dtype: Any) -> np.ndarray:
        return np.ones(shape, dtype)

    def random(self, shape: Any, dtype: Any) -> np.ndarray:
        return np.zeros(shape, dtype)


def show_ends() -> unittest.mock._patch:
    """Patch our initialisers to draw a normal tensor as its deviation and a uniform one as its lower end."""
    return unittest.mock.patch.object(initializers, '_sample', lambda draw, key, shape: draw(Ends(), tuple(shape)))


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
