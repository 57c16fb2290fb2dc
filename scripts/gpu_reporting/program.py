"""The description of one program of the report."""

import dataclasses
from typing import Any, Literal

from tresnet_jax.variants import split_name

Figures = dict[str, Any]  # as returned by `measure.measure`


@dataclasses.dataclass(frozen=True)
class Program:
    """A training step or a prediction of one model, for one device.

    Attributes:
        mode: 'train' for a training step, 'infer' for a prediction.
        model: an architecture name; the model has 1000 classes.
        batch: number of images.
        image_size: edge of the images in pixels.
        dtype: compute dtype; parameters are float32.
        abn_memory, remat: as for `create_model`; training only.
        fold: fold batch norm into the convolutions; inference only.
        device: a key of `DEVICES`.
        roomy: describe the device with ten times its memory. XLA recomputes parts of programs that need more than
            about three quarters of the memory; this measures what a program needs without that.
    """

    mode: Literal['train', 'infer']
    model: str
    batch: int
    image_size: int = 224
    dtype: str = 'bfloat16'
    abn_memory: str = 'plain'
    remat: bool = False
    fold: bool = True
    device: str = 'h100'
    roomy: bool = False

    @property
    def name(self) -> str:
        """Its name within a report, where batch, size and dtype are the same for all programs of a mode."""
        if self.mode == 'train':
            return f'train {self.model} {self.abn_memory}' + ' remat' * self.remat
        return f'infer {self.model}' + ' unfolded' * (not self.fold)

    def check(self) -> None:
        """Raise ValueError for a program that cannot be compiled, as far as this is known without the model."""
        split_name(self.model)
        if self.batch < 1 or self.image_size < 1:
            raise ValueError(f'--batch and --image-size must be positive, got {self.batch} and {self.image_size}')
        if self.mode == 'infer' and (self.abn_memory != 'plain' or self.remat):
            raise ValueError('--abn-memory and --remat are for --mode train: they choose what is kept for gradients')
        if self.mode == 'train' and not self.fold:
            raise ValueError('--no-fold is for --mode infer: training never folds batch norm')
