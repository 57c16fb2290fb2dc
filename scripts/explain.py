"""Show which parts of images support a class, with Grad-CAM: one PNG file per image.

    python scripts/explain.py dog.jpg --model resnet50d.ra2_in1k --checkpoint resnet50d.safetensors --out maps
    python scripts/explain.py photos/ --model tresnet_m --checkpoint tresnet_m.pth --out maps --class Samoyed
    python scripts/explain.py tresnet_jax/embedded/pictures --model test_resnet.fashion_mnist --out maps --layer layer2

Images are preprocessed as the weights expect, and the heat map lies over what the model saw. An unreadable image is
named on standard error and skipped, and the exit code is then 1.
"""

import sys

from tresnet_jax.cli.start import explain

if __name__ == '__main__':
    sys.exit(explain())
