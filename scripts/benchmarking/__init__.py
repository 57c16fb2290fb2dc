"""Benchmarks of inference, training, start-up and memory, compared with timm in PyTorch and other JAX libraries."""
