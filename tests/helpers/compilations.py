"""Programs that a module compiles once, although each run makes them anew."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import jax


@contextlib.contextmanager
def compiled_once(folder: Path) -> Iterator[None]:
    """Keep compiled programs in a folder. Also let optax multiply integers and floats."""
    from jax.experimental.compilation_cache import compilation_cache

    values = {
        'jax_compilation_cache_dir': str(folder),
        'jax_enable_compilation_cache': True,
        'jax_persistent_cache_min_compile_time_secs': 0.0,
        'jax_numpy_dtype_promotion': 'standard',
    }
    before = {name: getattr(jax.config, name) for name in values}
    for name, value in values.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()
    yield
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()
