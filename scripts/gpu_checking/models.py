"""Models with seeded weights, which NumPy alone can draw again, and their training gradients."""

import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from benchmarking.command import draw_weights
from benchmarking.sides import CLASSES, Workload

import convert
from tresnet_jax.checkpoints.write import save_safetensors
from tresnet_jax.models.base import ImageModel
from tresnet_jax.models.build import build_model, fill
from tresnet_jax.models.functional import functional
from tresnet_jax.models.initializers import ShapesOnly

Gradients = dict[str, np.ndarray]  # by timm's names, in torch's layouts


@functools.cache
def seeded_trees(architecture: str) -> tuple[Any, Any]:
    """Return parameters and statistics, those of `benchmarking.command.draw_weights`, kept for the next call."""
    weights = convert.Checkpoint(Path(architecture), 'numpy', draw_weights(architecture), {})
    params, batch_stats, _ = convert.to_flax(weights, architecture)
    return params, batch_stats


def seeded_model(architecture: str, **options: Any) -> ImageModel:
    """Return a model of 1000 classes in evaluation mode; options as for `build_model`."""
    empty = build_model(architecture, num_classes=CLASSES, in_chans=3, rngs=ShapesOnly(), **options)
    return fill(empty, *seeded_trees(architecture))


def seeded_workload(folder: Path, architecture: str, image_size: int, dtype: str, threads: int) -> Workload:
    """Return a workload of the benchmark, with the weights in a file in `folder`."""
    path = folder / f'{architecture}.safetensors'
    if not path.exists():
        save_safetensors(path, draw_weights(architecture))
    return Workload(architecture, str(path), image_size, dtype, threads)


def gradients(model: ImageModel, images: np.ndarray, labels: np.ndarray) -> Gradients:
    """Return the gradient of the mean cross entropy in training mode.

    Args:
        model: the model; it computes in its own dtype.
        images: (B, H, W, 3), of the dtype of the parameters.
        labels: (B,) integers.
    """
    apply, params, batch_stats = functional(model)

    @jax.jit
    def gradient(params: Any, batch_stats: Any, x: jax.Array, y: jax.Array) -> Any:
        def loss(params: Any) -> jax.Array:
            logits, _ = apply(params, batch_stats, x, train=True)
            each = optax.softmax_cross_entropy_with_integer_labels(logits.astype(x.dtype), y)
            return each.mean()

        return jax.grad(loss)(params)

    return convert.to_torch(gradient(params, batch_stats, jnp.asarray(images), jnp.asarray(labels)))


def batch_of(count: int, image_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Return seeded images (count, S, S, 3), standard normal and float64, and labels (count,)."""
    rng = np.random.default_rng(0)
    return rng.standard_normal((count, image_size, image_size, 3)), rng.integers(0, CLASSES, count)


def distances(found: Gradients, exact: Gradients) -> dict[str, float]:
    """Return ||a - b|| / ||b|| of each tensor; it varies less than the largest error of a value.

    Raises:
        ValueError: the names differ.
    """
    if found.keys() != exact.keys():
        raise ValueError(f'gradients of {sorted(found.keys() ^ exact.keys())[:3]} are only on one side')
    wide = {name: value.astype(np.float64) for name, value in found.items()}
    return {name: float(np.linalg.norm(wide[name] - b) / np.linalg.norm(b)) for name, b in exact.items()}


def largest_distance(found: Gradients, exact: Gradients) -> float:
    """Return the largest of the `distances`, or NaN if one of them is."""
    return float(np.max([*distances(found, exact).values()]))
