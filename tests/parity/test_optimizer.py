"""Every optimiser and schedule against timm's and torch's, on a few small parameters."""

import dataclasses

import jax
import numpy as np
import pytest
import timm.optim
import torch

import tresnet_jax
from convert.golden import timm_model
from tests.helpers.closeness import assert_close
from tests.helpers.torch_optimizers import PLAIN, RECIPES, STEPS, rate_setter, torch_optimizer
from tresnet_jax.checkpoints.names import flatten, flax_key_to_torch
from tresnet_jax.training.optim import create_optimizer, layer_scales
from tresnet_jax.training.schedules import create_schedule

CASES = {name: recipe for name, recipe in RECIPES.items() if not recipe.keys() & {'mixup', 'layer_decay', 'freeze'}}


class Small(torch.nn.Module):
    """Kernels and biases, whose decay differs, and a scale that starts at zero."""

    def __init__(self):
        super().__init__()
        self.layer1 = torch.nn.ModuleList([torch.nn.Linear(3, 4, dtype=torch.float64)])
        self.fc = torch.nn.Linear(4, 2, dtype=torch.float64)
        self.scale = torch.nn.Parameter(torch.zeros(4, dtype=torch.float64))

    def forward(self, x):
        return self.fc(torch.tanh(self.layer1[0](x)) * (1 + self.scale))


def our_loss(params, x, y):
    first, fc = params['layer1'][0], params['fc']
    hidden = jax.numpy.tanh(x @ first['kernel'] + first['bias'][None]) * (1 + params['scale'][None])
    return ((hidden @ fc['kernel'] + fc['bias'][None] - y) ** 2).mean()


@pytest.mark.usefixtures('x64', 'standard_promotion')
@pytest.mark.parametrize('recipe', CASES)
def test_optimiser_and_schedule(recipe):
    """Every parameter agrees within 1e-12 after each of twenty steps."""
    config = dataclasses.replace(PLAIN, **CASES[recipe])
    torch.manual_seed(0)
    model = Small()
    layers = (model.layer1[0], model.fc)
    weight = [layer.weight.detach().numpy().copy() for layer in layers]
    bias = [layer.bias.detach().numpy().copy() for layer in layers]
    params = {
        'layer1': {0: {'kernel': weight[0].T, 'bias': bias[0]}},
        'fc': {'kernel': weight[1].T, 'bias': bias[1]},
        'scale': np.zeros(4),
    }
    theirs = torch_optimizer(model, config)
    set_rate = rate_setter(theirs, config)
    optimizer = create_optimizer(config, create_schedule(config, STEPS, 1), params)
    state = optimizer.init(params)
    data = torch.randn(STEPS, 8, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))

    @jax.jit
    def step(params, state, x, y, number):
        updates, state = optimizer.update(jax.grad(our_loss)(params, x, y), state, params, step=number)
        return jax.tree.map(lambda p, u: p + u, params, updates), state

    for i, (x, y) in enumerate((batch[:, :3], batch[:, 3:]) for batch in data):
        set_rate(i)
        theirs.zero_grad()
        ((model(x) - y) ** 2).mean().backward()
        if config.clip_grad:
            torch.nn.utils.clip_grad_norm_(model.parameters(), config.clip_grad)
        theirs.step()
        params, state = step(params, state, x.numpy(), y.numpy(), i)
        for ours, other in (
            (params['layer1'][0]['kernel'], model.layer1[0].weight.T),
            (params['layer1'][0]['bias'], model.layer1[0].bias),
            (params['fc']['kernel'], model.fc.weight.T),
            (params['scale'], model.scale),
        ):
            assert_close(ours, other.detach().numpy(), 1e-12)


@pytest.mark.parametrize('name', ['resnet50d', 'tresnet_m'])
def test_layer_decay(name):
    """Each parameter has the factor that timm gives its group."""
    model = timm_model(name)
    groups = timm.optim.param_groups_layer_decay(model, layer_decay=0.8)
    names = {id(parameter): key for key, parameter in model.named_parameters()}
    expected = {names[id(p)]: group['lr_scale'] for group in groups for p in group['params']}
    _, params, _ = tresnet_jax.functional(tresnet_jax.create_model(name))
    found = {flax_key_to_torch(path): scale for path, scale in flatten(layer_scales(params, 0.8)).items()}
    assert found.keys() == expected.keys()
    assert all(abs(found[key] / expected[key] - 1) < 1e-12 for key in expected)
