"""Check this library on your GPU: parity, memory, speed, determinism, training, autotuning. Needs no network.

    python scripts/gpu_check.py                              # 10 minutes
    python scripts/gpu_check.py --quick                      # 2 minutes
    python scripts/gpu_check.py --full --compare OLD.json    # 40 minutes, and ratios to an earlier gpu_check.json
    python scripts/gpu_check.py --only speed --again
    JAX_PLATFORMS=cpu python scripts/gpu_check.py --quick    # a trial with small sizes, without a GPU

`make gpu-check` does the same on a machine that has only a driver. docs/gpu_check.md explains the results.
"""

import sys

try:
    from gpu_checking.command import main
except ModuleNotFoundError as missing:
    print(f"error: {missing.name} is not installed: pip install -e '.[train]', or run make gpu-check", file=sys.stderr)
    sys.exit(2)

if __name__ == '__main__':
    sys.exit(main())
