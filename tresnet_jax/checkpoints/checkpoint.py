"""The content of a checkpoint before its tensors are renamed."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from tresnet_jax.checkpoints.layout import Layout
from tresnet_jax.formats import CHECKPOINT
from tresnet_jax.variants import CLASSIFICATION

FLAX_FORMAT = CHECKPOINT.name  # value of 'format' in the metadata of our own files
METRICS = {  # of runs, from 0 to 1, each with its title; one of them picks the best checkpoint
    'semantic_top1': 'semantic top-1', 'top1': 'top-1', 'top5': 'top-5', 'map': 'mAP', 'micro_f1': 'micro F1',
    'macro_f1': 'macro F1', 'sample_f1': 'sample F1',
}  # fmt: skip
COUNTER = 'num_batches_tracked'  # name of torch's counter of batches in a batch norm


@dataclasses.dataclass(frozen=True)
class Stated:
    """What a checkpoint states besides its tensors.

    Attributes:
        label_names: every list of class names that it has.
        data_config: how images are prepared, as arguments of `create_transform`; None if unknown.
        abn_slope: slope of the leaky ReLUs, from the classes of a pickled module; None: timm's, or unknown.
        global_pool, output_stride: options with which the network was trained; None: timm's, or unknown.
        settled_by: what excludes networks with the same tensors that compute another function; None: nothing does.
        task: what the outputs are, one of `variants.TASKS`; that of one class per image if it is unknown.
    """

    label_names: tuple[tuple[str, ...], ...] = ()
    data_config: dict[str, Any] | None = None
    abn_slope: float | None = None
    global_pool: str | None = None
    output_stride: int | None = None
    settled_by: str | None = None
    task: str = CLASSIFICATION


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """The tensors of one dictionary or module in a file, or those of a training run.

    Attributes:
        path: the file or folder.
        container: 'safetensors'; 'torch' for files of torch, NumPy and pickle; 'run' for the folder of a training run.
        tensors: name -> array with the stored shape and dtype (bfloat16 is ml_dtypes').
        metadata: the metadata in the header of a safetensors file; the same fields for a run; empty for others.
        wrapper: the keys that lead to the tensors ('state_dict_ema', 'ema.module', ...), or 'ema' for the moving
            average of a run; None for tensors at the top.
        has_ema: whether averaged weights are stored.
        training: further values stored by a training script: epoch, metric, arch; step and a metric for a run.
        layout: how the tensors of the network are named; None: timm's names, or our own.
        prefix: what precedes these names, without what wrappers of torch insert.
        networks: 'PATH:PREFIX, architecture, parameters' of each network in the file.
        notes: how the network was found, and what its tensors do not show, one line each.
        stated: what the checkpoint states besides its tensors.

    Example:
        >>> import pickle, tempfile, convert, tresnet_jax
        >>> model = tresnet_jax.create_model('test_resnet.fashion_mnist', pretrained=True)
        >>> with tempfile.NamedTemporaryFile(suffix='.pth') as file:
        ...     pickle.dump({'epoch': 3, 'state_dict': convert.to_torch(model)}, file)
        ...     file.flush()
        ...     checkpoint = convert.read(file.name)
        >>> checkpoint.wrapper, checkpoint.training['epoch'], checkpoint.networks
        ('state_dict', 3, ('state_dict, test_resnet, 373,658 parameters',))
    """

    path: Path
    container: str
    tensors: dict[str, np.ndarray]
    metadata: dict[str, str]
    wrapper: str | None = None
    has_ema: bool = False
    training: dict[str, str | int | float] = dataclasses.field(default_factory=dict)
    layout: Layout | None = None
    prefix: str = ''
    networks: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    stated: Stated = Stated()
