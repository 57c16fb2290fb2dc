"""The training step: devices, accumulation, moving average, frozen parts, bad steps. A toy stands for the network."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tresnet_jax
from tests.helpers.closeness import assert_close, assert_identical
from tresnet_jax.training.config import TrainConfig
from tresnet_jax.training.devices import AXIS, replicate
from tresnet_jax.training.losses import asymmetric_loss, binary_cross_entropy
from tresnet_jax.training.optim import create_optimizer
from tresnet_jax.training.schedules import create_schedule, one_cycle
from tresnet_jax.training.step import (
    create_state,
    make_eval_step,
    make_multilabel_eval_step,
    make_train_step,
    over_devices,
)

BATCH, CLASSES = 16, 3
MEAN, STD = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)
PLAIN = TrainConfig(opt='momentum', lr=0.1, sched='constant', warmup_epochs=0, smoothing=0.0, dtype='float64')


@pytest.fixture(autouse=True)
def double():
    """float64, and optax's promotion of integers."""
    with jax.enable_x64(True), jax.numpy_dtype_promotion('standard'):
        yield


def batch(seed: int = 0, size: int = 8) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, CLASSES, BATCH).astype(np.int32)
    return {'image': rng.integers(0, 256, (BATCH, size, size, 3)).astype(np.uint8), 'label': labels}


def shares(values: dict[str, np.ndarray], devices: int) -> dict[str, np.ndarray]:
    return {key: value.reshape(devices, -1, *value.shape[1:]) for key, value in values.items()}


def toy(params, batch_stats, x, *, train=False, rngs=None):
    """A linear model on the mean colour, whose one statistic is the mean of the images it saw."""
    logits = x.mean((1, 2)) @ params['layer1']['kernel'] @ params['fc']['kernel'] + params['fc']['bias'][None]
    if not train:
        return logits
    assert set(rngs) == {'dropout'}
    return logits, {'mean': 0.9 * batch_stats['mean'] + 0.1 * x.mean((0, 1, 2))}


def toy_trees():
    rng = np.random.default_rng(1)
    params = {
        'layer1': {'kernel': rng.normal(size=(3, 4))},
        'fc': {'kernel': rng.normal(size=(4, CLASSES)), 'bias': np.zeros(CLASSES)},
    }
    return params, {'mean': np.zeros(3)}


def start(params, stats, optimizer, ema: bool, devices: int):
    """Return the state before the first step where later ones are: on every device. Its step compiles once so."""
    return replicate(create_state(params, stats, optimizer, ema), jax.devices()[:devices])


def run(config: TrainConfig, *, devices: int = 1, steps: int = 3, batches=batch, mixing_steps: int | None = None):
    params, stats = jax.tree.map(jnp.asarray, toy_trees())
    optimizer = create_optimizer(config, create_schedule(config, 10, 1), params)
    arguments = {'num_classes': CLASSES, 'mean': MEAN, 'std': STD, 'mixing_steps': mixing_steps}
    step = over_devices(make_train_step(toy, optimizer, config, **arguments))
    state = start(params, stats, optimizer, config.model_ema, devices)
    metrics = []
    for i in range(steps):
        state, values = step(state, shares(batches(i), devices))
        metrics.append(values)
    return state, metrics


def mean_loss(params, values: dict[str, np.ndarray]) -> jax.Array:
    """Return the mean cross entropy of a whole batch."""
    logits = toy(params, None, (values['image'] / 255 - 0.5) / 0.25)
    return -jax.nn.log_softmax(logits)[jnp.arange(BATCH), values['label']].mean()


def test_gradient_of_one_step():
    """The first step is minus the rate times the gradient of the mean cross entropy over all devices."""
    params, _ = toy_trees()
    values = batch()
    config = dataclasses.replace(PLAIN, weight_decay=0.0)
    state, (metrics,) = run(config, devices=4, steps=1)
    expected = jax.tree.map(lambda p, g: p - 0.1 * g, params, jax.grad(mean_loss)(params, values))
    assert_close(state.params, expected, 1e-13)
    assert float(metrics['loss']) == pytest.approx(float(mean_loss(params, values)), rel=1e-12)


@pytest.mark.parametrize('parts', [2, 4])
def test_accumulation(parts):
    """A batch in parts gives the same gradient; statistics pass through the parts one after the other."""
    whole, _ = run(PLAIN, devices=2, steps=1)
    state, _ = run(dataclasses.replace(PLAIN, accumulate=parts), devices=2, steps=1)
    assert_close(state.params, whole.params, 1e-13)
    colours = (batch()['image'] / 255 - 0.5) / 0.25
    means = []
    for device in colours.reshape(2, -1, *colours.shape[1:]):
        mean = np.zeros(3)
        for part in range(parts):  # images go to the parts in turn
            mean = 0.9 * mean + 0.1 * device[part::parts].mean((0, 1, 2))
        means.append(mean)
    np.testing.assert_allclose(state.batch_stats['mean'], np.mean(means, 0), rtol=1e-12)


def test_mixing_ends(monkeypatch):
    """After the given number of steps images are not mixed. Devices and parts do not change how each image is mixed."""
    monkeypatch.setattr(jax.random, 'beta', lambda key, a, b, dtype: jax.random.uniform(key, dtype=dtype))
    config = dataclasses.replace(PLAIN, lr=1e-12, mixup=1.0, cutmix=1.0, mixup_mode='elem')
    _, metrics = run(config, devices=2, steps=2, mixing_steps=1)
    mixed, unmixed = (float(values['loss']) for values in metrics)
    params, _ = toy_trees()
    assert mixed != pytest.approx(float(mean_loss(params, batch(0))), rel=1e-3)
    assert unmixed == pytest.approx(float(mean_loss(params, batch(1))), rel=1e-9)
    _, metrics = run(dataclasses.replace(config, accumulate=2), devices=1, steps=2, mixing_steps=1)
    assert [float(values['loss']) for values in metrics] == pytest.approx([mixed, unmixed], rel=1e-9)


@pytest.mark.parametrize(
    'changes, whole',
    [
        ({'loss': 'bce'}, binary_cross_entropy),
        ({'loss': 'asl', 'asl_reduction': 'sum'}, functools.partial(asymmetric_loss, reduction='sum')),
        ({'loss': 'asl', 'accumulate': 2}, asymmetric_loss),
    ],
)
def test_gradient_of_targets(changes, whole):
    """The loss of soft targets, of fewer classes than the model's, is that of the whole batch, smoothed towards 0.5."""
    params, _ = toy_trees()
    values = with_targets()
    config = dataclasses.replace(PLAIN, task='multilabel', weight_decay=0.0, smoothing=0.2, batch_size=BATCH, **changes)
    state, (metrics,) = run(config, devices=4, steps=1, batches=lambda i: values)
    targets = 0.8 * np.pad(values['target'].astype(float), ((0, 0), (0, 1))) + 0.1

    def loss(params):
        return whole(toy(params, None, (values['image'] / 255 - 0.5) / 0.25), targets)

    expected = jax.tree.map(lambda p, g: p - 0.1 * g, params, jax.grad(loss)(params))
    assert_close(state.params, expected, 1e-13)
    assert float(metrics['loss']) == pytest.approx(float(loss(params)), rel=1e-12)
    assert set(metrics) == {'loss', 'grad_norm', 'finite'}


def test_outputs_for_whole_data_sets():
    """The evaluation step returns what every device has, without the classes that the data lacks."""
    variables = toy_trees()
    indices = np.arange(BATCH, dtype=np.int32)
    values = with_targets() | {'mask': (indices < 13).astype(np.float32), 'index': indices}
    step = over_devices(make_multilabel_eval_step(toy, mean=MEAN, std=STD, dtype=jnp.float64))
    found = step(variables, shares(values, 4))
    logits = toy(*variables, (values['image'] / 255 - 0.5) / 0.25)[:, : CLASSES - 1]
    assert_close(found['logits'], logits, 1e-13)
    np.testing.assert_array_equal(found['targets'], values['target'])
    np.testing.assert_array_equal(found['mask'], values['mask'])
    np.testing.assert_array_equal(found['index'], indices)
    y = values['target'].astype(np.float64)
    loss = -y * np.log(jax.nn.sigmoid(logits)) - (1 - y) * np.log(jax.nn.sigmoid(-logits))
    assert_close(found['loss'], loss.mean(1), 1e-12)


def with_targets() -> dict[str, np.ndarray]:
    """Return a batch with soft targets of all classes but one."""
    targets = np.random.default_rng(3).random((BATCH, CLASSES - 1)).astype(np.float32)
    return {'image': batch()['image'], 'target': targets}


def fails_on_white(params, batch_stats, x, **mode):
    """The toy, which gives no number for a share of white images."""
    logits, stats = toy(params, batch_stats, x, **mode)
    return logits + jnp.where((x == 2).all(), jnp.nan, 0), stats


def test_bad_steps_are_left_out():
    """A step that is not finite on one device changes counters alone, as often as allowed; then nothing changes."""
    config = dataclasses.replace(PLAIN, skip_nonfinite=1, model_ema=True)
    params, stats = jax.tree.map(jnp.asarray, toy_trees())
    optimizer = create_optimizer(config, create_schedule(config, 10, 1), params)
    step = over_devices(make_train_step(fails_on_white, optimizer, config, num_classes=CLASSES, mean=MEAN, std=STD))
    states = [start(params, stats, optimizer, True, devices=2)]
    for i, white in enumerate([False, True, False, True, False]):
        values = shares(batch(i), 2)
        if white:
            values['image'][1] = 255
        state, metrics = step(states[-1], values)
        assert bool(metrics['finite']) is not white
        assert int(state.step) == i + 1
        states.append(state)
    assert [int(state.nonfinite) for state in states] == [0, 0, 1, 1, 2, 2]
    for before, after, moves in zip(states[:-1], states[1:], [True, False, True, False, False], strict=True):
        for name in ('params', 'batch_stats', 'opt_state', 'ema'):
            a, b = (jax.tree.leaves(getattr(state, name)) for state in (before, after))
            assert any(not np.array_equal(x, y) for x, y in zip(a, b, strict=True)) is moves


def test_the_schedule_counts_skipped_steps():
    """The step after a skipped one has the rate that the loop logs, as in torch, whose schedulers count batches."""
    options = {'momentum': 0.0, 'weight_decay': 0.0, 'sched': 'step', 'decay_epochs': 1, 'decay_rate': 0.5}
    config = dataclasses.replace(PLAIN, **options, skip_nonfinite=2)
    schedule = create_schedule(config, 10, 1)
    params, stats = jax.tree.map(jnp.asarray, toy_trees())
    optimizer = create_optimizer(config, schedule, params)
    step = over_devices(make_train_step(fails_on_white, optimizer, config, num_classes=CLASSES, mean=MEAN, std=STD))
    state = start(params, stats, optimizer, False, devices=1)
    white = batch() | {'image': np.full_like(batch()['image'], 255)}
    for number, values in enumerate((white, batch(1), white, batch(2))):
        before = state.params
        state, metrics = step(state, shares(values, 1))
        if metrics['finite']:
            assert float(schedule(number)) == 0.1 * 0.5**number
            gradient = jax.grad(mean_loss)(before, values)
            assert_close(state.params, jax.tree.map(lambda p, g: p - 0.1 * 0.5**number * g, before, gradient), 1e-13)  # noqa: B023
    assert (int(state.step), int(state.nonfinite)) == (4, 2)


def test_frozen_parts_keep_their_bits():
    """Neither gradient nor weight decay nor momentum moves them; the others move as they would."""
    free, _ = run(dataclasses.replace(PLAIN, weight_decay=0.1))
    state, _ = run(dataclasses.replace(PLAIN, weight_decay=0.1, freeze=('backbone',)), steps=1)
    np.testing.assert_array_equal(state.params['layer1']['kernel'], toy_trees()[0]['layer1']['kernel'])
    first, _ = run(dataclasses.replace(PLAIN, weight_decay=0.1), steps=1)
    np.testing.assert_allclose(state.params['fc']['kernel'], first.params['fc']['kernel'], rtol=1e-12)
    assert not np.array_equal(free.params['layer1']['kernel'], toy_trees()[0]['layer1']['kernel'])


def test_frozen_batch_norm_stays_in_evaluation_mode():
    """Statistics of frozen parts are used and kept, those of the others are not."""
    model = tresnet_jax.create_model('test_resnet', num_classes=CLASSES)
    apply, params, stats = tresnet_jax.functional(model, ('stem', 'layer1', 'layer2', 'layer3'))
    x = np.random.default_rng(0).normal(size=(2, 32, 32, 3)).astype(np.float32)
    _, new = jax.jit(lambda *trees: apply(*trees, x, train=True))(params, stats)
    changed = {key for key in stats if any(
        not np.array_equal(a, b) for a, b in zip(jax.tree.leaves(stats[key]), jax.tree.leaves(new[key]), strict=True)
    )}  # fmt: skip
    assert changed == {'layer4'}
    with pytest.raises(ValueError, match="unknown part 'layer5'"):
        tresnet_jax.functional(model, ('layer5',))


@pytest.mark.parametrize('warmup', [False, True])
def test_moving_average(warmup):
    """As timm's ModelEmaV3: the first step is copied."""
    config = dataclasses.replace(PLAIN, model_ema=True, model_ema_decay=0.7, model_ema_warmup=warmup)
    states = [run(config, steps=n)[0] for n in (1, 2, 3)]
    expected = None
    for step, state in enumerate(states):
        decay = min(0.7, 1 - (1 + step) ** (-2 / 3)) if warmup else 0.7 * (step > 0)
        now = {'params': state.params, 'batch_stats': state.batch_stats}
        expected = now if step == 0 else jax.tree.map(lambda e, n: decay * e + (1 - decay) * n, expected, now)  # noqa: B023
        assert_close(state.ema, expected, 1e-13)


def test_donation_takes_the_memory():
    """The old state is gone where it was donated, and only there."""
    params, stats = jax.tree.map(jnp.asarray, toy_trees())
    optimizer = create_optimizer(PLAIN, create_schedule(PLAIN, 10, 1), params)
    inner = make_train_step(toy, optimizer, PLAIN, num_classes=CLASSES, mean=MEAN, std=STD)
    for donate in (False, True):
        state, _ = over_devices(inner)(create_state(params, stats, optimizer, False), shares(batch(), 2))
        over_devices(inner, donate=donate)(state, shares(batch(), 2))
        assert state.params['fc']['bias'].is_deleted() is donate


def test_evaluation_counts_each_image_once():
    """Sums over devices with padding masked, against NumPy."""
    params, stats = toy_trees()
    values = batch() | {'mask': np.arange(BATCH) < 11, 'index': np.arange(BATCH, dtype=np.int32)}
    step = make_eval_step(toy, mean=MEAN, std=STD, dtype=jnp.float64, each_image=True)
    sums = over_devices(step)((params, stats), shares(values, 4))
    logits = np.asarray(toy(params, stats, (values['image'][:11] / 255 - 0.5) / 0.25))
    labels = values['label'][:11]
    assert float(sums['count']) == 11
    assert float(sums['top1']) == (logits.argmax(-1) == labels).sum()
    assert float(sums['top5']) == 11  # of three classes
    expected = -np.asarray(jax.nn.log_softmax(logits))[np.arange(11), labels]
    assert float(sums['loss']) == pytest.approx(expected.sum(), rel=1e-12)
    found = {name: np.asarray(value) for name, value in sums['images'].items()}
    for name in ('label', 'mask', 'index'):
        np.testing.assert_array_equal(found[name], values[name])
    np.testing.assert_array_equal(found['predicted'][:11], logits.argmax(-1))
    np.testing.assert_allclose(found['probability'][:11], np.asarray(jax.nn.softmax(logits)).max(-1), rtol=1e-12)
    np.testing.assert_allclose(found['loss'][:11], expected, rtol=1e-12)
    assert found['top5'].all()


def test_randomness_differs_between_steps_and_not_between_runs():
    """Mixup draws another share at each step, the same in each run."""
    config = dataclasses.replace(PLAIN, mixup=1.0)
    (a, first), (b, second) = (run(config, devices=2) for _ in range(2))
    assert_identical(a.params, b.params)
    same = lambda i: {'image': batch(0)['image'], 'label': batch(0)['label']}  # noqa: E731
    _, metrics = run(dataclasses.replace(config, lr=1e-300), devices=2, batches=same)
    assert len({float(m['loss']) for m in metrics}) == 3
    assert [float(m['loss']) for m in first] == [float(m['loss']) for m in second]


ALL_RANDOM = {'mixup': 0.4, 'cutmix': 1.0, 'reprob': 0.5, 'cutout': 0.3, 'smoothing': 0.1, 'accumulate': 2}


# Normal numbers in float32 are not the same in every program of the daily suite's emitters (conftest.py).
SEVERAL = [
    (4, 'const'),
    pytest.param(4, 'pixel', marks=pytest.mark.slow),
    pytest.param(2, 'pixel', marks=pytest.mark.slow),
]


@pytest.mark.parametrize('devices, remode', SEVERAL)
def test_number_of_devices_does_not_matter(devices, remode):
    """With synchronised batch norm and everything random: every weight and statistic after three steps within 1e-9."""
    config = dataclasses.replace(PLAIN, **ALL_RANDOM, remode=remode)
    random = {'drop_rate': 0.3, 'drop_path_rate': 0.3}
    model = tresnet_jax.create_model('test_resnet', num_classes=CLASSES, dtype='float64', axis_name=AXIS, **random)
    apply, params, stats = tresnet_jax.functional(model)
    optimizer = create_optimizer(config, create_schedule(config, 10, 1), params)
    step_of = make_train_step(apply, optimizer, config, num_classes=CLASSES, mean=MEAN, std=STD)
    found = []
    for n in (1, devices):
        step = over_devices(step_of)
        state = start(params, stats, optimizer, False, n)
        for i in range(3):
            state, _ = step(state, shares(batch(i, size=16), n))
        found.append(state)
    one, several = found
    assert_close((several.params, several.batch_stats), (one.params, one.batch_stats), 1e-9)


def test_one_cycle_ends():
    """Start, peak and end of a run, and runs of a few steps, have a rate."""
    cycle = one_cycle(1.0, 100, 0.3, 25.0, 1e4)
    assert float(cycle(0)) == pytest.approx(0.04)
    assert float(cycle(29)) == pytest.approx(1.0)
    assert float(cycle(99)) == pytest.approx(4e-6)
    for steps in (1, 2, 3):
        assert all(0 < float(one_cycle(1.0, steps, 0.3, 25.0, 1e4)(step)) <= 1 for step in range(steps))
