"""The check of a GPU: parity, memory, speed, determinism, training and autotuning, measured on the device itself."""
