"""Every optimiser and every kind of clipping against timm's: all parameters after each of twenty steps, in float64."""

# pyright: reportPrivateImportUsage=false
# timm does not mark what it exports.

import ast
import dataclasses
import functools
from typing import Any

import jax
import numpy as np
import pytest
import timm.optim
import timm.optim.muon
import torch
from timm.models import model_parameters
from timm.utils.clip_grad import dispatch_clip_grad

from tests.helpers.closeness import assert_close
from tresnet_jax.errors import TrainingError
from tresnet_jax.training.config import TrainConfig
from tresnet_jax.training.optim import create_optimizer
from tresnet_jax.training.schedules import create_schedule
from tresnet_jax.training.update_rules import RULES, settings_of

STEPS = 20
PLAIN = TrainConfig(lr=0.02, weight_decay=0.05, warmup_epochs=0, min_lr=1e-3, dtype='float64')
CASES: dict[str, dict[str, Any]] = {
    **{name: {'opt': name} for name in RULES},
    **{f'{name}, no decay': {'opt': name, 'weight_decay': 0.0} for name in ('lamb', 'lars', 'muon')},
    'adam, options': {'opt': 'adam', 'opt_eps': 1e-3, 'opt_betas': (0.6, 0.99)},
    'adamw, options': {'opt': 'adamw', 'opt_eps': 1e-3, 'opt_betas': (0.6, 0.99)},
    'nadamw, options': {'opt': 'nadamw', 'opt_eps': 1e-3, 'opt_betas': (0.6, 0.99)},
    'lamb, options': {'opt': 'lamb', 'opt_eps': 1e-3, 'opt_kwargs': ('max_grad_norm=0.1',)},
    'rmsproptf, options': {'opt': 'rmsproptf', 'opt_eps': 1e-3, 'opt_kwargs': ('alpha=0.7',)},
    'rmsproptf, no momentum': {'opt': 'rmsproptf', 'momentum': 0.0},
    'lion, options': {'opt': 'lion', 'opt_betas': (0.8, 0.95)},
    'lars, options': {'opt': 'lars', 'opt_kwargs': ('trust_coeff=0.02', 'nesterov=true')},
    'adopt, options': {'opt': 'adopt', 'opt_betas': (0.8, 0.99), 'opt_kwargs': ('clip_exp=0.25',)},
    'muon, options': {'opt': 'muon', 'momentum': 0.95, 'opt_betas': (0.8, 0.99), 'opt_kwargs': ('ns_steps=7',)},
    'clip the norm': {'clip_grad': 0.5},
    'clip values': {'clip_grad': 0.05, 'clip_mode': 'value'},
    'clip adaptively': {'clip_grad': 0.02, 'clip_mode': 'agc'},
}


class Model(torch.nn.Module):
    """A convolution; layers that Muon orthogonalises, tall, wide, and two that it does not; a classifier last.

    Args:
        groups: also have kernels of three axes, as an ML-Decoder, of which Muon orthogonalises all but one.
    """

    def __init__(self, groups: bool = False):
        super().__init__()
        self.conv1 = torch.nn.Conv2d(5, 7, 3, dtype=torch.float64)
        self.layer1 = torch.nn.Linear(4, 9, dtype=torch.float64)
        self.layer2 = torch.nn.Linear(12, 6, dtype=torch.float64)
        self.layer3 = torch.nn.Linear(600, 4, bias=False, dtype=torch.float64)
        self.layer4 = torch.nn.Linear(3, 5, bias=False, dtype=torch.float64)
        for shape in ((6, 5, 2), (8, 5, 1), (3, 5, 4)) if groups else ():
            value = torch.nn.Parameter(torch.randn(shape, dtype=torch.float64))
            self.layer4.register_parameter(f'pooling{shape[0]}', value)
        self.fc = torch.nn.Linear(6, 4, dtype=torch.float64)


def as_tree(values: dict[str, np.ndarray]) -> dict[str, dict[str, np.ndarray]]:
    """Return torch's tensors as our parameters: HWIO and (in, out); three axes stay."""
    tree: dict[str, dict[str, np.ndarray]] = {}
    for key, value in values.items():
        layer, _, name = key.partition('.')
        tree.setdefault(layer, {})['kernel' if name == 'weight' else name] = (
            value.transpose(2, 3, 1, 0) if value.ndim == 4 else value if value.ndim == 3 else value.T
        )
    return tree


def theirs_for(config: TrainConfig, model: torch.nn.Module) -> torch.optim.Optimizer:
    """Return timm's optimiser with the options of a configuration, as its train.py passes them."""
    options: dict[str, Any] = {'eps': config.opt_eps, 'betas': config.opt_betas}
    options |= {key: ast.literal_eval(value.title()) for key, value in (text.split('=') for text in config.opt_kwargs)}
    return timm.optim.create_optimizer_v2(
        model,
        opt=config.opt,
        lr=config.peak_lr,
        weight_decay=config.weight_decay,
        momentum=config.momentum,
        **{name: value for name, value in options.items() if value is not None},
    )


@pytest.mark.usefixtures('x64', 'standard_promotion')
@pytest.mark.parametrize('case', CASES)
def test_optimizer(case, monkeypatch, record_error):
    """Within 1e-13 of the largest value of each parameter."""
    iteration = functools.partial(timm.optim.muon.zeropower_via_newtonschulz, dtype=torch.float64)  # not bfloat16
    monkeypatch.setattr(timm.optim.muon, 'zeropower_via_newtonschulz', iteration)
    config = dataclasses.replace(PLAIN, **CASES[case])
    torch.manual_seed(0)
    model = Model(groups=config.clip_mode != 'agc')  # the head is not clipped adaptively
    theirs = theirs_for(config, model)
    clipped = list(model_parameters(model, exclude_head=config.clip_mode == 'agc'))
    schedule = create_schedule(config, STEPS, 1)
    params = as_tree({key: p.detach().numpy().copy() for key, p in model.named_parameters()})
    ours = create_optimizer(config, schedule, params)
    state = ours.init(params)

    @jax.jit
    def step(params, state, grads, number):
        updates, state = ours.update(grads, state, params, step=number)
        return jax.tree.map(lambda p, u: p + u, params, updates), state

    rng, largest = np.random.default_rng(1), 0.0
    for number in range(STEPS):
        grads = {key: 0.1 * rng.normal(size=p.shape) for key, p in model.named_parameters()}
        for key, parameter in model.named_parameters():
            parameter.grad = torch.from_numpy(grads[key].copy())
        for group in theirs.param_groups:
            group['lr'] = float(schedule(number))
        if config.clip_grad:
            dispatch_clip_grad(clipped, config.clip_grad, config.clip_mode)
        theirs.step()
        params, state = step(params, state, as_tree(grads), number)
        expected = as_tree({key: p.detach().numpy() for key, p in model.named_parameters()})
        largest = max(largest, assert_close(params, expected, 1e-13))
    record_error(case, '20 updates, f64', largest)


@pytest.mark.usefixtures('standard_promotion')
@pytest.mark.parametrize('opt', RULES)
def test_frozen_parts_and_decay_by_layer(opt):
    """Frozen parameters have no state and no update; the factor of a layer scales its whole update."""
    params: Any = as_tree({key: p.detach().float().numpy() for key, p in Model().named_parameters()})
    params = {layer: {'0': tree} if layer.startswith('layer') else tree for layer, tree in params.items()}
    grads = jax.tree.map(lambda p: 0.1 * np.ones_like(p), params)
    found = {}
    for decay in (None, 0.5):
        config = TrainConfig(opt=opt, lr=0.1, warmup_epochs=0, freeze=('stem', 'layer2'), layer_decay=decay)
        ours = create_optimizer(config, create_schedule(config, STEPS, 1), params)
        state = ours.init(params)
        assert not any(leaf.shape == (3, 3, 5, 7) for leaf in jax.tree.leaves(state))
        for number in range(2):  # the first step of adopt changes nothing
            found[decay], state = ours.update(grads, state, params, step=number)
    for layer, updates in found[None].items():
        factor = {'layer1': 0.5**4, 'layer3': 0.5**2, 'layer4': 0.5, 'fc': 1}.get(layer, 0)
        for plain, scaled in zip(jax.tree.leaves(updates), jax.tree.leaves(found[0.5][layer]), strict=True):
            np.testing.assert_allclose(scaled, factor * plain, rtol=1e-6)
            assert np.any(plain) == (factor > 0)


@pytest.mark.parametrize(
    'options, message',
    [
        ({'opt': 'sgd', 'opt_eps': 1e-8}, '--opt-eps is not an option of --opt sgd'),
        ({'opt': 'lars', 'opt_betas': (0.9, 0.99)}, '--opt-betas is not an option of --opt lars'),
        (
            {'opt': 'lamb', 'opt_kwargs': ('alpha=1',)},
            '--opt-kwargs alpha=1: expected KEY=VALUE with an option of lamb: max_grad_norm',
        ),
        ({'opt': 'sgd', 'opt_kwargs': ('x',)}, '--opt-kwargs x: expected KEY=VALUE with an option of sgd: none'),
        ({'opt': 'muon', 'opt_kwargs': ('ns_steps=2.5',)}, '--opt-kwargs ns_steps=2.5: must be a whole number'),
        ({'opt': 'lars', 'opt_kwargs': ('nesterov=2',)}, '--opt-kwargs nesterov=2: must be true or false'),
        ({'opt': 'rmsproptf', 'opt_kwargs': ('alpha=',)}, '--opt-kwargs alpha=: must be a number'),
        ({'opt': 'rmsproptf', 'opt_kwargs': ('alpha=1',)}, '--opt-kwargs alpha=1: must be at least 0 and less than 1'),
        ({'opt': 'lamb', 'opt_kwargs': ('max_grad_norm=nan',)}, '--opt-kwargs max_grad_norm=nan: must be positive'),
        ({'opt': 'muon', 'opt_kwargs': ('ns_steps=-1',)}, '--opt-kwargs ns_steps=-1: must be positive'),
    ],
)
def test_options_of_another_optimizer(options, message):
    with pytest.raises(TrainingError) as error:
        settings_of(dataclasses.replace(PLAIN, **options))
    assert str(error.value) == message
