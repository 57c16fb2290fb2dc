"""`train.py`: from the command line to a run."""

import argparse
import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import tyro

from tresnet_jax.cli.common import fail
from tresnet_jax.errors import TrainingError
from tresnet_jax.training.config import CHANGEABLE, CONFIG_FILE, RESOLVED, TrainConfig, load_config
from tresnet_jax.training.devices import Hosts, set_up
from tresnet_jax.training.recipes import RECIPES, recipe


@dataclasses.dataclass(frozen=True)
class Command:
    """Train a TResNet or ResNet-D, or go on with a run."""

    workdir: Path
    """Folder of the run. One that holds a run is gone on with, from its last checkpoint."""
    config: tyro.conf.OmitArgPrefixes[TrainConfig]
    hosts: tyro.conf.OmitArgPrefixes[Hosts] = Hosts()
    recipe: str | None = None
    """Defaults by name."""
    print_config: bool = False
    """Show the configuration that all this makes, and stop."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code: 0 also when interrupted and saved, 2 for what the user can mend."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    try:
        command = parse(arguments)
        if command.print_config:
            print(json.dumps(dataclasses.asdict(command.config), indent=2, default=str))
            return 0
        config = command.config
        set_up(command.hosts, devices=config.devices, deterministic=config.deterministic, x64=config.dtype == 'float64')
        from tresnet_jax.training.loop import train

        result = train(config, command.workdir)
    except ValueError as error:  # TrainingError, DataError, ConversionError, HubError: each one readable line
        return fail(error)
    if result.finished:
        print(f'done: {command.workdir}; python -m convert {command.workdir} model.safetensors --to torch')
    return 0


def parse(arguments: Sequence[str]) -> Command:
    """The command line over the run's own configuration, or the recipe's, or plain defaults.

    Raises:
        TrainingError: an unknown recipe, or a flag that would make another run of this one.
    """
    early = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    early.add_argument('--recipe')
    early.add_argument('--workdir', type=Path)
    known, _ = early.parse_known_args(arguments)
    saved = load_config(known.workdir) if known.workdir and (known.workdir / CONFIG_FILE).exists() else None
    base = recipe(known.recipe) if known.recipe else saved or TrainConfig()
    command = tyro.cli(
        Command,
        args=arguments,
        default=Command(workdir=tyro.MISSING, config=base),
        description=f'{Command.__doc__}\n\nRecipes: {", ".join(RECIPES)}.',
    )
    return command if saved is None else dataclasses.replace(command, config=_gone_on(command, saved))


def _gone_on(command: Command, saved: TrainConfig) -> TrainConfig:
    """The configuration that a run goes on with.

    Raises:
        TrainingError: a flag that would make another run of this one.
    """
    before, asked = dataclasses.asdict(saved), dataclasses.asdict(command.config)
    changed = [
        name
        for name, value in before.items()
        if asked[name] != value and name not in CHANGEABLE and not (name in RESOLVED and asked[name] is None)
    ]
    if changed:
        flags = ', '.join(f'--{name.replace("_", "-")} {before[name]}' for name in changed)
        raise TrainingError(
            f'{command.workdir} holds a run with {flags}; to go on with it: python scripts/train.py --workdir '
            f'{command.workdir}; to train anew, give another --workdir'
        )
    return dataclasses.replace(saved, **{name: asked[name] for name in CHANGEABLE})
