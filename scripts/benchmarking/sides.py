"""What every library under comparison is given, and what it has to provide."""

import dataclasses
from collections.abc import Callable
from typing import Protocol

import numpy as np

LEARNING_RATE, MOMENTUM = 0.001, 0.9  # of the training step
CLASSES = 1000


@dataclasses.dataclass(frozen=True)
class Subject:
    """What is run, the same for every contender.

    Attributes:
        architecture: its name.
        weights: a safetensors file of timm's names.
        image_size: edge of the square images in pixels.
        dtype: of the computation: float32, bfloat16, float16, or float64 in PyTorch.
        threads: of PyTorch; those of JAX are as many as the process may use cores.
    """

    architecture: str
    weights: str
    image_size: int
    dtype: str
    threads: int


Call = Callable[[], np.ndarray]


class Side(Protocol):
    """A loaded model of one contender.

    A call takes the next batch, from the first again behind the last, waits for everything it computes, and gives the
    logits (B, classes) as float32. Images are (batches, B, H, W, 3) float32, labels (batches, B) integers.
    """

    def inference(self, images: np.ndarray) -> Call: ...

    def training(self, images: np.ndarray, labels: np.ndarray) -> Call:
        """Calls are steps from the loaded weights on: forward in training mode, backward, SGD with momentum."""
        ...

    def peak_bytes(self) -> int | None:
        """The most that was allocated on the device at a time; None on a CPU."""
        ...
