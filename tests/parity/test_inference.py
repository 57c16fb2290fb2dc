"""Inference against timm: folded batch norm, and bfloat16 and float16 beside torch's own error in them."""

import copy

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

import tresnet_jax
from tests.helpers.reference import call, images, nhwc, ours, reference, relative_error
from tresnet_jax.variants import ARCHITECTURES

QUICK = ('test_resnet', 'test_tresnet')
HALF = {'bfloat16': torch.bfloat16, 'float16': torch.float16}


@pytest.fixture(
    scope='module',
    params=[name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in sorted(ARCHITECTURES)],
)
def compared(request):
    """An architecture's name, timm's float32 model, images, and timm's logits of them in float64."""
    name, x = request.param, images(4, 3, 64, 64)
    model = reference(name)
    with torch.no_grad():
        exact = model(x).numpy()
    yield name, model.float(), x.float(), exact
    jax.clear_caches()


def rms_error(a: np.ndarray, b: np.ndarray) -> float:
    """Root mean square of a - b over that of b."""
    assert a.shape == b.shape and np.isfinite(a).all()
    return float(np.sqrt(np.square(a - b).mean() / np.square(b).mean()))


def folded_and_plain(name, model, x, **options) -> dict[str, np.ndarray]:
    """Our logits, with batch norm folded and apart."""
    plain = ours(model, name, **options)
    models = {'folded': tresnet_jax.fold_batchnorm(plain), 'plain': plain}
    return {key: np.asarray(call(m, jnp.asarray(nhwc(x))), np.float32) for key, m in models.items()}


def test_folded_float32(compared, record_error):
    """Within ten times the error that torch itself makes in float32, as the plain model."""
    name, model, x, exact = compared
    with torch.no_grad():
        noise = relative_error(model(x).numpy(), exact)
    error = relative_error(folded_and_plain(name, model, x)['folded'], exact)
    assert error <= 10 * noise, f'{error:.1e} against torch {noise:.1e}'
    record_error(name, 'folded, f32', error)


@pytest.mark.parametrize('dtype', sorted(HALF))
def test_half_precision(compared, dtype, record_error):
    """Batch norm works in float32 here, so the RMS error is below torch's; folded, a bias is rounded as well."""
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
