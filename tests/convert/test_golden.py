"""Every architecture against outputs that timm gave, with weights anyone can draw again: no torch, no download.

``make golden`` makes the files of tests/golden anew.
"""

from pathlib import Path

import pytest
import safetensors

import convert
from convert.golden import seeded_weights
from convert.verify import compare_with_stored
from tests.helpers.models import zero_trees
from tests.helpers.paths import GOLDEN
from tresnet_jax.models.build import build_model, fill
from tresnet_jax.models.initializers import ShapesOnly
from tresnet_jax.variants import ARCHITECTURES

LARGE = ('resnet34d', 'resnet101d', 'resnet152d', 'resnet200d', 'tresnet_l', 'tresnet_xl')
NAMES = [pytest.param(n, marks=pytest.mark.slow) if n in LARGE else n for n in sorted(ARCHITECTURES)]


def test_there_is_one_file_an_architecture():
    assert {path.stem for path in GOLDEN.glob('*.safetensors')} == set(ARCHITECTURES)
    assert sum(path.stat().st_size for path in GOLDEN.iterdir()) < 3e6


@pytest.mark.parametrize('name', NAMES)
def test_stored_outputs(name):
    model = build_model(name, num_classes=1000, in_chans=3, rngs=ShapesOnly())
    shapes = {key: value.shape for key, value in convert.to_torch(*zero_trees(model)).items()}
    with safetensors.safe_open(GOLDEN / f'{name}.safetensors', 'np') as file:
        assert file.metadata()['weights'] == 'seeded_weights(shapes, 0)'
    weights = seeded_weights(shapes, 0)
    params, batch_stats, _ = convert.to_flax(convert.Checkpoint(Path(name), 'numpy', weights, {}), name)
    rows = compare_with_stored(fill(model, params, batch_stats), GOLDEN / f'{name}.safetensors')
    assert len(rows) == 6
    for row in rows:
        assert row.agrees, row
