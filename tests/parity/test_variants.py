"""The table of variants against timm: names, defaults, parameter counts, and initial weights."""

import jax
import numpy as np
import pytest
import timm
import timm.models
import torch
from flax import nnx

import convert
import tresnet_jax
from convert.golden import timm_model
from tests.helpers.closeness import assert_identical
from tests.helpers.reference import TIMM_ARCHITECTURES, TIMM_TAGS
from tresnet_jax.models.build import build_model
from tresnet_jax.models.initializers import ShapesOnly
from tresnet_jax.variants import ALIASES, ARCHITECTURES, PRETRAINED, pretrained_config


def test_no_tag_is_missing():
    theirs = {name for architecture in TIMM_ARCHITECTURES for name in timm.list_pretrained(f'{architecture}.*')}
    assert set(TIMM_TAGS) == theirs
    assert len(TIMM_TAGS) == 25 + 1  # 25 and test_resnet's


@pytest.mark.parametrize(
    'options',
    [
        {},
        {'filter': 'resnet*d'},
        {'filter': ['tresnet*', 'resnet?0d'], 'exclude_filters': '*_l'},
        {'pretrained': True},
        {'pretrained': True, 'filter': 'resnet50d*'},
        {'pretrained': True, 'filter': 'tresnet_m', 'exclude_filters': ['*448', '*.miil_in21k']},
        {'pretrained': True, 'filter': '*.ra2_in1k', 'exclude_filters': 'resnet1*'},
        {'pretrained': True, 'include_tags': False, 'filter': '*d'},
        {'include_tags': True, 'exclude_filters': 'resnet*'},
    ],
)
def test_names_are_listed_as_by_timm(options):
    both = {*TIMM_ARCHITECTURES, *TIMM_TAGS}
    listed = [name for name in tresnet_jax.list_models(**options) if name in both]
    assert listed == [name for name in timm.list_models(**options) if name in both] != []


@pytest.mark.parametrize('name', TIMM_TAGS)
def test_the_fields_of_a_tag_are_timms(name):
    row, theirs = PRETRAINED[name], timm.models.get_pretrained_cfg(name)
    for field in (
        'architecture', 'tag', 'hf_hub_id', 'input_size', 'test_input_size', 'pool_size', 'interpolation', 'crop_pct',
        'test_crop_pct', 'crop_mode', 'mean', 'std', 'num_classes', 'first_conv', 'classifier', 'license',
    ):  # fmt: skip
        assert getattr(row, field) == getattr(theirs, field), field


@pytest.mark.parametrize('name', TIMM_ARCHITECTURES)
def test_the_default_tag_is_timms(name):
    assert pretrained_config(name).tag == timm.models.get_pretrained_cfg(name).tag


@pytest.mark.filterwarnings('ignore:Mapping deprecated model name')
def test_older_names_mean_the_same_as_in_timm():
    for old, new in ALIASES.items():
        assert timm.create_model(old, num_classes=0, cache_dir=None).pretrained_cfg['tag'] == new.partition('.')[2]
        assert pretrained_config(old).name == new


@pytest.mark.parametrize('name', sorted(ARCHITECTURES))
def test_state_dict_has_timms_keys_and_shapes(name):
    """The number of parameters agrees too."""
    with torch.device('meta'):
        theirs = timm_model(name)
    mine = build_model(name, num_classes=1000, in_chans=3, rngs=ShapesOnly())
    apply, params, stats = tresnet_jax.functional(mine)
    zeros = jax.tree.map(lambda leaf: np.broadcast_to(np.float32(0), leaf.shape), (params, stats))
    state = convert.to_torch(*zeros)
    assert {k: v.shape for k, v in state.items()} == {k: tuple(v.shape) for k, v in theirs.state_dict().items()}
    assert sum(x.size for x in jax.tree.leaves(params)) == sum(p.numel() for p in theirs.parameters())


@pytest.mark.parametrize('name', ['test_resnet', 'test_tresnet', 'resnet26d', 'tresnet_m'])
def test_initial_weights_are_distributed_as_timms(name):
    """Constants are equal; drawn values have the same deviation and the same range, layer by layer."""
    torch.manual_seed(0)
    theirs = timm_model(name).state_dict()
    mine = convert.to_torch(tresnet_jax.create_model(name))
    for key, value in mine.items():
        other = theirs[key].numpy()
        if other.size and np.all(other == other.flat[0]):
            np.testing.assert_array_equal(value, other, err_msg=key)
            continue
        n = value.size
        # The deviation of a sample of n has a relative error of about 1 / sqrt(2 n) on both sides.
        assert abs(value.std() / other.std() - 1) < 6 / np.sqrt(n), key
        assert abs(value.mean() - other.mean()) < 8 * other.std() / np.sqrt(n), key
        if n > 1000:  # a normal distribution exceeds 3 deviations, a uniform one ends at 1.73
            assert (np.abs(value).max() > 3 * value.std()) == (np.abs(other).max() > 3 * other.std()), key


def test_a_reset_classifier_is_initialised_as_torchs():
    torch.manual_seed(0)
    theirs = timm.create_model('tresnet_m')
    theirs.reset_classifier(500)
    mine = build_model('tresnet_m', num_classes=0, in_chans=3, rngs=ShapesOnly()).reset_classifier(500)
    for ours, other in (
        (mine.get_classifier().kernel, theirs.head.fc.weight),
        (mine.get_classifier().bias, theirs.head.fc.bias),
    ):
        ours, other = np.asarray(ours[...]), other.detach().numpy()
        assert abs(ours.std() / other.std() - 1) < 0.1
        assert np.abs(ours).max() <= 2048**-0.5


def test_the_same_key_draws_the_same_weights():
    a, b, c = (convert.to_torch(tresnet_jax.create_model('test_resnet', rngs=nnx.Rngs(seed))) for seed in (1, 1, 2))
    assert_identical(a, b)
    assert not np.array_equal(a['conv1.0.weight'], c['conv1.0.weight'])
    assert not np.array_equal(a['layer1.0.conv1.weight'], a['layer1.0.conv2.weight'])
