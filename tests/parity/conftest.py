"""The comparisons with timm: torch beside JAX."""

import jax
import pytest
import torch

# The suite runs in two processes; torch's threads of one would wait for those of the other.
torch.set_num_threads(1)


@pytest.fixture(autouse=True, scope='module')
def _free_programs():
    """Compiled programs of two hundred layers are gigabytes together, and no other module calls them."""
    yield
    jax.clear_caches()
