"""Every architecture against timm: stages, logits, running statistics and gradients, in float64; logits in float32."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

import convert
import tresnet_jax
from tests.helpers.reference import images, nhwc, ours, reference, relative_error, state_of
from tresnet_jax.variants import ARCHITECTURES, TRESNET, family_of

# A square whose maps get odd on the way, and a rectangle; TResNet takes multiples of 4 alone.
SIZES = {True: ((100, 100), (72, 96)), False: ((100, 100), (97, 75))}


# In float64 rounding of 1e-16 grows over up to two hundred layers; batch statistics of few values amplify it.
EVALUATION_TOLERANCE = 1e-12
TRAINING_TOLERANCE = 1e-11

# Deeper or wider than a network that is held against timm's every day, and the same but for that.
DEEP = ('resnet101d', 'resnet152d', 'resnet200d', 'tresnet_l', 'tresnet_v2_l', 'tresnet_xl')
# Between ResNet-50-D and ResNet-200-D, and the same but for the number of blocks.
BETWEEN = ('resnet101d', 'resnet152d')


def every_architecture(slow: tuple[str, ...]) -> list:
    return [pytest.param(name, marks=[pytest.mark.slow] if name in slow else []) for name in sorted(ARCHITECTURES)]


@pytest.fixture(scope='module', params=every_architecture(slow=BETWEEN))
def pair(request):
    """An architecture's name and timm's model of it."""
    yield request.param, reference(request.param)
    jax.clear_caches()  # a program of two hundred layers is large, and is not called again


def errors(a: dict, b: dict) -> dict[str, float]:
    """Relative error of each tensor of two dicts of the same keys."""
    assert a.keys() == b.keys()
    return {key: relative_error(a[key], b[key]) for key in b}


def largest(a: dict, b: dict, tolerance: float) -> float:
    """The largest relative error, which must not be over the tolerance."""
    worst = sorted(errors(a, b).items(), key=lambda item: -item[1])[:3]
    assert worst[0][1] <= tolerance, f'largest relative errors: {worst}'
    return worst[0][1]


def timm_outputs(model: torch.nn.Module, x: torch.Tensor) -> dict[str, torch.Tensor]:
    last, maps = model.forward_intermediates(x)
    return {f'features.{i}': m for i, m in enumerate(maps)} | {'logits': model.forward_head(last)}


def our_outputs(apply, params, batch_stats, x, **mode):
    """The same dict of ours, and the new running statistics when training."""
    out = apply(params, batch_stats, x, method='forward_intermediates', **mode)
    (last, maps), stats = out if mode else (out, batch_stats)
    logits = apply(params, batch_stats, last, method='forward_head')
    return {f'features.{i}': m for i, m in enumerate(maps)} | {'logits': logits}, stats


def to_numpy(outputs: dict[str, torch.Tensor]) -> dict[str, np.ndarray]:
    return {key: nhwc(value) for key, value in outputs.items()}


@pytest.mark.usefixtures('x64')
def test_evaluation_float64(pair, record_error):
    name, model = pair
    apply, params, batch_stats = tresnet_jax.functional(ours(model, name, dtype='float64'))
    forward = jax.jit(functools.partial(our_outputs, apply))
    for size in SIZES[family_of(name) is TRESNET]:
        x = images(2, 3, *size)
        with torch.no_grad():
            expected = to_numpy(timm_outputs(model, x))
        error = largest(forward(params, batch_stats, nhwc(x))[0], expected, EVALUATION_TOLERANCE)
        record_error(name, 'evaluation, f64', error)


@pytest.mark.usefixtures('x64')
@pytest.mark.parametrize('pair', every_architecture(slow=DEEP), indirect=True)
def test_training_float64(pair, record_error):
    """Outputs with batch statistics, running statistics after the step, and the gradient of every parameter."""
    name, model = pair
    apply, params, batch_stats = tresnet_jax.functional(ours(model, name, dtype='float64'))
    x = images(2, 3, *SIZES[family_of(name) is TRESNET][0], seed=2)
    weights = torch.randn(2, 1000, generator=torch.Generator().manual_seed(3), dtype=torch.float64)

    before = {key: value.clone() for key, value in model.state_dict().items()}
    model.train()
    expected = timm_outputs(model, x)
    (expected['logits'] * weights).sum().backward()
    gradients = {key: p.grad.numpy().copy() for key, p in model.named_parameters()}
    after = state_of(model).tensors
    after = {key: value.copy() for key, value in after.items()}
    model.load_state_dict(before)
    model.zero_grad(set_to_none=True)
    model.eval()

    def loss(params):
        outputs, stats = our_outputs(apply, params, batch_stats, nhwc(x), train=True)
        return (outputs['logits'] * weights.numpy()).sum(), (outputs, stats)

    grads, (outputs, stats) = jax.jit(jax.grad(loss, has_aux=True))(params)
    record_error(name, 'training, f64', largest(outputs, to_numpy(expected), TRAINING_TOLERANCE))
    record_error(name, 'gradients, f64', largest(convert.to_torch(grads), gradients, TRAINING_TOLERANCE))
    ours_after = convert.to_torch(params, stats, num_batches_tracked=2)
    record_error(name, 'statistics, f64', largest(ours_after, after, TRAINING_TOLERANCE))


@pytest.mark.parametrize('pair', every_architecture(slow=DEEP), indirect=True)
def test_evaluation_float32(pair, record_error):
    """Within ten times the error that torch itself makes in float32."""
    name, model = pair
    x = images(1, 3, 224, 224)
    single = reference(name).float()
    with torch.no_grad():
        exact = to_numpy(timm_outputs(model, x))
        noise = errors(to_numpy(timm_outputs(single, x.float())), exact)
    apply, params, batch_stats = tresnet_jax.functional(ours(single, name))
    got = jax.jit(functools.partial(our_outputs, apply))(params, batch_stats, jnp.asarray(nhwc(x), jnp.float32))[0]
    for key, error in errors(got, exact).items():
        assert error <= 10 * noise[key], f'{key}: {error:.1e} against torch {noise[key]:.1e}'
        record_error(name, 'evaluation, f32', error)
        record_error(name, "torch's own, f32", noise[key])
