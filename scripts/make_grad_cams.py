"""Store maps of pytorch-grad-cam in ``tests/files/grad_cam.npz``; ``tests/parity/test_explaining.py`` reads them.

    python -m scripts.make_grad_cams

Run this by hand, with the package on PYTHONPATH; a folder for it keeps the environment as it is:

    pip install --no-deps --target CAM grad-cam==1.5.7 ttach opencv-python-headless

The networks are timm's, with the weights of the two embedded tags.
"""

import importlib
import importlib.metadata
from typing import Any

import numpy as np
import torch

import convert
import tresnet_jax
from convert.golden import timm_model
from tests.helpers.images import normal_images
from tests.helpers.models import EMBEDDED_TAGS
from tests.helpers.paths import FILES

TRUNKS = {'test_resnet': '', 'test_tresnet': 'body.'}
LAYERS = ('layer2', 'layer4')
CLASSES, SIZE = (3, 8, 3), (48, 72)


def main() -> None:
    """Run the package on both networks and store its maps at the images' size."""
    package = importlib.import_module('pytorch_grad_cam')
    output_target = importlib.import_module('pytorch_grad_cam.utils.model_targets').ClassifierOutputTarget
    stored: dict[str, Any] = {'version': np.array(importlib.metadata.version('grad-cam')), 'classes': np.array(CLASSES)}
    x = normal_images(len(CLASSES), *SIZE)
    for tag in EMBEDDED_TAGS:
        architecture = tag.partition('.')[0]
        network = timm_model(architecture, num_classes=10)
        weights = convert.to_torch(tresnet_jax.create_model(tag, pretrained=True))
        network.load_state_dict({name: torch.from_numpy(value) for name, value in weights.items()})
        for name in LAYERS:
            layer = network.get_submodule(f'{TRUNKS[architecture]}{name}')[-1]
            with package.GradCAM(model=network, target_layers=[layer]) as cam:
                targets = [output_target(index) for index in CLASSES]
                found = cam(input_tensor=torch.from_numpy(x.transpose(0, 3, 1, 2)), targets=targets)
            stored[f'{tag}.{name}'] = found
    np.savez_compressed(FILES / 'grad_cam.npz', **stored)


if __name__ == '__main__':
    main()
