"""`convert.read`: the reader of `tresnet_jax.checkpoints`, with the layouts of other libraries too."""

from pathlib import Path
from typing import Literal

from tresnet_jax.checkpoints import read as reader
from tresnet_jax.checkpoints.checkpoint import Checkpoint

from .foreign import LAYOUTS


def read(
    path: str | Path,
    *,
    ema: bool = True,
    step: int | Literal['best', 'latest'] | None = None,
    key: str | None = None,
) -> Checkpoint:
    """Read the network in a checkpoint: a file, files with an index, or the folder of a training run.

    Files are those of safetensors, torch (modules and TorchScript included), pickle and NumPy; torch is not needed.
    Reading a training run needs Orbax.

    Args:
        path: the file, the index of several files, or the folder of either or of a training run.
        ema: use the averaged weights of a training checkpoint if it has them, as timm does.
        step: the checkpoint of a run: a step, 'latest', or 'best' for the best metric. None: 'best'.
        key: the network of a file with several: the keys that lead to it, joined by dots, and after a colon the prefix
            of its names ('state_dict', 'state_dict:student', ':encoder_q'). None: the best one, if there is only one.

    Raises:
        ConversionError: the file is missing, empty, truncated, corrupt or of another kind, holds no tensors, or holds
            several networks, of which `key` must name one; or its configuration says that it is another network; Orbax
            is needed and not installed; the folder is not a run, or the run has no such checkpoint.

    Example:
        >>> import convert
        >>> from tresnet_jax.factory import embedded_path
        >>> from tresnet_jax.variants import PRETRAINED
        >>> checkpoint = convert.read(embedded_path(PRETRAINED['test_resnet.fashion_mnist']))
        >>> checkpoint.container, len(checkpoint.tensors)
        ('safetensors', 92)
        >>> checkpoint.tensors['fc.weight'].dtype, checkpoint.tensors['fc.weight'].shape
        (dtype('float16'), (10, 96))
    """
    return reader.read(path, ema=ema, step=step, key=key, layouts=LAYOUTS)
