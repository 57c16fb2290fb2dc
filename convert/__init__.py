"""PyTorch checkpoints of TResNet and ResNet-D into Flax, and back.

    checkpoint = convert.read('tresnet_m.pth')
    params, batch_stats, report = convert.to_flax(checkpoint, 'tresnet_m')
    state_dict = convert.to_torch(params, batch_stats)

On the command line: ``python -m convert SOURCE TARGET``.
"""

from convert.errors import ConversionError as ConversionError
from convert.params import to_flax as to_flax
from convert.params import to_torch as to_torch
from convert.read import Checkpoint as Checkpoint
from convert.read import read as read
from convert.report import Report as Report
from convert.write import save_flax as save_flax
from convert.write import save_torch as save_torch
