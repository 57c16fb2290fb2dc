"""The residual block of both families."""

import jax
from flax import nnx

from tresnet_jax.models.layers import DropPath
from tresnet_jax.models.memory import PLAIN


class ResidualBlock(nnx.Module):
    """A residual block: relu(branch(x) + shortcut(x)). A subclass defines the branch.

    Args:
        downsample: projection of the shortcut, in the first block of a stage. None: the shortcut is the input.
        drop_path_rate: probability of dropping the branch of an image in training.
    """

    def __init__(self, downsample: nnx.Module | None, drop_path_rate: float):
        self.downsample = downsample
        self.drop_path = DropPath(drop_path_rate)
        self.memory = PLAIN

    def branch(self, x: jax.Array) -> jax.Array:
        raise NotImplementedError

    def shortcut(self, x: jax.Array) -> jax.Array:
        if self.downsample is None:
            return x
        return self.memory.run_shortcut(lambda downsample, x: downsample(x), self.downsample, x)

    def __call__(self, x: jax.Array, key: jax.Array | None) -> jax.Array:
        """(B, H, W, C) -> (B, h, w, channels). A block that drops its branch at random needs a `key`."""
        out, shortcut = self.memory.run_block(lambda block, x: (block.branch(x), block.shortcut(x)), self, x)
        return self.memory.relu_of_sum(self.drop_path(out, key), shortcut)
