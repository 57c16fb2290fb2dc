"""Inference against timm: folded batch norm, and half precision within a factor of torch's own error."""

import copy

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

import tresnet_jax
from tests.helpers.closeness import relative_error
from tests.helpers.models import SMALL
from tests.helpers.reference import call, images, nhwc, ours, reference
from tresnet_jax.variants import ARCHITECTURES

HALF = {'bfloat16': torch.bfloat16, 'float16': torch.float16}


@pytest.fixture(
    scope='module',
    params=[name if name in SMALL else pytest.param(name, marks=pytest.mark.slow) for name in sorted(ARCHITECTURES)],
)
def compared(request):
    """An architecture's name, timm's float32 model, images, and timm's float64 logits."""
    name, x = request.param, images(4, 3, 64, 64)
    model = reference(name)
    with torch.no_grad():
        exact = model(x).numpy()
    yield name, model.float(), x.float(), exact
    jax.clear_caches()


def rms_error(a: np.ndarray, b: np.ndarray) -> float:
    """Return the root mean square of a - b, relative to that of b."""
    assert a.shape == b.shape and np.isfinite(a).all()
    return float(np.sqrt(np.square(a - b).mean() / np.square(b).mean()))


def folded_and_plain(name, model, x, **options) -> dict[str, np.ndarray]:
    """Return our logits, with batch norm folded and not."""
    plain = ours(model, name, **options)
    models = {'folded': tresnet_jax.fold_batchnorm(plain), 'plain': plain}
    return {key: np.asarray(call(m, jnp.asarray(nhwc(x))), np.float32) for key, m in models.items()}


def test_folded_float32(compared, record_error):
    """The error is at most ten times the one that torch itself makes in float32, as for the plain model."""
    name, model, x, exact = compared
    with torch.no_grad():
        noise = relative_error(model(x).numpy(), exact)
    error = relative_error(folded_and_plain(name, model, x)['folded'], exact)
    assert error <= 10 * noise, f'{error:.1e} against torch {noise:.1e}'
    record_error(name, 'folded, f32', error)


@pytest.mark.parametrize('dtype', sorted(HALF))
def test_half_precision(compared, dtype, record_error):
    """The RMS error is about torch's.

    Our batch norm computes in float32, which makes the error smaller. Folding rounds a bias more.
    """
    name, model, x, exact = compared
    half = copy.deepcopy(model).to(HALF[dtype])
    with torch.no_grad():
        theirs = rms_error(half(x.to(HALF[dtype])).float().numpy(), exact)
    record_error(name, f'{dtype}, torch', theirs)
    for key, logits in folded_and_plain(name, model, x, dtype=dtype).items():
        error = rms_error(logits, exact)
        record_error(name, f'{dtype}, {key}', error)
        most = {'plain': 1.1, 'folded': 1.3}[key] * theirs
        assert theirs / 20 <= error <= most, f'{key}: {error:.1e} against torch {theirs:.1e}'
