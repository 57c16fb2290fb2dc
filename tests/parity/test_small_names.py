"""timm's smaller names on our models: the same answers as timm's models give."""

import re

import jax
import pytest
import torch

import tresnet_jax
from convert.golden import timm_model
from tests.helpers.closeness import assert_close
from tests.helpers.models import SMALL
from tests.helpers.reference import images, nhwc, ours, reference
from tresnet_jax.variants import ARCHITECTURES, PRETRAINED

pytestmark = pytest.mark.usefixtures('x64')


@pytest.mark.parametrize('name', SMALL)
def test_formats_of_intermediates(name):
    """NCHW maps are timm's as they are; the last map stays in our layout, for `forward_head`."""
    theirs = reference(name)
    mine = ours(theirs, name, dtype='float64')
    x = images(2, 3, 64, 64)
    with torch.no_grad():
        _, expected = theirs.forward_intermediates(x, indices=(1, 3), norm=True, output_fmt='NCHW')
    run = jax.jit(lambda m, x: m.forward_intermediates(x, (1, 3), norm=True, output_fmt='NCHW'))
    last, maps = run(mine, nhwc(x))
    for got, wanted in zip(maps, expected, strict=True):
        assert_close(got, wanted.numpy(), 1e-12)
    assert last.shape == jax.eval_shape(mine.forward_features, nhwc(x)).shape
    with pytest.raises(ValueError, match="output_fmt must be 'NHWC' or 'NCHW', got 'NLC'"):
        mine.forward_intermediates(nhwc(x), output_fmt='NLC')


@pytest.mark.parametrize('indices', [1, (0,), (2,), (0, 4)])
@pytest.mark.parametrize('prune_head', [True, False])
@pytest.mark.parametrize('name', SMALL)
def test_pruning(name, prune_head, indices):
    theirs, mine = timm_model(name), tresnet_jax.create_model(name)
    kept = theirs.prune_intermediate_layers(indices, prune_norm=True, prune_head=prune_head)
    assert mine.prune_intermediate_layers(indices, prune_norm=True, prune_head=prune_head) == list(kept)
    assert (mine.num_classes, mine.num_features, mine.head_hidden_size) == (
        theirs.num_classes, theirs.num_features, theirs.head_hidden_size,
    )  # fmt: skip


@pytest.mark.parametrize('pool', ['avg', 'catavgmax', 'fastmax'])
@pytest.mark.parametrize('name', SMALL)
def test_width_of_the_head(name, pool):
    theirs, mine = timm_model(name, global_pool=pool), tresnet_jax.create_model(name, global_pool=pool)
    assert mine.head_hidden_size == theirs.head_hidden_size
    theirs.reset_classifier(3, 'catavgmax')
    assert mine.reset_classifier(3, 'catavgmax').head_hidden_size == theirs.head_hidden_size
    assert mine.get_classifier().kernel.shape == (theirs.head_hidden_size, 3)


@pytest.mark.parametrize('name', [name for name in ARCHITECTURES if name in ('resnet18d', 'tresnet_m', *SMALL)])
def test_groups_of_parameters(name):
    """The expressions are timm's, and sort our parameters, which have its names except for the leaf."""
    theirs, mine = timm_model(name), tresnet_jax.create_model(name)
    paths = ['.'.join(map(str, path)) for path in _paths(tresnet_jax.functional(mine)[1])]
    for coarse in (False, True):
        assert mine.group_matcher(coarse) == theirs.group_matcher(coarse)
        stem, blocks = mine.group_matcher(coarse).values()
        in_stem = sum(bool(re.match(stem, path)) for path in paths)
        in_blocks = {re.match(blocks, path).groups() for path in paths if re.match(blocks, path)}
        assert in_stem >= 3 and len(in_blocks) == (4 if coarse else sum(ARCHITECTURES[name].layers))
    classifier = 'head.fc' if 'tresnet' in name else theirs.get_classifier(name_only=True)  # timm's TResNet lacks it
    assert mine.get_classifier(name_only=True) == classifier


def _paths(tree):
    return [[entry.key for entry in path] for path, _ in jax.tree_util.tree_leaves_with_path(tree)]


def test_gradient_checkpointing_is_remat():
    """The memory mode within a block stays."""
    model = tresnet_jax.create_model('test_tresnet', num_classes=3, abn_memory='inplace')
    plain = model.memory
    assert model.set_grad_checkpointing() is model
    remat = tresnet_jax.create_model('test_tresnet', num_classes=3, abn_memory='inplace', remat=True)
    assert model.memory == remat.memory != plain
    assert model.set_grad_checkpointing(False).memory == plain


def test_overlay_of_the_configuration():
    model = tresnet_jax.create_model(
        'resnet18d.ra2_in1k', pretrained_cfg_overlay={'mean': [0.1, 0.2, 0.3], 'num_classes': 7, 'crop_pct': 0.5}
    )
    assert model.num_classes == 7
    assert model.default_cfg is model.pretrained_cfg
    assert tresnet_jax.resolve_data_config(model)['mean'] == (0.1, 0.2, 0.3)
    assert tresnet_jax.resolve_data_config(model)['crop_pct'] == 0.5
    assert model.default_cfg.std == PRETRAINED['resnet18d.ra2_in1k'].std
    with pytest.raises(ValueError, match='pretrained_cfg_overlay cannot replace hf_hub_id'):
        tresnet_jax.create_model('resnet18d', pretrained_cfg_overlay={'hf_hub_id': 'timm/resnet18.a1_in1k'})
