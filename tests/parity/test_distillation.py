"""One step of learning from a teacher against timm's tasks: losses and gradients of every weight, in float64."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from timm.loss import SoftTargetCrossEntropy
from timm.task import FeatureDistillationTask, LogitDistillationTask

import convert
import tresnet_jax
from tests.helpers.closeness import assert_close
from tests.helpers.reference import ours, reference
from tresnet_jax.checkpoints.run import PROJECTION
from tresnet_jax.training.config import TrainConfig
from tresnet_jax.training.devices import AXIS
from tresnet_jax.training.distillation import Distillation, feature_loss, logit_loss, loss_shares, without_projection
from tresnet_jax.training.optim import create_optimizer
from tresnet_jax.training.schedules import create_schedule
from tresnet_jax.training.step import create_state, make_train_step, over_devices

pytestmark = pytest.mark.usefixtures('x64', 'standard_promotion')

BATCH, SIZE, CLASSES = 8, 32, 5
OURS, THEIRS = ((0.4, 0.5, 0.6), (0.3, 0.25, 0.2)), ((0.5, 0.5, 0.5), (0.5, 0.6, 0.7))
# One step with the rate 1 subtracts the gradient.
CONFIG = TrainConfig(
    opt='momentum', lr=1.0, momentum=0.0, weight_decay=0.0, sched='constant', warmup_epochs=0, smoothing=0.0,
    dtype='float64',
)  # fmt: skip
SHARES = [(None, None), (0.3, None), (None, 0.7), (0.3, 2.0)]


class Pure(NamedTuple):
    """A network in functional form."""

    apply: Callable[..., Any]
    params: Any
    batch_stats: Any


class Toy(torch.nn.Module):
    """A network of one layer over the colours and a classifier, in torch and in functional form."""

    num_classes, in_chans = CLASSES, 3

    def __init__(self, width: int, mean: tuple[float, ...], std: tuple[float, ...]):
        super().__init__()
        torch.manual_seed(width)
        self.num_features, self.pretrained_cfg = width, {'mean': mean, 'std': std}
        self.mix, self.fc = (torch.nn.Linear(*n, bias=False).double() for n in ((3, width), (width, CLASSES)))

    def forward_features(self, x: torch.Tensor) -> torch.Tensor:
        return torch.tanh(self.mix(x.permute(0, 2, 3, 1)))

    def forward_head(self, x: torch.Tensor, pre_logits: bool = False) -> torch.Tensor:
        x = x.mean((1, 2))
        return x if pre_logits else self.fc(x)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.forward_head(self.forward_features(x))

    def pure(self, kind: str) -> Pure:
        """Return the functional form; for 'feature' a call returns pooled features."""

        def apply(params, batch_stats, x, *, train=False, rngs=None, method='__call__', pre_logits=kind == 'feature'):
            if method != 'forward_head':
                x = jnp.tanh(x @ params['mix']['kernel'])
            if method != 'forward_features':
                x = x.mean((1, 2))
                x = x if pre_logits else x @ params['fc']['kernel']
            return (x, batch_stats) if train else x

        layers = {'mix': self.mix, 'fc': self.fc}
        return Pure(apply, {n: {'kernel': layer.weight.detach().numpy().T.copy()} for n, layer in layers.items()}, {})


def data() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, CLASSES, BATCH).astype(np.int32)
    return {'image': rng.integers(0, 256, (BATCH, SIZE, SIZE, 3)).astype(np.uint8), 'label': labels}


def of_timm(task: Any, student: torch.nn.Module) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    """Return the losses and the gradients."""
    batch = data()
    mean, std = (torch.tensor(values, dtype=torch.float64)[:, None, None] for values in OURS)
    images = (torch.from_numpy(batch['image']).permute(0, 3, 1, 2).double() / 255 - mean) / std
    task.train()
    found = task(images, torch.eye(CLASSES, dtype=torch.float64)[batch['label'].astype(np.int64)])
    student.zero_grad()
    found['loss'].backward()
    gradients = {
        name: value.grad.numpy().copy() for name, value in student.named_parameters() if value.grad is not None
    }
    return {name: found[name].item() for name in ('loss', 'task_loss', 'kd_loss')}, gradients


def of_ours(student: Pure, teacher: Pure, kind: str, shares: tuple[float, float], projection=None, parts=1):
    """Return the losses and the gradients, that of the projection included."""
    apply, params, stats = student
    if projection is not None:
        params = params | {PROJECTION: projection}
    config = dataclasses.replace(CONFIG, accumulate=parts)
    optimizer = create_optimizer(config, create_schedule(config, 10, 1), params)
    distillation = Distillation(kind, teacher.apply, None, (OURS, THEIRS), 4.0, shares)
    inner = make_train_step(
        without_projection(apply), optimizer, config, num_classes=CLASSES, mean=OURS[0], std=OURS[1],
        distillation=distillation,
    )  # fmt: skip
    step = over_devices(inner, fixed=(teacher.params, teacher.batch_stats))
    batch = {name: value.reshape(2, BATCH // 2, *value.shape[1:]) for name, value in data().items()}
    state, metrics = step(create_state(params, stats, optimizer, ema=False), batch)
    losses = {name: float(metrics[name]) for name in ('loss', 'task_loss', 'kd_loss')}
    return losses, jax.tree.map(lambda a, b: np.asarray(a) - np.asarray(b), params, state.params)


def compare(losses: dict[str, float], gradients: dict[str, np.ndarray], expected) -> None:
    for name, value in expected[0].items():
        assert losses[name] == pytest.approx(value, rel=1e-12), name
    weights = {name: value for name, value in expected[1].items() if np.abs(value).max() > 0}
    assert len(weights) >= 2
    assert_close({name: gradients[name] for name in weights}, weights, 1e-9)


def compare_projection(gradient, layer: torch.nn.Linear) -> None:
    assert_close(gradient, {'kernel': layer.weight.grad.numpy().T, 'bias': layer.bias.grad.numpy()}, 1e-9)


def task_of(kind: str, student: torch.nn.Module, teacher: torch.nn.Module) -> Any:
    torch.manual_seed(3)
    options = {'task_loss_weight': 0.3, 'distill_loss_weight': 2.0, 'dtype': torch.float64, 'verbose': False}
    if kind == 'logit':
        return LogitDistillationTask(student, teacher, SoftTargetCrossEntropy(), temperature=4.0, **options)
    return FeatureDistillationTask(student, teacher, SoftTargetCrossEntropy(), **options)


def projection_of(task: Any) -> Any:
    """Return the projection of timm's task as ours."""
    if isinstance(task, LogitDistillationTask):
        return None
    layer = task.trainable_module.projection
    return {'kernel': layer.weight.detach().numpy().T.copy(), 'bias': layer.bias.detach().numpy().copy()}


@pytest.mark.parametrize('kind, parts', [('logit', 1), ('feature', 1), ('logit', 2)])
def test_step_of_a_toy(kind, parts):
    """Losses and gradients of the step on two devices, also in parts; for features with a projection."""
    student, teacher = Toy(4, *OURS), Toy(6, *THEIRS)
    task = task_of(kind, student, teacher)
    projection = projection_of(task)
    pure = student.pure('logit'), teacher.pure(kind)
    expected = of_timm(task, student)
    losses, gradients = of_ours(*pure, kind, (0.3, 2.0), projection, parts)
    compare(losses, {f'{name}.weight': gradients[name]['kernel'].T for name in ('mix', 'fc')}, expected)
    if projection is not None:
        compare_projection(gradients[PROJECTION], task.trainable_module.projection)


@pytest.mark.slow
@pytest.mark.parametrize('kind', ['logit', 'feature'])
def test_step_of_whole_networks(kind):
    """A student and a teacher of other widths and another normalisation."""
    student = reference('test_resnet', 0, num_classes=CLASSES)
    teacher = reference('test_tresnet', 1, num_classes=CLASSES)
    for model, (mean, std) in ((student, OURS), (teacher, THEIRS)):
        model.pretrained_cfg = {'mean': mean, 'std': std}
    mine = Pure(*tresnet_jax.functional(ours(student, 'test_resnet', dtype='float64', axis_name=AXIS)))
    theirs = ours(teacher, 'test_tresnet', dtype='float64')
    if kind == 'feature':
        theirs.reset_classifier(0)
    task = task_of(kind, student, teacher)
    projection = projection_of(task)
    mine = Pure(mine.apply, *jax.tree.map(np.array, (mine.params, mine.batch_stats)))
    expected = of_timm(task, student)
    losses, gradients = of_ours(mine, Pure(*tresnet_jax.functional(theirs)), kind, (0.3, 2.0), projection)
    of_projection = gradients.pop(PROJECTION, None)
    compare(losses, convert.to_torch(gradients, mine.batch_stats), expected)
    if projection is not None:
        compare_projection(of_projection, task.trainable_module.projection)


@pytest.mark.parametrize('task_weight, distill_weight', SHARES)
@pytest.mark.parametrize('temperature', [1.0, 4.0])
def test_losses_of_logits(task_weight, distill_weight, temperature):
    """Values and gradients with all ways to give the two weights, on logits of any size."""
    rng = np.random.default_rng(1)
    logits, teacher = 6 * rng.normal(size=(2, 12, 7))
    weights = dict(zip(('task_loss_weight', 'distill_loss_weight'), (task_weight, distill_weight), strict=True))
    student = Given(logits)
    task = LogitDistillationTask(
        student, Given(teacher), SoftTargetCrossEntropy(), temperature=temperature, dtype=torch.float64, verbose=False,
        **weights,
    )  # fmt: skip
    targets = np.eye(7)[rng.integers(0, 7, 12)]
    expected = task(torch.zeros(12, 3, 1, 1, dtype=torch.float64), torch.from_numpy(targets))['loss']
    expected.backward()
    of_task, of_teacher = loss_shares(task_weight, distill_weight)

    def loss(x):
        return of_task * -(targets * jax.nn.log_softmax(x)).sum(-1).mean() + of_teacher * logit_loss(
            x, teacher, temperature
        )

    value, gradient = jax.value_and_grad(loss)(logits)
    assert_close(np.asarray(value), expected.detach().numpy(), 1e-12)
    assert_close(np.asarray(gradient), student.output.grad.numpy(), 1e-12)


def test_loss_of_features():
    ours, theirs = np.random.default_rng(2).normal(size=(2, 12, 7))
    inputs = torch.from_numpy(ours).requires_grad_()
    expected = torch.nn.functional.mse_loss(inputs, torch.from_numpy(theirs))
    expected.backward()
    value, gradient = jax.value_and_grad(feature_loss)(ours, theirs)
    assert_close(np.asarray(value), expected.detach().numpy(), 1e-12)
    assert_close(np.asarray(gradient), inputs.grad.numpy(), 1e-12)


class Given(torch.nn.Module):
    """A network whose logits are given."""

    num_classes, in_chans = 7, 3
    pretrained_cfg = {'mean': OURS[0], 'std': OURS[1]}

    def __init__(self, logits: np.ndarray):
        super().__init__()
        self.output = torch.nn.Parameter(torch.from_numpy(logits))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.output
