"""`train.py`: start or resume a training run."""

import argparse
import dataclasses
import inspect
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import jax
import tyro

from tresnet_jax.checkpoints.run import check_version, has_checkpoint
from tresnet_jax.cli.common import fail, parse, quiet_libraries
from tresnet_jax.cli.timm_flags import TRAIN, check_timm_flags
from tresnet_jax.data.transforms import for_channels, resolve_data_config
from tresnet_jax.errors import TrainingError, reason, shown
from tresnet_jax.factory import create_model
from tresnet_jax.hub.client import split_source
from tresnet_jax.options import as_flag, check_options, flag
from tresnet_jax.training.config import TrainConfig
from tresnet_jax.training.devices import set_up
from tresnet_jax.training.hosts import Hosts
from tresnet_jax.training.links import Links
from tresnet_jax.training.option_rules import replaced_details
from tresnet_jax.training.preprocessing import open_images, with_images_of
from tresnet_jax.training.provenance import load_provenance
from tresnet_jax.training.recipes import OTHER_NAMES, RECIPES, find_recipe, recipe
from tresnet_jax.training.run_config import ACCEPTABLE, CHANGEABLE, CONFIG_FILE, changed_options, load_config

if TYPE_CHECKING:
    from tresnet_jax.training.loop import Result

OUT_OF_MEMORY = 'RESOURCE_EXHAUSTED'  # in XLA's message
LESS_MEMORY = (
    'Try, in this order, --dtype bfloat16, --abn-memory, --remat, --accumulate 2 and a smaller --batch-size; if the '
    'run was evaluating, a smaller --val-batch-size'
)


@dataclasses.dataclass(frozen=True)
class TrainArguments:
    """Train or fine-tune a TResNet or ResNet-D, or resume a run.

    Exit codes: 0, the run finished, or it was interrupted and saved a checkpoint; 2, an error in the flags, the data
    or the folder; 130, interrupted twice or before the first step.
    """

    workdir: Path
    """Folder of the run. If it already holds a run, training resumes from its last checkpoint."""
    config: tyro.conf.OmitArgPrefixes[TrainConfig]
    hosts: tyro.conf.OmitArgPrefixes[Hosts] = Hosts()
    recipe: Annotated[str | None, flag('NAME', 'none')] = None
    """Recipe that sets the defaults of the other flags: the tag of published weights, or one of this package."""
    accept_changes: bool = False
    """Resume even if the data, its classes or its splits have changed, and record the changes in provenance.json."""
    print_config: bool = False
    """Print the resulting configuration as JSON and exit: with which values are those of the weights, and with --recipe
    which are published, and where."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code. Wrong usage and ``--help`` raise SystemExit."""
    links = Links()
    try:
        arguments = resolve_arguments(sys.argv[1:] if argv is None else argv)
        config = arguments.config
        check_options(arguments, TrainingError)
        if arguments.print_config:
            print(json.dumps(printed_config(config, arguments.recipe), indent=2, default=str))
            return 0
        x64 = config.dtype == 'float64'
        set_up(arguments.hosts, devices=config.devices, deterministic=config.deterministic, x64=x64, links=links)
        result = _train(arguments, links)
    except (ValueError, OSError, KeyboardInterrupt) as error:  # those of the library are ValueErrors of one line
        links.failed()
        return links.leave(fail(error))
    links.over()
    if result.finished:
        print(f'done: {arguments.workdir}; python -m convert {arguments.workdir} model.safetensors --to torch')
    return 0


def printed_config(config: TrainConfig, recipe: str | None) -> dict[str, Any]:
    """Return what --print-config prints: the configuration with the images of the weights, and where values come from.

    Args:
        config: the configuration.
        recipe: the recipe it began with; None: no recipe.

    Raises:
        ConversionError, HubError, ValueError: the model is unknown, or its weights state its images and cannot be read.
    """
    origin: dict[str, Any] = {'recipe': find_recipe(recipe).describe(config)} if recipe else {}
    if options := open_images(config):
        images: Any = config.model  # a row of the table describes its weights, which are not needed
        if config.checkpoint is not None or split_source(config.model):
            weights = {'pretrained': config.pretrained, 'checkpoint': config.checkpoint}
            images = create_model(config.model, **weights, in_chans=config.in_chans)
        data_config = resolve_data_config(images)
        config = with_images_of(config, for_channels(data_config, config.in_chans or data_config['input_size'][0]))
        origin['of_the_model'] = options
    return dataclasses.asdict(config) | origin


def _train(arguments: TrainArguments, links: Links) -> 'Result':
    """Train, and turn the errors of the system, of the devices and of the network into a TrainingError."""
    from tresnet_jax.training.loop import train  # slow to import, and not needed for --help
    from tresnet_jax.training.metrics import FREE

    quiet_libraries()
    try:
        return train(arguments.config, arguments.workdir, accept_changes=arguments.accept_changes)
    except BrokenPipeError:
        raise TrainingError('the reader of the log lines has gone; start the run again to resume it') from None
    except OSError as error:  # the folder is written in many places, and may be gone at any time
        file = arguments.workdir if error.filename is None else error.filename
        raise TrainingError(f'{shown(str(file))}: {reason(error)}. {FREE}') from error
    except MemoryError as error:
        raise TrainingError(f'this host has too little memory: {reason(error)}') from error
    except jax.errors.JaxRuntimeError as error:
        if OUT_OF_MEMORY in str(error):
            what = reason(error).rstrip('.')
            raise TrainingError(f'the devices have too little memory: {what}. {LESS_MEMORY}') from error
        if not links.connect:
            raise
        raise TrainingError(f'the processes of the run lost each other: {reason(error)}') from error


def resolve_arguments(argv: Sequence[str]) -> TrainArguments:
    """Parse a command line whose defaults are the configuration of the run, or else the recipe, or TrainConfig's.

    Raises:
        TrainingError: the recipe is unknown, the configuration of the run is damaged, a flag contradicts it, or a flag
            is timm's and has another name here.
        ConversionError: the run is of a newer release.
    """
    check_timm_flags(argv, TRAIN)
    early = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    early.add_argument('--recipe')
    early.add_argument('--workdir', type=Path)
    early.add_argument('--print-config', action='store_true')
    known, _ = early.parse_known_args(argv)
    if known.workdir:
        check_version(known.workdir)
    saved = load_config(known.workdir) if known.workdir and (known.workdir / CONFIG_FILE).exists() else None
    begun = saved is not None and has_checkpoint(known.workdir)
    if saved and not begun:  # a run that ended before its first checkpoint begins again, perhaps with other flags
        earlier = load_provenance(known.workdir)
        saved = dataclasses.replace(saved, **{name: None for name in (earlier.resolved if earlier else ())})
    base = recipe(known.recipe) if known.recipe else saved or TrainConfig()
    if saved and begun:  # a recipe does not take back what the run was resumed with
        base = dataclasses.replace(base, **{name: getattr(saved, name) for name in CHANGEABLE})
    arguments = parse(
        TrainArguments,
        argv,
        default=TrainArguments(workdir=Path() if known.print_config else tyro.MISSING, config=base),
        description=f'{inspect.getdoc(TrainArguments)}\n\nRecipes: {", ".join([*RECIPES, *OTHER_NAMES])}.',
        pairs=True,
    )
    if known.recipe:
        given = {token.partition('=')[0].removeprefix('--').removeprefix('no-').replace('-', '_') for token in argv}
        dropped = [name for name in replaced_details(arguments.config, base) if name not in given]
        defaults = {name: getattr(TrainConfig(), name) for name in dropped}
        arguments = dataclasses.replace(arguments, config=dataclasses.replace(arguments.config, **defaults))
    return dataclasses.replace(arguments, config=_resumed_config(arguments, saved)) if saved and begun else arguments


def _resumed_config(arguments: TrainArguments, saved: TrainConfig) -> TrainConfig:
    """Return the configuration used to resume a run: the saved one with the CHANGEABLE options of the command line.

    With --accept-changes also with the ACCEPTABLE ones.

    Raises:
        TrainingError: a flag contradicts the saved configuration.
    """
    free = (*CHANGEABLE, *(ACCEPTABLE if arguments.accept_changes else ()))
    changed = changed_options(saved, arguments.config, free)
    if changed:
        flags = ', '.join(as_flag(name, getattr(saved, name)) for name in changed)
        raise TrainingError(
            f'{arguments.workdir} holds a run with {flags}; to resume it, give --workdir alone; '
            'to start another run, give another --workdir'
            + ('; to continue with other data, add --accept-changes' if {*changed} <= {*ACCEPTABLE} else '')
        )
    return dataclasses.replace(saved, **{name: getattr(arguments.config, name) for name in free})
