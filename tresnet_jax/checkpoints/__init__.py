"""Checkpoint files and training runs: read, rename, match with a model, write."""
