"""timm's options, one by one, on the small architectures in float64."""

import functools

import jax
import numpy as np
import pytest
import timm.layers.drop
import torch
from timm.models._manipulate import adapt_input_conv

import convert
import tresnet_jax
from convert.golden import timm_model
from tests.helpers.closeness import assert_close
from tests.helpers.models import SMALL
from tests.helpers.reference import call, images, nhwc, ours, reference, state_of
from tests.helpers.tolerances import EVALUATION
from tresnet_jax.models.build import build_model, fill
from tresnet_jax.models.initializers import ShapesOnly
from tresnet_jax.models.pooling import POOL_TYPES

pytestmark = pytest.mark.usefixtures('x64')


@functools.cache
def timm_reference(name: str, **options) -> torch.nn.Module:
    return reference(name, **options)


close = functools.partial(assert_close, tolerance=EVALUATION)


@pytest.mark.parametrize('name', SMALL)
@pytest.mark.parametrize(
    'indices, stop_early',
    [(None, False), (2, False), ((0, 2), False), ((3, 1), True), ((-1, -4), False), ((1, 2), True), (5, True)],
)
def test_forward_intermediates(name, indices, stop_early):
    model = timm_reference(name)
    x = images(1, 3, 64, 80)
    indices_for_timm = list(indices) if isinstance(indices, tuple) else indices
    last, maps = model.forward_intermediates(x, indices_for_timm, stop_early=stop_early)
    mine = ours(model, name, dtype='float64')
    our_last, our_maps = call(mine, nhwc(x), 'forward_intermediates', indices=indices, stop_early=stop_early)
    close(our_last, nhwc(last))
    assert len(our_maps) == len(maps)
    for a, b in zip(our_maps, maps, strict=True):
        close(a, nhwc(b))
    only = jax.eval_shape(lambda x: mine.forward_intermediates(x, indices, intermediates_only=True), nhwc(x))
    assert [m.shape for m in only] == [m.shape for m in our_maps]


@pytest.mark.parametrize('name', SMALL)
def test_intermediate_indices_out_of_range(name):
    model = ours(timm_reference(name), name, dtype='float64')
    x = nhwc(images(1, 3, 32, 32))
    for indices in (0, 6, (5,), (-6,), ()):
        with pytest.raises(ValueError, match='out of range|no feature index'):
            model.forward_intermediates(x, indices)


@pytest.mark.parametrize('name, out_indices', [
    ('test_resnet', None), ('test_resnet', (1, 3)), ('test_resnet', (0, 2)), ('test_resnet', 2),
    ('test_tresnet', None), ('test_tresnet', (2, 3)),
])  # fmt: skip
def test_features_only(name, out_indices, tmp_path):
    """The maps and their description are timm's, and the backbone has no layers after the last map."""
    model = timm_reference(name)
    file = tmp_path / 'model.safetensors'
    convert.save_torch(file, state_of(model).tensors)
    asked = {} if out_indices is None else {'out_indices': out_indices}
    theirs = timm_model(name, features_only=True, **({} if name == 'test_tresnet' else asked)).double().eval()
    source = {key.replace('body.', 'body_', 1): value for key, value in model.state_dict().items()}
    theirs.load_state_dict({key: source[key] for key in theirs.state_dict()})

    backbone = tresnet_jax.create_model(name, checkpoint=file, features_only=True, dtype='float64', **asked)
    x = images(1, 3, 64, 96)
    expected, got = theirs(x), call(backbone, nhwc(x))
    info = theirs.feature_info
    if name == 'test_tresnet' and out_indices:  # timm's class gives the maps 1 to 4
        expected = [expected[i - 1] for i in out_indices]
        channels, reduction = info.channels(list(out_indices)), info.reduction(list(out_indices))
    else:
        channels, reduction = info.channels(), info.reduction()
    assert len(got) == len(expected)
    for a, b in zip(got, expected, strict=True):
        close(a, nhwc(b))
    assert backbone.feature_info.channels() == channels == [m.shape[-1] for m in got]
    assert backbone.feature_info.reduction() == reduction == [64 // m.shape[1] for m in got]
    kept = {key for key in convert.to_torch(backbone) if not key.endswith('num_batches_tracked')}
    wanted = {key for key in source if not key.endswith('num_batches_tracked')}
    last = max(range(5)[i] for i in (range(5)[-out_indices:] if isinstance(out_indices, int) else out_indices or (4,)))
    gone = tuple(f'{prefix}layer{i}.' for i in range(last + 1, 5) for prefix in ('', 'body_')) + ('fc.', 'head.')
    assert {key.replace('body.', 'body_', 1) for key in kept} == {k for k in wanted if not k.startswith(gone)}


def test_the_first_map_of_a_tresnet_backbone():
    """The stem's map has reduction 4. timm cannot return it and reports 2."""
    backbone = tresnet_jax.create_model('test_tresnet', features_only=True, out_indices=(0, 4), dtype='float64')
    maps = call(backbone, nhwc(images(1, 3, 64, 64)))
    assert [m.shape for m in maps] == [(1, 16, 16, 16), (1, 2, 2, 512)]
    assert backbone.feature_info.reduction() == [4, 32]
    assert backbone.feature_info.module_name() == ['body.conv1', 'body.layer4']


@pytest.mark.parametrize('out_indices', [(2, 4), (1, 2)])
def test_descriptions_of_maps(out_indices):
    """Of the returned maps, of one and of several, in timm's words; of removed stages too."""
    options = {'features_only': True, 'out_indices': out_indices}
    theirs = timm.create_model('test_resnet', **options).feature_info
    ours = tresnet_jax.create_model('test_resnet', **options).feature_info
    keys = ('num_chs', 'reduction', 'module')
    assert len(ours) == len(theirs) == 5
    for idx in (None, 1, -1, [0], (3, 1)):
        for method in ('channels', 'reduction', 'module_name'):
            assert getattr(ours, method)(idx) == getattr(theirs, method)(idx)
        for chosen in (['reduction'], keys):
            assert ours.get_dicts(chosen, idx) == theirs.get_dicts(chosen, idx)
    assert ours.get_dicts() == [{key: info[key] for key in keys} for info in theirs.get_dicts()]


@pytest.mark.parametrize('name', SMALL)
@pytest.mark.parametrize('pool', [p for p in POOL_TYPES if p])
def test_global_pool(name, pool):
    model = timm_reference(name, global_pool=pool)
    mine = ours(model, name, dtype='float64', global_pool=pool)
    x = images(2, 3, 64, 64)
    features = model.forward_features(x)
    pooled = call(mine, nhwc(features), 'forward_head', pre_logits=True)
    close(pooled, model.forward_head(features, pre_logits=True).detach().numpy())
    logits = call(mine, nhwc(features), 'forward_head')
    close(logits, model.forward_head(features).detach().numpy())


@pytest.mark.parametrize('name', SMALL)
@pytest.mark.parametrize('pool', ['avg', ''])
def test_no_classes(name, pool):
    model = timm_reference(name, num_classes=0, global_pool=pool)
    mine = ours(model, name, dtype='float64', global_pool=pool)
    x = images(1, 3, 64, 64)
    close(call(mine, nhwc(x)), nhwc(model(x)))
    assert mine.num_classes == 0


@pytest.mark.parametrize('name', SMALL)
def test_reset_classifier(name):
    model, mine = reference(name), ours(timm_reference(name), name, dtype='float64')
    x = images(1, 3, 64, 64)
    for classes, pool in ((7, None), (5, 'catavgmax'), (3, None), (0, ''), (4, 'max')):
        model.reset_classifier(classes, pool)
        model.double()
        assert mine.reset_classifier(classes, pool) is mine
        assert jax.eval_shape(lambda x: mine(x), nhwc(x)).shape == nhwc(model(x)).shape
        assert mine.num_classes == classes
        assert mine.global_pool == getattr(model, 'head', model).global_pool.pool_type
    with pytest.raises(ValueError, match='num_classes=0'):
        mine.reset_classifier(4, '')


@pytest.mark.parametrize('in_chans', [1, 2, 4, 6, 7])
def test_in_chans_of_a_resnet(in_chans, tmp_path):
    """The adapted stem equals timm's to the bit in float32, and the outputs agree."""
    source = timm_reference('test_resnet').float()
    file = tmp_path / 'model.safetensors'
    convert.save_torch(file, state_of(source).tensors)
    overlay = {'file': str(file), 'hf_hub_id': None, 'url': ''}
    theirs = timm.create_model('test_resnet', pretrained=True, pretrained_cfg_overlay=overlay, in_chans=in_chans).eval()
    mine = tresnet_jax.create_model('test_resnet', checkpoint=file, in_chans=in_chans)
    stem = convert.to_torch(mine)['conv1.0.weight']
    np.testing.assert_array_equal(stem, theirs.state_dict()['conv1.0.weight'].numpy())
    x = images(1, in_chans, 64, 64).float()
    assert_close(call(mine, nhwc(x)), theirs(x).detach().numpy(), 1e-5)  # float32
    source.double()


@pytest.mark.parametrize('in_chans', [1, 2, 4])
def test_in_chans_of_a_tresnet(in_chans, tmp_path):
    """Each of the 16 positions is adapted as timm adapts a plain stem; timm itself supports one channel."""
    source = timm_reference('test_tresnet')
    file = tmp_path / 'model.safetensors'
    convert.save_torch(file, state_of(source).tensors)
    mine = tresnet_jax.create_model('test_tresnet', checkpoint=file, in_chans=in_chans, dtype='float64')
    stem = convert.to_torch(mine)['body.conv1.conv.weight']
    weight = source.state_dict()['body.conv1.conv.weight'].float()
    parts = [adapt_input_conv(in_chans, part) for part in weight.split(3, dim=1)]
    expected = torch.cat(parts, dim=1).numpy()
    assert_close(stem.astype(np.float32), expected, 1e-6)
    if in_chans == 1:
        np.testing.assert_allclose(expected, adapt_input_conv(1, weight).numpy(), rtol=0, atol=0)
    assert jax.eval_shape(lambda x: mine(x), nhwc(images(1, in_chans, 32, 32))).shape == (1, 1000)


@pytest.mark.parametrize('output_stride', [8, 16])
@pytest.mark.parametrize('name', ['test_resnet', 'resnet18d', 'resnet26d'])
def test_output_stride(name, output_stride):
    model = timm_reference(name, output_stride=output_stride)
    mine = ours(model, name, dtype='float64', output_stride=output_stride)
    x = images(1, 3, 75, 96)
    last, maps = call(mine, nhwc(x), 'forward_intermediates')
    their_last, their_maps = model.forward_intermediates(x)
    for a, b in zip(maps, their_maps, strict=True):
        close(a, nhwc(b))
    close(call(mine, last, 'forward_head'), model.forward_head(their_last).detach().numpy())
    assert mine.feature_info.reduction() == [info['reduction'] for info in model.feature_info]


@pytest.mark.parametrize('name', SMALL)
@pytest.mark.parametrize('remat', [False, True])
def test_drop_path_with_the_same_masks(name, remat, monkeypatch):
    """Training outputs agree when both sides drop the same images of the same blocks."""
    masks = torch.rand(8, 4, 1, 1, 1, generator=torch.Generator().manual_seed(5)).double()
    model = reference(name, drop_path_rate=0.4).train()
    ours_masks, their_masks = iter(masks), iter(masks)

    def timm_drop_path(x, drop_prob=0.0, training=False, scale_by_keep=True):
        assert training and scale_by_keep
        keep = 1 - drop_prob
        return x * (next(their_masks) < keep).to(x.dtype) / keep

    monkeypatch.setattr(timm.layers.drop, 'drop_path', timm_drop_path)

    def bernoulli(key, p, shape):
        assert shape == (4, 1, 1, 1)  # an image at a time
        return next(ours_masks).numpy() < p

    monkeypatch.setattr(jax.random, 'bernoulli', bernoulli)
    apply, params, stats = tresnet_jax.functional(ours(model, name, dtype='float64', drop_path_rate=0.4, remat=remat))
    x = images(4, 3, 64, 64)
    step = jax.jit(lambda *args: apply(*args, train=True, rngs={'dropout': jax.random.key(0)}))
    got, _ = step(params, stats, nhwc(x))
    close(got, model(x).detach().numpy())
    assert len(list(ours_masks)) == len(list(their_masks)) == 8 - 3  # the first block never drops


@pytest.mark.parametrize('name', ['tresnet_m', 'tresnet_v2_l', 'resnet50d', 'resnet18d'])
@pytest.mark.parametrize('rate', [0.1, 0.2, 0.35])
def test_drop_path_rates(name, rate):
    """Each block's rate equals timm's to the bit."""
    model = timm.create_model(name, drop_path_rate=rate)
    expected = [
        getattr(block.drop_path, 'drop_prob', 0.0) for _, block in model.named_modules() if hasattr(block, 'drop_path')
    ]
    mine = build_model(name, num_classes=0, in_chans=3, drop_path_rate=rate, rngs=ShapesOnly())
    assert [block.drop_path.rate for stage in mine._stages() for block in stage] == expected


@pytest.mark.parametrize('name', SMALL)
def test_dropout_keeps_the_mean_and_is_off_in_evaluation(name):
    model = ours(timm_reference(name), name, dtype='float64', drop_rate=0.3)
    features = np.ones((2, 3, 3, model.num_features))
    np.testing.assert_array_equal(model.forward_head(features, pre_logits=True), 1.0)
    apply, params, stats = tresnet_jax.functional(model)
    run = functools.partial(apply, params, stats, features, train=True, method='forward_head', pre_logits=True)
    dropped, _ = run(rngs={'dropout': jax.random.key(0)})
    assert set(np.unique(dropped)) == {0.0, 1 / 0.7}
    assert abs(np.asarray(dropped).mean() - 1) < 0.1
    with pytest.raises(ValueError, match='dropout'):
        run()


@pytest.mark.parametrize('slope', [1e-6, 0.02])
def test_abn_slope(slope):
    """A slope that the caller gives applies to the stem too, as in the original second version."""
    model = reference('test_tresnet')
    for module in model.modules():
        if isinstance(module, torch.nn.LeakyReLU):
            module.negative_slope = slope
    x = images(1, 3, 64, 64)
    mine = ours(model, 'test_tresnet', dtype='float64', abn_slope=slope)
    close(call(mine, nhwc(x)), model(x).detach().numpy())


@pytest.mark.parametrize('name, sizes', [('test_tresnet', [(20, 20), (24, 100)]), ('test_resnet', [(1, 1), (7, 33)])])
def test_the_smallest_sizes(name, sizes):
    model = timm_reference(name)
    mine = ours(model, name, dtype='float64')
    for size in sizes:
        x = images(1, 3, *size)
        close(call(mine, nhwc(x)), model(x).detach().numpy())


@pytest.mark.parametrize('size', [(16, 16), (225, 224), (224, 226)])
def test_sizes_that_a_tresnet_refuses(size):
    model = ours(timm_reference('test_tresnet'), 'test_tresnet', dtype='float64')
    with pytest.raises(ValueError, match='multiples of 4 and at least 20'):
        model(np.zeros((1, *size, 3)))


def test_filling_keeps_the_compute_dtype():
    model = build_model('test_resnet', num_classes=10, in_chans=3, dtype='bfloat16', rngs=ShapesOnly())
    params, stats, _ = convert.to_flax(state_of(reference('test_resnet', num_classes=10)))
    model = fill(model, params, stats)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(model)} == {'float32'}
    assert call(model, np.zeros((1, 32, 32, 3))).dtype.name == 'bfloat16'
