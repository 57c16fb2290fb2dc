"""Entry points of the console scripts and of scripts/*.py.

Each function imports its command line when it is called, so that a missing optional dependency is one line instead
of a traceback.
"""

import importlib

from tresnet_jax.cli.common import closed_output, fail
from tresnet_jax.errors import missing_extra


def convert() -> int:
    """Run `tresnet-jax-convert`: convert, inspect and verify checkpoints."""
    return _run('tresnet_jax.convert.__main__')


def embed() -> int:
    """Run `tresnet-jax-embed`: write pooled features of the images of a data set."""
    return _run('tresnet_jax.cli.embed')


def evaluate() -> int:
    """Run `tresnet-jax-evaluate`: measure accuracy on labelled images."""
    return _run('tresnet_jax.cli.evaluate')


def explain() -> int:
    """Run `tresnet-jax-explain`: show which parts of images support a class."""
    return _run('tresnet_jax.cli.explain')


def predict() -> int:
    """Run `tresnet-jax-predict`: classify images."""
    return _run('tresnet_jax.cli.predict')


def train() -> int:
    """Run `tresnet-jax-train`: train, fine-tune or resume a run."""
    return _run('tresnet_jax.cli.train')


def _run(module: str) -> int:
    """Import a command line, run it and return its exit code."""
    try:
        with closed_output():
            return importlib.import_module(module).main()
    except ModuleNotFoundError as error:
        missing = missing_extra(error)
        if missing is None:
            raise
        return fail(missing)
    except KeyboardInterrupt as error:  # while modules are imported; a command line reports its own
        return fail(error)
