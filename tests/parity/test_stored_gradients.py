"""The stored gradients of scripts/gpu_check.py against timm's in float64."""

import numpy as np
import pytest
import torch
from benchmarking.command import draw_weights
from gpu_checking.models import batch_of, largest_distance
from gpu_checking.stored_gradients import IMAGE_SIZE, IMAGES, NETWORKS, sampled, stored_gradients

from convert.golden import timm_model
from tests.helpers.tolerances import TRAINING


@pytest.mark.parametrize('name', NETWORKS)
def test_stored_gradients(name):
    model = timm_model(name)
    model.load_state_dict({key: torch.from_numpy(value) for key, value in draw_weights(name).items()})
    images, labels = batch_of(IMAGES, IMAGE_SIZE)
    logits = model.double().train()(torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2))))
    torch.nn.functional.cross_entropy(logits, torch.from_numpy(labels)).backward()
    theirs = {key: value.grad.numpy() for key, value in model.named_parameters()}
    ours, _ = stored_gradients(name)
    assert largest_distance(sampled(theirs), ours) < TRAINING
