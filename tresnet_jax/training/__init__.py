"""Training: configuration, recipes, the training step, the loop, checkpoints and evaluation. See docs/training.md."""
