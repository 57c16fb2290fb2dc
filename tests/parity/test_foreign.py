"""Outputs of other libraries' ResNet-Ds, stored by `scripts/make_foreign_outputs.py`, against timm's network.

The seeded weights are drawn under the library's names, renamed by our layouts and loaded into timm's class, which is
compared with our models elsewhere. PaddleClas, PaddleDetection, PaddleSeg and RT-DETR's own repository are not run:
`tests/convert/test_foreign.py` compares their key lists alone.
"""

from typing import Any

import numpy as np
import pytest
import torch
from timm.models.resnet import Bottleneck, ResNet

from convert.comparison import relative_error
from convert.foreign import LAYOUTS
from tests.helpers.foreign import BY_NAME, SIZES, images, kept, small_weights, stored_outputs
from tests.helpers.reference import timm_outputs
from tresnet_jax.checkpoints.find import find

RUN = [name for name in BY_NAME if stored_outputs(name) is not None]
TOLERANCE = 1e-12  # relative to the largest value; two orders of summation differ by some 1e-15


def test_libraries_that_were_run() -> None:
    """The stored files are those of the libraries that can be installed without compiling."""
    assert RUN == ['mmpretrain', 'mmdetection', 'transformers RT-DETR', 'fastai 2', 'fastai 1']


@pytest.mark.parametrize('library', RUN)
def test_outputs(library: str) -> None:
    """Stage maps and logits agree in float64 at even and odd sizes."""
    (network,) = find(small_weights(library), LAYOUTS)
    state = {key: torch.from_numpy(np.array(tensor.numpy())) for key, tensor in network.tensors.items()}
    classes = len(state['fc.bias']) if 'fc.bias' in state else 0
    block: Any = Bottleneck
    model = ResNet(block, (2, 1, 1, 1), classes, stem_width=32, stem_type='deep', avg_down=True)
    counters = {key: value for key, value in model.state_dict().items() if key.endswith('num_batches_tracked')}
    assert counters.keys() == network.counters.keys()
    model.load_state_dict(state | counters, strict=True)
    model.double().eval()
    stored = stored_outputs(library)
    assert stored is not None and len(stored) == len(SIZES) * (5 if classes else 4)
    assert min(np.ptp(value) for value in stored.values()) > 0.1
    for size in SIZES:
        with torch.no_grad():
            outputs = timm_outputs(model, torch.from_numpy(images(size)))
        for name, value in outputs.items():
            if f'{size}.{name}' in stored:
                assert relative_error(kept(value.numpy()), stored[f'{size}.{name}']) < TOLERANCE, (size, name)
