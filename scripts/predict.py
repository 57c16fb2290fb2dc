"""Classify images: class names and probabilities of each, as text, JSON or a contact sheet.

    python scripts/predict.py dog.jpg --model resnet50d.ra2_in1k --checkpoint resnet50d.safetensors
    python scripts/predict.py photos/ --model tresnet_m --checkpoint tresnet_m.pth --json > out.json
    python scripts/predict.py tresnet_jax/embedded/pictures --model test_resnet.fashion_mnist --plot sheet.png

Images are prepared as the weights expect them; ``--test-size`` takes the size that the best published
accuracy was measured with. An image that cannot be read is named on standard error and skipped, and the exit
code is then 1.
"""

from tresnet_jax.cli.start import predict

if __name__ == '__main__':
    raise SystemExit(predict())
