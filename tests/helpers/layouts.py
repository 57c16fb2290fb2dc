"""Checkpoints in timm's layout and in that of the original TResNet repository."""

# pyright: reportPrivateImportUsage=false
# timm does not mark what it exports.

from collections.abc import Mapping
from typing import Any, TypeVar

import timm.layers
import torch

from convert.golden import timm_model
from tests.helpers.reference import reference

COUNTER = 'num_batches_tracked'
T = TypeVar('T')


def float32_state(name: str, seed: int = 0, **options: Any) -> dict[str, torch.Tensor]:
    """Return the float32 state dict of a seeded timm model with gammas of both signs."""
    state = reference(name, seed, **options).state_dict()
    return {key: value.float() if value.is_floating_point() else value for key, value in state.items()}


def blurred_layers(model: torch.nn.Module) -> list[str]:
    """Return the names of a TResNet's layers with a blur pool."""
    return [name for name, m in model.named_modules() if isinstance(getattr(m, 'aa', None), timm.layers.BlurPool2d)]


def inplace_abn_names(model: torch.nn.Module, state: Mapping[str, T]) -> dict[str, T]:
    """Rename timm's keys to those of the original repository: nested Sequentials, and no counters."""
    blurred, renamed = blurred_layers(model), {}
    for key, value in state.items():
        owner, _, rest = key.rpartition('.conv.') if '.conv.' in key else key.rpartition('.bn.')
        if not owner:
            renamed[key] = value
        elif not key.endswith(COUNTER):
            index = '0' if '.conv.' in key else '1'
            renamed[f'{owner}.{"0." if owner in blurred else ""}{index}.{rest}'] = value
    return renamed


def inplace_abn_state(name: str, blur_filters: bool, seed: int = 0) -> dict[str, torch.Tensor]:
    """Return a float32 state dict in the original layout, with blur filters if asked for."""
    model = timm_model(name)
    state = inplace_abn_names(model, float32_state(name, seed))
    if blur_filters:
        state |= {f'{path}.1.op.filt': torch.ones(16, 1, 3, 3) for path in blurred_layers(model)}
    return state
