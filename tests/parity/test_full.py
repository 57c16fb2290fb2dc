"""Every architecture at every common size, three steps of training, and every tag: part of ``make test-all``."""

import functools

import jax
import jax.numpy as jnp
import pytest
import torch

import convert
import tresnet_jax
from convert.golden import timm_model
from tests.helpers.closeness import assert_close, relative_error
from tests.helpers.reference import (
    call,
    images,
    nhwc,
    our_outputs,
    ours,
    reference,
    state_of,
    timm_outputs,
    to_numpy,
)
from tests.helpers.tolerances import EVALUATION
from tresnet_jax.variants import ARCHITECTURES, PRETRAINED, TRESNET, family_of

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures('optimized')]

COMMON = [(224, 224), (200, 200), (176, 176), (160, 256)]
SMALLEST = {True: (20, 20), False: (1, 1)}


def sizes(name: str) -> list[tuple[int, int]]:
    """Return common sizes, the smallest one, and 225 for a ResNet or 448, at which TResNets are trained too."""
    return [*COMMON, (448, 448) if family_of(name) is TRESNET else (225, 225), SMALLEST[family_of(name) is TRESNET]]


@pytest.fixture(scope='module', params=sorted(ARCHITECTURES))
def pair(request):
    """An architecture's name and timm's model of it."""
    yield request.param, reference(request.param)
    jax.clear_caches()


@pytest.mark.usefixtures('x64')
def test_every_size_float64(pair, record_error):
    """Stages and logits agree in evaluation mode."""
    name, model = pair
    apply, params, batch_stats = tresnet_jax.functional(ours(model, name, dtype='float64'))
    for size in sizes(name):
        x = images(1, 3, *size)
        with torch.no_grad():
            expected = to_numpy(timm_outputs(model, x))
        forward = jax.jit(functools.partial(our_outputs, apply))
        error = assert_close(forward(params, batch_stats, nhwc(x))[0], expected, EVALUATION)
        record_error(name, f'{size[0]}x{size[1]}, f64', error)


@pytest.mark.usefixtures('x64')
def test_three_steps_of_training(pair, record_error):
    """Weights, statistics and counters agree after three steps of SGD in float64."""
    name, model = pair
    before = {key: value.clone() for key, value in model.state_dict().items()}
    apply, params, batch_stats = tresnet_jax.functional(ours(model, name, dtype='float64'))
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)
    model.train()
    weights = torch.randn(2, 1000, generator=torch.Generator().manual_seed(3), dtype=torch.float64)

    @jax.jit
    def step(params, batch_stats, x):
        def loss(params):
            logits, new = apply(params, batch_stats, x, train=True)
            return (logits * weights.numpy()).mean(), new

        grads, batch_stats = jax.grad(loss, has_aux=True)(params)
        return jax.tree.map(lambda p, g: p - 1e-4 * g, params, grads), batch_stats

    for i in range(3):
        x = images(2, 3, 96, 96, seed=10 + i)
        optimizer.zero_grad()
        (model(x) * weights).mean().backward()
        optimizer.step()
        params, batch_stats = step(params, batch_stats, nhwc(x))
    after = {key: value.copy() for key, value in state_of(model).tensors.items()}
    model.load_state_dict(before)
    model.eval()
    error = assert_close(convert.to_torch(params, batch_stats, num_batches_tracked=4), after, 1e-10)
    record_error(name, 'three steps, f64', error)


@pytest.mark.parametrize('name', sorted(PRETRAINED))
def test_every_tag(name):
    """A checkpoint with the tag's classes agrees at the tag's size, within torch's own float32 noise."""
    row = PRETRAINED[name]
    torch.manual_seed(0)
    model = timm_model(row.architecture, num_classes=row.num_classes).eval()
    mine = ours(model, row.architecture)
    x = torch.rand(1, *row.input_size, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        single = model(x).numpy()
        double = model.double()(x.double()).numpy()
    noise = relative_error(single, double)
    got = call(mine, jnp.asarray(nhwc(x)))
    assert got.shape == (1, row.num_classes)
    assert_close(got, double, 10 * max(noise, 1e-7))
