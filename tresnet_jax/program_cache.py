"""Keep traced programs next to compiled ones, so that a later process neither traces nor compiles a model.

JAX's compilation cache keeps what XLA compiles, but its key is the lowered program, which every process has to trace
and lower first. `cached_jit` also keeps the lowered program, as StableHLO under a key of its own: all that determines
what would be traced. It stores no weights; they are arguments of the program.
"""

import dataclasses
import enum
import functools
import hashlib
import importlib.metadata
import json
import types
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.core
import jax.export
import numpy as np
from flax import nnx

from tresnet_jax.errors import ConversionError, reason
from tresnet_jax.files import written_beside
from tresnet_jax.models.base import ImageModel
from tresnet_jax.version import __version__

FOLDER = 'programs'  # in the folder of JAX's compilation cache
SUFFIX = '.stablehlo'
DIGEST_BYTES = 32  # at the beginning of a file: SHA-256 of its key and its program
LIBRARIES = ('jax.', 'flax.', 'tresnet_jax.')  # their code is known by version or by its source
NOT_USED = 'pretrained_cfg'  # the attribute of a model that its forward pass does not read


class _UnknownError(Exception):
    """A model contains something that cannot be part of a key."""


def _output(model: ImageModel, images: jax.Array) -> Any:
    return model(images)


def cached_jit(model: ImageModel, function: Callable[..., Any] = _output, **options: Any) -> Callable[[Any], Any]:
    """Return a compiled function of images, like ``jax.jit(model)``, whose program is kept on disk.

    A later process with the same model, image shape and versions reads the program instead of tracing the model, and
    finds the compiled program in JAX's compilation cache. The results are bit-identical.

    Programs are kept in the folder ``programs`` of JAX's compilation cache (`use_compilation_cache` selects one), and
    can be deleted at any time. Whoever can write to that folder can make this process run programs, as JAX says about
    the cache. Without a compilation cache, for a model with layers or hooks from elsewhere, for arrays on several
    devices, and inside of transformations, this is ``jax.jit``. A damaged file causes a warning and is replaced.

    Args:
        model: a model in evaluation mode; its weights are taken now, and later changes of the model have no effect.
        function: function of this package's modules that is compiled instead: of the model, the images and the options.
        **options: numbers, strings and tuples of these for `function`; they are constants of the program.

    Returns:
        A function of images (B, H, W, C). Each shape and dtype is a program of its own.

    Example:
        >>> import jax, tresnet_jax
        >>> model = tresnet_jax.create_model('test_resnet.fashion_mnist', pretrained=True)
        >>> run = tresnet_jax.cached_jit(tresnet_jax.fold_batchnorm(model))
        >>> run(jax.numpy.zeros((2, 32, 32, 3))).shape
        (2, 10)
    """
    leaves, tree = jax.tree.flatten(model)
    traced = jax.jit(lambda leaves, images: function(jax.tree.unflatten(tree, leaves), images, **options))
    # Not a description of `model` itself, which may change before a program is needed.
    description = functools.cache(lambda: _describe_all(jax.tree.unflatten(tree, leaves), function, options))
    programs: dict[Any, Callable[..., Any]] = {}

    def run(images: Any) -> Any:
        if isinstance(images, jax.core.Tracer):  # a stored program cannot be differentiated or vectorized
            return traced(leaves, images)
        given = (np.shape(images), jax.dtypes.canonicalize_dtype(jax.numpy.result_type(images)))
        # After a change of these, JAX traces again too.
        context = (*_settings().values(), jax.sharding.get_abstract_mesh(), getattr(images, 'sharding', None))
        if (given, context) not in programs:
            programs[given, context] = traced
            folder = _folder([*leaves, images])
            if folder is not None and (found := description()) is not None:
                path, key = _named(folder, model.architecture or 'model', [*found, str(given)])
                exported = _read(path, key) or _write(path, key, jax.export.export(traced)(leaves, images))
                programs[given, context] = jax.jit(_without_lapack(exported).call)
        return programs[given, context](leaves, images)

    return run


def _folder(arrays: list[Any]) -> Path | None:
    """Return the folder of the programs; None if there is none, or the arrays are not all on one default device."""
    config: Any = jax.config  # its attributes are defined at run time
    folder = config.jax_compilation_cache_dir if config.jax_enable_compilation_cache else None
    if not folder or '://' in folder or not jax.sharding.get_abstract_mesh().empty:
        return None
    platform, chosen = jax.default_backend(), config.jax_default_device
    if getattr(chosen, 'platform', chosen) not in (None, platform):  # a device or a platform
        return None
    for array in arrays:
        devices = array.devices() if isinstance(array, jax.Array) else ()
        if len(devices) > 1 or any(device.platform != platform for device in devices):
            return None
    return Path(folder) / FOLDER


def _settings() -> dict[str, Any]:
    """Return JAX's settings of this thread, other than those of caches."""
    config: Any = jax.config
    return {name: getattr(config, name, None) for name in sorted(config.values) if 'cache' not in name}


def _named(folder: Path, name: str, parts: list[Any]) -> tuple[Path, bytes]:
    """Return the file of a program and its key."""
    settings = {setting: repr(value) for setting, value in _settings().items()}
    versions = [__version__, *map(importlib.metadata.version, ('jax', 'jaxlib', 'flax'))]
    key = json.dumps([*parts, jax.export.default_export_platform(), versions, settings], sort_keys=True).encode()
    return folder / f'{name}-{hashlib.sha256(key).hexdigest()[:32]}{SUFFIX}', key


def _read(path: Path, key: bytes) -> Any:
    """Return the program in a file, or None if there is none; warn about a damaged file."""
    try:
        data = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        warnings.warn(f'{path}: cannot be read: {reason(error)}; it is written again', stacklevel=4)
        return None
    program = data[DIGEST_BYTES:]
    if data[:DIGEST_BYTES] != hashlib.sha256(key + program).digest():
        warnings.warn(f'{path}: is damaged; it is written again', stacklevel=4)
        return None
    return jax.export.deserialize(bytearray(program))


def _write(path: Path, key: bytes, exported: Any) -> Any:
    """Write a program to a file and return it; warn if it cannot be written."""
    program = bytes(exported.serialize())
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with written_beside(path) as beside:
            beside.write_bytes(hashlib.sha256(key + program).digest() + program)
    except (OSError, ConversionError) as error:
        why = error if isinstance(error, ConversionError) else f'{path.parent}: cannot be made: {reason(error)}'
        warnings.warn(f'{why}; a later process will trace the model again', stacklevel=4)
    return exported


def _without_lapack(exported: Any) -> Any:
    """Return a program that is called without a check of its platform, which is part of its key.

    To call a program for a CPU, JAX imports SciPy, in case the program uses LAPACK. That takes twice as long as
    everything else.
    """
    unchecked = (*exported.disabled_safety_checks, jax.export.DisabledSafetyCheck.platform())
    return dataclasses.replace(exported, platforms=('any',), disabled_safety_checks=unchecked)


def _describe_all(model: ImageModel, function: Callable[..., Any], options: dict[str, Any]) -> list[Any] | None:
    """Return the part of the key that stands for a model and a function of it, or None if they cannot be described."""
    try:
        parts = [_describe(value) for value in (model, function, options)]
        return [*parts, _source_digest()]
    except (_UnknownError, OSError):
        return None


@functools.cache
def _source_digest() -> str:
    """Return a digest of this package's code: it can change without its version while it is developed."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.rglob('*.py')):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _describe(value: Any) -> Any:
    """Return a value that JSON can hold, with the same text in every process.

    Raises:
        _UnknownError: the value is of a kind that may hide what the program depends on.
    """
    if value is None or type(value) in (bool, int, float, str):
        return value
    if type(value) in (tuple, list):
        return [type(value).__name__, *map(_describe, value)]
    if type(value) is dict:
        return {str(name): _describe(item) for name, item in value.items()}
    if isinstance(value, np.dtype):
        return ['dtype', value.name]
    if isinstance(value, nnx.Variable):
        # Its metadata may contain functions that change its value.
        return [_name(type(value)), str(jax.typeof(value.get_raw_value())), _describe(value.get_metadata())]
    if isinstance(value, types.FunctionType):
        if value.__closure__ or '<' in value.__qualname__:
            raise _UnknownError
        return ['function', _name(value)]
    name = _name(type(value))
    if isinstance(value, enum.Enum):
        return [name, value.name]
    if isinstance(value, nnx.Pytree):
        attributes = {k: v for k, v in vars(value).items() if not k.startswith('_pytree__') and k != NOT_USED}
        return [name, _describe(attributes)]
    if dataclasses.is_dataclass(value):
        return [name, *(_describe(getattr(value, field.name)) for field in dataclasses.fields(value))]
    raise _UnknownError


def _name(code: Any) -> str:
    """Return the full name of a class or function of a known library."""
    if not f'{code.__module__}.'.startswith(LIBRARIES):
        raise _UnknownError
    return f'{code.__module__}.{code.__qualname__}'
