"""Store outputs of other libraries' ResNet-Ds in ``tests/files/foreign``; ``tests/parity/test_foreign.py`` reads them.

    python -m scripts.make_foreign_outputs LIBRARY

LIBRARY is 'transformers RT-DETR', 'fastai 2', 'fastai 1', mmpretrain or mmdetection. Run this by hand, once for each
library, with the library on PYTHONPATH. A folder for each keeps the environment as it is:

    pip install --no-deps --target HF transformers==5.24.0 tokenizers regex 'huggingface_hub<2' httpx httpcore h11 \\
        anyio idna certifi typer
    pip install --no-deps --target FASTAI fastai==2.8.12 fastcore fastprogress==1.0.3 fasttransform plum-dispatch \\
        beartype pandas pytz python-dateutil tzdata six fastdownload scikit-learn joblib threadpoolctl narwhals \\
        cloudpickle
    pip install --no-deps --target FASTAI1 fastai==1.0.61 fastprogress==1.0.3 pandas pytz python-dateutil tzdata six \\
        numexpr bottleneck nvidia-ml-py 'setuptools<80'
    pip install --no-deps --target MM mmpretrain==1.2.0 mmsegmentation==1.2.2 mmengine==0.10.7 mmcv-lite==2.1.0 \\
        addict yapf platformdirs einops ordered-set 'importlib_metadata<9' zipp mat4py model-index ftfy regex \\
        prettytable wcwidth markdown click opencv-python-headless

The small instance of each library has bottleneck blocks, 2, 1, 1 and 1 in the stages. Its seeded weights are loaded
with ``strict=True``, so that the stored list of keys is shown to be the library's. It runs in float64. 512 values of
each output are stored; the maps of mmdetection are those of mmsegmentation, which has the same names and code.
"""

import importlib
import sys
import unittest.mock
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from tests.helpers.foreign import FOLDER, SIZES, images, kept, small_weights

LAYERS = (2, 1, 1, 1)
CLASSES = 10
Outputs = dict[str, torch.Tensor]
Network = tuple[torch.nn.Module, str, Callable[[torch.Tensor], Outputs]]  # the model, the prefix of its names, its run


def transformers_rt_detr() -> Network:
    """Return the backbone of RT-DETR in transformers."""
    transformers = importlib.import_module('transformers')
    network = importlib.import_module('transformers.models.rt_detr.modeling_rt_detr_resnet')
    stages = [f'stage{number}' for number in range(1, 5)]
    config = transformers.RTDetrResNetConfig(depths=list(LAYERS), layer_type='bottleneck', out_features=stages)
    model = network.RTDetrResNetBackbone(config)
    return model, 'model.backbone.model.', lambda x: _maps(model(x).feature_maps)


def fastai_2() -> Network:
    """Return fastai 2's XResNet."""
    block = importlib.import_module('fastai.layers').ResBlock
    model = importlib.import_module('fastai.vision.models.xresnet').XResNet(block, 4, LAYERS, n_out=CLASSES)
    return model, '', lambda x: _sequential(model, x)


def fastai_1() -> Network:
    """Return fastai 1's XResNet."""
    model = importlib.import_module('fastai.vision.models.xresnet').XResNet(4, LAYERS, c_out=CLASSES)
    return model, '', lambda x: _sequential(model, x)


def mmpretrain() -> Network:
    """Return mmpretrain's ResNetV1d."""
    return _small_v1d('mmpretrain')


def mmdetection() -> Network:
    """Return mmsegmentation's ResNetV1d, whose stem is named like mmdetection's."""
    sys.modules['mmcv.ops'] = unittest.mock.MagicMock()  # compiled operations, which a ResNet does not call
    return _small_v1d('mmseg')


def _small_v1d(package: str) -> Network:
    """Return a ResNetV1d of OpenMMLab, whose number of blocks is an attribute of the class."""
    module = importlib.import_module(f'{package}.models.backbones.resnet')
    small = type('Small', (module.ResNetV1d,), {'arch_settings': {50: (module.Bottleneck, LAYERS)}})
    model = small(depth=50, out_indices=(0, 1, 2, 3))
    return model, 'backbone.', lambda x: _maps(model(x))


def _maps(maps: Any) -> Outputs:
    return {f'features.{number}': value for number, value in enumerate(maps, 1)}


def _sequential(model: Any, x: torch.Tensor) -> Outputs:
    """Run fastai's Sequential, whose children 4 to 7 are the stages."""
    outputs = {}
    for number, child in enumerate(model.children()):
        x = child(x)
        if 4 <= number <= 7:
            outputs[f'features.{number - 3}'] = x.clone()
    return outputs | {'logits': x}


LIBRARIES = {
    'transformers RT-DETR': transformers_rt_detr,
    'fastai 2': fastai_2,
    'fastai 1': fastai_1,
    'mmpretrain': mmpretrain,
    'mmdetection': mmdetection,
}


def main() -> None:
    """Run one library and store its outputs."""
    if len(sys.argv) != 2 or sys.argv[1] not in LIBRARIES:
        raise SystemExit(f'give one library: {", ".join(LIBRARIES)}')
    library = sys.argv[1]
    model, prefix, run = LIBRARIES[library]()
    weights = {name.removeprefix(prefix): torch.from_numpy(value) for name, value in small_weights(library).items()}
    model.load_state_dict(weights, strict=True)
    model.double().eval()
    stored: dict[str, Any] = {}
    with torch.no_grad():
        for size in SIZES:
            outputs = run(torch.from_numpy(images(size)))
            stored |= {f'{size}.{name}': kept(value.numpy()) for name, value in outputs.items()}
    path = FOLDER / f'{library.replace(" ", "_")}.npz'
    np.savez_compressed(path, **stored)
    print(f'{path}: {len(stored)} outputs, {path.stat().st_size / 1e3:.0f} kB')


if __name__ == '__main__':
    main()
