"""The devices that take part."""

import types

import jax
import pytest

from tresnet_jax.errors import TrainingError
from tresnet_jax.training import devices
from tresnet_jax.training.devices import local_devices, set_up
from tresnet_jax.training.hosts import Hosts


def test_devices_of_this_host():
    assert local_devices(None) == jax.local_devices() == local_devices(len(jax.local_devices()))
    assert local_devices(2) == jax.local_devices()[:2]
    with pytest.raises(TrainingError, match='--devices 99: this host has 4'):
        local_devices(99)


@pytest.mark.parametrize(
    'error, message',
    [
        (AssertionError(), 'JAX_PLATFORMS=cuda: JAX cannot use its devices: it finds none of this kind; is the right'),
        (
            RuntimeError("Unknown backend: 'cuda'"),
            "JAX_PLATFORMS=cuda: JAX cannot use its devices: Unknown backend: '",
        ),
    ],
)
def test_no_devices(error, message, monkeypatch):
    """JAX raises these for JAX_PLATFORMS=cuda on a host without a GPU, or without JAX's plugin for it."""

    def fail():
        raise error

    monkeypatch.setattr(devices, 'use_compilation_cache', lambda: None)
    monkeypatch.setattr(devices.jax, 'devices', fail)
    monkeypatch.setattr(devices.jax, 'config', types.SimpleNamespace(jax_platforms='cuda'))
    with pytest.raises(TrainingError, match=message):
        set_up(Hosts(num_processes=1))
