"""What training and inference cost on a GPU, from XLA's compiler alone: no GPU is needed.

    python scripts/gpu_report.py                                        # all of docs/gpu_report.md; hours
    python scripts/gpu_report.py --only 'infer resnet*'                 # a part of it, which is kept
    python scripts/gpu_report.py --diff earlier/gpu_report.json         # what changed
    python scripts/gpu_report.py --mode train --model tresnet_m --batch 128 --abn-memory inplace --json

Needs JAX's CUDA plugin, 6 GB that `make gpu-report` keeps in an environment of its own (``pip install
'tresnet_jax[cuda12,train]'``). docs/gpu_report.md says what the figures are.
"""

import sys

from gpu_reporting.command import main

if __name__ == '__main__':
    sys.exit(main())
