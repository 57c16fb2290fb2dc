"""Keep compiled programs on disk, because compilation takes the first seconds of a command line."""

import os
from pathlib import Path
from typing import Any

import jax


def use_compilation_cache() -> None:
    """Make JAX keep compiled programs on disk in this process. Call it before the first computation.

    The folder is JAX_COMPILATION_CACHE_DIR if that is set, else ``tresnet_jax/compiled`` in the user's cache folder
    (XDG_CACHE_HOME, or ~/.cache). JAX_ENABLE_COMPILATION_CACHE=false disables the cache. If the folder cannot be used,
    nothing is cached; if an entry cannot be read, JAX warns and compiles again. Entries are keyed by JAX's version, its
    flags and the kind of device, so machines with the same kinds of device and CPU can share a folder.
    """
    config: Any = jax.config  # its attributes are defined at run time
    if not config.jax_enable_compilation_cache:
        return
    if 'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS' not in os.environ:
        # JAX's default of 1 second would exclude a ResNet-50 on a fast machine.
        config.update('jax_persistent_cache_min_compile_time_secs', 0.1)
    if config.jax_compilation_cache_dir:
        return
    if (folder := cache_folder('compiled')) is not None:
        config.update('jax_compilation_cache_dir', str(folder))


def cache_folder(name: str) -> Path | None:
    """Return a folder in the user's cache folder, after making it; None if it cannot be used."""
    try:
        folder = Path(os.environ.get('XDG_CACHE_HOME') or '~/.cache').expanduser() / 'tresnet_jax' / name
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except (OSError, RuntimeError):  # RuntimeError: the user has no home
        return None
    return folder if os.access(folder, os.R_OK | os.W_OK | os.X_OK) else None
