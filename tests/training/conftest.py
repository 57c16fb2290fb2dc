"""Fixtures of the tests that train."""

from collections.abc import Iterator

import pytest

from tests.helpers.compilations import compiled_once, traced_once


@pytest.fixture(scope='module')
def programs(tmp_path_factory) -> Iterator[None]:
    """Keep what is traced and compiled for the other runs of a module, which have the same steps."""
    with compiled_once(tmp_path_factory.mktemp('compiled')), traced_once():
        yield
