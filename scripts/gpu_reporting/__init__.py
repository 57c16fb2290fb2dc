"""What the programs for a GPU cost, from the compiler alone: memory, bytes moved, kernels. No GPU is needed."""
