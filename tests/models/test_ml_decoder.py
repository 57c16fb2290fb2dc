"""The ML-Decoder head: the formula of the paper's code, random numbers, and the methods of models that have it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import tresnet_jax
from tests.helpers.closeness import assert_close, assert_identical
from tests.helpers.images import normal_images
from tests.helpers.models import SMALL
from tresnet_jax.models.functional import functional
from tresnet_jax.models.initializers import ShapesOnly
from tresnet_jax.models.ml_decoder import MLDecoder

SIZES = {'num_of_groups': 3, 'decoder_embedding': 16}


def model_of(name: str, **options):
    return tresnet_jax.create_model(name, head='ml_decoder', **{'num_classes': 7, **SIZES, **options})


@pytest.fixture(scope='module', params=SMALL)
def model(request):
    return model_of(request.param)


def of_the_authors(p: dict, x: np.ndarray, classes: int) -> np.ndarray:
    """Return the logits of the authors' head in evaluation mode, for (B, H, W, C); `p` is the tree of its weights."""

    def norm(x, which):
        x = x - x.mean(-1, keepdims=True)
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5) * which['scale'] + which['bias']

    def dense(x, which):
        return x @ which['kernel'] + which['bias']

    layer = p['decoder']['layers'][0]
    attention = layer['multihead_attn']
    kernels, biases = (np.split(attention[f'in_proj_{leaf}'], 3, axis=-1) for leaf in ('kernel', 'bias'))
    outputs = []
    for image in x:
        memory = np.maximum(dense(image.reshape(-1, image.shape[-1]), p['embed_standart']), 0)
        t = norm(2 * p['query_embed']['embedding'], layer['norm1'])
        projected = [y @ w + b for y, w, b in zip((t, memory, memory), kernels, biases, strict=True)]
        heads = []
        for q, k, v in zip(*(np.split(part, 8, axis=-1) for part in projected), strict=True):
            weights = np.exp(q @ k.T / np.sqrt(q.shape[-1]))
            heads.append(weights / weights.sum(-1, keepdims=True) @ v)
        t = norm(t + dense(np.concatenate(heads, -1), attention['out_proj']), layer['norm2'])
        t = norm(t + dense(np.maximum(dense(t, layer['linear1']), 0), layer['linear2']), layer['norm3'])
        logits = np.concatenate([query @ weight for query, weight in zip(t, p['duplicate_pooling'], strict=True)])
        outputs.append(logits[:classes] + p['duplicate_pooling_bias'])
    return np.stack(outputs)


@pytest.mark.parametrize('classes, groups', [(7, 3), (7, None), (8, 4)])
def test_the_formula(classes, groups, x64):
    head = MLDecoder(classes, groups, 16, num_features=12, dtype=jnp.dtype('float64'), rngs=nnx.Rngs(1))
    graphdef, state = nnx.split(head)
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda leaf: np.asarray(leaf) + 0.2 * rng.normal(size=leaf.shape), nnx.to_pure_dict(state))
    x = rng.normal(size=(2, 2, 3, 12))
    got = jax.jit(lambda params, x: nnx.merge(graphdef, params)(x))(params, x)
    assert_close(got, of_the_authors(params, x, classes), 1e-13)


def test_initial_weights_are_those_of_timm():
    """Their scales; torch's constants are those of `MLDecoder.__init__` of timm and of torch's layers."""
    head = MLDecoder(250, None, None, num_features=96, dtype=jnp.dtype('float32'), rngs=nnx.Rngs(0))
    assert (head.num_of_groups, head.decoder_embedding) == (100, 768)
    attention, layer = head.decoder.layers[0].multihead_attn, head.decoder.layers[0]
    for value, bound in (
        (head.embed_standart.kernel, 96**-0.5),
        (attention.in_proj_kernel, (6 / (768 + 2304)) ** 0.5),
        (attention.out_proj.kernel, 768**-0.5),
        (layer.linear1.kernel, 768**-0.5),
        (layer.linear2.kernel, 2048**-0.5),
        (layer.linear2.bias, 2048**-0.5),
    ):
        assert 0.98 * bound < np.abs(value[...]).max() <= bound * 1.0001
    assert abs(np.std(head.query_embed.embedding[...]) - 1) < 0.02
    assert head.duplicate_pooling.shape == (100, 768, 3)
    assert abs(np.std(head.duplicate_pooling[...]) / (2 / (768 * 3 + 100 * 3)) ** 0.5 - 1) < 0.02
    for value in (attention.in_proj_bias, attention.out_proj.bias, head.duplicate_pooling_bias):
        assert not np.any(value[...])


def test_dropout_draws_for_the_batch_or_for_each_image(model):
    """With a key for each image, a batch gives the same logits in one piece and in parts."""
    apply, params, batch_stats = functional(model, ('backbone',))
    features = normal_images(4, 2, 3, model.num_features)
    head = jax.jit(lambda x, rngs: apply(params, batch_stats, x, train=True, rngs=rngs, method='forward_head')[0])
    keys = jax.random.split(jax.random.key(0), 4)
    whole = head(features, {'dropout': keys})
    parts = [head(features[i : i + 2], {'dropout': keys[i : i + 2]}) for i in (0, 2)]
    assert_close(np.concatenate(parts), whole, 1e-5)
    one = head(features, {'dropout': keys[0]})
    still = apply(params, batch_stats, features, method='forward_head')
    for other in (one, still, head(features, {'dropout': keys[::-1]})):
        assert np.abs(other - whole).max() > 1e-2
    with pytest.raises(ValueError, match="dropout in training mode needs random numbers: pass rngs={'dropout': key}"):
        apply(params, batch_stats, features, train=True, method='forward_head')


def test_the_methods_of_a_model(model):
    def shape(model):
        return jax.eval_shape(model, normal_images(2, 64, 64)).shape

    features = normal_images(2, 2, 2, model.num_features)
    assert_identical(model.forward_head(features, pre_logits=True), features)  # as timm's ResNet
    assert shape(model) == (2, 7)
    assert model.head_hidden_size == model.num_features == features.shape[-1]
    assert model.get_classifier() is model.ml_decoder and model.part('head') == [model.ml_decoder]
    assert model.get_classifier(name_only=True) == {'test_resnet': 'fc', 'test_tresnet': 'head'}[model.architecture]
    assert model.global_pool == '' and model.num_classes == 7
    copy = nnx.clone(model).reset_classifier(5)
    assert copy.ml_decoder is None and copy.global_pool == copy.config.family.default_pool
    assert copy.get_classifier(name_only=True) == copy.config.family.classifier and shape(copy) == (2, 5)
    copy = nnx.clone(model)
    copy.start_classifier(5, nnx.Rngs(0))
    assert copy.head_options == {'head': 'ml_decoder', **SIZES} and shape(copy) == (2, 5)
    assert shape(nnx.clone(model).reset_classifier(0, '')) == features.shape
    copy = nnx.clone(model)
    copy.prune_intermediate_layers([1])
    assert copy.ml_decoder is None and copy.num_classes == 0


@pytest.mark.parametrize('name', SMALL)
def test_the_head_is_added_as_in_timm(name):
    model = tresnet_jax.create_model(name, num_classes=7, drop_rate=0.5, global_pool='catavgmax').train()
    assert tresnet_jax.add_ml_decoder_head(model, **SIZES) is model
    assert model.head_drop.rate == 0 and model.head_options == {'head': 'ml_decoder', **SIZES}
    assert not model.ml_decoder.decoder.layers[0].dropout.deterministic  # in the mode of the model
    assert jax.eval_shape(model.eval(), normal_images(2, 64, 64)).shape == (2, 7)


@pytest.mark.parametrize('dtype, tolerance', [('bfloat16', 5e-2), ('float16', 5e-3)])
def test_half_precision(dtype, tolerance):
    features = normal_images(2, 3, 3, 96)
    expected = model_of('test_resnet').forward_head(features)
    logits = model_of('test_resnet', dtype=dtype).forward_head(features.astype(dtype))
    assert logits.dtype == dtype
    assert_close(logits, expected, tolerance)


def test_folding_and_exporting(model, tmp_path):
    x = normal_images(2, 64, 64)
    call = jax.jit(lambda model, x: model(x))
    expected = call(model, x)
    assert_close(call(tresnet_jax.fold_batchnorm(model), x), expected, 1e-5)
    tresnet_jax.export(model, tmp_path / 'model', image_size=64, platforms=['cpu'])
    assert_close(tresnet_jax.load_exported(tmp_path / 'model')(x), expected, 1e-5)


def products(jaxpr) -> int:
    """Return the multiply-accumulates of the matrix products of a program."""
    total = 0
    for equation in jaxpr.eqns:
        if equation.primitive.name == 'dot_general':
            (contracted, _), _ = equation.params['dimension_numbers']
            shape = equation.invars[0].aval.shape
            total += int(np.prod([shape[axis] for axis in contracted])) * equation.outvars[0].aval.size
        total += sum(products(inner.jaxpr) for inner in equation.params.values() if hasattr(inner, 'jaxpr'))
    return total


def test_the_profile_counts_every_product(model):
    profile = tresnet_jax.profile(model, image_size=96)
    head, features = profile.stages[-1], jax.ShapeDtypeStruct((1, 3, 3, model.num_features), 'float32')
    assert head.macs == products(jax.make_jaxpr(model.forward_head)(features).jaxpr)
    groups, embedding, pixels, hidden = 3, 16, 9, 2048
    assert head.activations == 3 * pixels * embedding + groups * (3 * embedding + hidden) + groups * 3
    assert head.parameters == sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model.ml_decoder)))
    assert head.output == (7,) and head.card_flops == 0


@pytest.mark.parametrize(
    'options, words',
    [
        ({'head': 'decoder'}, "head must be one of linear, ml_decoder, got 'decoder'"),
        ({'num_of_groups': 3}, "num_of_groups and decoder_embedding are for head='ml_decoder'"),
        ({'head': 'linear', 'decoder_embedding': 16}, "num_of_groups and decoder_embedding are for head='ml_decoder'"),
        ({'head': 'ml_decoder', 'decoder_embedding': 20}, 'decoder_embedding must be a multiple of 8, got 20'),
        ({'head': 'ml_decoder', 'num_of_groups': 0}, 'needs a class and a group, got 5 classes, 0 groups'),
        ({'head': 'ml_decoder', 'global_pool': 'max'}, "without a pooling: leave out global_pool='max'"),
        ({'head': 'ml_decoder', 'drop_rate': 0.1}, 'a dropout of its own: leave out drop_rate=0.1'),
        ({'head': 'ml_decoder', 'features_only': True}, 'features_only=True builds a backbone, which has no head'),
    ],
)
def test_options_that_contradict_each_other(options, words):
    with pytest.raises(ValueError, match=words):
        tresnet_jax.create_model('test_resnet', num_classes=5, rngs=ShapesOnly(), **options)
    with pytest.raises(ValueError, match='the model has no classes'):
        tresnet_jax.add_ml_decoder_head(tresnet_jax.create_model('test_resnet', num_classes=0, rngs=ShapesOnly()))
