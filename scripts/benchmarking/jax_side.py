"""Timing JAX models: any model in functional form, this package's among them."""

import functools
import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from loop_step import loop_step

import convert  # noqa: F401  loading a file imports it, and imports are not timed
import tresnet_jax
from benchmarking.sides import CLASSES, MEAN, STD, Call, Workload
from tresnet_jax.training.devices import AXIS, replicate
from tresnet_jax.training.step import normalise, over_devices


def wake(threads: int) -> str:
    """Start the device and return its name. `threads` has no effect: XLA uses the cores that the process may use."""
    del threads
    device = jax.devices()[0]
    return 'cpu' if device.platform == 'cpu' else device.device_kind


class JaxSide:
    """A model in functional form. Weights are arguments of the compiled programs, so that none are constant-folded.

    Args:
        apply: (params, batch_stats, x) -> logits, and with `train=True` and `rngs` -> (logits, batch_stats).
        params, batch_stats: nested dicts of arrays; `batch_stats` may be any tree.
        dtype: of the images that inference takes.
        devices: number of devices that share the batch of a training step.
    """

    def __init__(self, apply: Callable[..., Any], params: Any, batch_stats: Any, dtype: str, devices: int = 1):
        self.devices = jax.local_devices()[:devices]
        self.params, self.batch_stats = jax.block_until_ready(jax.device_put((params, batch_stats), self.devices[0]))
        self.dtype = jnp.dtype(dtype)
        self.forward: Callable[..., Any] = jax.jit(apply)
        self.forward_in_training = jax.jit(functools.partial(apply, train=True))
        step, self.start = loop_step(apply, params, num_classes=CLASSES, mean=MEAN, std=STD)
        self.train_step = over_devices(step, donate=True, devices=self.devices)

    def inference(self, images: np.ndarray) -> Call:
        batches = itertools.cycle([jnp.asarray(batch, self.dtype) for batch in images])

        def call() -> np.ndarray:
            logits = jax.block_until_ready(self.forward(self.params, self.batch_stats, next(batches)))
            return np.asarray(logits, np.float32)

        return call

    def training(self, images: np.ndarray, labels: np.ndarray) -> 'JaxTraining':
        return JaxTraining(self, images, labels)

    def peak_bytes(self) -> int | None:
        """See `Side`; this includes XLA's trials of different algorithms."""
        device = self.devices[0]
        return None if device.platform == 'cpu' else device.memory_stats()['peak_bytes_in_use']


class JaxTraining:
    """The training loop's step, as `train.py` runs it."""

    def __init__(self, side: JaxSide, images: np.ndarray, labels: np.ndarray):
        self.side = side
        self.state = replicate(side.start(side.params, side.batch_stats), side.devices)
        on_devices = NamedSharding(Mesh(np.asarray(side.devices), (AXIS,)), PartitionSpec(AXIS))
        self.batches = itertools.cycle(
            [
                jax.device_put(_divided({'image': x, 'label': y.astype(np.int32)}, len(side.devices)), on_devices)
                for x, y in zip(images, labels, strict=True)
            ]
        )

    def step(self) -> float:
        self.state, metrics = jax.block_until_ready(self.side.train_step(self.state, next(self.batches)))
        return float(metrics['loss'])

    def logits(self, images: np.ndarray) -> np.ndarray:
        x = normalise(jnp.asarray(images), MEAN, STD, jnp.float32)
        logits, _ = self.side.forward_in_training(self.state.params, self.state.batch_stats, x)
        return np.asarray(logits, np.float32)


def _divided(batch: dict[str, np.ndarray], devices: int) -> dict[str, np.ndarray]:
    """(b, ...) -> (devices, b / devices, ...) for each array."""
    return {name: x.reshape(devices, -1, *x.shape[1:]) for name, x in batch.items()}


def ours(
    workload: Workload,
    *,
    folded: bool = False,
    winograd: bool = False,
    cached: bool = False,
    devices: int = 1,
    **options: Any,
) -> JaxSide:
    """Load a model of this package.

    Args:
        workload: the model and its weights.
        folded: fold batch norm into the convolutions.
        winograd: for a folded model, use Winograd convolutions.
        cached: for inference, use `cached_jit`.
        devices: number of devices that share the batch of a training step.
        options: passed to `create_model`.
    """
    name, weights = workload.architecture, workload.weights
    model = tresnet_jax.create_model(name, checkpoint=weights, dtype=workload.dtype, **options)
    if folded:
        model = tresnet_jax.fold_batchnorm(model, winograd=winograd)
    side = JaxSide(*tresnet_jax.functional(model), workload.dtype, devices)
    if cached:
        run = tresnet_jax.cached_jit(model)
        side.forward = lambda params, batch_stats, images: run(images)
    return side
