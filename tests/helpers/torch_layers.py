"""torch's layers beside ours, with the same values, and their gradients."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import torch

from tests.helpers.reference import statistics
from tresnet_jax.models.batch_norm import BatchNormAct


def torch_gradient(
    function: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor, weight: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the output and the gradient for `x` of its sum weighted by the first elements of `weight`."""
    x = x.clone().requires_grad_()
    y = function(x)
    (y * weight[: y.shape[0], : y.shape[1], : y.shape[2], : y.shape[3]]).sum().backward()
    assert x.grad is not None
    return y, x.grad


def batch_norms(slope: float | None, channels: int = 5) -> tuple[Any, BatchNormAct]:
    """Return torch's batch norm and activation, and ours, with the same random state and gammas of both signs."""
    generator = torch.Generator().manual_seed(7)
    norm = torch.nn.BatchNorm2d(channels).double()
    values = torch.randn(4, channels, generator=generator, dtype=torch.float64)
    mine = BatchNormAct(channels, slope=slope, dtype=jnp.dtype('float64'), axis_name=None)
    mean, var = statistics(norm)
    with torch.no_grad():
        for our_variable, theirs, value in (
            (mine.scale, norm.weight, values[0]),
            (mine.bias, norm.bias, values[1]),
            (mine.mean, mean, values[2]),
            (mine.var, var, values[3].exp()),
        ):
            theirs.copy_(value)
            our_variable[...] = jnp.asarray(value.numpy())
    activation = torch.nn.Identity() if slope is None else torch.nn.LeakyReLU(slope) if slope else torch.nn.ReLU()
    return torch.nn.Sequential(norm, activation), mine
