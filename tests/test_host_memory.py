"""Memory that a process keeps, counted in pages that the kernel hands out."""

import subprocess
import sys

import pytest

PROGRAM = """
import resource, sys, jax, jax.numpy as jnp
from jax import lax
from tresnet_jax.host_memory import keep_freed_memory

if sys.argv[1] == 'keep':
    assert keep_freed_memory()
x = jnp.zeros(2**24)
f = jax.jit(lambda x: lax.fori_loop(0, 2, lambda i, x: x * 2 + i, x).sum())  # a temporary as large as x
pages = []
for _ in range(9):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    f(x).block_until_ready()
    pages.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
print(sorted(pages)[4])
"""


def pages_of_a_call(how: str) -> int:
    result = subprocess.run([sys.executable, '-c', PROGRAM, how], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return int(result.stdout)


@pytest.mark.skipif(sys.platform != 'linux', reason="glibc's malloc")
def test_temporaries_are_not_asked_for_anew():
    assert pages_of_a_call('keep') < pages_of_a_call('plain') / 10
