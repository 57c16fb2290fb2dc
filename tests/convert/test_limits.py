"""The converter where memory and disk are scarce, each in a process of its own."""

import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

import convert
from tests.helpers.models import zero_trees
from tests.helpers.pickle_files import storage, tensor, write_zip
from tresnet_jax.checkpoints.stored import contiguous
from tresnet_jax.models.build import build_model
from tresnet_jax.models.initializers import ShapesOnly

CODE = '''
import os, resource, sys
if limit := int(os.environ.get('FILE_LIMIT', 0)):
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
from convert.__main__ import main

def peak():
    """Return the largest memory so far, in bytes. Linux gives getrusage the memory of the process that started it."""
    if sys.platform == 'linux':
        lines = open('/proc/self/status').read().splitlines()
        return 1024 * next(int(line.split()[1]) for line in lines if line.startswith('VmHWM:'))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

before = peak()
code = main(sys.argv[1:])
print('peak', peak() - before)
raise SystemExit(code)
'''


@pytest.fixture(scope='module')
def source(tmp_path_factory) -> Path:
    """A ResNet-50-D of ones, in float16 and float32: 51 and 102 MB; in float16 also as torch writes it."""
    folder = tmp_path_factory.mktemp('large')
    trees = zero_trees(build_model('resnet50d', num_classes=1000, in_chans=3, rngs=ShapesOnly()))
    shapes = {key: value.shape for key, value in convert.to_torch(*trees).items()}
    for dtype in ('float16', 'float32'):
        state = {key: np.full(shape, 1, dtype if shape else np.int64) for key, shape in shapes.items()}
        safetensors.numpy.save_file(state, folder / f'{dtype}.safetensors')
    kinds = {key: 'HalfStorage' if shape else 'LongStorage' for key, shape in shapes.items()}
    tensors = {
        key: tensor(storage(key, kinds[key], math.prod(shape)), shape, contiguous(shape))
        for key, shape in shapes.items()
    }
    sizes = {key: math.prod(shape) * (2 if shape else 8) for key, shape in shapes.items()}
    write_zip(folder / 'float16.pth', tensors, {key: bytes(size) for key, size in sizes.items()})
    return folder


@pytest.mark.parametrize('name', ['float16.safetensors', 'float32.safetensors', 'float16.pth'])
def test_peak_memory_is_at_most_two_and_a_half_times_the_file(source, name, tmp_path):
    """Beyond what importing takes; the pages of a mapped file count."""
    file = source / name
    command = [sys.executable, '-c', CODE, str(file), str(tmp_path / 'out.safetensors')]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    peak = int(result.stdout.rpartition('peak ')[2])
    assert peak <= 2.5 * file.stat().st_size, f'{peak / file.stat().st_size:.2f} times the file'


@pytest.mark.parametrize('to', ['flax', 'torch'])
def test_a_full_disk_leaves_nothing_behind(source, to, tmp_path):
    """The process may write 1 MB a file: one readable line, exit code 2, the old target as it was."""
    target = tmp_path / 'out.safetensors'
    target.write_bytes(b'was here')
    command = [sys.executable, '-c', CODE, str(source / 'float16.safetensors'), str(target), '--to', to]
    result = subprocess.run(command, capture_output=True, text=True, env={**os.environ, 'FILE_LIMIT': '1000000'})
    assert result.returncode == 2, result.stderr
    assert 'cannot be written' in result.stderr and 'Traceback' not in result.stderr
    assert target.read_bytes() == b'was here' and list(tmp_path.iterdir()) == [target]
