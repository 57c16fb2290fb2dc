"""Human-readable report of a conversion."""

import dataclasses
from pathlib import Path
from typing import Any

from tresnet_jax.checkpoints.records import printable
from tresnet_jax.errors import amount
from tresnet_jax.variants import MULTILABEL

MOST_DROPPED_LINES = 12


def describe_images(data_config: dict[str, Any]) -> str:
    """Return one line on how images are prepared; takes arguments of `create_transform`."""
    _, height, width = data_config['input_size']
    values = [' '.join(f'{value:g}' for value in data_config[name]) for name in ('mean', 'std')]
    mode = '' if data_config['crop_mode'] == 'center' else f' ({data_config["crop_mode"]})'
    return (
        f'{height} x {width}, {data_config["interpolation"]}, crop {data_config["crop_pct"]:g}{mode}, '
        f'mean {values[0]}, std {values[1]}'
    )


@dataclasses.dataclass(frozen=True)
class Report:
    """The findings and changes of `to_flax`.

    Attributes:
        path: the file, or the folder of a run.
        layout: the name of the layout: 'timm', 'inplace_abn', 'PaddleClas', ...; 'flax' for a file of ours.
        architecture: what the checkpoint is.
        tag: its tag; None if neither the caller nor the file names one.
        num_classes: number of classes of the resulting trees.
        in_chans: channels of the images of the resulting trees.
        head_options: arguments of `create_model` that describe an ML-Decoder head; empty for a linear layer.
        head_in_file: the head of the file, 'linear' or 'ml_decoder', and its classes, whether it is kept or not.
        global_pool: 'catavgmax' if the classifier is twice as wide as the features, else the pooling with which the
            network was trained; None: timm's, or unknown.
        output_stride: the one with which the network was trained; None: 32, or unknown.
        abn_slope: slope of the leaky ReLUs that the weights were trained with; None: timm's, or unknown.
        data_config: how images are prepared, as arguments of `create_transform`; None unless a run states it.
        label_names: one per class of the file; None unless a run states them.
        task: 'classification', one class per image, or if the file states it 'multilabel', any number.
        tensors: number of tensors in the trees.
        parameters: number of parameters, without running statistics.
        notes: changes that the layout required, one line each.
        dropped: (key, why) of each tensor left out.
        adapted: (key, how) of each tensor that was changed.
        warnings: suspicious values, one line each.
        source_dtypes: timm key -> dtype in the file, for each converted tensor.
        counters: timm key -> `num_batches_tracked`.
        seconds: duration of the conversion.

    Example:
        >>> import convert
        >>> from tresnet_jax.factory import embedded_path
        >>> from tresnet_jax.variants import PRETRAINED
        >>> checkpoint = convert.read(embedded_path(PRETRAINED['test_tresnet.fashion_mnist']))
        >>> _, _, report = convert.to_flax(checkpoint)
        >>> report.layout, report.name, report.num_classes, report.source_dtypes['head.fc.weight']
        ('timm', 'test_tresnet', 10, 'float16')
    """

    path: Path
    layout: str
    architecture: str
    tag: str | None
    num_classes: int
    head_options: dict[str, Any]
    head_in_file: tuple[str, int]
    in_chans: int
    global_pool: str | None
    output_stride: int | None
    abn_slope: float | None
    data_config: dict[str, Any] | None
    label_names: tuple[str, ...] | None
    task: str
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
        """Architecture and tag, or the architecture alone."""
        return f'{self.architecture}.{self.tag}' if self.tag else self.architecture

    def _dropped_lines(self) -> list[str]:
        """Return a line for each dropped tensor, or one for all if they are many."""
        if len(self.dropped) <= MOST_DROPPED_LINES:
            return [f'  dropped {printable(key)}: {why}' for key, why in self.dropped]
        reasons = '; '.join(dict.fromkeys(why for _, why in self.dropped))
        return [f'  dropped {len(self.dropped)} tensors: {reasons}']

    def __str__(self) -> str:
        dtypes = ', '.join(sorted(set(self.source_dtypes.values())))
        head = ' (ML-Decoder)' if self.head_options else ''
        lines = [
            f'{self.path}: {self.layout} layout of {self.name}, {amount(self.num_classes, "class", "classes")}{head}, '
            f'{amount(self.in_chans, "channel")}',
            f'  {self.tensors} tensors ({dtypes}), {self.parameters:,} parameters, '
            f'{len(self.counters)} counters of batch norm, {self.seconds:.2f} s',
            *(f'  {note}' for note in self.notes),
            *([f'  images: {describe_images(self.data_config)}'] if self.data_config else []),
            *(['  any number of classes per image'] if self.task == MULTILABEL else []),
            *self._dropped_lines(),
            *(f'  adapted {key}: {how}' for key, how in self.adapted),
        ]
        return '\n'.join(lines)
