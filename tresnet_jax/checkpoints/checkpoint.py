"""The content of a checkpoint before its layout is known."""

import dataclasses
from pathlib import Path

import numpy as np

FLAX_FORMAT = 'tresnet_jax'  # value of 'format' in the metadata of our own files
COUNTER = 'num_batches_tracked'  # name of torch's counter of batches in a batch norm


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """Raw tensors of one file, or of a training run.

    Attributes:
        path: the file or folder.
        container: 'safetensors', 'torch', or 'run' for the folder of a training run.
        tensors: name -> array with the stored shape and dtype (bfloat16 is ml_dtypes').
        metadata: the metadata in the header of a safetensors file; the same fields for a run; empty for torch files.
        wrapper: the key that held the state dict ('state_dict_ema', 'state_dict', 'model', ...), or 'ema' for the
            moving average of a run; None for a bare state dict.
        has_ema: whether averaged weights are stored.
        training: further values stored by a training script: epoch, metric, arch; step and top1 for a run.
    """

    path: Path
    container: str
    tensors: dict[str, np.ndarray]
    metadata: dict[str, str]
    wrapper: str | None = None
    has_ema: bool = False
    training: dict[str, str | int | float] = dataclasses.field(default_factory=dict)
