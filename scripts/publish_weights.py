"""Convert pretrained weights to Flax, check them, and write one folder per tag that is ready for the hub.

    python scripts/publish_weights.py WEIGHTS --org NAME --out published
    python scripts/publish_weights.py WEIGHTS --org NAME --out published --data tfds:imagenet2012 --data-dir DATA

WEIGHTS holds one checkpoint or folder per tag, named after it: `resnet50d.a1_in1k.safetensors`, or
`resnet50d.a1_in1k/` with timm's files. Each is converted, compared with timm stage by stage (which needs torch and
timm), and, if --data is given, evaluated against the published accuracies. Then OUT/TAG holds `model.safetensors` in
Flax layout, `config.json` and a model card. `create_model('local-dir:OUT/TAG', pretrained=True)` loads it.
"""

import dataclasses
import json
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Annotated

import tyro

import tresnet_jax
from convert import __main__ as converter
from tresnet_jax.checkpoints.config_file import CONFIG
from tresnet_jax.checkpoints.shards import FOLDER_FILES
from tresnet_jax.cli import evaluate
from tresnet_jax.cli.common import fail, parse
from tresnet_jax.errors import ConversionError, HubError, reason
from tresnet_jax.files import save_text, sha256
from tresnet_jax.hub.config import to_config
from tresnet_jax.hub.model_card import describe, render
from tresnet_jax.hub.upload import CARD
from tresnet_jax.variants import PRETRAINED

SUFFIXES = ('.safetensors', '.pth', '.pt', '.bin')
LAYOUT = (
    'The weights are in Flax layout; `python -m convert model.safetensors timm.safetensors --to torch` gives them '
    "under timm's names."
)


@dataclasses.dataclass(frozen=True)
class PublishArguments:
    """Convert pretrained weights to Flax, check them, and write one folder per tag that is ready for the hub."""

    weights: Annotated[Path, tyro.conf.Positional]
    """Folder with one checkpoint or folder per tag, named after it."""
    org: str
    """The user or organisation on the hub, for the model cards."""
    out: Path
    """Folder for the results, one folder per tag."""
    verify: bool = True
    """Compare with timm, stage by stage."""
    data: str | None = None
    """Evaluate on this data and compare with the published accuracies; see evaluate.py."""
    data_dir: Path | None = None
    """Folder of the data, see evaluate.py."""
    val_split: str = 'validation'
    """The split to evaluate on."""


def sources(folder: Path) -> dict[str, Path]:
    """Return the checkpoint of each tag in a folder, by tag.

    Raises:
        ConversionError: the folder cannot be read or holds no tag, or a tag twice.
    """
    found: dict[str, Path] = {}
    try:
        paths = sorted(folder.iterdir())
    except OSError as error:
        raise ConversionError(f'{folder}: cannot be read: {reason(error)}') from None
    for path in paths:
        suffix = next((suffix for suffix in SUFFIXES if path.name.endswith(suffix)), '')
        tag = path.name if path.is_dir() else path.name.removesuffix(suffix)
        if tag not in PRETRAINED:
            continue
        if tag in found:
            raise ConversionError(f'{folder}: has {found[tag].name} and {path.name}; keep one of them')
        found[tag] = path
    if not found:
        raise ConversionError(f'{folder}: holds no file or folder that is named after a tag, such as resnet50d.a1_in1k')
    return found


def publish(tag: str, source: Path, arguments: PublishArguments) -> None:
    """Write the folder of one tag; it appears when it is complete.

    Raises:
        ConversionError: the checkpoint cannot be converted, or differs from timm or from the published accuracies.
    """
    target, repository = arguments.out / tag, f'{arguments.org}/{tag}'
    if target.exists():
        raise ConversionError(f'{target}: exists already; remove it, or give another --out')
    arguments.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=arguments.out, prefix='.') as temporary:
        folder = Path(temporary) / tag
        folder.mkdir()
        weights = folder / FOLDER_FILES[0]
        verify = ['--verify'] if arguments.verify else []
        if converter.main([str(source), str(weights), '--model', tag, '--to', 'flax', *verify]):
            raise ConversionError(f'{source}: {tag} was not published')
        figures = {} if arguments.data is None else {'Evaluated': _evaluate(tag, weights, arguments)}
        model = tresnet_jax.create_model(tag, checkpoint=weights)
        model.pretrained_cfg = PRETRAINED[tag]
        save_text(folder / CONFIG, json.dumps(to_config(model), indent=2) + '\n')
        card = describe(model, repository, pretrained=True)
        card['description'] += f' {LAYOUT}'
        origin = {'Source': tag if PRETRAINED[tag].embedded else f'https://huggingface.co/timm/{tag}'}
        card['details'] |= figures | origin | {'SHA-256 of model.safetensors': sha256(weights)}
        save_text(folder / CARD, render(card, tag))
        tresnet_jax.create_model(f'local-dir:{folder}', pretrained=True)
        shutil.move(folder, target)
    print(f'{target}: ready. huggingface_hub.upload_folder(repo_id={repository!r}, folder_path={str(target)!r})')


def _evaluate(tag: str, weights: Path, arguments: PublishArguments) -> str:
    """Evaluate converted weights and return a sentence for the model card.

    Raises:
        ConversionError: the accuracies differ from the published ones, or the data cannot be read.
    """
    flags = [
        '--model',
        tag,
        '--checkpoint',
        str(weights),
        '--data',
        str(arguments.data),
        '--split',
        arguments.val_split,
    ]
    if arguments.data_dir is not None:
        flags += ['--data-dir', str(arguments.data_dir)]
    if evaluate.main([*flags, '--check']):
        raise ConversionError(
            f'{tag}: does not have the published accuracies on {arguments.data}, so it was not published'
        )
    return f'top-1 and top-5 agree with the published accuracies on {arguments.data}, {arguments.val_split}'


def main(argv: list[str] | None = None) -> int:
    """Publish every tag that is found. Return the exit code."""
    arguments = parse(PublishArguments, argv, description=__doc__, pairs=True)
    try:
        found = sources(arguments.weights)
        for tag, source in found.items():
            publish(tag, source, arguments)
    except (ConversionError, HubError, OSError, KeyboardInterrupt) as error:
        return fail(error)
    print(f'{len(found)} of {len(PRETRAINED)} tags are in {arguments.out}')
    return 0


if __name__ == '__main__':
    sys.exit(main())
