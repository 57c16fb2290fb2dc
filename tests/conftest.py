"""Settings of the whole suite. The tests of tests/parity need torch and timm; the others need neither."""

import os

os.environ.setdefault('JAX_PLATFORMS', 'cpu')

import jax
import pytest

jax.config.update('jax_num_cpu_devices', 4)
jax.config.update('jax_numpy_rank_promotion', 'raise')
jax.config.update('jax_numpy_dtype_promotion', 'strict')


@pytest.fixture
def x64():
    """float64 in JAX for one test."""
    with jax.enable_x64(True):
        yield
