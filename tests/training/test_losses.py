"""Losses: no NaN in float32, weights of classes from text and files, and losses that do not suit the task."""

import contextlib
import types
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tresnet_jax.errors import TrainingError
from tresnet_jax.training.class_weights import CLASS_WEIGHTS, POS_WEIGHTS, ClassCounts, loss_weight, read_class_stats
from tresnet_jax.training.config import TrainConfig
from tresnet_jax.training.losses import asymmetric_loss, binary_cross_entropy, poly_binary_cross_entropy

FAR = jnp.asarray([[-200.0, -20.0, -17.0, 0.0, 17.0, 20.0, 200.0]], jnp.float32)


@pytest.mark.parametrize('gammas', [(4.0, 0.0), (0.0, 1.0), (0.0, 0.0), (4.0, 1.0), (0.5, 0.5)])
@pytest.mark.parametrize('target', [0.0, 0.3, 1.0])
@pytest.mark.parametrize('focal_gradient', [False, True])
@pytest.mark.parametrize('clip', [0.0, 0.05])
def test_asl_has_no_nan(gammas, target, focal_gradient, clip):
    """Probabilities that round to 0 or 1 in float32 give finite losses and gradients, with a gamma of 0 too."""
    options = {'gamma_neg': gammas[0], 'gamma_pos': gammas[1], 'focal_gradient': focal_gradient, 'clip': clip}
    loss, gradient = jax.value_and_grad(lambda x: asymmetric_loss(x, jnp.full_like(x, target), **options))(FAR)
    assert np.isfinite(loss) and np.isfinite(gradient).all()


@pytest.mark.parametrize('gamma', [0.0, 0.5, 2.0])
@pytest.mark.parametrize('target', [0.0, 0.3, 1.0])
def test_poly_has_no_nan(gamma, target):
    options = {'gamma': gamma, 'alpha': 0.3}
    loss, gradient = jax.value_and_grad(lambda x: poly_binary_cross_entropy(x, jnp.full_like(x, target), **options))(
        FAR
    )
    assert np.isfinite(loss) and np.isfinite(gradient).all()


def test_bce_is_exact_far_out():
    loss, gradient = jax.value_and_grad(lambda x: binary_cross_entropy(x, jnp.ones_like(x), sum_classes=True))(FAR)
    np.testing.assert_allclose(loss, 200 + 20 + 17 + np.log(2), rtol=1e-6)
    np.testing.assert_allclose(gradient[0, :4], [-1, -1, -1, -0.5], rtol=1e-6)


def test_unknown_reduction():
    with pytest.raises(ValueError, match="reduction must be one of batchmean, sum, mean, got 'none'"):
        asymmetric_loss(FAR, FAR, reduction='none')


COUNTS = ClassCounts(np.array([10.0, 5.0]), 20)


@pytest.mark.parametrize(
    ('text', 'methods', 'expected'),
    [
        (None, POS_WEIGHTS, None),
        ('2', POS_WEIGHTS, 2.0),
        ('1,0.5', CLASS_WEIGHTS, [1.0, 0.5]),
        ('neg_pos', POS_WEIGHTS, [1.0, 3.0]),
        ('inv_freq', CLASS_WEIGHTS, [2 / 3, 4 / 3]),
    ],
)
def test_weights_by_text(text, methods, expected):
    np.testing.assert_equal(loss_weight(text, methods, COUNTS, 2, '--loss-pos-weight'), expected)


@pytest.mark.parametrize(
    ('text', 'counts', 'message'),
    [
        ('inv_freq', COUNTS, r'--loss-pos-weight must be neg_pos, or a number'),
        ('-1', COUNTS, 'or a number of at least 0, or one per class'),
        ('nan', COUNTS, 'or a number of at least 0, or one per class'),
        ('1,2,3', COUNTS, 'got 3 numbers; expected 1, or 2, one per class'),
        ('neg_pos', None, 'how often each class occurs is unknown; give --class-stats FILE'),
        ('neg_pos', ClassCounts(np.ones(3), 4), 'needs counts of the 2 classes of the model, got 3'),
    ],
)
def test_weights_refused(text, counts, message):
    with pytest.raises(TrainingError, match=message):
        loss_weight(text, POS_WEIGHTS, counts, 2, '--loss-pos-weight')


def test_class_stats(tmp_path):
    file = tmp_path / 'stats.json'
    file.write_text('{"num_samples": 20, "pos_counts": [10, 5], "class_names": ["a", "b"]}')
    counts = read_class_stats(file)
    assert counts.images == 20 and counts.positives.tolist() == [10, 5]
    for classes, other in (('ab', ''), ('cd', ''), ('ba', 'b is class 0 in photos, 1 in the file')):
        source = types.SimpleNamespace(name='photos', class_names=tuple(classes))
        expected = pytest.raises(TrainingError, match=f'json: has another order of the classes: {other}$')
        with expected if other else contextlib.nullcontext():
            assert read_class_stats(file, source).positives.tolist() == [10, 5]
    for text in ('[]', '{"num_samples": 2, "pos_counts": [3]}', '{"num_samples": 2.5, "pos_counts": [1]}', '{'):
        file.write_text(text)
        with pytest.raises(TrainingError, match='stats.json: '):
            read_class_stats(file)


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        ({'loss': 'asl'}, '--loss asl is not for --task classification; expected one of ce, bce, poly'),
        (
            {'task': 'multilabel', 'loss': 'ce'},
            '--loss ce is not for --task multilabel; expected one of bce, asl, poly',
        ),
        ({'task': 'multilabel', 'eval_metric': 'top1'}, '--eval-metric top1 is not for --task multilabel'),
        ({'eval_metric': 'map'}, '--eval-metric map is not for --task classification'),
        (
            {'target_format': 'multihot'},
            '--target-format multihot: for --task multilabel, not for --task cl',
        ),
        ({'bce_sum': True}, '--bce-sum: for --loss bce, not for ce'),
        ({'loss': 'bce', 'asl_clip': 0.1}, '--asl-clip 0.1: for --loss asl, not for bce'),
        ({'loss_pos_weight': '2'}, '--loss-pos-weight 2: for --loss bce and asl, not for ce'),
        ({'loss_weight_max': 3.0}, 'max 3.0: only for --loss-pos-weight neg_pos and --loss-class-weight inv_freq'),
        ({'loss': 'bce', 'loss_pos_weight': '2', 'class_stats': Path('a.json')}, '--class-stats a.json: only for --lo'),
        ({'loss': 'bce', 'loss_pos_weight': 'neg_pos', 'loss_weight_beta': 0.5}, '--loss-class-weight effective_num$'),
        ({'loss': 'bce', 'loss_class_weight': 'effective_num', 'loss_weight_power': 2.0}, 'weight neg_pos and --loss-'),
        ({'poly_epsilon': 1.0}, '--poly-epsilon 1.0: for --loss poly, not for ce'),
        ({'loss': 'poly', 'poly_gamma': 1.0}, '--poly-gamma 1.0: for --task multilabel, not for --task classification'),
        ({'loss': 'semantic'}, '--loss semantic: needs the tree of the classes; give --semantic-tree FILE'),
        ({'semantic_tree': Path('a.json')}, '--semantic-tree a.json: for --loss semantic, not for ce'),
        ({'eval_metric': 'semantic_top1'}, '--eval-metric semantic_top1 is for --loss semantic, not for ce'),
        (
            {'loss': 'semantic', 'semantic_tree': Path('a.json'), 'kd_model_name': 'a'},
            '--kd-model-name a: only for --kd-distill-type feature with --loss semantic',
        ),
        ({'multilabel_threshold': 0.4}, '--multilabel-threshold 0.4: for --task multilabel, not for --task classifi'),
    ],
)
def test_options_that_do_not_suit_the_task(options, message):
    with pytest.raises(TrainingError, match=message):
        TrainConfig(**options).check()


@pytest.mark.parametrize('weights', [('neg_pos', None), (None, 'inv_freq'), ('neg_pos', 'effective_num')])
def test_options_of_weights_that_are_used(weights):
    pos, each = weights
    beta = {'loss_weight_beta': 0.9} if each == 'effective_num' else {}
    TrainConfig(
        loss='bce', loss_pos_weight=pos, loss_class_weight=each, loss_weight_power=0.5, loss_weight_max=2.0,
        class_stats=Path('a.json'), **beta,
    ).check()  # fmt: skip


def test_defaults_of_the_task():
    single, several = TrainConfig(), TrainConfig(task='multilabel')
    assert (single.loss_name, single.label_smoothing, single.rating) == ('ce', 0.1, 'top1')
    assert (several.loss_name, several.label_smoothing, several.rating) == ('bce', 0.0, 'map')
