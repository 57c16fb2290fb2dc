"""The ML-Decoder head against timm's, whose only layer is called without torch's loop, which does not run it."""

from typing import Any

import jax
import numpy as np
import pytest
import torch
from flax import nnx

import convert
import tresnet_jax
from convert.golden import add_timm_ml_decoder, timm_model, write_golden
from convert.verify import compare_with_stored, compare_with_timm, reference_state
from tests.helpers import tolerances
from tests.helpers.closeness import assert_close, assert_identical
from tests.helpers.models import SMALL
from tests.helpers.reference import images, nhwc, randomise, state_of
from tresnet_jax.checkpoints.match import match
from tresnet_jax.checkpoints.ml_decoder import decoder_shapes
from tresnet_jax.models import layers
from tresnet_jax.models.base import ImageModel
from tresnet_jax.models.build import build_model, fill
from tresnet_jax.models.functional import functional
from tresnet_jax.models.initializers import ShapesOnly

SIZES = {'num_of_groups': 4, 'decoder_embedding': 16}
PLACE = {'test_resnet': 'fc', 'test_tresnet': 'head'}


def reference(name: str, classes: int, **sizes: int) -> Any:
    """Return a float64 timm model with an ML-Decoder, none of whose parameters are constant."""
    torch.manual_seed(0)
    model = timm_model(name, num_classes=classes)
    add_timm_ml_decoder(model, **sizes)
    randomise(model.double(), 0)
    with torch.no_grad():
        for parameter in model.get_submodule(PLACE[name]).parameters():
            if parameter.ndim == 1:
                parameter += 0.3 * torch.randn(parameter.shape, dtype=torch.float64)
    return model


def ours(model: Any, name: str) -> ImageModel:
    """Return our float64 model with the weights of timm's."""
    found = match(state_of(model), name, build=lambda *args, **options: build_model(*args, **options, dtype='float64'))
    return fill(found.model, found.params, found.batch_stats)


@pytest.mark.parametrize(
    'name, classes, groups', [('test_tresnet', 11, 4), ('test_resnet', 5, 100), ('test_resnet', 8, 8)]
)
def test_outputs_and_gradients_are_those_of_timm(name, classes, groups, x64, record_error):
    """The gradients are those of the head and of the feature map; the queries have none."""
    theirs = reference(name, classes, num_of_groups=groups, decoder_embedding=16)
    head = theirs.get_submodule(PLACE[name])
    features = images(3, theirs.num_features, 3, 5).requires_grad_()
    cotangent = images(3, 1, 1, classes)[:, 0, 0]
    expected = theirs.forward_head(features)
    expected.backward(cotangent)

    apply, params, batch_stats = functional(ours(theirs, name))

    @jax.jit
    def run(params, x, cotangent):
        out, pullback = jax.vjp(lambda params, x: apply(params, batch_stats, x, method='forward_head'), params, x)
        return out, *pullback(cotangent)

    out, gradients, to_features = run(params, nhwc(features), cotangent.numpy())
    record_error(name, 'ML-Decoder', assert_close(out, expected.detach().numpy(), tolerances.EVALUATION))
    assert_close(to_features, nhwc(features.grad), tolerances.EVALUATION)
    got = {key.removeprefix(f'{PLACE[name]}.'): value for key, value in convert.to_torch(gradients, {}).items()}
    want = {key: value.grad.numpy() for key, value in head.named_parameters() if value.requires_grad}
    assert not got['query_embed.weight'].any() and len(want) == 18
    record_error(name, 'its gradients', assert_close({key: got[key] for key in want}, want, tolerances.EVALUATION))


@pytest.mark.parametrize('name', SMALL)
def test_dropout_is_in_the_five_places_of_torch(name, x64, monkeypatch):
    """With the same function in the place of both libraries' dropout, training mode gives the same outputs."""
    theirs, rates = reference(name, 11, **SIZES), []
    model = ours(theirs, name).train()

    def torchs(x, p=0.5, training=True, inplace=False):
        del inplace
        rates.append(p)
        return 0.9 * x + x * x if training else x

    def changed(x, key, rate, shape):
        assert x.shape == shape and x.shape[0] == 3
        rates.append(rate)
        return 0.9 * x + x * x

    monkeypatch.setattr(torch.nn.functional, 'dropout', torchs)
    monkeypatch.setattr(layers, 'drop', changed)
    features = images(3, theirs.num_features, 2, 3)
    with torch.no_grad():
        expected = theirs.train().forward_head(features).numpy()
    assert rates == 5 * [0.1]
    got = model.forward_head(nhwc(features), rngs=nnx.Rngs(dropout=0))
    assert rates == 10 * [0.1]
    assert_close(got, expected, tolerances.EVALUATION)


@pytest.mark.parametrize('name', SMALL)
def test_files_of_timm_load_and_return_strictly(name, tmp_path):
    theirs = reference(name, 11, **SIZES).float()
    file = tmp_path / 'timm.safetensors'
    convert.save_torch(file, {key: value.numpy() for key, value in theirs.state_dict().items()})
    model = tresnet_jax.create_model(name, checkpoint=file)
    assert model.num_classes == 11 and model.head_options == {'head': 'ml_decoder', **SIZES}
    returned = {key: torch.from_numpy(value) for key, value in convert.to_torch(model).items()}
    again = timm_model(name, num_classes=11)
    add_timm_ml_decoder(again, **SIZES)
    again.load_state_dict(returned, strict=True)
    counted = {key: value for key, value in theirs.state_dict().items() if 'num_batches' not in key}
    assert_identical({key: returned[key].numpy() for key in counted}, {k: v.numpy() for k, v in counted.items()})
    # `golden` and `--verify` build the same model of timm.
    write_golden(tmp_path / 'golden.safetensors', name, checkpoint=file, image_size=32)
    assert all(row.agrees for row in compare_with_stored(model, tmp_path / 'golden.safetensors'))
    model.pretrained_cfg = None
    checkpoint = convert.read(file)
    rows = compare_with_timm(model, reference_state(checkpoint, convert.to_flax(checkpoint)[2]))
    assert rows[-1].name == 'logits' and all(row.agrees for row in rows)


@pytest.mark.parametrize('name', SMALL)
def test_names_and_shapes_of_the_default_head_are_those_of_timm(name):
    with torch.device('meta'):
        theirs = timm_model(name, num_classes=250)
        add_timm_ml_decoder(theirs, -1, -1)
    head: Any = theirs.get_submodule(PLACE[name]).state_dict()
    expected = {key: tuple(value.shape) for key, value in head.items()}
    assert decoder_shapes(250, 100, 768, theirs.num_features) == expected
    model = build_model(name, num_classes=250, in_chans=3, head='ml_decoder', rngs=ShapesOnly())
    assert model.get_classifier(name_only=True) == PLACE[name]
    sizes = [np.prod(leaf.shape) for _, leaf in nnx.to_flat_state(nnx.state(model.ml_decoder))]
    assert sum(sizes) == sum(map(np.prod, expected.values()))
