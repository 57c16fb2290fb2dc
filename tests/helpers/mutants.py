"""Mistakes that a port can make: patches of our code, and the comparison that must detect each.

Every quirk of timm's numbers has a row. `comparisons.py` has the comparisons, and `test_mutants.py` runs the table.
"""

import dataclasses
import math
import types
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from PIL import Image

from tresnet_jax import variants
from tresnet_jax.checkpoints import find, layouts, names, timm_layouts
from tresnet_jax.checkpoints import match as params
from tresnet_jax.checkpoints.layout import as_tensor
from tresnet_jax.data import transforms
from tresnet_jax.models import base as model
from tresnet_jax.models import batch_norm as abn
from tresnet_jax.models import build, initializers, layers, memory, pooling, resnetd, tresnet

# Originals that patches call.
blur_pool, drop = pooling.blur_pool, layers.drop
batch_statistics, update = abn.batch_statistics, abn.BatchNormAct._update
conv_norm_act, all_feature_info = tresnet.ConvNormAct, resnetd.ResNetD._all_feature_info
take_indices = model.take_indices
forward_intermediates, reset_classifier = model.ImageModel.forward_intermediates, model.ImageModel.reset_classifier
scale, to_timm = timm_layouts.scale, layouts.to_timm
resized, prune = transforms.EvalTransform._resized, model.ImageModel.prune_intermediate_layers

Patch = tuple[Any, str, Any]  # a module, class, function or dict; the attribute or key; the new value


@dataclasses.dataclass(frozen=True)
class Mutant:
    """One mistake.

    Attributes:
        name: a description.
        comparison: the function of `comparisons.py` whose error must rise.
        patches: the changes that make the mistake.
    """

    name: str
    comparison: str
    patches: tuple[Patch, ...]


def row(name: str, comparison: str, *patches: Patch) -> Mutant:
    return Mutant(name, comparison, patches)


def like(module: types.ModuleType, **changes: Any) -> types.SimpleNamespace:
    """Return a copy of a module with some functions replaced, for use in one of our modules."""
    return types.SimpleNamespace(**{**vars(module), **changes})


def with_options(make: Callable[..., Any], **forced: Any) -> Callable[..., Any]:
    """Return a class or function that ignores some of the caller's keyword arguments."""
    return lambda *args, **options: make(*args, **{**options, **forced})


def defaults(function: Callable[..., Any], **changes: Any) -> Patch:
    return (function, '__kwdefaults__', {**(function.__kwdefaults__ or {}), **changes})


# Space-to-depth, blur and pools.


def s2d_channels_first(x: jax.Array) -> jax.Array:
    """Put channel c of pixel (dy, dx) at c * 16 + dy * 4 + dx, as torch's PixelUnshuffle does."""
    b, h, w, c = x.shape
    x = x.reshape(b, h // 4, 4, w // 4, 4, c).transpose(0, 1, 3, 5, 2, 4)
    return x.reshape(b, h // 4, w // 4, 16 * c)


def s2d_columns_first(x: jax.Array) -> jax.Array:
    """Put channel c of pixel (dy, dx) at (dx * 4 + dy) * C + c."""
    b, h, w, c = x.shape
    x = x.reshape(b, h // 4, 4, w // 4, 4, c).transpose(0, 1, 3, 4, 2, 5)
    return x.reshape(b, h // 4, w // 4, 16 * c)


def blur_bordered_by(mode: str) -> Patch:
    """Return a patch of the blur with another border than the mirrored one."""

    def blur(x: jax.Array) -> jax.Array:
        x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), mode=mode)
        for axis in (1, 2):
            n = x.shape[axis] - 2
            before, at, after = (jax.lax.slice_in_dim(x, i, i + n, 2, axis) for i in range(3))
            x = 0.25 * before + 0.5 * at + 0.25 * after
        return x

    return (pooling, 'blur_pool', blur)


def subsample(x: jax.Array) -> jax.Array:
    """Subsample as a stride of 2 does, in the convolution before or in the 1x1 convolution after."""
    return x[:, ::2, ::2]


def blur_from_the_second_pixel(x: jax.Array) -> jax.Array:
    """Blur around the odd pixels of an even map, as frameworks that pad 'SAME' do."""
    shifted = jnp.concatenate([x[:, 1:], x[:, -1:]], axis=1)
    return blur_pool(jnp.concatenate([shifted[:, :, 1:], shifted[:, :, -1:]], axis=2))


def average_counting_the_border(x: jax.Array) -> jax.Array:
    """Average with count_include_pad=True."""
    x = jnp.pad(x, ((0, 0), (0, x.shape[1] % 2), (0, x.shape[2] % 2), (0, 0)))
    return average_without_the_border(x)


def average_without_the_border(x: jax.Array) -> jax.Array:
    """Average with ceil_mode=False."""
    b, h, w, c = x.shape
    return x[:, : h // 2 * 2, : w // 2 * 2].reshape(b, h // 2, 2, w // 2, 2, c).mean((2, 4))


def dilated_average_not_counting(x: jax.Array) -> jax.Array:
    """Average without the border. timm pads before the pool, so its zeros count."""
    padding: Any = ((0, 1), (0, 1))
    return nnx.avg_pool(x, (2, 2), (1, 1), padding=padding, count_include_pad=False)


def dilated_average_padded_in_front(x: jax.Array) -> jax.Array:
    x = jnp.pad(x, ((0, 0), (1, 0), (1, 0), (0, 0)))
    return 0.25 * (x[:, :-1, :-1] + x[:, 1:, :-1] + x[:, :-1, 1:] + x[:, 1:, 1:])


def max_pool_same(x: jax.Array) -> jax.Array:
    return nnx.max_pool(x, (3, 3), (2, 2), padding='SAME')


def max_pool_of_zeros(x: jax.Array) -> jax.Array:
    """Pad with zeros, which exceed negative values. Only the layer shows it: a network's values are positive."""
    return nnx.max_pool(jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0))), (3, 3), (2, 2))


# Batch norm.


def biased_update(self: abn.BatchNormAct, mean: jax.Array, var: jax.Array, n: int) -> None:
    update(self, mean, var, 10**9)


def unbiased_statistics(x: jax.Array, axis_name: str | None) -> abn.BatchStatistics:
    statistics = batch_statistics(x, axis_name)
    n = x.size // x.shape[-1]
    return statistics._replace(var=n / (n - 1) * statistics.var)


def cancelling_statistics(x: jax.Array, axis_name: str | None) -> abn.BatchStatistics:
    axes = tuple(range(x.ndim - 1))
    mean = x.mean(axes)
    var = jnp.square(x).mean(axes) - jnp.square(mean)
    return abn.BatchStatistics(jnp.zeros_like(mean), mean, var, x)


def gamma_zero_at(zero: Callable[[float | None, bool], bool]) -> Patch:
    """Return a patch of BatchNormAct whose scale starts at 0 if `zero(slope, zero_init)` is true."""
    original = abn.BatchNormAct.__init__

    def init(self: abn.BatchNormAct, num_features: int, *, zero_init: bool = False, **options: Any) -> None:
        original(self, num_features, zero_init=zero(options['slope'], zero_init), **options)

    return (abn.BatchNormAct, '__init__', init)


# The order of operations in TResNet's blocks.


def blur_before_the_activation(self: tresnet.ConvNormAct, x: jax.Array) -> jax.Array:
    """conv -> blur -> norm -> activation. Blur and norm commute, blur and activation do not."""
    x = self.conv(x)
    return self.bn(x if self.aa is None else self.aa(x))


def stride_instead_of_blur(self: tresnet.ConvNormAct, x: jax.Array) -> jax.Array:
    x = self.bn(self.conv(x))
    return x if self.aa is None else subsample(x)


def block(order: str) -> Callable[[Any, jax.Array, jax.Array | None], jax.Array]:
    """Return a TResNet block with its parts in another order.

    Args:
        order: the numbers of the convolutions, [b]lur, [s]e, [d]rop path. timm's are '1b2sd' and '12bs3d'.
    """

    def call(self: Any, x: jax.Array, key: jax.Array | None) -> jax.Array:
        shortcut = x if self.downsample is None else self.downsample(x)
        strided = any(layer.aa is not None for layer in (self.conv1, self.conv2))
        for part in order:
            if part == 'b':
                x = pooling.blur_pool(x) if strided else x
            elif part == 's':
                x = x if self.se is None else self.se(x)
            elif part == 'd':
                x = self.drop_path(x, key)
            else:
                layer = getattr(self, f'conv{part}')
                x = layer.bn(layer.conv(x))
        return nnx.relu(x + shortcut)

    return call


def se_with(width: Callable[[int, int], int]) -> Patch:
    """Return a patch of squeeze-excite with the inner width `width(channels, rd_channels)`."""
    original = layers.SqueezeExcite
    return (
        tresnet,
        'SqueezeExcite',
        lambda channels, rd, **options: original(channels, width(channels, rd), **options),
    )


def stem_of_one_pixel(in_chans: int, out_chans: int, kernel_size: int, **options: Any) -> tresnet.ConvNormAct:
    """Use a 1x1 convolution after space-to-depth, as in the paper's figure."""
    return conv_norm_act(in_chans, out_chans, 1 if in_chans == 48 else kernel_size, **options)


def multiples_of_32(self: model.ImageModel, height: int, width: int) -> None:
    if height % 32 or width % 32:
        raise ValueError


def pooled_at_stride_one(self: tresnet.Shortcut, x: jax.Array) -> jax.Array:
    if len(self) == 1:
        x = pooling.avg_pool_dilated(x)
    for layer in self:
        x = layer(x)
    return x


def activated_shortcut(self: tresnet.Shortcut, x: jax.Array) -> jax.Array:
    for layer in self:
        x = layer(x)
    return nnx.relu(x)


def v2_without_rounding(self: variants.TResNetConfig) -> int:
    return int(64 * self.width_factor)


def rounded_to_eight(self: variants.TResNetConfig) -> int:
    return int(64 * self.width_factor) // 8 * 8


# ResNet-D.


def conv_padded_same(*args: Any, **options: Any) -> nnx.Conv:
    layer = layers.conv(*args, **options)
    if options.get('stride', 1) == 2:
        layer.padding = 'SAME'
    return layer


class StrideInTheFirst(resnetd.Bottleneck):
    """The original ResNet's bottleneck, whose first 1x1 convolution has the stride."""

    def __init__(self, *args: Any, **options: Any):
        super().__init__(*args, **options)
        self.conv1.strides, self.conv2.strides = self.conv2.strides, self.conv1.strides


class StemStrideLast(resnetd.Stack):
    """A stem whose third convolution has the stride."""

    def __init__(self, parts: list[Any]):
        if len(parts) == 7:
            parts[0].strides, parts[6].strides = parts[6].strides, parts[0].strides
        super().__init__(parts)


class PoolAtStrideOne(resnetd.Stack):
    """A shortcut with a pool where timm has an Identity."""

    def __init__(self, parts: list[Any]):
        super().__init__([pooling.AvgPool(1) if isinstance(parts[0], layers.Identity) else parts[0], *parts[1:]])


def dilated_from_the_first(make: type) -> Callable[..., Any]:
    """Return a block whose first convolution already has the dilation of its stage."""
    return lambda *args, **options: make(*args, **{**options, 'first_dilation': options['dilation']})


def drop_path_of_the_sum(self: Any, x: jax.Array, key: jax.Array | None) -> jax.Array:
    out = self.bn2(self.conv2(self.bn1(self.conv1(x))))
    out = self.bn3(self.conv3(out)) if hasattr(self, 'conv3') else out
    return nnx.relu(self.drop_path(out + (x if self.downsample is None else self.downsample(x)), key))


def reductions_without_dilation(self: resnetd.ResNetD) -> list[dict[str, Any]]:
    original = all_feature_info(self)
    return [{**info, 'reduction': 2 ** (i + 1)} for i, info in enumerate(original)]


# Randomness, pooling, features.


def needed(key: jax.Array | None) -> jax.Array:
    assert key is not None
    return key


def drop_without_scaling(x: jax.Array, key: jax.Array, rate: float, shape: tuple[int, ...]) -> jax.Array:
    return jnp.where(jax.random.bernoulli(key, 1.0 - rate, tuple(shape)), x, jnp.zeros((), x.dtype))


def drop_path_of_values(self: layers.DropPath, x: jax.Array, key: jax.Array | None) -> jax.Array:
    """Drop values instead of images."""
    return drop(x, needed(key), self.rate, x.shape) if self.is_random else x


def drop_path_of_the_batch(self: layers.DropPath, x: jax.Array, key: jax.Array | None) -> jax.Array:
    return drop(x, needed(key), self.rate, (1, 1, 1, 1)) if self.is_random else x


def dropout_keeping_the_rate(self: layers.Dropout, x: jax.Array, rngs: nnx.Rngs | None) -> jax.Array:
    """Keep the share that should be dropped; a rate of 1/2 would not show it."""
    return x if self.deterministic or self.rate == 0 else drop(x, layers.draw_key(rngs, ''), 1 - self.rate, x.shape)


def rates_a_stage(rate: float, depths: tuple[int, ...]) -> list[float]:
    """Return one rate for all blocks of a stage."""
    return [rate * stage / 3 for stage, depth in enumerate(depths) for _ in range(depth)]


def rates_in_float64(rate: float, depths: tuple[int, ...]) -> list[float]:
    n = sum(depths)
    return [rate * i / (n - 1) for i in range(n)]


def rates_from_one_end(rate: float, depths: tuple[int, ...]) -> list[float]:
    """Return NumPy's linspace in float32; torch counts the second half from the end."""
    n = sum(depths)
    step = np.float32(rate) / np.float32(n - 1)
    return [float(np.float32(step * np.float32(i))) for i in range(n)]


def pool_with(kind: str, combine: Callable[[jax.Array], jax.Array]) -> Patch:
    original = pooling.global_pool
    return (model, 'global_pool', lambda x, name: combine(x) if name == kind else original(x, name))


def first_n(count: int, indices: Any) -> list[int]:
    return list(range(indices)) if isinstance(indices, int) else take_indices(count, indices)


def maps_in_the_order_asked_for(self: model.ImageModel, x: jax.Array, indices: Any = None, **options: Any) -> Any:
    result = forward_intermediates(self, x, indices, **options)
    maps = result if options.get('intermediates_only') else result[1]
    if isinstance(indices, tuple):
        chosen = take_indices(5, indices)
        maps[:] = [maps[sorted(chosen).index(i)] for i in chosen]
    return result


def reset_to_average(self: model.ImageModel, num_classes: int, global_pool: str | None = None, **options: Any) -> Any:
    """Reset as timm 1.0.29's ResNet does: without an argument the pooling becomes 'avg'."""
    return reset_classifier(self, num_classes, 'avg' if global_pool is None else global_pool, **options)


def pre_logits_without_dropout(
    self: model.ImageModel, x: jax.Array, pre_logits: bool = False, *, rngs: nnx.Rngs | None = None
) -> jax.Array:
    """Take pre_logits before the dropout."""
    x = pooling.global_pool(x, self.global_pool)
    return x if pre_logits else self.get_classifier()(self.head_drop(x, rngs))


# Initial weights.


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


# Transforms.

Resize = Callable[[Image.Image, tuple[int, int], Image.Resampling], np.ndarray]


def transform_with(
    resize: Resize | None = None,
    normalise: Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray] = lambda x, mean, std: (
        (x / np.float32(255) - mean) / std
    ),
    crop_first: bool = False,
) -> Patch:
    """Return a patch of `EvalTransform.__call__` with one step changed."""

    def call(self: transforms.EvalTransform, image: Image.Image) -> np.ndarray:
        image = image.convert('RGB')
        size, filter_ = self._resized(*image.size), transforms.INTERPOLATIONS[self.interpolation]
        if crop_first:
            # The part of the image that the crop shows, in whole pixels.
            across = min(image.width, round(image.width * self.width / size[0]))
            down = min(image.height, round(image.height * self.height / size[1]))
            x0, y0 = (image.width - across) // 2, (image.height - down) // 2
            part = image.crop((x0, y0, x0 + across, y0 + down))
            x = np.asarray(part.resize((self.width, self.height), filter_), np.float32)
        elif resize is not None:
            x = np.asarray(self._crop(Image.fromarray(resize(image, size, filter_)), (0, 0, 0)), np.float32)
        else:
            x = np.asarray(self._crop(image.resize(size, filter_), (0, 0, 0)), np.float32)
        return normalise(x, np.asarray(self.mean, np.float32), np.asarray(self.std, np.float32))

    return (transforms.EvalTransform, '__call__', call)


def resize_without_antialiasing(image: Image.Image, size: tuple[int, int], resampling: Image.Resampling) -> np.ndarray:
    """Resize as torch and OpenCV resize tensors: the filter does not widen when the image shrinks."""
    x, y = image.width / size[0], image.height / size[1]
    return np.asarray(image.transform(size, Image.Transform.AFFINE, (x, 0, 0, 0, y, 0), resampling))


def resize_in_jax(image: Image.Image, size: tuple[int, int], resampling: Image.Resampling) -> np.ndarray:
    """Resize with antialiasing and rounding, but JAX's filters instead of Pillow's fixed-point ones."""
    kind = 'cubic' if resampling == Image.Resampling.BICUBIC else 'linear'
    x = jax.image.resize(np.asarray(image, np.float32), (size[1], size[0], 3), kind, antialias=True)
    return np.clip(np.rint(x), 0, 255).astype(np.uint8)


def resize_in_float(image: Image.Image, size: tuple[int, int], resampling: Image.Resampling) -> np.ndarray:
    """Resize with Pillow's filters, without rounding between the two passes."""
    bands = [np.asarray(band.convert('F').resize(size, resampling)) for band in image.split()]
    return np.clip(np.rint(np.stack(bands, -1)), 0, 255).astype(np.uint8)


def resized_with(
    scale: Callable[[float], int] = math.floor,
    long: Callable[[float], int] = int,
    ratio: Callable[[float], int] = round,
) -> Patch:
    """Return a patch of `EvalTransform._resized` that rounds differently in mode 'center'.

    Args:
        scale: rounds the size that the crop is taken from.
        long: rounds the long edge of a square crop's image.
        ratio: rounds both edges of a rectangular crop's image.
    """

    def rounded(self: transforms.EvalTransform, width: int, height: int) -> tuple[int, int]:
        if self.crop_mode != 'center':
            return resized(self, width, height)
        to_height, to_width = scale(self.height / self.crop_pct), scale(self.width / self.crop_pct)
        if to_height == to_width:
            edge = long(to_width * max(width, height) / min(width, height))
            return (to_width, edge) if width <= height else (edge, to_width)
        factor = min(height / to_height, width / to_width)
        return ratio(width / factor), ratio(height / factor)

    return (transforms.EvalTransform, '_resized', rounded)


def squashed_without_a_crop(self: transforms.EvalTransform, width: int, height: int) -> tuple[int, int]:
    """Resize to the crop's size itself, as the original repository does."""
    return (self.width, self.height) if self.crop_mode == 'squash' else resized(self, width, height)


def border(smaller: Callable[[float], int] = math.floor, larger: Callable[[float], int] = round) -> Patch:
    """Return a patch of `_offset` that rounds half a pixel differently, for a smaller or a larger image."""
    return (
        transforms,
        '_offset',
        lambda size, target: smaller((target - size) / 2) if size < target else -larger((size - target) / 2),
    )


def rows_with(pattern: str, **fields: Any) -> tuple[Patch, ...]:
    """Return patches of the matching tags with changed fields."""
    rows = {name: variants.PRETRAINED[name] for name in variants.list_pretrained(pattern)}
    changed = {name: dataclasses.replace(tag, **fields) for name, tag in rows.items()}
    return tuple((variants.PRETRAINED, name, tag) for name, tag in changed.items() if tag != rows[name])


def normalise_grey_levels(x: np.ndarray, mean: np.ndarray, std: np.ndarray) -> np.ndarray:
    """Normalise in grey levels, which differs by rounding."""
    return (x - mean * np.float32(255)) / (std * np.float32(255))


def with_slope(slope: float) -> tuple[Any, str, Any]:
    """Return a patch that builds TResNets with another default slope."""
    return build.CLASSES, 'tresnet', with_options(tresnet.TResNet, abn_slope=slope)


RESNET_BLOCKS = (resnetd.BasicBlock, resnetd.Bottleneck)

MUTANTS = (
    # TResNet: slopes and activations.
    row('the stem has the slope of the blocks', 'tresnet',
        (tresnet, 'TRESNET', dataclasses.replace(tresnet.TRESNET, stem_slope=1e-3))),
    row('the blocks have the slope of the stem', 'tresnet', with_slope(1e-2)),
    row('plain ReLUs everywhere', 'tresnet', with_slope(0.0)),
    row('second version: the slope of the original', 'tresnet_v2', with_slope(1e-6)),
    row('the stem keeps its slope when another is asked for', 'another_slope',
        (tresnet, 'Body', with_options(tresnet.Body, stem_slope=1e-2))),
    row('a block ends with a leaky ReLU', 'tresnet',
        # Patches the method, because JAX keeps the trace of the function that it calls.
        (memory.Memory, 'relu_of_sum', lambda self, x, shortcut: abn.activate(x + shortcut, 1e-3))),
    row('the leaky ReLU has slope 1 at zero', 'activation_at_zero',
        (abn, 'activate', lambda x, slope: x if slope is None else jnp.where(x >= 0, x, slope * x))),
    row('the ReLU has slope 1/2 at zero', 'activation_at_zero',
        (abn, 'nnx', like(nnx, relu=lambda x: jnp.maximum(x, 0.0)))),
    # TResNet: stem, blur.
    row('space-to-depth as PixelUnshuffle', 'space_to_depth', (layers, 'space_to_depth', s2d_channels_first)),
    row('space-to-depth with columns before rows', 'space_to_depth', (layers, 'space_to_depth', s2d_columns_first)),
    row('the stem calls PixelUnshuffle', 'tresnet', (tresnet, 'space_to_depth', s2d_channels_first)),
    row('a stem of 1x1', 'keys_and_shapes', (tresnet, 'ConvNormAct', stem_of_one_pixel)),
    row('sizes are not checked', 'sizes_taken', (tresnet.TResNet, '_check_input', lambda self, height, width: None)),
    row('sizes must be multiples of 32', 'sizes_taken',
        (tresnet.TResNet, '_check_input', multiples_of_32)),
    row("a ResNet's sizes are multiples of 32", 'sizes_taken', (resnetd.ResNetD, '_check_input', multiples_of_32)),
    row('the border of the blur is zero', 'blur_pool', blur_bordered_by('constant')),
    row("the blur's border repeats the edge", 'blur_pool', blur_bordered_by('edge')),
    row("the blur's border repeats the edge before mirroring", 'blur_pool', blur_bordered_by('symmetric')),
    row('the blur begins at the second pixel', 'blur_pool', (pooling, 'blur_pool', blur_from_the_second_pixel)),
    row('a 2x2 box instead of the blur', 'blur_pool', (pooling, 'blur_pool', pooling.avg_pool)),
    row('a strided convolution instead of the blur', 'tresnet',
        (tresnet.ConvNormAct, '__call__', stride_instead_of_blur)),
    row('the blur comes before the activation', 'tresnet',
        (tresnet.ConvNormAct, '__call__', blur_before_the_activation)),
    row('basic block: the blur comes after conv2', 'tresnet', (tresnet.BasicBlock, '__call__', block('12bsd'))),
    row('bottleneck: the blur comes after conv1', 'tresnet', (tresnet.Bottleneck, '__call__', block('1b2s3d'))),
    # TResNet: squeeze-excite.
    row('basic block: squeeze-excite before conv2', 'tresnet', (tresnet.BasicBlock, '__call__', block('1bs2d'))),
    row('bottleneck: squeeze-excite before conv2', 'tresnet', (tresnet.Bottleneck, '__call__', block('1s2b3d'))),
    row('bottleneck: squeeze-excite before the blur', 'tresnet', (tresnet.Bottleneck, '__call__', block('12sb3d'))),
    row('bottleneck: squeeze-excite after conv3', 'keys_and_shapes', se_with(lambda channels, rd: rd * 4)),
    row('squeeze-excite narrower than 64', 'keys_and_shapes', se_with(lambda channels, rd: channels // 4)),
    row('squeeze-excite by a 16th', 'keys_and_shapes', se_with(lambda channels, rd: max(channels // 16, 64))),
    row("bottleneck: squeeze-excite by the block's planes / 4", 'keys_and_shapes',
        se_with(lambda channels, rd: max(channels // 4, 64))),
    row('squeeze-excite rounded to a multiple of 8', 'keys_and_shapes', se_with(lambda channels, rd: -(-rd // 8) * 8)),
    row('squeeze-excite in the last stage too', 'keys_and_shapes',
        (tresnet, 'Bottleneck', with_options(tresnet.Bottleneck, use_se=True))),
    row('no squeeze-excite in bottlenecks', 'keys_and_shapes',
        (tresnet, 'Bottleneck', with_options(tresnet.Bottleneck, use_se=False))),
    row('squeeze-excite with a hard sigmoid', 'squeeze_excite', (layers, 'nnx', like(nnx, sigmoid=nnx.hard_sigmoid))),
    row('squeeze-excite without its ReLU', 'squeeze_excite', (layers, 'nnx', like(nnx, relu=lambda x: x))),
    row('squeeze-excite without biases', 'keys_and_shapes',
        (layers, 'conv', lambda *args, use_bias=False, **options: tresnet.conv(*args, **options))),
    row('squeeze-excite of the maximum', 'squeeze_excite', (layers.SqueezeExcite, '__call__', lambda self, x: (
        x * nnx.sigmoid(self.fc2(nnx.relu(self.fc1(x.max((1, 2), keepdims=True)))))))),
    # TResNet: widths, shortcuts.
    row('width 1.3 rounded to a multiple of 8', 'keys_and_shapes',
        (variants.TResNetConfig, 'planes', property(rounded_to_eight))),
    row('second version: width not rounded', 'tresnet_v2',
        (variants.TResNetConfig, 'planes', property(v2_without_rounding))),
    row('second version: a pool in the shortcut of layer1', 'tresnet_v2',
        (tresnet.Shortcut, '__call__', pooled_at_stride_one)),
    row('an activation after the shortcut', 'tresnet', (tresnet.Shortcut, '__call__', activated_shortcut)),
    row("a TResNet's strided 1x1 shortcut", 'tresnet', (pooling, 'avg_pool', subsample)),
    row("a TResNet's pool counts the border", 'tresnet', (pooling, 'avg_pool', average_counting_the_border)),
    # The pools of both.
    row('the average counts the border', 'average_pool', (pooling, 'avg_pool', average_counting_the_border)),
    row('the average leaves an odd border out', 'average_pool', (pooling, 'avg_pool', average_without_the_border)),
    row('the dilated average does not count the border', 'dilated_average_pool',
        (pooling, 'avg_pool_dilated', dilated_average_not_counting)),
    row('the dilated average is padded in front', 'dilated_average_pool',
        (pooling, 'avg_pool_dilated', dilated_average_padded_in_front)),
    row('no pool in a dilated shortcut', 'output_stride', (pooling, 'avg_pool_dilated', lambda x: x)),
    row('the max pool is padded as SAME', 'max_pool', (pooling, 'max_pool', max_pool_same)),
    row('the max pool is padded with zeros', 'max_pool', (pooling, 'max_pool', max_pool_of_zeros)),
    # Batch norm.
    row("Keras' epsilon of 1e-3", 'batch_norm', defaults(abn.BatchNormAct.__init__, epsilon=1e-3)),
    row('an epsilon of 1.001e-5', 'batch_norm', defaults(abn.BatchNormAct.__init__, epsilon=1.001e-5)),
    row('an epsilon of 1.001e-5 in a whole network', 'resnet', defaults(abn.BatchNormAct.__init__, epsilon=1.001e-5)),
    row('epsilon outside of the root', 'batch_norm', (abn, 'jax', like(jax,
        lax=like(jax.lax, rsqrt=lambda x: 1 / (jnp.sqrt(x - 1e-5) + 1e-5))))),
    row("Flax's momentum of 0.99", 'running_statistics', defaults(abn.BatchNormAct.__init__, momentum=0.99)),
    row("torch's momentum taken for Flax's", 'running_statistics', defaults(abn.BatchNormAct.__init__, momentum=0.1)),
    row("Flax's momentum of 0.99 in a whole network", 'training_step',
        defaults(abn.BatchNormAct.__init__, momentum=0.99)),
    row('the running variance is biased', 'running_statistics',
        (abn.BatchNormAct, '_update', biased_update)),
    row('the running variance of a whole network is biased', 'training_step',
        (abn.BatchNormAct, '_update', biased_update)),
    row("the batch's variance is unbiased", 'batch_norm_training',
        (abn, 'batch_statistics', unbiased_statistics)),
    row('the variance is E[x^2] - E[x]^2', 'large_mean',
        (abn, 'batch_statistics', cancelling_statistics)),
    # ResNet-D.
    row('strided convolutions are padded as SAME', 'resnet', (resnetd, 'conv', conv_padded_same)),
    row("the stem's stride is in its third convolution", 'resnet', (resnetd, 'Stack', StemStrideLast)),
    row('the stem is 64 wide from its first convolution', 'keys_and_shapes', (
        variants.ARCHITECTURES, 'resnet18d', dataclasses.replace(variants.ARCHITECTURES['resnet18d'], stem_width=64))),
    row("a network's max pool is padded as SAME", 'resnet', (resnetd, 'max_pool', max_pool_same)),
    row('the first feature map is taken after the max pool', 'resnet',
        (resnetd.ResNetD, '_stem', lambda self, x: (pooling.max_pool(self.bn1(self.conv1(x))),) * 2)),
    row("a bottleneck's stride is in its first convolution", 'resnet', (resnetd, 'Bottleneck', StrideInTheFirst)),
    row('a strided 1x1 shortcut', 'resnet', (pooling, 'avg_pool', subsample)),
    row("a shortcut's pool counts the border", 'resnet', (pooling, 'avg_pool', average_counting_the_border)),
    row('a pool in a shortcut of stride 1', 'bottlenecks', (resnetd, 'Stack', PoolAtStrideOne)),
    row("a dilated stage's first block is dilated at once", 'output_stride',
        *((resnetd, made.__name__, dilated_from_the_first(made)) for made in RESNET_BLOCKS)),
    row("a dilated network's reductions are those of its strides", 'reductions',
        (resnetd.ResNetD, '_all_feature_info', reductions_without_dilation)),
    # Drop path and dropout.
    row('drop path is not scaled', 'drop_path', (layers, 'drop', drop_without_scaling)),
    row('drop path drops values', 'drop_path', (layers.DropPath, '__call__', drop_path_of_values)),
    row('drop path drops whole batches', 'drop_path', (layers.DropPath, '__call__', drop_path_of_the_batch)),
    row('drop path keeps what it should drop', 'drop_path',
        (layers, 'drop', lambda x, key, rate, shape: drop(x, key, 1 - rate, shape))),
    row('drop path of the sum', 'drop_path',
        *((made, '__call__', drop_path_of_the_sum) for made in RESNET_BLOCKS)),
    row('drop path before squeeze-excite', 'drop_path', (tresnet.BasicBlock, '__call__', block('1b2ds'))),
    row("a TResNet's rates are one a stage", 'drop_path_rates', (tresnet, 'stagewise_drop_path_rates', rates_a_stage)),
    row("a TResNet's rates are float64", 'drop_path_rates', (tresnet, 'stagewise_drop_path_rates', rates_in_float64)),
    row("a TResNet's rates count from one end", 'drop_path_rates',
        (tresnet, 'stagewise_drop_path_rates', rates_from_one_end)),
    row("a ResNet's rates are float32", 'drop_path_rates',
        (model, 'DropPath', lambda rate: layers.DropPath(float(np.float32(rate))))),
    row("a ResNet's rates end before the last block", 'drop_path_rates',
        (model, 'DropPath', lambda rate: layers.DropPath(rate * 7 / 8))),
    row('dropout is not scaled', 'dropout', (layers, 'drop', drop_without_scaling)),
    row('dropout keeps what it should drop', 'dropout', (layers.Dropout, '__call__', dropout_keeping_the_rate)),
    row('pre_logits are taken before the dropout', 'dropout',
        (model.ImageModel, 'forward_head', pre_logits_without_dropout)),
    # Heads and features.
    row("'avgmax' is the sum", 'global_pools', pool_with('avgmax', lambda x: x.mean((1, 2)) + x.max((1, 2)))),
    row("'catavgmax' has the maximum first", 'global_pools',
        pool_with('catavgmax', lambda x: jnp.concatenate([x.max((1, 2)), x.mean((1, 2))], -1))),
    row("'fast' is the maximum", 'global_pools', pool_with('fast', lambda x: x.max((1, 2)))),
    row("'' pools", 'global_pools', pool_with('', lambda x: x.mean((1, 2)))),
    row("the classifier of 'catavgmax' is as wide as the map", 'wide_heads',
        (model, 'pool_multiplier', lambda pool_type: 1)),
    row('a reset without a pooling averages', 'reset_pooling',
        (model.ImageModel, 'reset_classifier', reset_to_average)),
    row('n feature maps are the first n', 'intermediates', (model, 'take_indices', first_n)),
    row('feature maps come in the order asked for', 'intermediates',
        (model.ImageModel, 'forward_intermediates', maps_in_the_order_asked_for)),
    row("a TResNet's backbone gives its stem too", 'backbones', (
        model.ImageModel, 'prune_intermediate_layers',
        lambda self, indices: prune(self, (0, *indices) if indices == (1, 2, 3, 4) else indices))),
    row('stopping early still gives the last map', 'intermediates', (
        model.ImageModel, 'forward_intermediates', with_options(forward_intermediates, stop_early=False))),
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
    # Transforms.
    row('the crop rounds half up', 'pixels', border(larger=lambda x: math.floor(x + 0.5))),
    row('the crop is floored', 'pixels', border(larger=math.floor)),
    row('the border around a small image is rounded up', 'pixels', border(smaller=math.ceil)),
    row('the scale is rounded', 'pixels', resized_with(scale=round)),
    row('the scale is rounded up', 'pixels', resized_with(scale=math.ceil)),
    row('the long edge is rounded', 'pixels', resized_with(long=round)),
    row('the edges of a rectangle are truncated', 'pixels', resized_with(ratio=int)),
    row('a squashed image is not cropped', 'pixels',
        (transforms.EvalTransform, '_resized', squashed_without_a_crop)),
    row('the crop comes before the resize', 'pixels', transform_with(crop_first=True)),
    row('no antialiasing', 'pixels', transform_with(resize=resize_without_antialiasing)),
    row("JAX's resize", 'pixels', transform_with(resize=resize_in_jax)),
    row('no rounding between the passes of the resize', 'pixels', transform_with(resize=resize_in_float)),
    row('bilinear for bicubic', 'pixels', (transforms.INTERPOLATIONS, 'bicubic', Image.Resampling.BILINEAR)),
    row('bicubic for bilinear', 'pixels', (transforms.INTERPOLATIONS, 'bilinear', Image.Resampling.BICUBIC)),
    row('mean and std times 255', 'pixels', transform_with(normalise=normalise_grey_levels)),
    row('no division by 255', 'pixels', transform_with(normalise=lambda x, mean, std: (x - mean) / std)),
    row('times 1 / 255', 'pixels',
        transform_with(normalise=lambda x, mean, std: (x * np.float32(1 / 255) - mean) / std)),
    row("TResNets with ImageNet's mean and std", 'data_configs', *rows_with('tresnet*', **variants.IMAGENET)),
    row('TResNets with bicubic', 'data_configs', *rows_with('tresnet*', interpolation='bicubic')),
    row('ResNets with bilinear', 'data_configs', *rows_with('resnet50d*', interpolation='bilinear')),
    row("the model cards' crop of 0.94", 'data_configs', *rows_with('resnet*.ra2_in1k', crop_pct=0.94)),
    row('the training size instead of the test size', 'data_configs',
        *rows_with('resnet101d*', test_input_size=None)),
    row('the last tag is the default', 'default_tags',
        (variants, 'PRETRAINED', dict(reversed(variants.PRETRAINED.items())))),
)  # fmt: skip
