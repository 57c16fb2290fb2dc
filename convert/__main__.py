"""The command line of the converter: ``python -m convert``, or ``tresnet-jax-convert``.

python -m convert SOURCE TARGET [--verify]
python -m convert RUN TARGET --to torch [--step N]
python -m convert inspect FILE
python -m convert average RUN --output TARGET
python -m convert golden NAME TARGET
"""

import dataclasses
import importlib.util
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import ml_dtypes  # noqa: F401  teaches NumPy the name 'bfloat16'
import numpy as np
import tyro

from tresnet_jax.checkpoints.checkpoint import FLAX_FORMAT
from tresnet_jax.checkpoints.choose import SeveralNetworksError
from tresnet_jax.checkpoints.match import match, to_torch
from tresnet_jax.checkpoints.report import Report
from tresnet_jax.checkpoints.twins import UNSETTLED
from tresnet_jax.checkpoints.write import check_target, save_flax, save_torch
from tresnet_jax.cli.common import closed_output, fail, parse, quiet_libraries
from tresnet_jax.errors import ConversionError, MissingExtraError
from tresnet_jax.factory import embedded_path
from tresnet_jax.files import check_place, sha256
from tresnet_jax.models.base import ImageModel
from tresnet_jax.models.build import fill
from tresnet_jax.options import NOT_NEGATIVE, POSITIVE, check_options, flag
from tresnet_jax.variants import PRETRAINED, family_of, pretrained_config

from .average import average, choose
from .golden import write_golden
from .inspect import inspect
from .reading import read
from .verify import compare_with_stored, compare_with_timm, first_difference, plot_errors, reference_state


@dataclasses.dataclass(frozen=True)
class ConvertArguments:
    """Convert a checkpoint of a TResNet or ResNet-D between PyTorch (timm) and Flax."""

    source: Annotated[Path, tyro.conf.Positional, flag('SOURCE')]
    """A checkpoint file, the index or folder of several files, or a training run's folder."""

    target: Annotated[Path, tyro.conf.Positional, flag('TARGET')]
    """The file to write: .safetensors, or also .pth, .pt or .bin with --to torch."""

    model: Annotated[str | None, flag('NAME', 'found from the shapes')] = None
    """Architecture, with or without a tag, such as tresnet_m.miil_in1k."""

    to: Annotated[Literal['flax', 'torch'] | None, flag('{flax,torch}', 'the opposite of SOURCE')] = None
    """Layout to write."""

    num_classes: Annotated[int | None, NOT_NEGATIVE, flag('N', 'keep the classifier')] = None
    """Keep the classifier only if it has this number of classes."""

    drop_head: bool = False
    """Drop the classifier, whatever its kind."""

    ema: bool = True
    """Use the averaged weights of a training checkpoint if it has them, as timm does."""

    step: Annotated[int | Literal['best', 'latest'] | None, NOT_NEGATIVE, flag('N|best|latest', 'best')] = None
    """Checkpoint of a training run; best: the one with the best metric."""

    key: Annotated[str | None, flag('PATH[:PREFIX]', 'the best network, if there is only one')] = None
    """Network of a file that has several, as inspect lists them: state_dict:student."""

    abn_slope: Annotated[float | None, NOT_NEGATIVE, flag('SLOPE', "the one that SOURCE states, else timm's 1e-3")] = (
        None
    )
    """Slope of the leaky ReLUs in training, kept for loading: 1e-6 for the original second version."""

    verify: bool = False
    """Compare the result with timm's outputs, stage by stage, and write it only if they agree."""

    plot: Annotated[Path | None, flag('FILE', 'no chart')] = None
    """With --verify, also write a bar chart of the errors as PNG."""


@dataclasses.dataclass(frozen=True)
class InspectArguments:
    """Describe a checkpoint: layout, architecture, tag, classes, dtypes, digest."""

    file: Annotated[Path, tyro.conf.Positional, flag('FILE')]
    """A checkpoint file, the index or folder of several files, or a training run's folder."""

    key: Annotated[str | None, flag('PATH[:PREFIX]', 'the best network, if there is only one')] = None
    """Network of a file that has several."""

    json: bool = False
    """Print one JSON document."""


@dataclasses.dataclass(frozen=True)
class GoldenArguments:
    """Store timm's outputs for a seeded image in a small file, to check a port without torch."""

    name: Annotated[str, tyro.conf.Positional, flag('NAME')]
    """Architecture, with or without a tag."""

    target: Annotated[Path, tyro.conf.Positional, flag('TARGET')]
    """The .safetensors file to write."""

    checkpoint: Annotated[Path | None, flag('FILE', 'seeded weights, which NumPy alone can reproduce')] = None
    """Weights."""

    key: Annotated[str | None, flag('PATH[:PREFIX]', 'the best network, if there is only one')] = None
    """Network of a --checkpoint that has several, as inspect lists them."""

    image_size: int = 64
    """Height and width of the image."""

    seed: int = 0
    """Seed of the image and of seeded weights."""


@dataclasses.dataclass(frozen=True)
class AverageArguments:
    """Average the weights of several checkpoints: files, and the best checkpoints of training runs."""

    sources: Annotated[tuple[Path, ...], tyro.conf.Positional, flag('SOURCE ...')]
    """Checkpoint files, and folders of training runs."""

    output: Annotated[Path, flag('TARGET')]
    """The file to write: .safetensors, or also .pth, .pt or .bin with --to torch."""

    n: Annotated[int, POSITIVE, flag('N')] = 10
    """Number of checkpoints with the best metric, of all runs together."""

    steps: Annotated[tuple[int, ...], NOT_NEGATIVE, flag('STEP ...', 'the best')] = ()
    """Take these checkpoints of each run."""

    model: Annotated[str | None, flag('NAME', 'found from the shapes')] = None
    """Architecture, with or without a tag."""

    to: Literal['flax', 'torch'] = 'flax'
    """Layout to write."""

    ema: bool = True
    """Use the averaged weights of a training checkpoint if it has them, as timm does."""

    key: Annotated[str | None, flag('PATH[:PREFIX]', 'the best network, if there is only one')] = None
    """Network to take from each file, if the files have several, as inspect lists them."""


SUBCOMMANDS: Any = (
    Annotated[ConvertArguments, tyro.conf.subcommand('convert')]
    | Annotated[InspectArguments, tyro.conf.subcommand('inspect'), tyro.conf.FlagCreatePairsOff]
    | Annotated[AverageArguments, tyro.conf.subcommand('average')]
    | Annotated[GoldenArguments, tyro.conf.subcommand('golden')]
)
DESCRIPTION = """Convert checkpoints of TResNet and ResNet-D between PyTorch (timm) and Flax.

SOURCE TARGET alone means: convert SOURCE TARGET."""


def convert(arguments: ConvertArguments) -> None:
    """Read, convert and write a checkpoint, and print a report.

    Raises:
        ConversionError: the conversion failed; nothing is written.
        MissingExtraError: a chart was requested and Matplotlib is not installed; nothing is written.
    """
    start = time.monotonic()
    source, target = arguments.source, arguments.target
    if arguments.plot is not None and not arguments.verify:
        raise ConversionError('--plot shows the errors that --verify measures; give --verify too')
    if arguments.drop_head and arguments.num_classes:
        raise ConversionError('--drop-head and --num-classes contradict each other; give one of them')
    checkpoint = read(source, ema=arguments.ema, step=arguments.step, key=arguments.key)
    to = arguments.to or ('torch' if checkpoint.metadata.get('format') == FLAX_FORMAT else 'flax')
    check_target(target, to)
    if arguments.plot is not None:
        check_place(arguments.plot)
    model, params, batch_stats, report = match(
        checkpoint,
        arguments.model,
        num_classes=0 if arguments.drop_head else arguments.num_classes,
        abn_slope=arguments.abn_slope,
        consume=True,
        progress=True,
    )
    if arguments.verify:
        _verify(arguments, fill(model, params, batch_stats), report)
    if to == 'flax':
        save_flax(target, params, batch_stats, report, sha256(source))
    else:
        tensors = to_torch(params, batch_stats, num_batches_tracked=report.counters)
        # As in the PyTorch checkpoint: the same dtypes, and counters only if it had them.
        tensors = {
            key: value.astype(np.dtype(report.source_dtypes.get(key, value.dtype.name)), copy=False)
            for key, value in tensors.items()
            if key in report.source_dtypes or key in report.counters
        }
        save_torch(target, tensors)
    print(report)
    for warning in report.warnings:
        print(f'warning: {source}: {warning}', file=sys.stderr)
    if to == 'torch':
        _warn_of_options(target, report)
    size = target.stat().st_size / 1e6
    print(f'{target}: {to} layout, {size:.1f} MB, {time.monotonic() - start:.2f} s in total')


def _warn_of_options(target: Path, report: Report) -> None:
    """Warn that a file for torch, which holds tensors alone, lacks options of the network."""
    own, slope = family_of(report.architecture).default_slope, report.abn_slope
    options = {'global_pool': report.global_pool, 'output_stride': report.output_stride}
    given = ', '.join(f'{key}={value!r}' for key, value in options.items() if value is not None)
    if given:
        print(f'warning: {target}: give create_model {given}, which the file does not state', file=sys.stderr)
    if slope is not None and slope != own:
        print(
            f'warning: {target}: timm has no option for the slope {slope:g} and would take {own:g}; set negative_slope '
            'of all its LeakyReLUs',
            file=sys.stderr,
        )


def _average(arguments: AverageArguments) -> None:
    """Write the mean of checkpoints and print which they are.

    Raises:
        ConversionError: the checkpoints do not fit together; nothing is written.
    """
    check_target(arguments.output, arguments.to)
    parts = choose(arguments.sources, count=arguments.n, steps=arguments.steps)
    params, batch_stats, report = average(parts, model=arguments.model, ema=arguments.ema, key=arguments.key)
    if arguments.to == 'flax':
        save_flax(arguments.output, params, batch_stats, report)
    else:
        save_torch(arguments.output, to_torch(params, batch_stats, num_batches_tracked=report.counters))
        _warn_of_options(arguments.output, report)
    for part in parts:
        print(part)
    print(f'{arguments.output}: {arguments.to} layout, {report.name}, mean of {len(parts)} checkpoints')


def _inspect(arguments: InspectArguments) -> None:
    """Print the properties of a checkpoint, or the list of its networks if it has several.

    Raises:
        ConversionError: the checkpoint cannot be read, or its metadata is wrong.
    """
    try:
        inspection = inspect(arguments.file, key=arguments.key)
        print(inspection.to_json() if arguments.json else inspection)
    except SeveralNetworksError as error:
        document = {'path': str(arguments.file), 'networks': error.networks}
        print(json.dumps(document, indent=2) if arguments.json else error)


def _verify(arguments: ConvertArguments, model: ImageModel, report: Report) -> None:
    """Print the largest relative error of each stage.

    Raises:
        ConversionError: an error exceeds ten times float32's noise; the message names the first layer that differs.
        MissingExtraError: a chart was requested and Matplotlib is not installed.
    """
    config = PRETRAINED.get(report.name)
    model.pretrained_cfg = config or pretrained_config(report.architecture)
    state = None
    if importlib.util.find_spec('timm') is not None:
        source = read(arguments.source, ema=arguments.ema, step=arguments.step, key=arguments.key)
        state = reference_state(source, report)
        rows, reference = compare_with_timm(model, state), 'timm'
    elif config is not None and config.embedded:
        rows = compare_with_stored(model, embedded_path(config, 'golden.safetensors'))
        reference = "timm's stored outputs"
    else:
        raise ConversionError('--verify compares with timm itself; run: pip install timm torch torchvision')
    print(f'{arguments.source}: largest difference from {reference}, relative to the largest value')
    print('\n'.join(map(str, rows)))
    if any(note.startswith(UNSETTLED) for note in report.notes):
        print(f'{report.architecture} was assumed: a network with these tensors and another function would agree too')
    if arguments.plot is not None:
        plot_errors(rows, f'{report.name}: Flax against timm', arguments.plot)
    if not all(row.agrees for row in rows):
        first = first_difference(model, state) if state is not None else None
        where = f'; first difference at {first.name} (relative error {first.error:.1e})' if first else ''
        raise ConversionError(f'{arguments.source}: differs from {reference}{where}; nothing was written')


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Returns:
        The exit code: 0 on success; 2 on a failure, which standard error explains; 130 on Ctrl-C.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    if argv and argv[0] not in ('convert', 'inspect', 'average', 'golden', '-h', '--help'):
        argv.insert(0, 'convert')
    arguments = parse(SUBCOMMANDS, argv, description=DESCRIPTION, pairs=True)
    quiet_libraries()
    try:
        check_options(arguments, ConversionError)
        if isinstance(arguments, InspectArguments):
            _inspect(arguments)
        elif isinstance(arguments, AverageArguments):
            _average(arguments)
        elif isinstance(arguments, GoldenArguments):
            target = arguments.target
            write_golden(
                target,
                arguments.name,
                checkpoint=arguments.checkpoint,
                key=arguments.key,
                image_size=arguments.image_size,
                seed=arguments.seed,
            )
            print(f'{target}: {target.stat().st_size / 1e3:.0f} kB')
        else:
            convert(arguments)
    except (ConversionError, MissingExtraError, OSError, KeyboardInterrupt) as error:
        return fail(error)
    return 0


if __name__ == '__main__':
    with closed_output():
        raise SystemExit(main())
