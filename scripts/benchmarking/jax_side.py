"""JAX under the clock: whatever comes as apply, params, batch_stats, ours among them."""

import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import convert  # noqa: F401  loading a file imports it, and imports are not timed
import tresnet_jax
from benchmarking.sides import LEARNING_RATE, MOMENTUM, Call, Side, Subject


def wake(threads: int) -> str:
    """Start the device. XLA has as many threads as the process may use cores, so that nothing is set here."""
    del threads
    device = jax.devices()[0]
    return 'cpu' if device.platform == 'cpu' else device.device_kind


class JaxSide:
    """A model in pure form; weights are arguments of the compiled programs, so that nothing of them is folded in."""

    def __init__(self, apply: Callable[..., Any], params: Any, batch_stats: Any, dtype: str):
        self.params, self.batch_stats = jax.block_until_ready(jax.device_put((params, batch_stats)))
        self.dtype = jnp.dtype(dtype)
        self.optimizer = optax.sgd(LEARNING_RATE, momentum=MOMENTUM)
        self.forward = jax.jit(apply)

        def step(state: Any, x: jax.Array, labels: jax.Array) -> tuple[Any, jax.Array, jax.Array]:
            params, batch_stats, opt_state = state

            def loss_of(params: Any) -> tuple[jax.Array, Any]:
                logits, new = apply(params, batch_stats, x, train=True)
                losses = optax.softmax_cross_entropy_with_integer_labels(logits.astype(jnp.float32), labels)
                return losses.mean(), (logits, new)

            (loss, (logits, batch_stats)), grads = jax.value_and_grad(loss_of, has_aux=True)(params)
            updates, opt_state = self.optimizer.update(grads, opt_state, params)
            return (optax.apply_updates(params, updates), batch_stats, opt_state), loss, logits

        def start(params: Any, batch_stats: Any) -> Any:
            """The state before the first step: copies, since a step takes the memory of the state before it."""
            return *jax.tree.map(jnp.copy, (params, batch_stats)), self.optimizer.init(params)

        self.start, self.step = jax.jit(start), jax.jit(step, donate_argnums=0)

    def inference(self, images: np.ndarray) -> Call:
        batches = itertools.cycle([jnp.asarray(batch, self.dtype) for batch in images])

        def call() -> np.ndarray:
            logits = jax.block_until_ready(self.forward(self.params, self.batch_stats, next(batches)))
            return np.asarray(logits, np.float32)

        return call

    def training(self, images: np.ndarray, labels: np.ndarray) -> Call:
        batches = itertools.cycle(
            [(jnp.asarray(x, self.dtype), jnp.asarray(y, jnp.int32)) for x, y in zip(images, labels, strict=True)]
        )
        state = self.start(self.params, self.batch_stats)

        def call() -> np.ndarray:
            nonlocal state
            state, loss, logits = jax.block_until_ready(self.step(state, *next(batches)))
            float(loss)
            return np.asarray(logits, np.float32)

        return call

    def peak_bytes(self) -> int | None:
        """XLA's choosing between algorithms counts as well."""
        device = jax.devices()[0]
        return None if device.platform == 'cpu' else device.memory_stats()['peak_bytes_in_use']


def ours(subject: Subject, *, folded: bool = False, winograd: bool = False, **options: Any) -> Side:
    """Options are those of `create_model`; winograd is for a folded model."""
    model = tresnet_jax.create_model(subject.architecture, checkpoint=subject.weights, dtype=subject.dtype, **options)
    if folded:
        model = tresnet_jax.fold_batchnorm(model, winograd=winograd)
    return JaxSide(*tresnet_jax.functional(model), subject.dtype)
