"""docs/models/table.md has the values of the library."""

import make_model_table
import pytest

from tresnet_jax.variants import PRETRAINED

TEXT = make_model_table.PAGE.read_text(encoding='utf-8')
TINY = [name for name in PRETRAINED if name.startswith('test_')]


def line(cells):
    return f'| {" | ".join(cells)} |\n'


@pytest.mark.parametrize('tag', PRETRAINED)
def test_the_images_and_accuracies_of_a_tag(tag):
    row = PRETRAINED[tag]
    assert line(make_model_table.image_cells(row)) in TEXT
    assert all(line(cells) in TEXT for cells in make_model_table.other_rows(row))


@pytest.mark.parametrize('tag', TINY)
def test_the_cost_of_a_small_tag(tag):
    assert line(make_model_table.cost_cells(PRETRAINED[tag])) in TEXT


@pytest.mark.slow
def test_the_whole_page():
    assert make_model_table.page() == TEXT
