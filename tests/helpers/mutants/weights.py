"""Mistakes in initial weights and in the conversion of checkpoints."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import numpy as np
from flax import nnx

from tests.helpers.mutants.layers import gamma_zero_at
from tests.helpers.mutants.table import Patch, like, row
from tresnet_jax.checkpoints import find, layouts, names, timm_layouts
from tresnet_jax.checkpoints import match as params
from tresnet_jax.checkpoints.layout import as_tensor
from tresnet_jax.models import base as model
from tresnet_jax.models import initializers, layers, resnetd, tresnet

# Originals that patches call.
scale = timm_layouts.scale
to_timm = layouts.to_timm


def truncated_normal(std: float) -> nnx.Initializer:
    """Return JAX's usual initialiser: cut at two deviations, and rescaled to the same deviation."""

    def draw(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
        values = rng.standard_normal(shape, np.float32)
        while (outside := np.abs(values) > 2).any():
            values[outside] = rng.standard_normal(int(outside.sum()), np.float32)
        return values * np.float32(std / 0.87962566)

    return initializers._initializer(draw)


def zeros(fan_in: int) -> nnx.Initializer:
    del fan_in
    return initializers.uniform(0.0)


def conv_drawn_by(kernel: Callable[..., Any] | None = None, bias: Callable[..., Any] | None = None) -> Patch:
    """Return a patch of `layers.conv` whose initialisers come from (in_chans, out_chans, pixels of the kernel)."""

    def make(in_chans: int, out_chans: int, kernel_size: tuple[int, int], **options: Any) -> nnx.Conv:
        if kernel is not None:
            options['kernel_init'] = kernel(in_chans, out_chans, math.prod(kernel_size))
        if bias is not None:
            options['bias_init'] = bias(in_chans, out_chans, math.prod(kernel_size))
        return nnx.Conv(in_chans, out_chans, kernel_size, **options)

    return (layers, 'nnx', like(nnx, Conv=make))


# Conversion.


def adapted_with(
    one: Callable[[np.ndarray], np.ndarray] = lambda grouped: grouped.sum(2, keepdims=True),
    scale: Callable[[int, int], float] = lambda in_file, in_chans: in_file / in_chans,
    group: Callable[[np.ndarray, int], np.ndarray] = lambda w, n: w.reshape(len(w), -1, n, *w.shape[2:]),
    ungroup: Callable[[np.ndarray], np.ndarray] = lambda g: g.reshape(len(g), -1, *g.shape[3:]),
    repeat: Callable[[np.ndarray, int], np.ndarray] = lambda g, times: np.concatenate([g] * times, axis=2),
) -> Patch:
    """Return a patch of `adapt_input` with one step changed."""

    def adapt(weight: np.ndarray, in_file: int, in_chans: int) -> np.ndarray:
        grouped = group(weight, in_file)
        if in_chans == 1:
            return ungroup(one(grouped)).astype(weight.dtype)
        repeated = repeat(grouped, -(-in_chans // in_file))[:, :, :in_chans]
        return ungroup(repeated * repeated.dtype.type(scale(in_file, in_chans))).astype(weight.dtype)

    return (params, 'adapt_input', adapt)


def scale_twice(gamma: Any) -> Any:
    return scale(scale(gamma))


def gammas_of_any_layout(checkpoint: Any) -> layouts.TimmState:
    """Convert the gammas of a file in timm's layout, as timm's filter does."""
    state = to_timm(checkpoint)
    tensors = timm_layouts.from_inplace_abn({key: as_tensor(value) for key, value in state.tensors.items()})
    return dataclasses.replace(state, tensors={key: value.numpy() for key, value in tensors.items()})


def turned_kernels(key: str, value: np.ndarray) -> np.ndarray:
    """Exchange height and width of a convolution's kernel."""
    if key.endswith('kernel') and value.ndim == 4:
        return value.transpose(3, 2, 1, 0)
    return names.torch_to_flax_layout(key, value)


MUTANTS = (
    # Initial weights.
    row('kernels are drawn by fan_in', 'initial_scales',
        conv_drawn_by(kernel=lambda i, o, pixels: initializers.kaiming_normal(i * pixels))),
    row('kernels are drawn without the gain', 'initial_scales',
        (layers, 'kaiming_normal', lambda fan_out: initializers.normal(fan_out**-0.5))),
    row("the gain knows the leaky ReLU's slope", 'initial_scales',
        (layers, 'kaiming_normal', lambda fan_out: initializers.normal((2 / (1 + 1e-4) / fan_out) ** 0.5))),
    row('kernels are drawn by fan_in, by their distribution', 'initial_distributions',
        conv_drawn_by(kernel=lambda i, o, pixels: initializers.kaiming_normal(i * pixels))),
    row('kernels are truncated', 'initial_distributions', (initializers, 'normal', truncated_normal)),
    row('no gamma starts at zero', 'initial_scales', gamma_zero_at(lambda slope, zero: False)),
    row("shortcuts' gammas start at zero", 'initial_scales', gamma_zero_at(lambda slope, zero: slope is None)),
    row("squeeze-excite's biases start at zero", 'initial_scales', conv_drawn_by(bias=lambda *fans: zeros(0))),
    row("squeeze-excite's biases are drawn by fan_out", 'initial_scales',
        conv_drawn_by(bias=lambda i, o, pixels: initializers.torch_uniform(o * pixels))),
    row("a TResNet's classifier starts as torch's", 'initial_scales',
        (tresnet.TResNet, '_classifier_init', lambda self, fan_in: initializers.torch_uniform(fan_in))),
    row("a ResNet's classifier starts as a TResNet's", 'initial_scales',
        (resnetd.ResNetD, '_classifier_init', lambda self, fan_in: initializers.normal(0.01))),
    row("the classifier's bias starts at zero", 'initial_scales', (layers, 'torch_uniform', zeros)),
    row("a reset classifier starts as a TResNet's", 'reset_scales',
        (model, 'torch_uniform', lambda fan_in: initializers.normal(0.01))),
    # Conversion.
    row('kernels are turned', 'resnet', (params, 'torch_to_flax_layout', turned_kernels)),
    row('one channel is the mean', 'in_chans', adapted_with(one=lambda grouped: grouped.mean(2, keepdims=True))),
    row('repeated channels are not scaled', 'in_chans', adapted_with(scale=lambda in_file, in_chans: 1.0)),
    row('repeated channels are scaled by whole repeats', 'in_chans',
        adapted_with(scale=lambda in_file, in_chans: 1 / -(-in_chans // in_file))),
    row('each channel is repeated before the next', 'in_chans',
        adapted_with(repeat=lambda grouped, times: np.repeat(grouped, times, axis=2))),
    row('16 positions of each channel instead of the channels of 16 positions', 'in_chans_of_a_tresnet', adapted_with(
        group=lambda w, n: w.reshape(len(w), n, -1, *w.shape[2:]).swapaxes(1, 2),
        ungroup=lambda g: g.swapaxes(1, 2).reshape(len(g), -1, *g.shape[3:]))),
    row('a space-to-depth stem repeats all of its channels', 'in_chans_of_a_tresnet', adapted_with(
        ungroup=lambda g: g.swapaxes(1, 2).reshape(len(g), -1, *g.shape[3:]))),
    row('|gamma| without 1e-5', 'inplace_abn', (timm_layouts, 'IABN_EPSILON', 0.0)),
    row('gamma + 1e-5 with its sign', 'inplace_abn', (timm_layouts, 'np', like(np, abs=lambda x: x))),
    row('gamma as it is', 'inplace_abn', (timm_layouts, 'scale', lambda gamma: gamma)),
    row('|gamma| + 1e-5 twice', 'inplace_abn', (timm_layouts, 'scale', scale_twice)),
    row('blur filters are weights', 'inplace_abn', (find, 'NOT_WEIGHTS', {})),
    row('|gamma| + 1e-5 of a converted file', 'converted_gammas', (params, 'to_timm', gammas_of_any_layout)),
    row('|gamma| + 1e-5 in 16 bits', 'half_gammas', (timm_layouts, 'np', like(np, promote_types=lambda a, _: a))),
)  # fmt: skip
