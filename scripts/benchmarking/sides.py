"""What every compared library is given, and what it must provide."""

import dataclasses
from collections.abc import Callable
from typing import Protocol

import numpy as np

from tresnet_jax.variants import IMAGENET

CLASSES = 1000
MEAN, STD = IMAGENET['mean'], IMAGENET['std']  # normalisation of the training images


@dataclasses.dataclass(frozen=True)
class Workload:
    """The model and the options of a benchmark, the same for every contender.

    Attributes:
        architecture: name of the architecture.
        weights: a safetensors file with timm's names.
        image_size: edge of the square images in pixels.
        dtype: compute dtype: float32, bfloat16, float16, or float64 in PyTorch.
        threads: threads of PyTorch. JAX uses as many as the process may use cores.
    """

    architecture: str
    weights: str
    image_size: int
    dtype: str
    threads: int


Call = Callable[[], np.ndarray]


class Training(Protocol):
    """A training run that starts from the loaded weights, with the options of `loop_step.CONFIG`."""

    def step(self) -> float:
        """Train on the next batch, wait for the result, and return the loss. After the last batch, start over."""
        ...

    def logits(self, images: np.ndarray) -> np.ndarray:
        """Return the current weights' logits (B, classes) float32 on (B, H, W, 3) uint8 images, in training mode."""
        ...


class Side(Protocol):
    """A loaded model of one contender. Inputs are those of `inputs.random_inputs`."""

    def inference(self, images: np.ndarray) -> Call:
        """Return a function that computes the logits (B, classes) float32 of the next batch and waits for them.

        After the last batch it starts over.
        """
        ...

    def training(self, images: np.ndarray, labels: np.ndarray) -> Training:
        """Start a training run on these batches."""
        ...

    def peak_bytes(self) -> int | None:
        """Return the peak memory allocated on the device; None on a CPU."""
        ...
