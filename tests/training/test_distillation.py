"""Runs with a teacher: what it is, that it is checked on resume, and that it is not saved; tests/parity has timm's."""

import dataclasses
import json
import types

import jax
import numpy as np
import pytest

import convert
import tresnet_jax
from tests.helpers.closeness import assert_identical
from tests.helpers.runs import TINY, make_run
from tresnet_jax.checkpoints.run import PROJECTION, load_weights
from tresnet_jax.errors import DataError, TrainingError
from tresnet_jax.factory import embedded_path
from tresnet_jax.labels import FASHION_MNIST
from tresnet_jax.training import loop
from tresnet_jax.training.config import TrainConfig
from tresnet_jax.training.distillation import Distillation, loss_shares
from tresnet_jax.training.metrics import read_records
from tresnet_jax.training.optim import clip_adaptively, is_frozen
from tresnet_jax.training.provenance import load_provenance
from tresnet_jax.training.teacher import create_distillation, load_teacher
from tresnet_jax.variants import pretrained_config

TEACHER = 'test_tresnet.fashion_mnist'
CONFIG = dataclasses.replace(
    TINY, kd_model_name=TEACHER, steps=4, checkpoint_every=2, log_every=1, drop=0.2, mixup=0.0, reprob=0.0, devices=1
)
FEATURES = dataclasses.replace(CONFIG, kd_distill_type='feature', task_loss_weight=0.25, freeze=('stem',))

pytestmark = pytest.mark.usefixtures('programs')


@pytest.fixture(scope='module')
def features(tmp_path_factory):
    """A finished run that learned the features of a wider teacher, which need a projection."""
    folder = tmp_path_factory.mktemp('features')
    assert loop.train(FEATURES, folder).finished
    return folder


@pytest.mark.parametrize(
    'given, expected',
    [((None, None), (1, 1)), ((0.3, None), (0.3, 0.7)), ((None, 0.7), (1, 0.7)), ((0.3, 2.0), (0.3, 2.0))],
)
def test_shares(given, expected):
    assert loss_shares(*given) == pytest.approx(expected)


def test_records(features):
    rows = [r for r in read_records(features) if r['kind'] == 'train']
    assert [r['step'] for r in rows] == [1, 2, 3, 4]
    for row in rows:
        assert row['loss'] == pytest.approx(0.25 * row['task_loss'] + 0.75 * row['kd_loss'], rel=1e-5)
    assert load_provenance(features).teacher['name'] == TEACHER


def test_the_model_of_the_run_is_the_student(features):
    """Neither the teacher nor the projection are part of it, though the projection was trained."""
    weights = load_weights(features)
    assert PROJECTION not in weights.params
    model = tresnet_jax.create_model('test_resnet', checkpoint=features)
    assert jax.eval_shape(model, jax.ShapeDtypeStruct((1, 32, 32, 3), 'float32')).shape == (1, 10)
    assert not any('kd' in key for key in convert.read(features).tensors)


def test_resumed_to_the_bit(features, tmp_path):
    loop.train(dataclasses.replace(FEATURES, stop_epoch=1 / 3), tmp_path)
    assert loop.train(FEATURES, tmp_path).finished
    found, expected = (load_weights(folder, 'latest') for folder in (tmp_path, features))
    assert_identical((found.params, found.batch_stats), (expected.params, expected.batch_stats))


def test_another_teacher_is_refused(features, tmp_path):
    """The same weights from a file are the same teacher; others are not."""
    same = dataclasses.replace(FEATURES, kd_checkpoint=embedded_path(pretrained_config(TEACHER)))
    assert loop.train(same, features).finished
    fields = {'model': 'test_tresnet', 'model_ema': False, 'num_classes': 10, 'mean': (0.5,) * 3, 'std': (1.0,) * 3}
    make_run(tmp_path, dataclasses.replace(TINY, **fields))
    other = dataclasses.replace(FEATURES, kd_checkpoint=tmp_path)
    with pytest.raises(TrainingError, match=rf'the teacher is {TEACHER} \(.*\) instead of {TEACHER} \(pretrained, SHA'):
        loop.train(other, features)


def distillation(names=FASHION_MNIST, student='test_resnet', classes: int = 10, head=None, **changes):
    """Return what `create_distillation` returns for data with these classes."""
    config = dataclasses.replace(CONFIG, mean=(0.1,) * 3, std=(0.2,) * 3, **changes)
    model = tresnet_jax.create_model(student, num_classes=classes, head=head)
    source = types.SimpleNamespace(class_names=names, num_classes=len(names), name='photos')
    teacher = load_teacher(config)
    assert teacher is not None
    return create_distillation(config, teacher, model, source)


def test_classes_are_matched_by_name():
    """Of a teacher with the classes in another order, or with more of them, each output goes to its class."""
    found, extra, line = distillation()
    assert found.outputs is None and extra == {} and line == f'teacher: {TEACHER}, all 10 classes, matched by name'
    assert distillation(FASHION_MNIST[::-1])[0].outputs == tuple(range(9, -1, -1))
    assert distillation(('bag', 'coat'), classes=2)[0].outputs == (8, 4)
    teacher, student = np.arange(20.0, dtype=np.float32).reshape(2, 10), np.zeros((2, 2), np.float32)
    each = dataclasses.replace(distillation(('bag', 'coat'), classes=2)[0], teacher=lambda *_: teacher, temperature=1.0)
    p = 1 / (1 + np.exp(-4.0))
    expected = np.log(2) + p * np.log(p) + (1 - p) * np.log(1 - p)
    assert float(each.loss(student, ({}, {}), np.zeros((2, 4, 4, 3), np.float32))) == pytest.approx(expected, rel=1e-5)


def test_widths():
    """The teacher's features are pooled, whatever its head; a student of another width has a projection."""
    kind = {'kd_distill_type': 'feature'}
    _, extra, line = distillation(**kind)
    assert extra[PROJECTION]['kernel'].shape == (96, 512) and line.endswith('512 features, from 96 by a linear layer')
    assert abs(extra[PROJECTION]['kernel']).max() <= 96**-0.5
    assert distillation(student='test_tresnet', **kind)[1] == {}


@pytest.mark.parametrize(
    'changes, error, message',
    [
        ({'classes': 12}, TrainingError, rf'--kd-model-name {TEACHER}: has 10 classes, but the student has 12'),
        ({'names': ('bag', 'cat'), 'classes': 2}, DataError, f'photos: the teacher {TEACHER} lacks 1 of 2 classes'),
        (
            {'kd_distill_type': 'feature', 'head': 'ml_decoder'},
            TrainingError,
            'a model with an ML-Decoder does not have',
        ),
        ({'kd_model_name': 'nothing'}, ValueError, 'nothing'),
    ],
)
def test_teachers_that_do_not_suit(changes, error, message):
    with pytest.raises(error, match=message):
        distillation(**changes)


@pytest.mark.parametrize(
    'options, message',
    [
        ({'kd_temperature': 2.0}, '--kd-temperature 2.0: only for a teacher'),
        ({'kd_model_name': 'a', 'kd_distill_type': 'feature', 'kd_temperature': 2.0}, 'only for --kd-distill-type log'),
        ({'kd_model_name': 'a', 'task': 'multilabel'}, '--kd-model-name a: for --task classification, not for --task'),
        (
            {'kd_model_name': 'a', 'task_loss_weight': 2.0},
            '--task-loss-weight 2: without --distill-loss-weight must be',
        ),
    ],
)
def test_options_without_effect(options, message):
    with pytest.raises(TrainingError, match=message):
        TrainConfig(**options).check()


def test_the_projection_is_trained_with_everything_frozen():
    paths = dict(jax.tree_util.tree_leaves_with_path({PROJECTION: {'kernel': 1.0}, 'fc': {'kernel': 1.0}}))
    assert [is_frozen(path, ('backbone', 'head')) for path in paths] == [True, False]
    tree = {PROJECTION: {'kernel': np.ones((4, 2))}, 'fc': {'kernel': np.ones((4, 2))}}
    clipped, _ = (lambda t: t.update(tree, t.init(tree), tree))(clip_adaptively(0.01))
    assert float(clipped[PROJECTION]['kernel'][0, 0]) < 0.1 and float(clipped['fc']['kernel'][0, 0]) == 1


def test_logits_and_features_have_dropout_of_their_own():
    """As in timm, which calls the head twice."""
    seen = []

    def apply(params, batch_stats, x, *, train, rngs, method, **options):
        seen.append((method, jax.random.key_data(rngs['dropout']).tolist()))
        return x, batch_stats

    each = Distillation('feature', apply, None, (((0.0,), (1.0,)),) * 2, 1.0, (1.0, 1.0))
    each.student(apply, {}, {}, np.zeros((2, 3)), jax.random.split(jax.random.key(0), 2))
    assert [method for method, _ in seen] == ['forward_features', 'forward_head', 'forward_head']
    assert len({json.dumps(keys) for _, keys in seen}) == 3
