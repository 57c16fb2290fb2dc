"""Traced programs on disk: the same results without tracing, the key, and files that must not be used."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec

import tresnet_jax
from tests.helpers.compilations import compiled_once
from tests.helpers.paths import ROOT
from tresnet_jax import program_cache
from tresnet_jax.models.base import ImageModel
from tresnet_jax.models.layers import Identity, Stack
from tresnet_jax.models.resnetd import ResNetD
from tresnet_jax.program_cache import FOLDER, SUFFIX, cached_jit

NAME = 'test_resnet.fashion_mnist'
IMAGES = np.linspace(-1, 1, 32 * 32 * 3, dtype=np.float32).reshape(1, 32, 32, 3)
PROCESS = """
import sys
import numpy as np
import tresnet_jax
from tresnet_jax.compilation_cache import use_compilation_cache
from tresnet_jax.models.base import ImageModel

use_compilation_cache()
model = tresnet_jax.fold_batchnorm(tresnet_jax.create_model('test_resnet.fashion_mnist', pretrained=True))
if sys.argv[1] == 'second':
    ImageModel.__call__ = None  # tracing would call it
logits = tresnet_jax.cached_jit(model)(np.ones((1, 32, 32, 3), np.float32))
print(np.asarray(logits).tobytes().hex(), 'scipy' in sys.modules)
"""


@pytest.fixture
def folder(tmp_path):
    """The folder of the programs, in a compilation cache of its own."""
    with compiled_once(tmp_path):
        yield tmp_path / FOLDER


@pytest.fixture(scope='module')
def model() -> ImageModel:
    return tresnet_jax.fold_batchnorm(tresnet_jax.create_model(NAME, pretrained=True))


@pytest.fixture
def traced(monkeypatch) -> list[Stack]:
    """The stems that are traced."""
    calls: list[Stack] = []
    original = Stack.__call__
    monkeypatch.setattr(Stack, '__call__', lambda self, *args: calls.append(self) or original(self, *args))
    return calls


def files(folder: Path) -> list[Path]:
    return sorted(folder.glob(f'*{SUFFIX}'))


def stem(model: ImageModel, **options) -> Callable[[Any], Any]:
    """Return the program of a stem, which is compiled sooner than that of a network."""
    return cached_jit(model, ResNetD._stem, **options)


def bits(arrays: Any) -> list[bytes]:
    return [np.asarray(array).tobytes() for array in arrays]


def test_the_second_time_nothing_is_traced(folder, model, traced):
    expected = jax.jit(ResNetD._stem)(model, IMAGES)
    del traced[:]
    first = stem(model)(IMAGES)
    assert len(traced) == len(files(folder)) == 1 and files(folder)[0].name.startswith('test_resnet-')
    second = stem(model)(IMAGES)
    assert len(traced) == len(files(folder)) == 1
    assert bits(first) == bits(second) == bits(expected)


def test_another_process(tmp_path):
    """It has other hashes of strings and other addresses, and the key must not depend on them."""
    outputs = []
    for seed, which in enumerate(('first', 'second')):
        settings = {'XDG_CACHE_HOME': str(tmp_path), 'PYTHONHASHSEED': str(seed), 'PYTHONPATH': str(ROOT)}
        environment = {k: v for k, v in os.environ.items() if not k.startswith('JAX_')} | settings
        command = [sys.executable, '-c', PROCESS, which]
        result = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert result.returncode == 0, result.stderr
        outputs.append(result.stdout)
    assert outputs[0] == outputs[1] and outputs[1].endswith(' False\n')  # SciPy takes a quarter of a second
    assert len(files(tmp_path / 'tresnet_jax' / 'compiled' / FOLDER)) == 1


def test_what_the_key_depends_on(folder, model, monkeypatch):
    original = tresnet_jax.create_model(NAME, pretrained=True)

    def changed(**attributes: Any) -> ImageModel:
        copy = nnx.merge(*nnx.split(model))
        for name, value in attributes.items():
            setattr(copy, name, value)
        return copy

    stem(model)(IMAGES)
    stem(changed())(IMAGES)
    stem(tresnet_jax.fold_batchnorm(tresnet_jax.create_model('test_resnet', num_classes=10)))(IMAGES)  # other weights
    assert len(files(folder)) == 1
    count = 1
    for run, images in (
        (stem(original), IMAGES),
        (stem(model), IMAGES[:, :30]),
        (stem(model), np.concatenate([IMAGES] * 2)),
        (stem(model), IMAGES.astype(jnp.bfloat16)),
        (stem(changed(dtype=jnp.dtype('bfloat16'))), IMAGES),
        (stem(changed(fc=Identity())), IMAGES),
        (cached_jit(model, ResNetD.forward_intermediates, indices=(0,), stop_early=True), IMAGES),
        (cached_jit(model, ResNetD.forward_intermediates, indices=(-5,), stop_early=True), IMAGES),
    ):
        run(images)
        count += 1
        assert len(files(folder)) == count
    with jax.default_matmul_precision('highest'):
        stem(model)(IMAGES)
    assert len(files(folder)) == count + 1
    for name, value in (('__version__', '0.0.1'), ('_source_digest', lambda: '')):
        monkeypatch.setattr(program_cache, name, value)
        stem(model)(IMAGES)
        count += 1
        assert len(files(folder)) == count + 1


def test_a_model_that_changes_before_its_program_is_needed(folder, model):
    """The program is that of the model as it was, and is not stored under the key of the changed model."""
    copy = nnx.merge(*nnx.split(model))
    before = stem(copy)
    copy.bn1.slope = 0.5
    first, second = bits(before(IMAGES)), bits(stem(copy)(IMAGES))
    assert first != second and len(files(folder)) == 2
    assert first == bits(stem(model)(IMAGES)) and len(files(folder)) == 2


def test_what_changes_between_the_calls(folder, model, traced):
    """A setting of JAX, and a transformation, for which a stored program cannot be used."""
    run = stem(model)
    run(IMAGES)
    with jax.default_matmul_precision('highest'):
        run(IMAGES)
    assert len(files(folder)) == 2
    run = stem(model)
    run(IMAGES)  # read
    assert jax.vmap(run)(IMAGES[None])[0].shape[:2] == (1, 1)


@pytest.mark.usefixtures('folder')
def test_another_default_device(monkeypatch):
    """The program would be that of the default platform."""
    assert program_cache._folder([IMAGES]) is not None
    with jax.default_device(jax.devices()[0]):
        assert program_cache._folder([IMAGES]) is not None
        monkeypatch.setattr(jax, 'default_backend', lambda: 'gpu')
        assert program_cache._folder([IMAGES]) is None
    with jax.default_device('cpu'):
        assert program_cache._folder([IMAGES]) is None


@pytest.mark.parametrize('fault', ['cut', 'changed', 'empty', 'of another key'])
def test_a_damaged_file_is_replaced(folder, model, traced, fault):
    expected = bits(stem(model)(IMAGES))
    (path,) = files(folder)
    good = path.read_bytes()
    if fault == 'of another key':
        stem(model)(IMAGES[:, :30])
        (other,) = set(files(folder)) - {path}
        bad = other.read_bytes()
    else:
        bad = {'cut': good[:-1], 'changed': good[:-9] + bytes([good[-9] ^ 1]) + good[-8:], 'empty': b''}[fault]
    path.write_bytes(bad)
    del traced[:]
    with pytest.warns(UserWarning, match=f'{path.name}: is damaged; it is written again'):
        assert bits(stem(model)(IMAGES)) == expected
    assert len(traced) == 1 and path.read_bytes() != bad
    assert bits(stem(model)(IMAGES)) == expected and len(traced) == 1


def test_a_folder_that_cannot_be_written(folder, model, traced):
    folder.touch()  # a file in its place
    with pytest.warns(UserWarning, match=f'^{folder}: cannot be made: File exists; a later process will'):
        stem(model)(IMAGES)
    assert len(traced) == 1


def test_what_is_not_stored(folder, model, traced):
    """Layers and hooks from elsewhere, functions that hide values, tracers, several devices, no cache."""

    class Doubled(nnx.Module):
        def __call__(self, x: jax.Array) -> jax.Array:
            return 2 * x

    copy = nnx.merge(*nnx.split(model))
    copy.fc = Doubled()
    stem(copy)(IMAGES)
    copy = nnx.merge(*nnx.split(model))
    copy.fc.kernel.set_metadata(on_get_value=lambda _, value: 2 * value)
    stem(copy)(IMAGES)
    cached_jit(model, lambda model, x: ResNetD._stem(model, x))(IMAGES)
    jax.jit(stem(model))(IMAGES)
    on_both = jax.device_put(IMAGES, NamedSharding(jax.make_mesh((2,), ('batch',)), PartitionSpec()))
    stem(model)(on_both)
    jax.config.update('jax_enable_compilation_cache', False)  # `compiled_once` resets it
    stem(model)(IMAGES)
    assert len(traced) == 6 and not files(folder)
