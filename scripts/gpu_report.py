"""Cost of training and inference on a GPU, from XLA's compiler. No GPU is needed.

    python scripts/gpu_report.py                                        # all of docs/gpu_report.md; takes hours
    python scripts/gpu_report.py --only 'infer resnet*'                 # some of its rows, saved for the report
    python scripts/gpu_report.py --diff earlier/gpu_report.json         # changes since an earlier report
    python scripts/gpu_report.py --mode train --model tresnet_m --batch 128 --abn-memory inplace --json

Requires JAX's CUDA plugin (``pip install 'tresnet_jax[cuda12,train]'``). `make gpu-report` installs it, 6 GB, in a
separate environment. docs/gpu_report.md explains the figures.
"""

import sys

from gpu_reporting.command import main

if __name__ == '__main__':
    sys.exit(main())
