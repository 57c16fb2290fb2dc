"""Classify images: class names and probabilities of each image, as text, JSON or a contact sheet.

    python scripts/predict.py dog.jpg --model resnet50d.ra2_in1k --checkpoint resnet50d.safetensors
    python scripts/predict.py photos/ --model tresnet_m --checkpoint tresnet_m.pth --json > out.json
    python scripts/predict.py tresnet_jax/embedded/pictures --model test_resnet.fashion_mnist --plot sheet.png

Images are preprocessed as the weights expect; ``--test-size`` uses the image size of the best published accuracy. An
unreadable image is named on standard error and skipped, and the exit code is then 1.
"""

import sys

from tresnet_jax.cli.start import predict

if __name__ == '__main__':
    sys.exit(predict())
