"""Train or fine-tune a TResNet or ResNet-D, or resume a run. See ``--help`` and docs/training.md.

python scripts/train.py --recipe finetune --model resnet50d --pretrained --data folder:photos --workdir RUN
python scripts/train.py --workdir RUN
"""

import sys

from tresnet_jax.cli.start import train

if __name__ == '__main__':
    sys.exit(train())
