"""Write docs/models/table.md: every tag, from the tables of the library.

    python scripts/make_model_table.py

Nothing on the page is typed by hand; tests/scripts/test_make_model_table.py compares it with the library.
"""

import functools
from collections.abc import Iterable
from pathlib import Path

import tyro
from markdown_table import table

import tresnet_jax
from tresnet_jax.files import written_beside
from tresnet_jax.models.build import build_model
from tresnet_jax.models.initializers import ShapesOnly
from tresnet_jax.profiling import Profile
from tresnet_jax.training.recipes import RECIPES
from tresnet_jax.variants import IMAGENET, PRETRAINED, UNIT, PretrainedConfig

PAGE = Path(__file__).parents[1] / 'docs' / 'models' / 'table.md'

HEAD = """---
html_theme.sidebar_secondary.remove: true
---

# Every tag

`python scripts/make_model_table.py` writes this page from the tables of the library and from `tresnet_jax.profile`.

## Images and accuracy

`create_model(tag, pretrained=True)` loads the weights, and `resolve_data_config(tag)` returns the preprocessing.
*Image* is the edge in pixels, and the share of the resized image that the crop keeps; *test* is the same for the
best published accuracy, if it differs (`use_test_size=True`). *Top-1* and *top-5* are timm's published accuracies
in percent on ImageNet's validation split, with the edge of the images; those of the two `fashion_mnist` tags are
this package's own, on Fashion-MNIST's test images.

"""

COST = """
## Cost and recipe

The cost of one image of the tag's size. *GMACs* are billions of multiply-accumulates of the convolutions and the
linear layer. *Card FLOPs* are counted as on timm's model cards, on the image that the cards used
([why they differ](resnet_d.md#what-the-flops-of-the-card-count)). `train.py --recipe TAG` trains with the recipe.

"""

ELSEWHERE = """
## Other test sets

timm's published top-1 accuracies in percent; `evaluate.py --published` [compares with them](../howto/evaluate.md).

"""


@functools.cache
def cost(architecture: str, classes: int, size: tuple[int, int]) -> Profile:
    """Return the profile of an architecture with this many classes, for images of this size."""
    model = build_model(architecture, num_classes=classes, in_chans=3, rngs=ShapesOnly())
    return tresnet_jax.profile(model, size)


def image_cells(row: PretrainedConfig) -> list[str]:
    """Return the cells about the images and the accuracy of a tag."""
    test = ''
    if row.test_input_size:
        test = f'{_edge(row.test_input_size[1:])}, {row.test_crop_pct or row.crop_pct:g}'
    return [
        f'`{row.name}`',
        f'{row.num_classes:,}',
        f'{_edge(row.input_size[1:])}, {row.crop_pct:g}',
        test,
        row.interpolation,
        _normalisation(row),
        _accuracies((value.size, value.top1) for value in row.accuracies),
        _accuracies((value.size, value.top5) for value in row.accuracies),
    ]


def cost_cells(row: PretrainedConfig) -> list[str]:
    """Return the cells about the cost and the recipe of a tag."""
    true = cost(row.architecture, row.num_classes, row.input_size[1:])
    card_size = tresnet_jax.card_image_size(row.name)
    card = cost(row.architecture, row.num_classes, card_size)
    recipe = RECIPES['fashion_mnist' if row.embedded else row.name]
    return [
        f'`{row.name}`',
        f'{true.parameters:,}',
        f'{true.macs / 1e9:.3f}',
        f'{card.card_flops:,} ({_edge(card_size)})',
        recipe.summary,
    ]


def other_rows(row: PretrainedConfig) -> list[list[str]]:
    """Return one row of cells for each size at which a tag has accuracies on other test sets."""
    published = {name: dict((value.size, value.top1) for value in row.published(name)) for name in TEST_NAMES}
    sizes = sorted({size for values in published.values() for size in values})
    return [[f'`{row.name}`', str(size), *(f'{published[name][size]:.2f}' for name in TEST_NAMES)] for size in sizes]


TEST_NAMES = ('imagenet-real', 'imagenet-v2', 'imagenet-sketch', 'imagenet-a', 'imagenet-r')


def _edge(size: Iterable[int]) -> str:
    height, width = size
    return str(height) if height == width else f'{height} x {width}'


def _normalisation(row: PretrainedConfig) -> str:
    """Return the mean and standard deviation, by name where they have one."""
    values = {'mean': row.mean, 'std': row.std}
    if values == IMAGENET:
        return 'ImageNet'
    if values == UNIT:
        return '0, 1'
    same = len(set(row.mean)) == len(set(row.std)) == 1
    return f'{row.mean[0]:g}, {row.std[0]:g}' if same else f'{row.mean}, {row.std}'


def _accuracies(values: Iterable[tuple[int, float | None]]) -> str:
    return '<br>'.join(f'{value:.2f} ({size})' for size, value in values if value is not None)


def page() -> str:
    """Return the text of the page."""
    rows = list(PRETRAINED.values())
    heads = ['tag', 'classes', 'image', 'test', 'interpolation', 'mean, std', 'top-1', 'top-5']
    images = table(heads, map(image_cells, rows))
    costs = table(['tag', 'parameters', 'GMACs', 'card FLOPs (image)', 'recipe'], map(cost_cells, rows))
    heads = ['tag', 'image', 'ReaL', 'V2', 'Sketch', 'A', 'R']
    others = table(heads, (cells for row in rows for cells in other_rows(row)))
    return HEAD + images + COST + costs + ELSEWHERE + others


def main(out: Path = PAGE) -> None:
    """Write the page.

    Args:
        out: the file.
    """
    with written_beside(out) as beside:
        beside.write_text(page(), encoding='utf-8')


if __name__ == '__main__':
    tyro.cli(main)
