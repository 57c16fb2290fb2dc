"""GPU cost of programs without a GPU: memory, bytes moved and kernels, from XLA's compiler."""
