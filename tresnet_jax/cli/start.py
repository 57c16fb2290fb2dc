"""The entry points of the console scripts.

Each function imports its command line when it is called, so
that a missing optional dependency is one line instead of a traceback.
"""

import importlib
import sys

from tresnet_jax.errors import missing_extra


def convert() -> int:
    """`tresnet-jax-convert`: convert, inspect and verify checkpoints."""
    return _run('convert.__main__')


def embed() -> int:
    """`tresnet-jax-embed`: pooled features of the images of a data set."""
    return _run('tresnet_jax.cli.embed')


def evaluate() -> int:
    """`tresnet-jax-evaluate`: accuracy on labelled images."""
    return _run('tresnet_jax.cli.evaluate')


def predict() -> int:
    """`tresnet-jax-predict`: classes of images."""
    return _run('tresnet_jax.cli.predict')


def train() -> int:
    """`tresnet-jax-train`: train, fine-tune or resume a run."""
    return _run('tresnet_jax.cli.train')


def _run(module: str) -> int:
    try:
        return importlib.import_module(module).main()
    except ModuleNotFoundError as error:
        missing = missing_extra(error)
        if missing is None:
            raise
        print(f'error: {missing}', file=sys.stderr)
        return 2
