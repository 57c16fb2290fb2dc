"""Convert PyTorch checkpoints of TResNet and ResNet-D into Flax, and back.

    checkpoint = convert.read('tresnet_m.pth')
    params, batch_stats, report = convert.to_flax(checkpoint, 'tresnet_m')
    state_dict = convert.to_torch(params, batch_stats)

On the command line: ``python -m convert SOURCE TARGET``.
"""

from tresnet_jax.checkpoints.checkpoint import Checkpoint as Checkpoint
from tresnet_jax.checkpoints.match import to_flax as to_flax
from tresnet_jax.checkpoints.match import to_torch as to_torch
from tresnet_jax.checkpoints.report import Report as Report
from tresnet_jax.checkpoints.write import save_flax as save_flax
from tresnet_jax.checkpoints.write import save_torch as save_torch
from tresnet_jax.errors import ConversionError as ConversionError

from .reading import read as read
