"""Good files to begin with: those of `tests/compat`, and the networks in this package."""

import functools
import json
import lzma
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy

import convert
from tests.helpers.paths import EMBEDDED, ROOT
from tresnet_jax.checkpoints.match import match
from tresnet_jax.models.base import ImageModel
from tresnet_jax.models.build import build_model
from tresnet_jax.models.initializers import ShapesOnly

COMPAT = ROOT / 'tests' / 'compat'


@functools.cache
def unpacked(name: str) -> bytes:
    """Return a file of `tests/compat`."""
    return lzma.decompress((COMPAT / f'{name}.xz').read_bytes())


@functools.cache
def run_files(name: str) -> dict[str, bytes]:
    """Return the files of a run in `tests/compat`, by their path within the run's folder."""
    files = {}
    with tarfile.open(COMPAT / f'{name}.tar.xz') as archive:
        for member in archive:
            if member.isfile():
                files['/'.join(Path(member.name).parts[1:])] = archive.extractfile(member).read()  # pyright: ignore[reportOptionalMemberAccess]
    return files


@functools.cache
def own_file() -> tuple[dict[str, Any], bytes]:
    """Return the header and the data of a safetensors file that `save_flax` wrote."""
    return split(unpacked('flax_1.safetensors'))


def split(data: bytes) -> tuple[dict[str, Any], bytes]:
    """Return the header and the data of a safetensors file."""
    length = int.from_bytes(data[:8], 'little')
    return json.loads(data[8 : 8 + length]), data[8 + length :]


@functools.cache
def state(name: str = 'test_resnet') -> dict[str, np.ndarray]:
    """Return the state dict of a network in this package, in float16, under timm's names."""
    return safetensors.numpy.load_file(EMBEDDED / f'{name}.fashion_mnist.safetensors')


@functools.cache
def timm_file(name: str = 'test_resnet') -> bytes:
    """Return a network in this package as a safetensors file of timm."""
    return safetensors.numpy.save(state(name))


def readers() -> tuple[Any, ...]:
    """Return the functions that read a checkpoint: to convert it, and to describe it."""
    from convert.inspect import inspect

    def to_flax(path: Path) -> object:
        return converted(convert.read(path))

    def describe(path: Path) -> object:
        inspection = inspect(path)
        return str(inspection), inspection.to_json()

    return to_flax, describe


def converted(checkpoint: convert.Checkpoint) -> str:
    """Do what `convert.to_flax` does and return its report, but build equal models once: that takes the most time."""
    return str(match(checkpoint, build=_build).report)


def _build(architecture: str, *, rngs: ShapesOnly, **options: Any) -> ImageModel:
    try:
        return _built(architecture, **options)
    except TypeError:  # an option cannot be hashed
        return build_model(architecture, rngs=rngs, **options)


@functools.lru_cache(50, typed=True)
def _built(architecture: str, **options: Any) -> ImageModel:
    return build_model(architecture, rngs=ShapesOnly(), **options)
