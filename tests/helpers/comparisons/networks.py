"""Whole networks: outputs, a training step, shapes of weights, sizes of images."""

import copy
import functools

import jax
import jax.numpy as jnp
import numpy as np
import torch
from flax import nnx

import convert
import tresnet_jax
from convert.golden import timm_model
from tests.helpers.comparisons.registry import (
    EXACT,
    SIZES,
    comparison,
    differing,
    error_of,
    largest_error,
    timm_reference,
)
from tests.helpers.layouts import COUNTER
from tests.helpers.models import SMALL
from tests.helpers.reference import images, nhwc, our_outputs, ours, state_of, timm_outputs, to_numpy
from tests.helpers.tolerances import EVALUATION, TRAINING
from tresnet_jax.checkpoints.names import flax_key_to_torch, flax_to_torch_layout
from tresnet_jax.models.build import build_model
from tresnet_jax.models.initializers import ShapesOnly


@functools.cache
def expected_outputs(name: str) -> dict[str, np.ndarray]:
    with torch.no_grad():
        outputs = timm_outputs(timm_reference(name), images(2, 3, *SIZES[name]))
    return to_numpy(outputs)


def evaluation(name: str) -> float:
    """Return the largest error of the feature maps and logits."""
    apply, params, stats = tresnet_jax.functional(ours(timm_reference(name), name, dtype='float64'))
    outputs, _ = our_outputs(apply, params, stats, nhwc(images(2, 3, *SIZES[name])))
    return largest_error(outputs, expected_outputs(name))


@comparison('test_models.test_evaluation_float64', EVALUATION)
def tresnet() -> float:
    return evaluation('test_tresnet')


@comparison('test_models.test_evaluation_float64', EVALUATION)
def tresnet_v2() -> float:
    return evaluation('small_v2')


@comparison('test_models.test_evaluation_float64', EVALUATION)
def resnet() -> float:
    return evaluation('test_resnet')


@comparison('test_models.test_evaluation_float64', EVALUATION)
def bottlenecks() -> float:
    return evaluation('small_bottlenecks')


@functools.cache
def expected_step(name: str) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Return timm's logits and gradients of a training step, and the state after it."""
    theirs = copy.deepcopy(timm_reference(name)).train()
    logits = theirs(images(2, 3, *SIZES[name], seed=2))
    logits.square().sum().backward()
    gradients = {key: p.grad.numpy() for key, p in theirs.named_parameters()}
    return {'logits': logits.detach().numpy(), **gradients}, state_of(theirs).tensors


@comparison('test_models.test_training_float64', TRAINING)
def training_step() -> float:
    """Return the largest error of logits, gradients and running statistics."""
    expected, after = expected_step('test_tresnet')
    mine = ours(timm_reference('test_tresnet'), 'test_tresnet', dtype='float64')
    apply, params, stats = tresnet_jax.functional(mine)

    def loss(params):
        logits, new = apply(params, stats, nhwc(images(2, 3, *SIZES['test_tresnet'], seed=2)), train=True)
        return jnp.square(logits).sum(), (logits, new)

    grads, (logits, new) = jax.grad(loss, has_aux=True)(params)
    outputs = {'logits': logits, **convert.to_torch(grads)}
    return max(
        largest_error(outputs, expected), largest_error(convert.to_torch(params, new, num_batches_tracked=2), after)
    )


@functools.cache
def expected_of_another_slope() -> np.ndarray:
    theirs = copy.deepcopy(timm_reference('test_tresnet'))
    for module in theirs.modules():
        if isinstance(module, torch.nn.LeakyReLU):
            module.negative_slope = 1e-6
    return nhwc(theirs(images(2, 3, 36, 48)))


@comparison('test_options.test_abn_slope', EVALUATION)
def another_slope() -> float:
    mine = ours(timm_reference('test_tresnet'), 'test_tresnet', dtype='float64', abn_slope=1e-6)
    return error_of(mine(nhwc(images(2, 3, 36, 48))), expected_of_another_slope())


@functools.cache
def timm_shapes(name: str) -> dict[str, tuple[int, ...]]:
    with torch.device('meta'):
        state = timm_model(name).state_dict()
    return {key: tuple(value.shape) for key, value in state.items() if not key.endswith(COUNTER)}


@comparison('test_variants.test_state_dict_has_timms_keys_and_shapes', EXACT)
def keys_and_shapes() -> float:
    """Return how many tensors are missing, unexpected, or misshapen."""
    count = 0.0
    for name in ('test_tresnet', 'tresnet_xl', 'resnet18d'):
        state = nnx.to_flat_state(nnx.state(build_model(name, num_classes=1000, in_chans=3, rngs=ShapesOnly())))
        shapes = {}
        for path, leaf in state:
            key = '.'.join(map(str, path))
            shapes[flax_key_to_torch(key)] = flax_to_torch_layout(key, np.broadcast_to(False, leaf.shape)).shape
        count += differing(shapes, timm_shapes(name))
    return count


SIZES_TRIED = (
    *(('test_tresnet', size) for size in ((16, 16), (16, 40), (20, 20), (20, 36), (33, 32), (32, 34))),
    ('test_resnet', (1, 1)),
)


@functools.cache
def timm_takes(name: str, size: tuple[int, int]) -> bool:
    try:
        timm_reference(name)(images(1, 3, *size))
    except RuntimeError:
        return False
    return True


@comparison('test_options.test_sizes_that_a_tresnet_refuses', EXACT)
def sizes_taken() -> float:
    """Return how many sizes one side accepts and the other refuses."""
    models = {name: ours(timm_reference(name), name, dtype='float64') for name in SMALL}
    count = 0
    for name, size in SIZES_TRIED:
        try:
            jax.eval_shape(models[name], np.zeros((1, *size, 3)))
            taken = True
        except (ValueError, TypeError):
            taken = False
        count += taken != timm_takes(name, size)
    return count
