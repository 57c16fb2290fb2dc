"""Training: data, augmentation, the step over devices, checkpoints, the loop. docs/training.md tells how it is used."""
