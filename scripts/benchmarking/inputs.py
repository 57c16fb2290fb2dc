"""Random inputs of the benchmarks."""

import numpy as np

from benchmarking.sides import CLASSES, Workload


def random_inputs(workload: Workload, what: str, batch: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Return seeded images (count, batch, H, W, 3) and labels (count, batch).

    Images for 'inference' are float32 and normalised (standard normal); images for 'train' are uint8, and each side
    normalises them in its step.
    """
    rng = np.random.default_rng(0)
    shape = (count, batch, workload.image_size, workload.image_size, 3)
    if what == 'inference':
        images = rng.standard_normal(shape, np.float32)
    else:
        images = rng.integers(0, 256, shape, np.uint8)
    return images, rng.integers(0, CLASSES, (count, batch))
