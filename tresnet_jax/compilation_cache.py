"""What XLA compiled once, read from disk the next time: for command lines, whose first second is compilation."""

import os
from pathlib import Path
from typing import Any

import jax


def use_compilation_cache() -> None:
    """Have JAX keep compiled programs on disk in this process; call it before the first computation.

    The folder is JAX_COMPILATION_CACHE_DIR if that is set, else ``tresnet_jax/compiled`` in the user's cache folder
    (XDG_CACHE_HOME, or ~/.cache). JAX_ENABLE_COMPILATION_CACHE=false switches the cache off. A folder that cannot be
    used is left alone, and JAX compiles again, with a warning, what it cannot read. Programs are kept by JAX's version,
    its flags and the kind of device, so that a folder can be shared between machines.
    """
    config: Any = jax.config  # its attributes are made at run time
    if not config.jax_enable_compilation_cache:
        return
    if 'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS' not in os.environ:
        # JAX's own second would leave out a ResNet-50 on a fast machine.
        config.update('jax_persistent_cache_min_compile_time_secs', 0.1)
    if config.jax_compilation_cache_dir:
        return
    try:
        folder = Path(os.environ.get('XDG_CACHE_HOME') or '~/.cache').expanduser() / 'tresnet_jax' / 'compiled'
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except (OSError, RuntimeError):  # a user without a home is a RuntimeError
        return
    if os.access(folder, os.R_OK | os.W_OK | os.X_OK):
        config.update('jax_compilation_cache_dir', str(folder))
