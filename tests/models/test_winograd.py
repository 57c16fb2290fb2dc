"""Winograd convolutions: against JAX's, where they are used, and in whole models."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import lax

import tresnet_jax
from tests.helpers.closeness import assert_close
from tests.helpers.images import normal_images
from tests.helpers.models import as_trained
from tresnet_jax.models.layers import conv
from tresnet_jax.models.winograd import WinogradConv, images_at_once

run = jax.jit(lambda layer, x: layer(x))


def drawn(dtype: str, map_shape: tuple[int, int, int], chans: tuple[int, int] = (48, 50)) -> tuple[nnx.Conv, jax.Array]:
    """Return a convolution with a bias and its input, which looks like a ReLU's output."""
    rng = np.random.default_rng(0)
    layer = conv(chans[0], chans[1], 3, use_bias=True, dtype=jnp.dtype(dtype), rngs=nnx.Rngs(0))
    layer.kernel[...] = jnp.asarray(rng.normal(size=(3, 3, *chans)), layer.kernel.dtype)
    return layer, jnp.asarray(np.maximum(rng.normal(size=(*map_shape, chans[0])), 0), dtype)


def exactly(layer: nnx.Conv, x: jax.Array) -> jax.Array:
    """Return JAX's convolution in float64."""
    assert layer.bias is not None
    x, kernel, bias = (a.astype(jnp.float64) for a in (x, layer.kernel[...], layer.bias[...]))
    y = lax.conv_general_dilated(x, kernel, (1, 1), ((1, 1), (1, 1)), dimension_numbers=('NHWC', 'HWIO', 'NHWC'))
    return y + bias.reshape(1, 1, 1, -1)


def kinds(layer: nnx.Module, x: jax.Array, platform: str) -> tuple[bool, bool]:
    """Return whether the program for a platform has matrix products, and whether it has convolutions."""
    text = jax.jit(lambda x: layer(x)).trace(x).lower(lowering_platforms=(platform,)).as_text()
    return 'stablehlo.dot_general' in text, 'stablehlo.convolution' in text


@pytest.mark.parametrize('map_shape', [(1, 28, 28), (3, 25, 31), (1, 50, 27), (16, 14, 13), (8, 7, 6)])
def test_a_convolution_equals_jaxs(x64, map_shape):
    layer, x = drawn('float64', map_shape)
    ours = WinogradConv(layer)
    assert kinds(ours, x, 'cpu') == (True, False)
    assert_close(run(ours, x), exactly(layer, x), 1e-13)


@pytest.mark.parametrize('chans', [(48, 64), (256, 512)])
def test_the_error_in_float32(x64, chans):
    layer, x = drawn('float32', (1, 28, 28), chans)
    y = run(WinogradConv(layer), x)
    assert y.dtype == jnp.float32
    assert_close(y.astype(jnp.float64), exactly(layer, x), 4e-6)


@pytest.mark.parametrize('dtype', ['bfloat16', 'float16'])
def test_half_precision_is_rounded_once(x64, dtype):
    """Only the output is rounded. XLA's convolution rounds the kernel too."""
    layer, x = drawn(dtype, (1, 28, 28))
    y = run(WinogradConv(layer), x)
    assert y.dtype == dtype
    assert_close(y.astype(jnp.float64), exactly(layer, x), 1.1 * float(jnp.finfo(dtype).eps) / 2)


def test_which_maps_use_it():
    assert [images_at_once(1, n, n) for n in (112, 56, 28, 25, 24, 14, 7)] == [1, 1, 1, 1, 0, 0, 0]
    assert [images_at_once(8, n, n) for n in (56, 28, 24, 14, 7, 5, 4)] == [1, 1, 8, 8, 8, 8, 0]
    assert [images_at_once(b, 14, 14) for b in (1, 4, 8, 12, 32)] == [0, 0, 8, 0, 8]
    (symbolic,) = jax.export.symbolic_shape('b')
    assert [images_at_once(symbolic, n, n) for n in (28, 14)] == [1, 0]


def test_which_convolutions_are_replaced():
    def supports(*args, **options):
        return WinogradConv.supports(conv(*args, dtype=jnp.dtype('float32'), rngs=nnx.Rngs(0), **options))

    assert supports(48, 64, 3) and supports(256, 512, 3)
    assert not any([supports(32, 64, 3), supports(64, 32, 3), supports(64, 64, 1)])
    assert not any([supports(64, 64, 3, stride=2), supports(64, 64, 3, dilation=2)])


@pytest.mark.parametrize('map_shape', [(1, 28, 28), (1, 14, 14)])
def test_other_platforms_and_small_maps_use_a_convolution(map_shape):
    layer, x = drawn('float32', map_shape)
    ours = WinogradConv(layer)
    assert kinds(ours, x, 'cuda') == kinds(ours, x, 'tpu') == (False, True)
    assert kinds(ours, x, 'cpu') == ((True, False) if map_shape[1] == 28 else (False, True))


LAYERS = {
    'test_resnet': {'layer2.0.conv2', 'layer4.0.conv2'},
    'test_tresnet': {'body.layer3.0.conv2.conv', 'body.layer4.0.conv2.conv'},
}


@pytest.mark.parametrize('name', sorted(LAYERS))
def test_whole_models(name):
    """The maps of the replaced layers are 25 pixels wide at an image size of 200."""
    model = as_trained(name)
    folded, ours = tresnet_jax.fold_batchnorm(model), tresnet_jax.fold_batchnorm(model, winograd=True)
    taken = {'.'.join(map(str, path)) for path, layer in nnx.iter_modules(ours) if isinstance(layer, WinogradConv)}
    assert taken == LAYERS[name]
    x = normal_images(1, 200, 200)
    apply, params, batch_stats = tresnet_jax.functional(ours)
    got, expected = jax.jit(apply)(params, batch_stats, x), run(folded, x)
    assert not (got == expected).all()
    assert_close(got, expected, 5e-6)
    jax.clear_caches()


def test_profile_counts_the_same_operations_and_more_parameters():
    model = as_trained('test_resnet')
    folded, ours = (tresnet_jax.profile(tresnet_jax.fold_batchnorm(model, winograd=how), 224) for how in (False, True))
    assert (ours.macs, ours.card_flops) == (folded.macs, folded.card_flops)
    assert ours.parameters - folded.parameters == 36 * (48 * 48 + 96 * 96)


def test_folding_again_changes_nothing():
    def names(model):
        return [path for path, _ in nnx.iter_modules(model)]

    once = tresnet_jax.fold_batchnorm(as_trained('test_resnet'), winograd=True)
    assert names(tresnet_jax.fold_batchnorm(once, winograd=True)) == names(once)


def test_export_keeps_the_transformed_kernels_in_float32(tmp_path):
    model = tresnet_jax.fold_batchnorm(as_trained('test_resnet', dtype='float16'), winograd=True)
    tresnet_jax.export(model, tmp_path / 'model', image_size=200, platforms=['cpu', 'cuda'])
    got = tresnet_jax.load_exported(tmp_path / 'model')
    text = got.exported.mlir_module()
    assert 'tensor<36x48x48xf32>' in text and 'tensor<36x48x48xf16>' not in text
    x = normal_images(1, 200, 200)
    assert_close(got(x), run(model, x), 3e-2)
