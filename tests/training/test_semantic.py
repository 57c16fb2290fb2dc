"""The semantic softmax against an implementation image by image in NumPy, and invalid trees."""

import contextlib
import dataclasses
import json
import pickle
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.helpers.closeness import assert_close
from tests.helpers.compilations import compiled_once
from tests.helpers.runs import TINY
from tresnet_jax.checkpoints.run import load_weights
from tresnet_jax.errors import ConversionError, TrainingError
from tresnet_jax.labels import FASHION_MNIST
from tresnet_jax.training import loop
from tresnet_jax.training.config import TrainConfig
from tresnet_jax.training.evaluate import EvalResult, evaluate
from tresnet_jax.training.losses import create_loss
from tresnet_jax.training.metrics import read_records
from tresnet_jax.training.semantic import read_semantic_tree, semantic_hits, semantic_losses, semantic_tree
from tresnet_jax.training.step import augment, make_eval_step, over_devices

# Two roots, 0 and 4. Depth 1: 2, 3, 5. Depth 2: 1, 7, 8. Depth 3: only 9. Depth 4: 6 and 10.
PARENTS = {0: None, 4: None, 2: 0, 3: 0, 5: 4, 1: 2, 7: 2, 8: 5, 9: 8, 6: 9, 10: 9}
CLASSES = len(PARENTS)


def chain(label: int) -> list[int]:
    parent = PARENTS[label]
    return [label, *([] if parent is None else chain(parent))]


CHAINS = [chain(label) for label in range(CLASSES)]
TREE = semantic_tree(CHAINS)


@pytest.fixture
def double(x64):
    with jax.numpy_dtype_promotion('standard'):
        yield


def of_numpy(logits: np.ndarray, labels: np.ndarray, smoothing: float) -> tuple[np.ndarray, np.ndarray]:
    """Return the loss of each image and its gradient, level by level and image by image."""
    losses, gradients = np.zeros(len(labels)), np.zeros_like(logits)
    depth = [len(each) - 1 for each in CHAINS]
    for level in range(max(depth)):
        classes = [label for label in range(CLASSES) if depth[label] == level]
        if len(classes) == 1:
            continue
        weight = min(CLASSES / sum(each >= level for each in depth), 20)
        for i, label in enumerate(labels):
            above = [each for each in CHAINS[label] if depth[each] == level]
            if not above:
                continue
            x = logits[i, classes]
            p = np.exp(x - x.max()) / np.exp(x - x.max()).sum()
            wanted = np.full(len(classes), smoothing / len(classes))
            wanted[classes.index(above[0])] += 1 - smoothing
            losses[i] -= weight * (wanted * np.log(p)).sum()
            gradients[i, classes] += weight * (p - wanted)
    return losses, gradients


def data() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return 4 * rng.normal(size=(3 * CLASSES, CLASSES)), np.tile(np.arange(CLASSES), 3)


def test_levels():
    assert [each.tolist() for each in TREE.levels] == [[0, 4], [2, 3, 5], [1, 7, 8]]
    assert TREE.weights == (1, CLASSES / 9, CLASSES / 6)
    assert TREE.places[10].tolist() == [1, 2, 2] and TREE.places[3].tolist() == [0, 1, -1]
    deep = semantic_tree([[0], [1], *([i, i - 2, *range(i - 4, -1, -2)] for i in range(2, 100))])
    assert deep.weights[-1] == 20 and len(deep.levels) == 49


@pytest.mark.parametrize('smoothing', [0.0, 0.2])
def test_loss_and_gradient(double, smoothing):
    logits, labels = data()
    targets = np.eye(CLASSES)[labels]
    losses, gradients = of_numpy(logits, labels, smoothing)
    found, back = jax.vjp(lambda x: semantic_losses(x, targets, TREE, smoothing), logits)
    assert_close(found, losses, 1e-12)
    assert_close(back(np.ones(len(labels)))[0], gradients, 1e-12)
    assert (gradients[:, [6, 10, 9]] == 0).all() and gradients[:, 8].any()
    config = TrainConfig(loss='semantic', smoothing=smoothing)
    assert_close(create_loss(config, tree=TREE)(logits, targets), losses.mean(), 1e-12)


def test_mixed_targets(double):
    """The loss of a mixture of two labels is the mixture of their losses."""
    logits, labels = data()
    others = labels[::-1]
    targets = 0.3 * np.eye(CLASSES)[labels] + 0.7 * np.eye(CLASSES)[others]
    expected = 0.3 * of_numpy(logits, labels, 0.2)[0] + 0.7 * of_numpy(logits, others, 0.2)[0]
    assert_close(semantic_losses(logits, targets, TREE, 0.2), expected, 1e-12)


def test_the_loss_smooths_and_not_the_targets():
    config = TrainConfig(loss='semantic', smoothing=0.2)
    batch = {'image': np.zeros((2, 4, 4, 3), np.uint8), 'label': np.array([1, 3], np.int32)}
    keys = jax.random.split(jax.random.key(0), 2)
    _, targets = augment(keys[0], keys, batch, config, CLASSES, (0.5,) * 3, (0.5,) * 3)
    np.testing.assert_array_equal(targets, np.eye(CLASSES)[[1, 3]])


def test_accuracy(double):
    """As the authors': of all levels in which an image has a class, and no other."""
    logits, labels = data()
    right = total = 0
    for x, label in zip(logits, labels, strict=True):
        for classes in ([0, 4], [2, 3, 5], [1, 7, 8]):
            above = {*classes} & {*CHAINS[label]}
            total += len(above)
            right += above == {classes[int(np.argmax(x[classes]))]}
    hits, levels = semantic_hits(logits, labels, TREE)
    assert (int(hits.sum()), int(levels.sum())) == (right, total) and 0 < right < total

    def toy(params, batch_stats, images):
        return jnp.asarray(logits)[jnp.round(images[:, 0, 0, 0] * 255).astype(jnp.int32)]

    step = over_devices(make_eval_step(toy, mean=(0.0,) * 3, std=(1.0,) * 3, dtype=jnp.float64, tree=TREE))
    images = np.broadcast_to(np.arange(32, dtype=np.uint8).reshape(2, 16, 1, 1, 1), (2, 16, 1, 1, 3))
    batch = {'image': images, 'label': labels[:32].reshape(2, 16).astype(np.int32)}
    batches = (batch | {'mask': np.arange(32).reshape(2, 16) < most} for most in (30, 4))
    result = evaluate(step, ({}, {}), batches)
    expected = (hits[:30].sum() + hits[:4].sum()) / (levels[:30].sum() + levels[:4].sum())
    assert result.count == 34 and result.semantic_top1 == pytest.approx(float(expected), rel=1e-12)
    losses, _ = of_numpy(logits, labels, 0.0)
    assert result.loss == pytest.approx((losses[:30].sum() + losses[:4].sum()) / 34, rel=1e-12)
    assert result.metrics()['semantic_top1'] == result.semantic_top1
    assert 'semantic_top1' not in EvalResult(0.0, 0.0, 0.0, 1).metrics()


NAMES = tuple('abcdefghijk')
PHOTOS = types.SimpleNamespace(class_names=NAMES, num_classes=CLASSES, name='photos')


def test_files(tmp_path):
    """JSON, and a pickle of the authors' structure; the order of the classes is checked where it is given."""
    document = {'class_tree_list': CHAINS, 'class_list': list(NAMES), 'class_description': {'a': 'A'}}
    (tmp_path / 'a.json').write_text(json.dumps(document))
    (tmp_path / 'a.pth').write_bytes(pickle.dumps(document))
    for name in ('a.json', 'a.pth'):
        found = read_semantic_tree(tmp_path / name, CLASSES, PHOTOS)
        assert [each.tolist() for each in found.levels] == [each.tolist() for each in TREE.levels]
    (tmp_path / 'a.json').write_text(json.dumps(document | {'class_list': [*NAMES[::-1]]}))
    with pytest.raises(TrainingError, match='another order of the classes: a is class 0 in photos, 10 in the file'):
        read_semantic_tree(tmp_path / 'a.json', CLASSES, PHOTOS)


@pytest.mark.parametrize(
    'names, right',
    [
        (['x', *NAMES[1:]], True),
        ([str(i) for i in range(CLASSES)], True),
        (['x', *NAMES[:-1]], False),
        ([*NAMES, 'a'], False),
    ],
)
def test_classes_that_the_tree_and_the_data_share(tmp_path, names, right):
    (tmp_path / 'a.json').write_text(json.dumps({'class_tree_list': CHAINS, 'class_list': names}))
    with contextlib.nullcontext() if right else pytest.raises(TrainingError, match='a is class 0 in photos, '):
        read_semantic_tree(tmp_path / 'a.json', CLASSES, PHOTOS)


@pytest.mark.parametrize(
    'document, message',
    [
        ([], 'expected class_tree_list: for each class, a list of the class, its parent'),
        ({'class_tree_list': {}}, 'expected class_tree_list: '),
        ({'class_tree_list': CHAINS[:-1]}, 'has 10 classes, but the model has 11$'),
        ({'class_tree_list': [*CHAINS[:-1], [9, 8, 5, 4]]}, r'class 10 has \[9, 8, 5, 4\]'),
        ({'class_tree_list': [*CHAINS[:-1], []]}, r'class 10 has \[\]'),
        ({'class_tree_list': [*CHAINS[:-1], 10]}, 'class 10 has 10'),
        ({'class_tree_list': [[0, 1], 5, *CHAINS[2:]]}, 'class 1 has 5'),
        ({'class_tree_list': [[0, 1], [1, 0], *CHAINS[2:]]}, 'class 1 has 0 classes above it in the list of class 0'),
        ({'class_tree_list': [*CHAINS[:-1], [10, 99]]}, r'class 10 has \[10, 99\]'),
        ({'class_tree_list': [*CHAINS[:-1], [10, True]]}, r'class 10 has \[10, True\]'),
        ({'class_tree_list': [*CHAINS[:-1], [10, 8, 4]]}, 'class 8 has 1 class above it in the list of class 10, but'),
        ({'class_tree_list': [[i] for i in range(CLASSES)]}, 'no level but the deepest has several classes'),
    ],
)
def test_no_trees(tmp_path, document, message):
    (tmp_path / 'a.json').write_text(json.dumps(document))
    with pytest.raises(TrainingError, match=message) as caught:
        read_semantic_tree(tmp_path / 'a.json', CLASSES, PHOTOS)
    assert str(caught.value).startswith(f'{tmp_path}/a.json: ') and '\n' not in str(caught.value)


def test_unreadable_files(tmp_path):
    (tmp_path / 'a.pth').write_bytes(b'nothing')
    for name, error in (('a.pth', ConversionError), ('b.pth', ConversionError), ('b.json', TrainingError)):
        with pytest.raises(error, match=name):
            read_semantic_tree(tmp_path / name, CLASSES, PHOTOS)


@pytest.mark.slow
def test_run(tmp_path, capsys):
    """A run is rated by the accuracy over the levels, and tells it."""
    chains = [[0], [1], *([i, 0] for i in range(2, 6)), *([i, 2, 0] for i in range(6, 10))]
    (tmp_path / 'tree.json').write_text(json.dumps({'class_tree_list': chains, 'class_list': list(FASHION_MNIST)}))
    config = dataclasses.replace(
        TINY, loss='semantic', semantic_tree=tmp_path / 'tree.json', smoothing=0.2, steps=2, devices=1, model_ema=False
    )
    with compiled_once(tmp_path / 'compiled'):
        result = loop.train(config, tmp_path / 'run')
    (row,) = (r for r in read_records(tmp_path / 'run') if r['kind'] == 'eval')
    assert result.evaluation.semantic_top1 == row['semantic_top1'] and 0 < row['semantic_top1'] < 1
    assert load_weights(tmp_path / 'run').metric == 'semantic_top1'
    assert f'semantic top-1 {100 * row["semantic_top1"]:.2f} %' in capsys.readouterr().out
