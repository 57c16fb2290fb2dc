"""Stored gradients of two small networks in float64, to compare a GPU's with.

`make golden` writes the file again: ``python -m gpu_checking.stored_gradients``. A parity test compares it with timm.
"""

import json
import sys

import jax
import numpy as np
import safetensors

from gpu_checking.machine import ROOT
from gpu_checking.models import Gradients, batch_of, distances, gradients, seeded_model
from tresnet_jax.checkpoints.write import save_safetensors

PATH = ROOT / 'tests' / 'files' / 'gradients.safetensors'
NETWORKS = ('test_resnet', 'test_tresnet')
IMAGES, IMAGE_SIZE = 8, 64
KEPT = 32  # values of each tensor, evenly spread: the file is small, and a wrong gradient is wrong in most values


def sampled(found: Gradients) -> Gradients:
    """Return the values of each gradient that are stored, (KEPT,) or fewer."""
    places = {name: np.linspace(0, value.size - 1, min(value.size, KEPT)).astype(int) for name, value in found.items()}
    return {name: value.ravel()[places[name]] for name, value in found.items()}


def our_gradients(architecture: str, dtype: str) -> Gradients:
    """Return all gradients of a network in a compute dtype; float64 needs ``jax_enable_x64``."""
    images, labels = batch_of(IMAGES, IMAGE_SIZE)
    wide = dtype if dtype == 'float64' else 'float32'
    return gradients(seeded_model(architecture, dtype=dtype), images.astype(wide), labels.astype(np.int32))


def stored_gradients(architecture: str) -> tuple[Gradients, dict[str, float]]:
    """Return the stored values, and the errors that bfloat16 makes on a CPU, as `distances` returns them."""
    with safetensors.safe_open(PATH, framework='np') as file:
        noise = json.loads(file.metadata()['bfloat16_noise'])[architecture]
        names = [name for name in file.keys() if name.startswith(f'{architecture}/')]  # noqa: SIM118
        return {name.partition('/')[2]: file.get_tensor(name) for name in names}, noise


def write() -> None:
    """Compute the gradients on this machine's CPU and write the file."""
    found, noise = {}, {}
    for architecture in NETWORKS:
        with jax.enable_x64(True):
            exact = sampled(our_gradients(architecture, 'float64'))
        errors = distances(sampled(our_gradients(architecture, 'bfloat16')), exact)
        noise[architecture] = {name: float(f'{error:.3g}') for name, error in errors.items()}
        found |= {f'{architecture}/{name}': value for name, value in exact.items()}
    about = {'weights': 'seeded_weights(shapes, 0)', 'bfloat16_noise': json.dumps(noise), 'jax': jax.__version__}
    save_safetensors(PATH, found, about)


if __name__ == '__main__':
    sys.exit(write())
