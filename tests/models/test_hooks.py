"""`add_forward_hook`: every layer calls the hook in every memory mode, and the original model keeps its mode."""

import jax
import numpy as np
import pytest
from flax import nnx

import tresnet_jax
from tests.helpers.closeness import assert_identical
from tests.helpers.images import normal_images
from tresnet_jax.models.hooks import add_forward_hook


def layer_outputs(model) -> dict[str, np.ndarray]:
    """Return the output of each layer of a copy, by timm's name."""
    graphdef, state = nnx.split(model)

    @jax.jit
    def run(state, x):
        outputs = {}
        copy = nnx.merge(graphdef, state)
        add_forward_hook(copy, lambda path, layer, x, y: outputs.update({'.'.join(map(str, path)): y}))
        copy(x)
        return outputs

    return jax.tree.map(np.asarray, run(state, normal_images(1)))


@pytest.mark.parametrize('name, mode, remat', [('test_resnet', 'recompute', True), ('test_tresnet', 'lean', False)])
def test_every_memory_mode_calls_the_hook_for_every_layer(name, mode, remat):
    model = tresnet_jax.create_model(name, num_classes=3, abn_memory=mode, remat=remat)
    before, _ = nnx.split(model)
    found = layer_outputs(model)
    assert nnx.split(model)[0] == before
    assert len(found) > 20
    assert_identical(found, layer_outputs(model.set_memory()))
