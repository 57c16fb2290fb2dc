"""How convolutions run: beside JAX's own, on the CPU and as it is lowered for a GPU."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from tresnet_jax.models import cpu as convolution
from tresnet_jax.models.cpu import conv_general_dilated

NHWC = ('NHWC', 'HWIO', 'NHWC')


@pytest.fixture(autouse=True)
def as_with_jax_0_10(monkeypatch):
    """Of all kinds of convolutions there are some, whatever the version."""
    monkeypatch.setattr(convolution, 'SINGLE_THREAD_CHANNELS', 64)


def run(convolve, size: int, stride: int = 1, dilation: int = 1):
    pads = 2 * (2 * (dilation * (size - 1) // 2,),)
    strides, dilations = (stride, stride), (dilation, dilation)
    return lambda x, w: convolve(x, w, strides, pads, rhs_dilation=dilations, dimension_numbers=NHWC)


def products(lowered: jax.stages.Lowered) -> list[str]:
    """Its lines with a matrix product or a convolution, with their types."""
    return [line for line in lowered.as_text().splitlines() if re.search(r'stablehlo.(dot_general|convolution)', line)]


def drawn(size: int, dtype='float64', map_size=(6, 5), chans=(4, 7)) -> list[jax.Array]:
    """Images and a kernel, and a direction for each."""
    rng = np.random.default_rng(0)
    return [jnp.asarray(rng.normal(size=s), dtype) for s in 2 * [(2, *map_size, chans[0]), (size, size, *chans)]]


@pytest.mark.parametrize('chans', [(4, 7), (7, 4)])
@pytest.mark.parametrize('map_size', [(6, 5), (4, 4), (3, 2), (1, 1), (33, 32)])
@pytest.mark.parametrize(('size', 'stride', 'dilation'), [(1, 1, 1), (3, 1, 1), (3, 2, 1), (3, 1, 2)])
def test_equals_jax(x64, size, stride, dilation, map_size, chans):
    """Values, derivatives either way, and a product with the Hessian."""
    x, w, dx, dw = drawn(size, map_size=map_size, chans=chans)

    def everything(convolve):
        f = run(convolve, size, stride, dilation)

        def loss(x, w):
            return (f(x, w) ** 3).sum()

        value, tangent = jax.jvp(f, (x, w), (dx, dw))
        gradient = jax.grad(loss, (0, 1))
        return value, tangent, jax.linearize(f, x, w)[1](dx, dw), gradient(x, w), jax.jvp(gradient, (x, w), (dx, dw))[1]

    ours, jax_own = (everything(c) for c in (conv_general_dilated, lax.conv_general_dilated))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12 * abs(b).max()), ours, jax_own)


@pytest.mark.parametrize('map_size', [(6, 5), (3, 2)])
@pytest.mark.parametrize('padding', ['SAME', 'VALID'])
def test_padding_by_name(x64, padding, map_size):
    x, w, *_ = drawn(2, map_size=map_size)
    ours, jax_own = (
        convolve(x, w, (2, 1), padding, rhs_dilation=(1, 1), dimension_numbers=NHWC)
        for convolve in (conv_general_dilated, lax.conv_general_dilated)
    )
    np.testing.assert_allclose(ours, jax_own, rtol=1e-12, atol=1e-12)


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
    # Half a unit in the last place is 2^-9 of bfloat16 and 2^-12 of float16; float32's own error is small beside it.
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
def test_what_is_a_product_on_a_cpu(size, map_size, chans, stride, products_only):
    x, w, *_ = drawn(size, 'float32', map_size, chans)
    gradient = jax.jit(jax.grad(lambda x, w: (run(conv_general_dilated, size, stride)(x, w) ** 2).sum(), (0, 1)))
    text = gradient.lower(x, w).compile().as_text() or ''
    assert (' dot(' in text, ' convolution(' in text) == (products_only, not products_only)
    assert 'rhs_reversal' not in text  # the sign that XLA took the map for the kernel


@pytest.mark.parametrize('chans', [(7, 4), (4, 7)])
def test_the_factor_of_fewer_channels_is_transposed(chans):
    """Of a 1x1 kernel's gradient."""
    x, w, *_ = drawn(1, 'float32', chans=chans)
    gradient = jax.jit(lambda x, w, g: jax.vjp(run(conv_general_dilated, 1), x, w)[1](g)[1])
    text = gradient.lower(x, w, run(conv_general_dilated, 1)(x, w)).compile().as_text() or ''
    assert re.findall(r'= f32\[(\d+),\d+\]\S* dot\(', text) == ['4']


@pytest.mark.parametrize(
    ('chans', 'map_size', 'taken'),
    [((64, 64), (32, 32), True), ((64, 65), (32, 32), False), ((65, 64), (32, 32), False), ((64, 64), (32, 31), False)],
)
def test_few_channels_of_wide_maps(chans, map_size, taken):
    """The value and both gradients, each with an edge longer in the output, or the kernel, than in the input."""
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
def test_a_gpu_runs_what_jax_lowers(size, map_size, dtype, chans):
    x, w, *_ = drawn(size, dtype, map_size, chans)

    def convolutions(convolve):
        gradient = jax.jit(jax.grad(lambda x, w: run(convolve, size)(x, w).sum().astype(jnp.float32), (0, 1)))
        lines = products(gradient.trace(x, w).lower(lowering_platforms=('cuda',)))
        return sorted(line.partition('dim_numbers')[2] for line in lines)  # all but the inputs' names

    ours = convolutions(conv_general_dilated)
    assert len(ours) == 2  # the gradients: nothing wants the value
    assert ours == convolutions(lax.conv_general_dilated)
