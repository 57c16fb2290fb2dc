"""The local hub that these tests share, and a home folder for its client."""

import pytest

from tests.helpers.hub_server import Hub


@pytest.fixture(scope='module')
def hub():
    with Hub() as hub:
        yield hub


@pytest.fixture(scope='module')
def home(tmp_path_factory):
    return tmp_path_factory.mktemp('home')
