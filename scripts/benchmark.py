"""Inference, training step, build, first call and memory, beside timm in PyTorch and other JAX libraries.

    python scripts/benchmark.py --check --out benchmark
    python scripts/benchmark.py --models tresnet_m --what train memory --train-batch-sizes 64 --dtype bfloat16
    python scripts/benchmark.py --models resnet50d --contenders ours timm-eager --what inference --threads 1

All that are installed take part (timm; jaxnn, jax-resnet and keras-hub with the architectures they have), with the
same weights and images. Inference and training take turns within each round of one process, and every call is of
another batch than the one before. The first call compiles, without and with JAX's cache on disk. Memory, and
everything that is cold, is measured in processes of their own; imports are not counted.
"""

import sys

from benchmarking.command import main

if __name__ == '__main__':
    sys.exit(main())
