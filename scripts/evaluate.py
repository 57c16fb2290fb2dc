"""Evaluate a model on labelled images: top-1 and top-5 with standard errors, beside the published figures.

    python scripts/evaluate.py --model resnet50d --pretrained --data tfds:imagenet2012 --split validation --check
    python scripts/evaluate.py --model resnet50d.a1_in1k --pretrained --data folder:imagenet/val --test-size
    python scripts/evaluate.py --model tresnet_m --checkpoint tresnet_m.pth --data folder:imagenet/val --json
    python scripts/evaluate.py --checkpoint RUN

Images are prepared as the weights expect them, ``--test-size`` at the size that the best published accuracy was
measured with. ImageNet in TFDS has its classes in the models' order; folders that are called by WordNet synsets are
found by name, and may be a part of ImageNet. A run is evaluated on its own validation images. With ``--check`` the
exit code is 1 where a figure differs from the published one by more than three standard errors, and 2 where nothing
is published. Several hosts: as for train.py.
"""

import sys

from tresnet_jax.cli.start import evaluate

if __name__ == '__main__':
    sys.exit(evaluate())
