"""`explain.py`: show which parts of images support a class, with Grad-CAM."""

import dataclasses
import difflib
import functools
import sys
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from PIL import Image, ImageDraw

from tresnet_jax.cli.common import Progress, fail, parse, quiet_libraries
from tresnet_jax.cli.image_files import (
    ImageFileFlags,
    find_files,
    is_multilabel,
    load_classifier,
    run_on_files,
    with_values_of_run,
)
from tresnet_jax.cli.outputs import check_plot_folder, make_folder
from tresnet_jax.compilation_cache import use_compilation_cache
from tresnet_jax.data.images import load_image
from tresnet_jax.data.transforms import EvalTransform, create_transform, height_width, resolve_data_config
from tresnet_jax.errors import shown
from tresnet_jax.explaining import grad_cam, heat_map, overlay
from tresnet_jax.labels import class_names, class_synsets
from tresnet_jax.options import POSITIVE, flag
from tresnet_jax.plotting import colours, contact_sheet
from tresnet_jax.program_cache import cached_jit

SHEET = 'contact_sheet'
SHEET_IMAGES = 100
PANEL_INCHES = 3.2
PANEL_PIXELS = 320  # smaller images are enlarged


@dataclasses.dataclass(frozen=True)
class ExplainArguments(ImageFileFlags):
    """Show which parts of images support a class, with Grad-CAM.

    Writes one PNG file per image: the image with the part that the model sees, the heat map of each class, and the heat
    map over the image. With several images, contact_sheet.png shows the first 100.

    Exit codes: 0, all images are explained; 1, some could not be read; 2, nothing was done; 130, interrupted.
    """

    out: Path = tyro.MISSING
    """Folder of the PNG files, named like the images."""

    classes: Annotated[
        tuple[str, ...],
        tyro.conf.arg(name='class', metavar='CLASS', help_behavior_hint='(default: the likeliest of each image)'),
    ] = ()
    """Classes to explain: indices, names or synsets. Where names are numbers: name:7 or index:7."""

    topk: Annotated[int | None, POSITIVE, flag('N', '1')] = None
    """Number of classes to explain per image, the likeliest first."""

    image_size: Annotated[
        int | tuple[int, int] | None, POSITIVE, flag('PIXELS | HEIGHT WIDTH', 'that of the weights')
    ] = None
    """Edge of the square that the model sees in pixels, or its height and width."""

    layer: Literal['layer1', 'layer2', 'layer3', 'layer4'] = 'layer4'
    """Stage whose output is explained. Earlier ones have more pixels and say less about the class."""


class Explained(NamedTuple):
    """The classes of one image.

    Attributes:
        classes: (K,) indices.
        probabilities: (K,).
        maps: (K, h, w), of `grad_cam`.
    """

    classes: np.ndarray
    probabilities: np.ndarray
    maps: np.ndarray


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code. Wrong usage and ``--help`` raise SystemExit."""
    arguments = parse(ExplainArguments, argv)
    quiet_libraries()
    use_compilation_cache()
    with warnings.catch_warnings():
        warnings.filterwarnings('ignore', module=r'PIL\.')  # about large images and damaged metadata
        try:
            arguments = with_values_of_run(arguments)
            if arguments.classes and arguments.topk:
                raise ValueError('--class names the classes, and --topk counts the likeliest: give one of them')
            check_plot_folder('--out', arguments.out)
            paths = find_files(arguments)
            unread = _explain_all(arguments, load_classifier(arguments), paths)
            sys.stdout.flush()
        except (ValueError, OSError, KeyboardInterrupt) as error:
            return fail(error)
    return 1 if unread else 0


def explain(
    model: Any,
    transform: EvalTransform,
    paths: Sequence[Path],
    classes: Sequence[int] | int,
    *,
    layer: str,
    batch_size: int,
    max_value: float | None = None,
    multilabel: bool = False,
) -> Iterator[Explained | str]:
    """Yield the maps of each image in order, or one line that says why it cannot be read.

    Args:
        model: a classifier.
        transform: of `create_transform`.
        paths: image files.
        classes: the classes of every image, or how many of the likeliest of each.
        layer: the stage, as in `grad_cam`.
        batch_size: images per batch. Every batch has this size, padded if needed, so the model compiles once.
        max_value: white in grey images of more than 8 bits; see `load_image`.
        multilabel: an image has any number of classes, each with its own probability.
    """

    options = {'classes': classes if isinstance(classes, int) else tuple(classes), 'layer': layer}
    run = cached_jit(model, explained, **options, multilabel=multilabel)
    for found in run_on_files(run, transform, paths, batch_size, max_value):
        yield found if isinstance(found, str) else Explained(*found)


def explained(
    model: Any, images: jax.Array, *, classes: tuple[int, ...] | int, layer: str, multilabel: bool
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Return what `Explained` holds for each image of a batch; the arguments are those of `explain`."""
    logits = model(images).astype(jnp.float32)
    probabilities = jax.nn.sigmoid(logits) if multilabel else jax.nn.softmax(logits)
    if isinstance(classes, int):
        chosen = jax.lax.top_k(probabilities, classes)[1]  # equal ones in the order of the classes
    else:
        chosen = jnp.broadcast_to(jnp.asarray(classes)[None], (len(images), len(classes)))
    # The features are computed once: XLA finds the equal parts of both calls.
    return chosen, jnp.take_along_axis(probabilities, chosen, 1), grad_cam(model, images, chosen, layer=layer)


def find_class(text: str, names: Sequence[str] | None, synsets: Sequence[str] | None, num_classes: int) -> int:
    """Return the index of a class by its index, its name in any case, or its synset.

    'index:7' is the class of this index and 'name:7' that of this name, unless a class has the whole text as its name.

    Raises:
        ValueError: there is no such class, or there are several.
    """

    def by_name(name: str, *lists: Sequence[str] | None) -> set[int]:
        return {i for known in lists for i, other in enumerate(known or ()) if other.casefold() == name.casefold()}

    def by_index(digits: str) -> set[int]:
        return {int(digits)} if digits.isdecimal() and int(digits) < num_classes else set()

    found = by_index(text) | by_name(text, names, synsets)
    if not found and text.startswith('index:'):
        found = by_index(text.removeprefix('index:'))
    elif not found and text.startswith('name:'):
        found = by_name(text.removeprefix('name:'), names)
    if len(found) == 1:
        return found.pop()
    if found:
        ordered = sorted(found)
        listed = ' or '.join(f'{index} ({names[index]})' if names else str(index) for index in ordered)
        ways = ' or '.join(f'index:{index}' for index in ordered)
        raise ValueError(f'--class {shown(text)}: may be class {listed}; give {ways}')
    near = difflib.get_close_matches(text, names or (), 1)
    hint = f'; did you mean {near[0]!r}?' if near else ''
    kinds = 'a name, a synset or an index' if synsets else 'a name or an index' if names else 'an index'
    raise ValueError(f'--class {shown(text)}: expected {kinds} from 0 to {num_classes - 1}{hint}')


def file_names(paths: Sequence[Path], suffix: str = '.png', taken: Sequence[str] = ()) -> list[str]:
    """Return a file name for each path: its stem, with a number if another file has the same.

    Args:
        paths: files, of any folders.
        suffix: of the names.
        taken: stems that no file gets.

    Example:
        >>> file_names([Path('a/dog.jpg'), Path('b/Dog.png'), Path('cat.jpg')])
        ['dog.png', 'Dog_2.png', 'cat.png']
    """
    seen, names = {stem.casefold() for stem in taken}, []
    for path in paths:
        stem, number = path.stem, 1
        while stem.casefold() in seen:  # in any case, for file systems that ignore it
            number += 1
            stem = f'{path.stem}_{number}'
        seen.add(stem.casefold())
        names.append(stem + suffix)
    return names


def _explain_all(arguments: ExplainArguments, model: Any, paths: list[Path]) -> int:
    """Explain all images, write the PNG files and print their names. Return the number of unreadable images."""
    names, synsets = class_names(model), class_synsets(model)
    given = dict.fromkeys(find_class(text, names, synsets, model.num_classes) for text in arguments.classes)
    classes = list(given) or min(arguments.topk or 1, model.num_classes)
    data_config = resolve_data_config(model, use_test_size=arguments.test_size)
    if arguments.image_size is not None:
        data_config['input_size'] = (model.in_chans, *height_width(arguments.image_size, '--image-size'))
    transform = create_transform(**data_config)
    blank = np.zeros((1, transform.height, transform.width, model.in_chans), np.float32)
    shape = jax.eval_shape(functools.partial(grad_cam, layer=arguments.layer), model, blank).shape
    if shape[1:] == (1, 1):
        raise ValueError(
            f'--layer {arguments.layer}: its map has only one pixel for images of {transform.height} x '
            f'{transform.width}; give an earlier one'
        )
    files = [arguments.out / name for name in file_names(paths, taken=(SHEET,))]
    inputs = {path.resolve() for path in paths}
    if replaced := [file for file in files if file.resolve() in inputs]:
        raise ValueError(f'--out {arguments.out}: {replaced[0]} is an image to explain; give another folder')
    make_folder(arguments.out)
    thumbnails, captions, unread = [], [], 0
    with Progress(len(paths), 'images') as progress:
        outcomes = explain(
            model,
            transform,
            paths,
            classes,
            layer=arguments.layer,
            batch_size=arguments.batch_size,
            max_value=arguments.max_value,
            multilabel=is_multilabel(arguments, model),
        )
        for done, (path, file, outcome) in enumerate(zip(paths, files, outcomes, strict=True), 1):
            if isinstance(outcome, str):
                unread += 1
                progress.write(outcome, error=True)
            else:
                said = [
                    f'{names[index] if names else index} {probability:.4f}'
                    for index, probability in zip(outcome.classes, outcome.probabilities, strict=True)
                ]
                image = load_image(path, max_value=arguments.max_value)
                first = _draw(image, transform, outcome, said, arguments.layer, path, file)
                if len(thumbnails) < SHEET_IMAGES:
                    thumbnails.append(first)
                    captions.append(f'{shown(path.name)[:34]}\n{said[0]}')
                progress.write('\n'.join([f'{path} -> {file}', *(f'  {line}' for line in said)]))
            progress.update(done)
    if len(thumbnails) > 1:
        contact_sheet(thumbnails, captions, arguments.out / f'{SHEET}.png')
    return unread


def _draw(
    image: Image.Image,
    transform: EvalTransform,
    explained: Explained,
    said: Sequence[str],
    layer: str,
    path: Path,
    out: Path,
) -> Image.Image:
    """Write the PNG file of one image: a row for each class. Return the first overlay."""
    pixels = transform.crop_image(image)
    crop = Image.fromarray(pixels[..., 0] if transform.channels == 1 else pixels).convert('RGB')
    scale = max(1, PANEL_PIXELS // max(crop.size))
    crop = crop.resize((crop.width * scale, crop.height * scale), Image.Resampling.NEAREST)
    panels: list[Image.Image | None] = []
    captions: list[str] = []
    overlays = []
    for cam, text in zip(explained.maps, said, strict=True):
        heat = heat_map(cam, crop.height, crop.width)
        overlays.append(overlay(crop, heat))
        panels += [None if panels else _framed(image, transform), Image.fromarray(colours(heat)), overlays[-1]]
        captions += ['' if captions else shown(path.name)[:50], f'Grad-CAM of {layer}', text]
    contact_sheet(panels, captions, out, columns=3, inches=PANEL_INCHES)
    return overlays[0]


def _framed(image: Image.Image, transform: EvalTransform) -> Image.Image:
    """Return a copy of the image of at most 1000 pixels, with a frame around what the model sees."""
    box = transform.crop_box(*image.size)
    small = image.copy()
    small.thumbnail((1000, 1000))
    left, top, right, bottom = (edge * small.width / image.width for edge in box)
    width = max(1, round(max(small.size) / 150))
    draw = ImageDraw.Draw(small)
    draw.rectangle((left, top, right - 1, bottom - 1), outline='black', width=2 * width)  # visible on white
    draw.rectangle((left + width, top + width, right - 1 - width, bottom - 1 - width), outline='white', width=width)
    return small
