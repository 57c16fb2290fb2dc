"""The rates of the device: measured, and those of its data sheet where they are known."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from benchmarking.turns import timed
from gpu_reporting.devices import DEVICES, Device

from gpu_checking.programs import Work


def data_sheet(kind: str) -> Device | None:
    """Return the row of `DEVICES` for JAX's name of a device: 'NVIDIA H100 80GB HBM3'; None if there is none."""
    return next((row for row in DEVICES.values() if row.description == kind), None)


def bandwidth(size: int, seconds: float) -> float:
    """Return the bytes per second of a kernel that reads and writes an array of `size` bytes."""
    x = jnp.zeros(size // 4, jnp.float32)
    add = jax.jit(lambda x: x + 1)
    return 2 * size / timed(lambda: jax.block_until_ready(add(x)), seconds)()


def arithmetic(edge: int, dtype: str, seconds: float) -> float:
    """Return the operations per second of a product of square matrices; float32 is TF32 on GPUs that have it."""
    x = jnp.ones((edge, edge), dtype)
    product = jax.jit(functools.partial(jnp.matmul, precision=jax.lax.Precision.DEFAULT))
    return 2 * edge**3 / timed(lambda: jax.block_until_ready(product(x, x)), seconds)()


def bound(work: Work | None, seconds: float, moving: float, computing: float) -> dict[str, Any]:
    """Return a program's lower bounds in milliseconds and the share of the larger one that it reaches.

    Args:
        work: what one call does; None: unknown.
        seconds: how long one call takes.
        moving, computing: bytes and operations per second of the device.
    """
    if work is None:
        return {'ms by bytes': None, 'ms by operations': None, 'share of the bound': None, 'counted by': None}
    by_bytes, by_operations = work.moved / moving, work.operations / computing
    return {
        'ms by bytes': 1e3 * by_bytes,
        'ms by operations': 1e3 * by_operations,
        'share of the bound': max(by_bytes, by_operations) / seconds,
        'counted by': work.source,
    }
