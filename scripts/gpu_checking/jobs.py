"""Jobs that run in new processes through `benchmarking.processes`; arguments and results are JSON values."""

import hashlib
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from benchmarking.inputs import random_inputs
from benchmarking.jax_side import JaxSide, ours
from benchmarking.sides import Workload
from benchmarking.turns import timed
from flax import nnx

import tresnet_jax
from gpu_checking.models import Gradients, batch_of, gradients, largest_distance, seeded_model
from gpu_checking.programs import compile_program, kernel_counts, needed_bytes
from gpu_checking.stored_gradients import IMAGE_SIZE, IMAGES
from tresnet_jax.training.devices import AXIS, set_up
from tresnet_jax.training.hosts import Hosts


def about() -> dict[str, Any]:
    """Return platform, device (its name), devices (their number), memory_bytes (None on a CPU) and runtime."""
    devices = jax.local_devices()
    return {
        'platform': devices[0].platform,
        'device': devices[0].device_kind,
        'devices': len(devices),
        'memory_bytes': (devices[0].memory_stats() or {}).get('bytes_limit'),
        'runtime': ' '.join(devices[0].client.platform_version.split()),
    }


def peak(workload: dict[str, Any], batch: int, options: Mapping[str, Any]) -> dict[str, Any]:
    """Run three training steps in a memory mode, and return the peak of the device and the compiler's figures.

    Args:
        workload: fields of a `Workload`.
        batch: number of images.
        options: arguments of `create_model`: abn_memory, remat.

    Returns:
        'needed' (see `needed_bytes`), and on devices that count their memory, in bytes: 'peak', 'after compiling' (the
        peak before the first step) and 'in use' (before the first step).
    """
    given = Workload(**workload)
    program = compile_program(ours(given, **options), given, 'train', batch)
    needed = needed_bytes(program.executable)
    device = jax.local_devices()[0]
    before = device.memory_stats()
    for _ in range(3):
        program.call()
    after = device.memory_stats()
    if not before or not after or 'peak_bytes_in_use' not in after:  # as with some of JAX's allocators
        return {'needed': needed}
    return {
        'needed': needed,
        'peak': after['peak_bytes_in_use'],
        'after compiling': before['peak_bytes_in_use'],
        'in use': before['bytes_in_use'],
    }


def mode_errors(architecture: str, modes: Sequence[tuple[str, bool]]) -> dict[str, Any]:
    """Compare the gradients of each mode with those of 'plain', in float32 'highest'.

    Returns:
        'errors': the `largest_distance` of each mode; 'noise': that of 'plain' with the images in another order.
    """
    images, labels = batch_of(IMAGES, IMAGE_SIZE)
    images = images.astype(np.float32)
    model = seeded_model(architecture)

    def gradients_of(abn_memory: str, remat: bool) -> Gradients:
        model.set_memory(abn_memory, remat)
        return gradients(model, images, labels)

    with jax.default_matmul_precision('highest'):
        plain, reversed_ = gradients(model, images, labels), gradients(model, images[::-1], labels[::-1])
        return {
            'errors': [largest_distance(gradients_of(*mode), plain) for mode in modes],
            'noise': largest_distance(reversed_, plain),
        }


def time_program(
    workload: dict[str, Any], what: str, batch: int, *, products: bool = False, seconds: float
) -> dict[str, Any]:
    """Compile a program from scratch, time it and count its kernels.

    Args:
        workload: fields of a `Workload`.
        what: 'inference', with batch norm folded, or 'train'.
        batch: number of images.
        products: compute 1x1 convolutions as matrix products, as on a CPU.
        seconds: duration of the turn.

    Returns:
        'compile seconds', 'call seconds' and the counts of `kernel_counts`.
    """
    given = Workload(**workload)
    model = tresnet_jax.create_model(given.architecture, checkpoint=given.weights, dtype=given.dtype)
    model = tresnet_jax.fold_batchnorm(model) if what == 'inference' else model
    if products:
        for _, layer in nnx.iter_modules(model):
            if isinstance(layer, nnx.Conv) and set(layer.kernel_size) == {1}:
                layer.conv_general_dilated = _as_products
    side = JaxSide(*tresnet_jax.functional(model), given.dtype)
    began = time.perf_counter()
    program = compile_program(side, given, what, batch)
    compiled = time.perf_counter() - began
    turn = timed(program.call, seconds)
    return {'compile seconds': compiled, 'call seconds': turn(), **kernel_counts(program.text)}


def _as_products(lhs: Any, rhs: Any, window_strides: Any, padding: Any, **kwargs: Any) -> Any:
    """Compute a 1x1 convolution as a matrix product if its stride is 1."""
    if set(window_strides) != {1}:
        return jax.lax.conv_general_dilated(lhs, rhs, window_strides, padding, **kwargs)
    return (lhs.reshape(-1, lhs.shape[-1]) @ rhs[0, 0]).reshape(*lhs.shape[:-1], -1)


def scale(workload: dict[str, Any], devices: int, batch: int, seconds: float) -> float:
    """Return the seconds of a training step with `batch` images on each of several devices, as train.py runs it."""
    given = Workload(**workload)
    side = ours(given, devices=devices, axis_name=AXIS)
    return timed(side.training(*random_inputs(given, 'train', devices * batch, 2)).step, seconds)()


def train_some(
    workload: dict[str, Any], batch: int, steps: int, *, deterministic: bool, keep: str
) -> dict[str, str | float]:
    """Train on seeded images, save the weights to the file `keep` (.npz), and return 'digest' and 'loss'.

    Args:
        workload: fields of a `Workload`.
        batch: number of images.
        steps: training steps.
        deterministic: as ``train.py --deterministic``.
        keep: the file.
    """
    set_up(Hosts(), deterministic=deterministic)
    given = Workload(**workload)
    training = ours(given).training(*random_inputs(given, 'train', batch, 3))
    loss = 0.0
    for _ in range(steps):
        loss = training.step()
    leaves = [np.asarray(leaf) for leaf in jax.tree.leaves((training.state.params, training.state.batch_stats))]
    np.savez(Path(keep), *leaves)
    return {'digest': hashlib.sha256(b''.join(leaf.tobytes() for leaf in leaves)).hexdigest(), 'loss': loss}
