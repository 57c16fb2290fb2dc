"""`embed.py`: write pooled features of all images of a data set to a folder."""

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import jax
import tyro

from tresnet_jax.cli.common import Progress, fail, parse, quiet_libraries
from tresnet_jax.cli.inputs import InputFlags, Inputs, input_batches, load_inputs
from tresnet_jax.cli.neighbours import write_sheet
from tresnet_jax.cli.outputs import check_plot
from tresnet_jax.data.images import load_image
from tresnet_jax.data.walk import find_images
from tresnet_jax.errors import TrainingError, amount
from tresnet_jax.folding import fold_batchnorm
from tresnet_jax.models.functional import functional
from tresnet_jax.options import POSITIVE, check_options, flag
from tresnet_jax.training.devices import replicate
from tresnet_jax.training.embedding import Shards, digest, embed, make_feature_step
from tresnet_jax.training.hosts import Hosts
from tresnet_jax.training.step import over_devices

NEIGHBOURS = 5


@dataclasses.dataclass(frozen=True)
class EmbedArguments:
    """Write pooled features of images to a folder. Run the same command again to resume.

    Standard error shows a progress bar on a terminal, and one line every 30 seconds elsewhere.

    Exit codes: 0; 2, an error in the flags, the data or the folder; 130, interrupted.
    """

    out: Path
    """Folder of the features. Finished files of the same model and data are kept."""
    flags: tyro.conf.OmitArgPrefixes[InputFlags]
    hosts: tyro.conf.OmitArgPrefixes[Hosts] = Hosts()
    shard_size: Annotated[int, POSITIVE] = 16384
    """Images per file, rounded down to whole batches, at least one batch."""
    sheet: Annotated[Path | None, flag('FILE.png', 'none')] = None
    """Also write a PNG file that shows images beside their nearest neighbours in the data, by cosine similarity."""
    neighbours: Annotated[int | None, POSITIVE, flag('K', '5')] = None
    """Neighbours of each image of --sheet."""
    query: Annotated[
        tuple[Path, ...], tyro.conf.arg(metavar='FILE', help_behavior_hint='(default: 8 images of the data)')
    ] = ()
    """Image files, and folders of them, whose neighbours --sheet shows."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code. Wrong usage and ``--help`` raise SystemExit."""
    arguments = parse(EmbedArguments, argv, default=EmbedArguments(tyro.MISSING, InputFlags()))
    quiet_libraries()
    try:
        check_options(arguments, TrainingError)
        queries = check_sheet(arguments)
        inputs = load_inputs(arguments.flags, arguments.hosts, split='train', num_classes=0, unlabelled=True)
        if arguments.sheet and jax.process_count() > 1:
            raise TrainingError('--sheet is for one process: leave it out, then run the command again with one')
        print(write_features(arguments, inputs))
        if arguments.sheet:
            print(write_sheet(arguments.sheet, arguments.out, inputs, queries, arguments.neighbours or NEIGHBOURS))
    except (ValueError, OSError) as error:  # those of the library are ValueErrors of one line
        return fail(error)
    except KeyboardInterrupt:
        print(f'interrupted; to resume {arguments.out}, run the same command again', file=sys.stderr)
        return 130
    return 0


def check_sheet(arguments: EmbedArguments) -> list[Path]:
    """Return the queries. Raises ValueError for what would otherwise fail after the work."""
    if arguments.sheet is None:
        if arguments.query or arguments.neighbours:
            raise TrainingError('--query and --neighbours are for --sheet FILE.png, which is not given')
        return []
    check_plot('--sheet', arguments.sheet, made=arguments.out)
    queries = find_images(arguments.query)
    for query in queries:
        load_image(query, max_value=arguments.flags.max_value)
    if arguments.query and not queries:
        raise TrainingError(f'--query: no images in {", ".join(map(str, arguments.query))}')
    return queries


def write_features(arguments: EmbedArguments, inputs: Inputs) -> str:
    """Write the missing shards and return a one-line summary.

    Raises:
        TrainingError: the folder holds features of another model or other data.
        DataError: the images cannot be read.
        ConversionError: a file cannot be written.
    """
    flags, source = arguments.flags, inputs.source
    batches_per_shard = max(1, arguments.shard_size // flags.batch_size)
    apply, *variables = functional(fold_batchnorm(inputs.model))
    identity = {
        'model': inputs.name,
        'weights_sha256': digest(variables),
        'dtype': inputs.model.dtype.name,
        'data': source.name,
        'pictures': len(source),
        'class_names': source.class_names,
        'data_config': inputs.data_config,
        'max_value': inputs.max_value,
        'pictures_of_a_shard': batches_per_shard * flags.batch_size,
    }
    shards = Shards(arguments.out, identity, -(-len(source) // flags.batch_size), batches_per_shard)
    finished = shards.open([source.describe(i) for i in range(len(source))])
    mean, std = inputs.data_config['mean'], inputs.data_config['std']
    with Progress(len(source), 'images', active=jax.process_index() == 0) as progress:
        written = embed(
            over_devices(make_feature_step(apply, mean=mean, std=std, dtype=inputs.dtype)),
            replicate(tuple(variables), inputs.devices),
            input_batches(inputs, flags, log=arguments.out / 'unreadable.log'),
            shards,
            finished,
            tick=lambda batches: progress.update(min(batches * flags.batch_size, len(source))),
        )
    process = f'process {jax.process_index()} of {jax.process_count()}: ' if jax.process_count() > 1 else ''
    return (
        f'{process}{arguments.out}: features of {amount(len(source), "image")} in {amount(shards.count, "file")}; '
        f'already there: {amount(sum(finished), "file")}; wrote features of {amount(written, "image")}'
    )
