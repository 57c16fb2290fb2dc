"""Benchmark inference, training, build, first call and memory, compared with timm in PyTorch and other JAX libraries.

    python scripts/benchmark.py --check --out benchmark
    python scripts/benchmark.py --models tresnet_m --what train memory --train-batch-sizes 64 --dtype bfloat16
    python scripts/benchmark.py --models resnet50d --contenders ours timm-eager --what inference --threads 1

All installed libraries take part (timm; jaxnn, jax-resnet and keras-hub with the architectures they support), with the
same weights and images. The training step of JAX models is that of the training loop; timm's side does the same work:
it normalises uint8 images, and uses the same optimiser, weight decay and label smoothing.

Inference and training take turns within each round in one process, and each call uses a different batch. first_call
includes compilation, without and with JAX's cache on disk. Memory, build and first_call are measured in new processes;
imports do not count.
"""

import sys

from benchmarking.command import main

if __name__ == '__main__':
    sys.exit(main())
