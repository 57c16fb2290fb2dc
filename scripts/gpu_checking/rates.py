"""The rates of the device: measured, and those of its data sheet where they are known."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from benchmarking.turns import timed
from gpu_reporting.devices import DEVICES, Device

from gpu_checking.programs import Work

# The processor of an H100 with other memory. gpu_report.py has no need of it.
H200 = dataclasses.replace(
    DEVICES['h100'], description='NVIDIA H200', bandwidth=4_800_000_000_000, memory=150_000_000_000
)
REPEATS = 8  # of a kernel, so that waiting for it and starting it from Python do not count


def data_sheet(kind: str) -> Device | None:
    """Return the description of a device by JAX's name: 'NVIDIA H100 80GB HBM3'; None if it is not known."""
    return next((row for row in (*DEVICES.values(), H200) if row.description == kind), None)


def bandwidth(size: int, seconds: float) -> float:
    """Return the bytes per second of a kernel that reads and writes an array of `size` bytes."""
    add = jax.jit(lambda x: x + 1)
    return 2 * size / timed(repeated(add, jnp.zeros(size // 4, jnp.float32)), seconds)() * REPEATS


def arithmetic(edge: int, dtype: str, seconds: float) -> float:
    """Return the operations per second of a product of square matrices; float32 is TF32 on GPUs that have it."""
    x = jax.random.normal(jax.random.key(0), (edge, edge), dtype)  # products of equal numbers take less power
    product = jax.jit(functools.partial(jnp.matmul, precision=jax.lax.Precision.DEFAULT))
    return 2 * edge**3 / timed(repeated(product, x, x), seconds)() * REPEATS


def repeated(function: Callable[..., jax.Array], *args: jax.Array) -> Callable[[], object]:
    """Return a call that runs `function` `REPEATS` times and waits once."""

    def call() -> object:
        for _ in range(REPEATS):
            found = function(*args)
        return jax.block_until_ready(found)

    return call


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
