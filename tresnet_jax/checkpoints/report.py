"""What a conversion did, for people."""

import dataclasses
from pathlib import Path
from typing import Any


def describe_images(data_config: dict[str, Any]) -> str:
    """How images are prepared, in one line for people."""
    _, height, width = data_config['input_size']
    values = [' '.join(f'{value:g}' for value in data_config[name]) for name in ('mean', 'std')]
    return (
        f'{height} x {width}, {data_config["interpolation"]}, crop {data_config["crop_pct"]:g}, '
        f'mean {values[0]}, std {values[1]}'
    )


@dataclasses.dataclass(frozen=True)
class Report:
    """What `to_flax` found and did.

    Attributes:
        path: the file.
        layout: 'timm', 'inplace_abn' or 'flax'.
        architecture, tag: what it is; the tag is None where nobody said.
        num_classes, in_chans: of the trees that were made.
        global_pool: 'catavgmax' where the classifier is twice as wide as the features, else None.
        abn_slope: of the leaky ReLUs it was trained with, where it is not timm's.
        data_config: how it wants its images, the arguments of `create_transform`, where a run said so.
        label_names: one a class of the file's, where a run said so.
        tensors: how many tensors went into the trees.
        parameters: how many numbers are parameters (running statistics not counted).
        notes: what the layout asked for, one line each.
        dropped: (key, why) of what did not go in.
        adapted: (key, how) of what was changed on the way.
        warnings: what looks wrong in the values, one line each.
        source_dtypes: timm key -> dtype in the file, of the tensors that went in.
        counters: timm key -> `num_batches_tracked`.
        seconds: how long it took.
    """

    path: Path
    layout: str
    architecture: str
    tag: str | None
    num_classes: int
    in_chans: int
    global_pool: str | None
    abn_slope: float | None
    data_config: dict[str, Any] | None
    label_names: tuple[str, ...] | None
    tensors: int
    parameters: int
    notes: tuple[str, ...]
    dropped: tuple[tuple[str, str], ...]
    adapted: tuple[tuple[str, str], ...]
    warnings: tuple[str, ...]
    source_dtypes: dict[str, str]
    counters: dict[str, int]
    seconds: float

    @property
    def name(self) -> str:
        return f'{self.architecture}.{self.tag}' if self.tag else self.architecture

    def __str__(self) -> str:
        dtypes = ', '.join(sorted(set(self.source_dtypes.values())))
        lines = [
            f'{self.path}: {self.layout} layout of {self.name}, {self.num_classes} classes, {self.in_chans} channels',
            f'  {self.tensors} tensors ({dtypes}), {self.parameters:,} parameters, '
            f'{len(self.counters)} counters of batch norm, {self.seconds:.2f} s',
            *(f'  {note}' for note in self.notes),
            *([f'  images: {describe_images(self.data_config)}'] if self.data_config else []),
            *(f'  dropped {key}: {why}' for key, why in self.dropped),
            *(f'  adapted {key}: {how}' for key, how in self.adapted),
        ]
        return '\n'.join(lines)
