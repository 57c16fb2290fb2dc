"""The devices that take part."""

import jax
import pytest

from tresnet_jax.errors import TrainingError
from tresnet_jax.training.devices import local_devices


def test_devices_of_this_host():
    assert local_devices(None) == jax.local_devices() == local_devices(len(jax.local_devices()))
    assert local_devices(2) == jax.local_devices()[:2]
    with pytest.raises(TrainingError, match='--devices 99: this host has 4'):
        local_devices(99)
