"""Hearing what every layer of a model takes and gives, as forward hooks do in torch."""

import functools
import operator
from collections.abc import Callable, Mapping
from typing import Any

import jax
from flax import nnx

from tresnet_jax.models.base import ImageModel
from tresnet_jax.models.batch_norm import BatchNormAct
from tresnet_jax.models.pooling import AvgPool

Tell = Callable[[tuple[Any, ...], nnx.Module, jax.Array, jax.Array], None]


class _Listener(nnx.Module):
    """A layer that tells what it was called with and what it gave."""

    def __init__(self, layer: Any, tell: Callable[[jax.Array, jax.Array], None]):
        self.layer = layer
        self.tell = tell

    def __call__(self, x: jax.Array) -> jax.Array:
        y = self.layer(x)
        self.tell(x, y)
        return y


def listen(model: ImageModel, tell: Tell) -> None:
    """Have every convolution, batch norm, shortcut pool and linear layer call ``tell(path, layer, x, y)``.

    Changes the model in place, so give it a copy. `path` is timm's name, in parts. The memory mode is then 'plain',
    which changes the backward pass alone: the others split blocks and merge them again inside functions out of which no
    value may be kept.
    """
    model.set_memory()
    modules = dict(nnx.iter_modules(model))
    for path, layer in modules.items():
        if isinstance(layer, nnx.Conv | nnx.Linear | BatchNormAct | AvgPool):
            replace_layer(modules, path, _Listener(layer, functools.partial(tell, path, layer)))


def replace_layer(modules: Mapping[tuple[Any, ...], nnx.Module], path: tuple[Any, ...], layer: nnx.Module) -> None:
    """Put `layer` at a path of the model whose ``dict(nnx.iter_modules(model))`` this is."""
    parent, key = modules[path[:-1]], path[-1]
    put = operator.setitem if isinstance(parent, nnx.List | nnx.Dict) else setattr
    put(parent, key, layer)  # pyright: ignore
