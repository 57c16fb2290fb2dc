"""Fixtures of the tests that train."""

from collections.abc import Iterator

import pytest

from tests.helpers.compilations import compiled_once


@pytest.fixture(scope='module')
def programs(tmp_path_factory) -> Iterator[None]:
    """Keep what is compiled for the other runs of a module, which compile the same steps."""
    with compiled_once(tmp_path_factory.mktemp('compiled')):
        yield
