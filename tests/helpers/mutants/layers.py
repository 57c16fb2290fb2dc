"""Mistakes in layers: space-to-depth, blur, pools, batch norm."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from tests.helpers.mutants.table import Patch, defaults, like, row
from tresnet_jax.models import batch_norm as abn
from tresnet_jax.models import pooling

# Originals that patches call.
blur_pool = pooling.blur_pool
batch_statistics = abn.batch_statistics
update = abn.BatchNormAct.update


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


MUTANTS = (
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
        (abn.BatchNormAct, 'update', biased_update)),
    row('the running variance of a whole network is biased', 'training_step',
        (abn.BatchNormAct, 'update', biased_update)),
    row("the batch's variance is unbiased", 'batch_norm_training',
        (abn, 'batch_statistics', unbiased_statistics)),
    row('the variance is E[x^2] - E[x]^2', 'large_mean',
        (abn, 'batch_statistics', cancelling_statistics)),
)  # fmt: skip
