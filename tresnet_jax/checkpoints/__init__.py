"""Checkpoint files and training runs: read, named, matched with a model, written."""
