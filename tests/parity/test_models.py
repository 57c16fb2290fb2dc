"""Every architecture against timm: stages, logits, running statistics and gradients in float64; logits in float32."""

import functools

import jax
import jax.numpy as jnp
import pytest
import torch

import convert
import tresnet_jax
from tests.helpers.closeness import assert_close, errors
from tests.helpers.reference import images, nhwc, our_outputs, ours, reference, state_of, timm_outputs, to_numpy
from tests.helpers.tolerances import EVALUATION, TRAINING
from tresnet_jax.variants import ARCHITECTURES, TRESNET, family_of

# A rectangle whose maps become odd in later stages; TResNet takes only multiples of 4. test_full.py has more sizes.
SIZE = {True: (76, 52), False: (67, 51)}

# Deeper or wider than a network that `make test` compares, and otherwise the same.
DEEP = ('resnet101d', 'resnet152d', 'resnet200d', 'tresnet_l', 'tresnet_v2_l', 'tresnet_xl')
# Between ResNet-50-D and ResNet-200-D in the number of blocks, and otherwise the same.
BETWEEN = ('resnet101d', 'resnet152d')


def every_architecture(slow: tuple[str, ...]) -> list:
    return [pytest.param(name, marks=[pytest.mark.slow] if name in slow else []) for name in sorted(ARCHITECTURES)]


@pytest.fixture(scope='module', params=every_architecture(slow=BETWEEN))
def pair(request):
    """An architecture's name and timm's model of it."""
    yield request.param, reference(request.param)
    jax.clear_caches()  # a program of two hundred layers is large, and no later test calls it


@pytest.mark.usefixtures('x64')
def test_evaluation_float64(pair, record_error):
    name, model = pair
    apply, params, batch_stats = tresnet_jax.functional(ours(model, name, dtype='float64'))
    forward = jax.jit(functools.partial(our_outputs, apply))
    x = images(2, 3, *SIZE[family_of(name) is TRESNET])
    with torch.no_grad():
        expected = to_numpy(timm_outputs(model, x))
    error = assert_close(forward(params, batch_stats, nhwc(x))[0], expected, EVALUATION)
    record_error(name, 'evaluation, f64', error)


@pytest.mark.usefixtures('x64')
@pytest.mark.parametrize('pair', every_architecture(slow=DEEP), indirect=True)
def test_training_float64(pair, record_error):
    """Outputs with batch statistics, running statistics after the step, and the gradient of every parameter agree."""
    name, model = pair
    apply, params, batch_stats = tresnet_jax.functional(ours(model, name, dtype='float64'))
    x = images(2, 3, 36, 36, seed=2)  # its maps have sides of 9, 5, 3 and 2
    weights = torch.randn(2, 1000, generator=torch.Generator().manual_seed(3), dtype=torch.float64)

    before = {key: value.clone() for key, value in model.state_dict().items()}
    model.train()
    expected = timm_outputs(model, x)
    (expected['logits'] * weights).sum().backward()
    gradients = {key: p.grad.numpy().copy() for key, p in model.named_parameters()}
    after = {key: value.copy() for key, value in state_of(model).tensors.items()}
    model.load_state_dict(before)
    model.zero_grad(set_to_none=True)
    model.eval()

    def loss(params):
        outputs, stats = our_outputs(apply, params, batch_stats, nhwc(x), train=True)
        return (outputs['logits'] * weights.numpy()).sum(), (outputs, stats)

    grads, (outputs, stats) = jax.jit(jax.grad(loss, has_aux=True))(params)
    record_error(name, 'training, f64', assert_close(outputs, to_numpy(expected), TRAINING))
    record_error(name, 'gradients, f64', assert_close(convert.to_torch(grads), gradients, TRAINING))
    our_state = convert.to_torch(params, stats, num_batches_tracked=2)
    record_error(name, 'statistics, f64', assert_close(our_state, after, TRAINING))


@pytest.mark.parametrize('pair', every_architecture(slow=DEEP), indirect=True)
def test_evaluation_float32(pair, record_error):
    """The error is at most ten times the one that torch itself makes in float32."""
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
