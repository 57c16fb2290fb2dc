"""What a checkpoint file holds before its layout is known."""

import dataclasses
from pathlib import Path

import numpy as np

FLAX_FORMAT = 'tresnet_jax'  # the 'format' in the metadata of our own files
COUNTER = 'num_batches_tracked'


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """Raw tensors of one file, or of a training run.

    Attributes:
        path: where it came from.
        container: 'safetensors', 'torch', or 'run' for the folder of a training run of ours.
        tensors: name -> array of the stored shape and dtype (bfloat16 is ml_dtypes').
        metadata: what a safetensors header says, and a run's configuration likewise; empty for torch files.
        wrapper: the key the state dict was under ('state_dict_ema', 'state_dict', 'model', ...; 'ema' in a run); None
            for a bare one.
        has_ema: whether the file holds averaged weights.
        training: what a training script kept beside: epoch, metric, arch; of a run step and top1.
    """

    path: Path
    container: str
    tensors: dict[str, np.ndarray]
    metadata: dict[str, str]
    wrapper: str | None = None
    has_ema: bool = False
    training: dict[str, str | int | float] = dataclasses.field(default_factory=dict)
