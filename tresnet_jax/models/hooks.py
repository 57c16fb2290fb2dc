"""Forward hooks, as in torch: see the input and output of every layer of a model."""

import functools
import operator
from collections.abc import Callable, Mapping
from typing import Any

import jax
from flax import nnx

from tresnet_jax.models.base import ImageModel
from tresnet_jax.models.batch_norm import BatchNormAct
from tresnet_jax.models.pooling import AvgPool

LayerPath = tuple[Any, ...]  # of attribute names and list indices
Hook = Callable[[LayerPath, nnx.Module, jax.Array, jax.Array], None]


class _Hooked(nnx.Module):
    """A layer that calls ``hook(x, y)`` after each forward pass."""

    def __init__(self, layer: Any, hook: Callable[[jax.Array, jax.Array], None]):
        self.layer = layer
        self.hook = hook

    def __call__(self, x: jax.Array) -> jax.Array:
        y = self.layer(x)
        self.hook(x, y)
        return y


def add_forward_hook(model: ImageModel, hook: Hook) -> None:
    """Make every convolution, batch norm, shortcut pool and linear layer call ``hook(path, layer, x, y)``.

    This changes the model in place, so pass a copy. It also sets the memory mode to 'plain', which affects only the
    backward pass: the other modes run blocks inside functions that values must not leak from.

    Args:
        model: the model to change.
        hook: takes the layer's path, which is timm's name split at the dots, the layer, its input and its output.
    """
    model.set_memory()
    modules = dict(nnx.iter_modules(model))
    for path, layer in modules.items():
        if isinstance(layer, nnx.Conv | nnx.Linear | BatchNormAct | AvgPool):
            replace_layer(modules, path, _Hooked(layer, functools.partial(hook, path, layer)))


def replace_layer(modules: Mapping[LayerPath, nnx.Module], path: LayerPath, layer: nnx.Module) -> None:
    """Replace the layer at a path of a model.

    Args:
        modules: ``dict(nnx.iter_modules(model))``.
        path: its path, a key of `modules`.
        layer: the new layer.
    """
    parent, key = modules[path[:-1]], path[-1]
    put = operator.setitem if isinstance(parent, nnx.List | nnx.Dict) else setattr
    put(parent, key, layer)  # pyright: ignore
