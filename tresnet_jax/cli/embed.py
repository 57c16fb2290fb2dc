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
from tresnet_jax.errors import TrainingError, amount
from tresnet_jax.folding import fold_batchnorm
from tresnet_jax.models.functional import functional
from tresnet_jax.options import POSITIVE, check_options
from tresnet_jax.training.devices import replicate
from tresnet_jax.training.embedding import Shards, digest, embed, make_feature_step
from tresnet_jax.training.hosts import Hosts
from tresnet_jax.training.step import over_devices


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


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code. Wrong usage and ``--help`` raise SystemExit."""
    arguments = parse(EmbedArguments, argv, default=EmbedArguments(tyro.MISSING, InputFlags()))
    quiet_libraries()
    try:
        check_options(arguments, TrainingError)
        inputs = load_inputs(arguments.flags, arguments.hosts, split='train', num_classes=0, unlabelled=True)
        print(write_features(arguments, inputs))
    except ValueError as error:  # the library's errors are ValueErrors of one readable line
        return fail(error)
    except KeyboardInterrupt:
        print(f'interrupted; to resume {arguments.out}, run the same command again', file=sys.stderr)
        return 130
    return 0


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
