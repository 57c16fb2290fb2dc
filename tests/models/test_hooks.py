"""`add_forward_hook`: every layer calls the hook in every memory mode, and the original model keeps its mode."""

import jax
import numpy as np
import pytest
from flax import nnx

import tresnet_jax
from tresnet_jax.models.hooks import add_forward_hook


def heard(model) -> dict[str, np.ndarray]:
    """What each layer of a copy gives, by timm's name."""
    graphdef, state = nnx.split(model)

    @jax.jit
    def run(state, x):
        outputs = {}
        copy = nnx.merge(graphdef, state)
        add_forward_hook(copy, lambda path, layer, x, y: outputs.update({'.'.join(map(str, path)): y}))
        copy(x)
        return outputs

    return jax.tree.map(np.asarray, run(state, np.random.default_rng(0).normal(size=(1, 32, 32, 3)).astype(np.float32)))


@pytest.mark.parametrize('name, mode, remat', [('test_resnet', 'recompute', True), ('test_tresnet', 'lean', False)])
def test_memory_modes(name, mode, remat):
    model = tresnet_jax.create_model(name, num_classes=3, abn_memory=mode, remat=remat)
    before, _ = nnx.split(model)
    found = heard(model)
    assert nnx.split(model)[0] == before
    expected = heard(model.set_memory())
    assert found.keys() == expected.keys() and len(found) > 20
    for key in expected:
        np.testing.assert_array_equal(found[key], expected[key])
