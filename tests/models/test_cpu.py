"""XLA for a CPU: convolutions in other forms than JAX's, and functions that are computed once."""

import functools
import re
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import tresnet_jax
from tests.helpers.closeness import assert_close
from tresnet_jax.models import batch_norm, cpu
from tresnet_jax.models.cpu import computed_once, conv_general_dilated
from tresnet_jax.models.memory import relu_of_sum

# Convolutions.

NHWC = ('NHWC', 'HWIO', 'NHWC')


@pytest.fixture(autouse=True)
def limit_of_channels(monkeypatch):
    """The limit of JAX 0.10 for any version, so that convolutions on both sides of it are tested."""
    monkeypatch.setattr(cpu, 'SINGLE_THREAD_CHANNELS', 64)
    cpu._convolution.clear_cache()  # of what was traced with another limit
    yield
    cpu._convolution.clear_cache()


def run(convolve, size: int, stride: int = 1, dilation: int = 1):
    pads = 2 * (2 * (dilation * (size - 1) // 2,),)
    strides, dilations = (stride, stride), (dilation, dilation)
    return lambda x, w: convolve(x, w, strides, pads, rhs_dilation=dilations, dimension_numbers=NHWC)


def products(lowered: jax.stages.Lowered) -> list[str]:
    """Return the lines of a program with a matrix product or a convolution, with their types."""
    return [line for line in lowered.as_text().splitlines() if re.search(r'stablehlo.(dot_general|convolution)', line)]


def drawn(size: int, dtype='float64', map_size=(6, 5), chans=(4, 7)) -> list[jax.Array]:
    """Return images and a kernel, and a direction for each."""
    rng = np.random.default_rng(0)
    return [jnp.asarray(rng.normal(size=s), dtype) for s in 2 * [(2, *map_size, chans[0]), (size, size, *chans)]]


@pytest.mark.parametrize('chans', [(4, 7), (7, 4)])
@pytest.mark.parametrize('map_size', [(6, 5), (4, 4), (3, 2), (1, 1), (33, 32)])
@pytest.mark.parametrize(('size', 'stride', 'dilation'), [(1, 1, 1), (3, 1, 1), (3, 2, 1), (3, 1, 2)])
def test_a_convolution_equals_jaxs(x64, size, stride, dilation, map_size, chans):
    """Values, derivatives in both modes, and a product with the Hessian agree."""
    x, w, dx, dw = drawn(size, map_size=map_size, chans=chans)

    def everything(convolve):
        f = run(convolve, size, stride, dilation)

        def loss(x, w):
            return (f(x, w) ** 3).sum()

        value, tangent = jax.jvp(f, (x, w), (dx, dw))
        gradient = jax.grad(loss, (0, 1))
        return value, tangent, jax.linearize(f, x, w)[1](dx, dw), gradient(x, w), jax.jvp(gradient, (x, w), (dx, dw))[1]

    assert_close(
        *(jax.jit(everything, static_argnums=0)(f) for f in (conv_general_dilated, lax.conv_general_dilated)), 1e-12
    )


@pytest.mark.parametrize('map_size', [(6, 5), (3, 2)])
@pytest.mark.parametrize('padding', ['SAME', 'VALID'])
def test_padding_by_name(x64, padding, map_size):
    x, w, *_ = drawn(2, map_size=map_size)
    ours, jaxs = (
        convolve(x, w, (2, 1), padding, rhs_dilation=(1, 1), dimension_numbers=NHWC)
        for convolve in (conv_general_dilated, lax.conv_general_dilated)
    )
    assert_close(ours, jaxs, 1e-13)


@pytest.mark.parametrize('dtype', ['bfloat16', 'float16'])
@pytest.mark.parametrize('size', [1, 3])
def test_half_precision_is_rounded_once_on_a_cpu(x64, size, dtype):
    x, w, *_ = drawn(size, dtype, chans=(64, 32))
    exact = run(lax.conv_general_dilated, size)(*(a.astype(jnp.float64) for a in (x, w)))
    convolve = jax.jit(run(conv_general_dilated, size))
    (product,) = products(convolve.lower(x, w))
    assert product.count('xf32>') == 3
    y = convolve(x, w)
    assert y.dtype == dtype
    # Half a unit in the last place is 2^-9 in bfloat16 and 2^-12 in float16; the float32 error is small beside it.
    np.testing.assert_allclose(y.astype(jnp.float64), exact, rtol=1.01 * float(jnp.finfo(dtype).eps) / 2, atol=1e-4)


@pytest.mark.parametrize(
    ('size', 'map_size', 'chans', 'stride', 'products_only'),
    [
        (1, (6, 5), (4, 7), 1, True),
        (3, (2, 4), (4, 7), 1, True),
        (3, (3, 3), (4, 7), 1, False),
        (3, (64, 63), (3, 64), 2, True),
        (3, (64, 62), (3, 64), 2, False),
        (3, (64, 64), (5, 64), 2, False),
        (3, (64, 64), (3, 65), 2, False),
    ],
)
def test_which_convolutions_become_products_on_a_cpu(size, map_size, chans, stride, products_only):
    x, w, *_ = drawn(size, 'float32', map_size, chans)
    gradient = jax.jit(jax.grad(lambda x, w: (run(conv_general_dilated, size, stride)(x, w) ** 2).sum(), (0, 1)))
    text = gradient.lower(x, w).compile().as_text() or ''
    assert (' dot(' in text, ' convolution(' in text) == (products_only, not products_only)
    assert 'rhs_reversal' not in text  # appears where XLA mistakes the map for the kernel


@pytest.mark.parametrize('chans', [(7, 4), (4, 7)])
def test_the_gradient_of_a_pointwise_kernel_transposes_the_narrow_factor(chans):
    x, w, *_ = drawn(1, 'float32', chans=chans)
    gradient = jax.jit(lambda x, w, g: jax.vjp(run(conv_general_dilated, 1), x, w)[1](g)[1])
    text = gradient.lower(x, w, run(conv_general_dilated, 1)(x, w)).compile().as_text() or ''
    assert re.findall(r'= f32\[(\d+),\d+\]\S* dot\(', text) == ['4']


@pytest.mark.parametrize(
    ('chans', 'map_size', 'taken'),
    [((64, 64), (32, 32), True), ((64, 65), (32, 32), False), ((65, 64), (32, 32), False), ((64, 64), (32, 31), False)],
)
def test_few_channels_of_large_maps_run_on_all_threads(chans, map_size, taken):
    """The value and both gradients then have an edge that is longer in the output or the kernel than in the input."""
    x, w, *_ = drawn(3, 'float32', map_size, chans)
    f = run(conv_general_dilated, 3)
    lowered = jax.jit(lambda x, w, g: (f(x, w), jax.vjp(f, x, w)[1](g))).lower(x, w, f(x, w))
    uneven = 0
    for line in products(lowered):
        groups = re.search(r'dim_numbers = \[(.*?)\]x\[(.*?)\]->\[(.*?)\]', line)
        types = re.search(r': \(tensor<(.*?)xf32>, tensor<(.*?)xf32>\) -> tensor<(.*?)xf32>', line)
        assert groups and types
        spatial = [
            [int(n) for n, name in zip(shape.split('x'), names.split(', '), strict=True) if name.isdigit()]
            for names, shape in zip(groups.groups(), types.groups(), strict=True)
        ]
        map_, kernel, output = spatial
        uneven += any(max(k, o) > m for m, k, o in zip(map_, kernel, output, strict=True))
    assert uneven == 3 * taken


@pytest.mark.parametrize('chans', [(4, 7), (7, 4)])
@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
@pytest.mark.parametrize(('size', 'map_size'), [(1, (6, 5)), (3, (6, 5)), (3, (33, 32))])
def test_a_gpu_runs_jaxs_convolutions(size, map_size, dtype, chans):
    x, w, *_ = drawn(size, dtype, map_size, chans)

    def convolutions(convolve):
        gradient = jax.jit(jax.grad(lambda x, w: run(convolve, size)(x, w).sum().astype(jnp.float32), (0, 1)))
        lines = products(gradient.trace(x, w).lower(lowering_platforms=('cuda',)))
        return sorted(line.partition('dim_numbers')[2] for line in lines)  # everything except the inputs' names

    ours = convolutions(conv_general_dilated)
    assert len(ours) == 2  # two gradients; the value is not needed
    assert ours == convolutions(lax.conv_general_dilated)


# Functions that are computed once.

BRANCHES = np.random.default_rng(0).normal(size=(8, 32, 32)) / 6
INPUTS = np.random.default_rng(1).normal(size=(64, 32))


def plain_relu_of_sum(x, y):
    return jax.nn.relu(x + y)


def plainly(function, *inputs):
    return function(*inputs)


def chain(x, evaluate: Callable[..., jax.Array] = computed_once):
    """Return the output of residual blocks with one matrix product each."""
    for weights in BRANCHES:
        x = evaluate(plain_relu_of_sum, x @ jnp.asarray(weights, x.dtype), x)
    return x


def most_operands(evaluate) -> int:
    """Return the largest number of arrays that one loop of the program for a CPU reads."""
    text = jax.jit(lambda x: chain(x, evaluate)).lower(jnp.asarray(INPUTS, jnp.float32)).compile().as_text() or ''
    return max(len(operands.split(',')) for operands in re.findall(r' fusion\(([^)]*)\), kind=kLoop', text))


def test_no_loop_adds_up_earlier_branches():
    assert most_operands(computed_once) == 2
    assert most_operands(plainly) > 4, 'XLA does this by itself now: computed_once can go'


def gradient_program(layer: Callable[..., jax.Array]) -> jax.stages.Compiled:
    """Compile the gradient of four matrix products, each followed by `layer`, in float32 for a CPU."""

    def loss(weights, x):
        for w in weights:
            x = layer(x @ w)
        return x.sum()

    weights = [jnp.zeros((64, 64), jnp.float32)] * 4
    return jax.jit(jax.grad(loss)).lower(weights, jnp.zeros((4096, 64), jnp.float32)).compile()


def norm(x):
    return batch_norm.batch_norm_act(x, jnp.ones(64, x.dtype), jnp.zeros(64, x.dtype), 0.0, 1e-5, None)[0]


@pytest.mark.skipif(jax.__version_info__ < (0, 10, 2), reason='XLA of JAX 0.10.0 keeps the input with `centre` too')
def test_a_batch_norm_keeps_one_map_of_its_own(monkeypatch):
    """The program keeps one map for each batch norm and its output, and not the batch norm's input as well."""
    one_map = 4096 * 64 * 4
    temporaries = []
    for centre in (batch_norm.centre, batch_norm._centre):
        monkeypatch.setattr(batch_norm, 'centre', centre)
        analysis = gradient_program(norm).memory_analysis()
        assert analysis is not None
        temporaries.append(analysis.temp_size_in_bytes / one_map)
    assert temporaries[0] < temporaries[1] - 3, 'XLA does this by itself now: centre can go'


@pytest.mark.parametrize('derivative_inside', [False, True])
def test_the_end_of_a_block_writes_no_mask(derivative_inside):
    end = functools.partial(computed_once, plain_relu_of_sum) if derivative_inside else relu_of_sum
    text = gradient_program(lambda x: end(x, x)).as_text() or ''
    assert bool(re.search(r'= pred\[4096,64\]\S* fusion', text)) == derivative_inside


DERIVATIVES = {
    'value': lambda f, x: f(x),
    'gradient': lambda f, x: jax.grad(lambda x: (f(x) ** 2).sum())(x),
    'jvp': lambda f, x: jax.jvp(f, (x,), (jnp.cos(x),))[1],
    'linearized': lambda f, x: jax.linearize(f, x)[1](jnp.cos(x)),
    'Hessian product': lambda f, x: jax.jvp(jax.grad(lambda x: (f(x) ** 3).sum()), (x,), (jnp.cos(x),))[1],
    'mapped': lambda f, x: jax.vmap(f)(x[:, None])[:, 0],
    'recomputed': lambda f, x: jax.grad(lambda x: (jax.checkpoint(f)(x) ** 2).sum())(x),
}


def end_of_block(function, *inputs):
    return relu_of_sum(*inputs)


@pytest.mark.parametrize('evaluate', [computed_once, end_of_block])
@pytest.mark.parametrize('derivative', sorted(DERIVATIVES))
def test_derivatives(x64, derivative, evaluate):
    x = jnp.asarray(INPUTS)
    got, expected = (
        jax.jit(lambda x, way=way: DERIVATIVES[derivative](lambda x: chain(x, way), x))(x)
        for way in (evaluate, plainly)
    )
    assert_close(got, expected, 1e-13)


@pytest.mark.parametrize('derivative', sorted(set(DERIVATIVES) - {'mapped'}))
def test_derivatives_of_a_batch_norm(x64, derivative, monkeypatch):
    x = jnp.asarray(np.random.default_rng(2).normal(size=(32, 64)))
    got = jax.jit(lambda x: DERIVATIVES[derivative](norm, x))(x)
    monkeypatch.setattr(batch_norm, 'centre', batch_norm._centre)
    assert_close(got, jax.jit(lambda x: DERIVATIVES[derivative](norm, x))(x), 1e-13)


@pytest.mark.parametrize('platform', ['cuda', 'tpu'])
def test_other_platforms_have_no_barrier(platform):
    traced = jax.jit(chain).trace(jnp.asarray(INPUTS))
    barriers = {
        to: 'optimization_barrier' in traced.lower(lowering_platforms=(to,)).as_text() for to in (platform, 'cpu')
    }
    assert barriers == {platform: False, 'cpu': True}


def test_a_second_call_outside_of_jit_compiles_nothing(caplog):
    model, x = tresnet_jax.create_model('test_resnet').eval(), jnp.zeros((1, 32, 32, 3))
    with jax.log_compiles():
        model(x)
        assert 'compilation' in caplog.text
        caplog.clear()
        model(x)
    assert 'compilation' not in caplog.text


def test_equal_convolutions_are_traced_once(monkeypatch):
    """The program has each of them."""
    traced, original = [], lax.conv_general_dilated
    monkeypatch.setattr(
        lax, 'conv_general_dilated', lambda *args, **kwargs: traced.append(1) or original(*args, **kwargs)
    )
    x, kernel = jnp.ones((1, 7, 7, 71)), jnp.ones((3, 3, 71, 71))
    convolve = run(conv_general_dilated, 3)
    text = jax.jit(lambda x: convolve(convolve(convolve(x, kernel), kernel), kernel)).lower(x).as_text()
    assert len(traced) == 1 and text.count('stablehlo.convolution') == 3
