"""The command line of the converter.

python -m convert SOURCE TARGET [--verify]
python -m convert RUN TARGET --to torch [--step N]
python -m convert inspect FILE
python -m convert golden NAME TARGET
"""

import dataclasses
import importlib.util
import sys
import time
from pathlib import Path
from typing import Literal

import ml_dtypes  # noqa: F401  teaches NumPy the name 'bfloat16'
import numpy as np
import tyro

from convert.golden import seeded_weights, timm_model, write_golden
from convert.inspect import inspect
from convert.verify import compare_with_stored, compare_with_timm, first_difference, plot_errors, reference_state
from tresnet_jax.checkpoints.match import match, to_torch
from tresnet_jax.checkpoints.read import read
from tresnet_jax.checkpoints.report import Report
from tresnet_jax.checkpoints.write import save_flax, save_torch
from tresnet_jax.cli.common import fail
from tresnet_jax.errors import ConversionError
from tresnet_jax.factory import embedded_path
from tresnet_jax.files import sha256
from tresnet_jax.models.base import ImageModel
from tresnet_jax.models.build import build_model, fill
from tresnet_jax.variants import PRETRAINED, pretrained_config, split_name


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Convert a checkpoint of a TResNet or ResNet-D between PyTorch (timm) and Flax."""

    source: tyro.conf.Positional[Path]
    """A .safetensors or torch file with timm's names, a file this command wrote, or the folder of a training run."""

    target: tyro.conf.Positional[Path]
    """The file to write: .safetensors, or .pth with --to torch."""

    model: str | None = None
    """Architecture, with or without a tag, such as tresnet_m.miil_in1k; found from the shapes when left out."""

    to: Literal['flax', 'torch'] | None = None
    """What to write; the other side of what SOURCE is when left out."""

    num_classes: int | None = None
    """Keep the classifier if it has this many classes, and leave it out if not."""

    drop_head: bool = False
    """Leave the classifier out, of whatever kind it is."""

    ema: bool = True
    """Of a training checkpoint take the averaged weights where it has them, as timm does."""

    step: int | Literal['best', 'latest'] | None = None
    """Of a training run: which checkpoint; the one with the best top-1 when left out."""

    abn_slope: float | None = None
    """The slope of the leaky ReLUs it was trained with, kept for loading: 1e-6 for the original second version."""

    verify: bool = False
    """Hold the result against timm, stage by stage, before anything is written; without timm against the outputs
    that come with an embedded tag."""

    plot: Path | None = None
    """With --verify: a bar chart of the errors, as PNG."""


def convert(arguments: Arguments) -> None:
    """Read, convert, write, and print what was done.

    Raises:
        ConversionError: anything that stopped it; nothing is written then.
    """
    start = time.monotonic()
    source, target = arguments.source, arguments.target
    if arguments.drop_head and arguments.num_classes:
        raise ConversionError('--drop-head and --num-classes contradict each other')
    shapes, params, batch_stats, report = match(
        read(source, ema=arguments.ema, step=arguments.step),
        arguments.model,
        0 if arguments.drop_head else arguments.num_classes,
        None,
        arguments.abn_slope,
        build_model,
        consume=True,
        progress=True,
    )
    if arguments.verify:
        verify(arguments, fill(shapes, params, batch_stats), report)
    to = arguments.to or ('torch' if report.layout == 'flax' else 'flax')
    if to == 'flax':
        save_flax(target, params, batch_stats, report, sha256(source))
    else:
        tensors = to_torch(params, batch_stats, num_batches_tracked=report.counters)
        # As the PyTorch checkpoint had them: the same dtypes, and no counters where it had none.
        tensors = {
            key: value.astype(np.dtype(report.source_dtypes.get(key, value.dtype.name)), copy=False)
            for key, value in tensors.items()
            if key in report.source_dtypes or key in report.counters
        }
        save_torch(target, tensors)
    print(report)
    for warning in report.warnings:
        print(f'warning: {source}: {warning}', file=sys.stderr)
    size = target.stat().st_size / 1e6
    print(f'{target}: {to} layout, {size:.1f} MB, {time.monotonic() - start:.2f} s in all')


def verify(arguments: Arguments, model: ImageModel, report: Report) -> None:
    """Print the largest relative error of each stage.

    Raises:
        ConversionError: one is beyond ten times float32's noise; the message names the layer where it begins.
    """
    config = PRETRAINED.get(report.name)
    model.pretrained_cfg = config or pretrained_config(report.architecture)
    state = None
    if importlib.util.find_spec('timm') is not None:
        state = reference_state(read(arguments.source, ema=arguments.ema, step=arguments.step), report)
        rows, against = compare_with_timm(model, state), 'timm'
    elif config is not None and config.embedded:
        rows, against = compare_with_stored(model, embedded_path(config, 'golden.safetensors')), "timm's stored outputs"
    else:
        raise ConversionError('--verify compares with timm itself: pip install timm torch torchvision')
    print(f'{arguments.source}: largest difference from {against}, relative to the largest value')
    print('\n'.join(map(str, rows)))
    if arguments.plot is not None:
        plot_errors(rows, f'{report.name}: Flax against timm', arguments.plot)
    if not all(row.agrees for row in rows):
        first = first_difference(model, state) if state is not None else None
        where = f'; they part at {first.name} (relative error {first.error:.1e})' if first else ''
        raise ConversionError(f'{arguments.source}: differs from {against}{where}; nothing was written')


@dataclasses.dataclass(frozen=True)
class InspectArguments:
    """What a checkpoint is: layout, architecture, tag, classes, dtypes, digest."""

    file: tyro.conf.Positional[Path]
    """A .safetensors or torch file, or the folder of a training run."""

    json: bool = False
    """Print one JSON document."""


@dataclasses.dataclass(frozen=True)
class GoldenArguments:
    """Store seeded images and timm's outputs on them in a small file, for checking a port without torch."""

    name: tyro.conf.Positional[str]
    """Architecture, with or without a tag."""

    target: tyro.conf.Positional[Path]
    """The .safetensors file to write."""

    checkpoint: Path | None = None
    """timm's weights; seeded ones that NumPy can draw again when left out."""

    image_size: int = 64
    """Height and width of the images."""

    seed: int = 0
    """Of the images, and of the weights where none are given."""


def golden(arguments: GoldenArguments) -> None:
    """Write a file of stored outputs.

    Raises:
        ConversionError: timm is missing, or something cannot be read or written.
    """
    if arguments.checkpoint is not None:
        _, params, batch_stats, report = match(
            read(arguments.checkpoint), arguments.name, None, None, None, build_model, consume=True
        )
        state = to_torch(params, batch_stats, num_batches_tracked=report.counters)
        weights = sha256(arguments.checkpoint)
    else:
        try:
            architecture, _ = split_name(arguments.name)
        except ValueError as error:
            raise ConversionError(str(error)) from error
        shapes = {key: tuple(value.shape) for key, value in timm_model(architecture).state_dict().items()}
        state, weights = seeded_weights(shapes, arguments.seed), f'seeded_weights(shapes, {arguments.seed})'
    write_golden(
        arguments.target, arguments.name, state, image_size=arguments.image_size, seed=arguments.seed, weights=weights
    )
    print(f'{arguments.target}: {arguments.target.stat().st_size / 1e3:.0f} kB')


def main(argv: list[str] | None = None) -> int:
    """Exit code 0, or 2 when a message on standard error says why not."""
    argv = sys.argv[1:] if argv is None else argv
    config = (tyro.conf.FlagCreatePairsOff,)
    try:
        if argv[:1] == ['inspect']:
            asked = tyro.cli(InspectArguments, args=argv[1:], prog='python -m convert inspect', config=config)
            inspection = inspect(asked.file)
            print(inspection.to_json() if asked.json else inspection)
        elif argv[:1] == ['golden']:
            golden(tyro.cli(GoldenArguments, args=argv[1:], prog='python -m convert golden'))
        else:
            convert(tyro.cli(Arguments, args=argv, prog='python -m convert', description=Arguments.__doc__))
    except ConversionError as error:
        return fail(error)
    return 0


if __name__ == '__main__':
    raise SystemExit(main())
