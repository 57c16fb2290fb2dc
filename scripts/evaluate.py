"""Evaluate a model on labelled images: top-1 and top-5 with standard errors, compared with the published values.

    python scripts/evaluate.py --model resnet50d --pretrained --data tfds:imagenet2012 --split validation --check
    python scripts/evaluate.py --model resnet50d.a1_in1k --pretrained --data folder:imagenet/val --test-size
    python scripts/evaluate.py --model tresnet_m --checkpoint tresnet_m.pth --data folder:imagenet/val --json
    python scripts/evaluate.py --checkpoint RUN

Images are preprocessed as the weights expect; ``--test-size`` uses the image size of the best published accuracy.
The classes of ImageNet in TFDS are in the models' order. Folders named after WordNet synsets are matched to classes by
name, and may be a part of ImageNet. A run is evaluated on its own validation images. With ``--check`` the exit code is
1 if an accuracy differs from the published one by more than three standard errors, and 2 if none is published.
Several hosts: as for train.py.
"""

import sys

from tresnet_jax.cli.start import evaluate

if __name__ == '__main__':
    sys.exit(evaluate())
