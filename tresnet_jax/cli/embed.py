"""`embed.py`: pooled features of all images of a data set, in a folder."""

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path

import jax
import tqdm
import tyro

from tresnet_jax.cli.common import fail, parse
from tresnet_jax.cli.inputs import Flags, Subject, batches_of, prepare
from tresnet_jax.errors import TrainingError
from tresnet_jax.folding import fold_batchnorm
from tresnet_jax.models.base import functional
from tresnet_jax.training.devices import Hosts, replicate
from tresnet_jax.training.embedding import Shards, digest, embed, make_feature_step
from tresnet_jax.training.step import over_devices


@dataclasses.dataclass(frozen=True)
class Command:
    """Write pooled features of images to a folder; the same command again goes on where it was stopped.

    Exit codes: 0; 2, something is wrong with the flags, the data or the folder; 130, interrupted.
    """

    out: Path
    """The folder. What is there of the same model and data is kept."""
    flags: tyro.conf.OmitArgPrefixes[Flags]
    hosts: tyro.conf.OmitArgPrefixes[Hosts] = Hosts()
    shard_size: int = 16384
    """About how many images a file holds."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code; wrong usage and ``--help`` raise SystemExit."""
    command = parse(Command, arguments, default=Command(tyro.MISSING, Flags()))
    try:
        if command.shard_size < 1:
            raise TrainingError(f'--shard-size must be positive, got {command.shard_size}')
        subject = prepare(command.flags, command.hosts, split='train', num_classes=0, flat=True)
        print(run(command, subject))
    except ValueError as error:  # TrainingError, DataError, ConversionError, HubError: each one readable line
        return fail(error)
    except KeyboardInterrupt:
        print(f'interrupted; the same command goes on with {command.out}', file=sys.stderr)
        return 130
    return 0


def run(command: Command, subject: Subject) -> str:
    """Embed; returns a line on what was done.

    Raises:
        TrainingError, DataError, ConversionError: the folder or the data.
    """
    flags, source = command.flags, subject.source
    batches_each = max(1, command.shard_size // flags.batch_size)
    apply, *variables = functional(fold_batchnorm(subject.model))
    identity = {
        'model': subject.name,
        'weights_sha256': digest(variables),
        'dtype': subject.model.dtype.name,
        'data': source.name,
        'pictures': len(source),
        'class_names': source.class_names,
        'data_config': subject.data_config,
        'pictures_of_a_shard': batches_each * flags.batch_size,
    }
    shards = Shards(command.out, identity, -(-len(source) // flags.batch_size), batches_each)
    there = shards.open([source.describe(i) for i in range(len(source))])
    mean, std = subject.data_config['mean'], subject.data_config['std']
    silent = None if jax.process_index() == 0 else True  # None is: but on a terminal
    with tqdm.tqdm(total=shards.batches, unit=' batches', disable=silent) as bar:
        written = embed(
            over_devices(make_feature_step(apply, mean=mean, std=std, dtype=subject.dtype)),
            replicate(tuple(variables), subject.devices),
            batches_of(subject, flags, log=command.out / 'unreadable.log'),
            shards,
            there,
            tick=lambda done: bar.update(done - bar.n),
        )
    who = f'process {jax.process_index()} of {jax.process_count()}: ' if jax.process_count() > 1 else ''
    return (
        f'{who}{command.out}: features of {len(source):,} images in {shards.count} files, '
        f'{sum(there)} of which were there; now written: {written:,} images'
    )
