"""Initial weights: timm's distributions, drawn on the host.

JAX's initialisers compile one program for each shape, which takes ten seconds for a ResNet-50. These draw with NumPy,
seeded with the JAX key: nothing is compiled, and a key gives the same weights on every device.
"""

from collections.abc import Callable, Sequence

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
from flax import nnx

Draw = Callable[[np.random.Generator, tuple[int, ...]], np.ndarray]  # float32


class ShapesOnly(nnx.Rngs):
    """Replaces ``nnx.Rngs`` for a model that is filled from a file: its weights are ``jax.ShapeDtypeStruct``."""

    def params(self) -> None:
        return None


def _sample(draw: Draw, key_data: jax.Array, shape: Sequence[int]) -> np.ndarray:
    generator = np.random.Generator(np.random.Philox(np.asarray(key_data).astype(np.uint64).tolist()))
    return draw(generator, tuple(shape))


def _initializer(draw: Draw) -> nnx.Initializer:
    """Make an initialiser of a distribution.

    Without a key (`ShapesOnly`) it returns a ``jax.ShapeDtypeStruct``; a traced key is drawn from by a callback.
    """

    def init(key: jax.Array | None, shape: Sequence[int], dtype=jnp.float32, out_sharding=None):
        del out_sharding
        if key is None:
            return jax.ShapeDtypeStruct(tuple(shape), dtype)
        if isinstance(key, jax.core.Tracer):
            # A callback returns float32, because it runs in a thread where float64 may be disabled.
            result = jax.ShapeDtypeStruct(tuple(shape), jnp.float32)
            return jax.pure_callback(lambda k: _sample(draw, k, shape), result, jax.random.key_data(key)).astype(dtype)
        return jax.device_put(_sample(draw, jax.random.key_data(key), shape).astype(dtype))

    return init


def normal(std: float) -> nnx.Initializer:
    """Draw from N(0, std^2)."""
    return _initializer(lambda rng, shape: rng.standard_normal(shape, np.float32) * np.float32(std))


def uniform(bound: float) -> nnx.Initializer:
    """Draw from U(-bound, bound)."""
    return _initializer(lambda rng, shape: (rng.random(shape, np.float32) * 2 - 1) * np.float32(bound))


def torch_uniform(fan_in: int) -> nnx.Initializer:
    """Draw as torch does by default for linear weights and all biases: U(-1 / sqrt(fan_in), 1 / sqrt(fan_in))."""
    return uniform(fan_in**-0.5)


def kaiming_normal(fan_out: int) -> nnx.Initializer:
    """Draw as timm's ``kaiming_normal_(mode='fan_out')``, not truncated: the convolutions of both families.

    The gain is sqrt(2) in TResNet too, because timm does not pass the leaky ReLU's slope.
    """
    return normal((2.0 / fan_out) ** 0.5)
