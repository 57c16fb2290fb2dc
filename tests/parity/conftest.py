"""Settings of the comparisons with timm, which run torch beside JAX."""

import jax
import pytest
import torch

# The suite runs in two processes; torch's threads of one would wait for those of the other.
torch.set_num_threads(1)


@pytest.fixture(autouse=True, scope='module')
def _free_programs():
    """Drop compiled programs after each module: two hundred layers take gigabytes, and no other module calls them."""
    yield
    jax.clear_caches()


@pytest.fixture
def standard_promotion():
    """Let optax multiply integers and floats, which the suite's strict promotion forbids."""
    with jax.numpy_dtype_promotion('standard'):
        yield
