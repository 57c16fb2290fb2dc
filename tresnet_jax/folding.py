"""Models for evaluation alone: batch norm folded into the convolutions before it."""

from typing import Any

import jax
import numpy as np
from flax import nnx

from tresnet_jax.models.base import ImageModel
from tresnet_jax.models.batch_norm import BatchNormAct, activate
from tresnet_jax.models.hooks import replace_layer
from tresnet_jax.models.winograd import WinogradConv


class Activation(nnx.Module):
    """What a folded batch norm leaves behind: nothing (slope None), a ReLU (0) or a leaky ReLU."""

    def __init__(self, slope: float | None):
        self.slope = slope

    def __call__(self, x: jax.Array) -> jax.Array:
        return activate(x, self.slope)


def fold_batchnorm(model: ImageModel, *, winograd: bool = False) -> ImageModel:
    """A new model with each batch norm's affine map folded into the convolution before it.

    In evaluation mode batch norm is a scale and a shift for each channel, so that the kernel takes the one and a bias
    the other: the outputs are the same and a GPU moves fewer bytes (Jacob et al., arXiv:1712.05877, section 3.2).
    Folded in float64 and rounded once, so that float32 outputs change by its own noise alone.

    Args:
        model: of `create_model`, in either mode, with concrete weights; it is left as it is.
        winograd: on a CPU, convolve by Winograd's method where that is faster (`tresnet_jax.winograd`): maps of 25x25
            and more, and from 5x5 on if the batch is a multiple of 8. Each such convolution is off by 1e-6 to 4e-6 of
            its largest output in float32; float32 logits of resnet50d and tresnet_m are within 1e-6 of float64's, as
            without. Kernels for it are kept beside the others: 132 MB of resnet50d, 239 MB of tresnet_m. On a GPU or
            TPU only that memory changes.

    Returns:
        A model in evaluation mode that is called as the given one and works with `functional` and `export`. Its
        convolutions have biases and it has no running statistics, so it cannot be trained: `train` raises ValueError,
        and ``convert.to_torch`` refuses it.
    """
    graphdef, state = nnx.split(model)
    folded = nnx.merge(graphdef, nnx.to_pure_dict(state))
    modules = dict(nnx.iter_modules(folded))
    for path, norm in modules.items():
        if isinstance(norm, BatchNormAct):
            _fold(norm, _convolution_before(modules, path))
            replace_layer(modules, path, Activation(norm.slope))
    if winograd:
        for path, layer in modules.items():
            if isinstance(layer, nnx.Conv) and WinogradConv.takes(layer) and not isinstance(layer, WinogradConv):
                replace_layer(modules, path, WinogradConv(layer))
    folded.folded = True
    return folded.eval()


def _convolution_before(modules: dict[tuple[Any, ...], Any], path: tuple[Any, ...]) -> nnx.Conv:
    """The convolution whose output a batch norm takes, by timm's names: bn2 follows conv2, 4 in a list follows 3."""
    *parent, key = path
    before = modules[*parent, key - 1 if isinstance(key, int) else key.replace('bn', 'conv')]
    return before[-1] if isinstance(before, nnx.List) else before  # a ResNet-D's stem is a list, bn1 behind it


def _fold(norm: BatchNormAct, conv: nnx.Conv) -> None:
    scale, shift, mean, var = (np.asarray(v[...], np.float64) for v in (norm.scale, norm.bias, norm.mean, norm.var))
    scale = scale / np.sqrt(var + norm.epsilon)
    old = np.asarray(conv.kernel[...])
    kernel = np.multiply(old, scale, out=np.empty_like(old), casting='same_kind')  # in float64, rounded once
    # Put as they are: jnp.asarray compiles a program for each shape.
    conv.kernel = nnx.Param(jax.device_put(kernel))
    conv.bias = nnx.Param(jax.device_put((shift - mean * scale).astype(kernel.dtype)))
    conv.use_bias = True
