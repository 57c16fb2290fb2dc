"""Accuracy with ReaL labels against timm's."""

import json
from typing import NamedTuple

import numpy as np
import pytest
import torch
from timm.data.real_labels import RealLabelsImagenet

from tresnet_jax.cli.measuring import with_accepted
from tresnet_jax.data.real_labels import accepted_labels, read_real_labels
from tresnet_jax.training.step import make_eval_step, over_devices

IMAGES, CLASSES = 12, 10


class Named(NamedTuple):
    """A source of images that have only names."""

    names: list[str]

    def __len__(self) -> int:
        return len(self.names)

    def describe(self, index: int) -> str:
        return f'/val/n01440764/{self.names[index]}'


@pytest.mark.parametrize('most', [1, 4])
def test_accuracies(tmp_path, most):
    rng = np.random.default_rng(most)
    logits = rng.standard_normal((IMAGES, CLASSES)).astype(np.float32)
    labels = [rng.choice(CLASSES, rng.integers(0, most + 1), replace=False).tolist() for _ in range(IMAGES)]
    names = [f'ILSVRC2012_val_{number:08}.JPEG' for number in rng.permutation(IMAGES) + 1]
    path = tmp_path / 'real.json'
    path.write_text(json.dumps(labels))
    theirs = RealLabelsImagenet(names, real_json=path)
    theirs.add_result(torch.tensor(logits))
    accepted = accepted_labels(Named(names), read_real_labels(path, CLASSES))
    batch = {
        'image': np.zeros((1, IMAGES + 1, 4, 4, 3), np.uint8),
        'label': np.zeros((1, IMAGES + 1), np.int32),
        'index': np.array([[*range(IMAGES), -1]], np.int32),  # the last is padding
        'mask': np.array([[1] * IMAGES + [0]], np.float32),
    }
    step = make_eval_step(lambda logits, _, images: logits, mean=(0.5,) * 3, std=(0.5,) * 3)
    padded = np.concatenate([logits, logits[:1]])
    ours = over_devices(with_accepted(step, accepted))((padded, {}), batch)
    count = float(ours['count'])
    assert count == sum(map(bool, labels)) < IMAGES
    for k in (1, 5):
        assert 100 * float(ours[f'top{k}']) / count == pytest.approx(theirs.get_accuracy(k))
