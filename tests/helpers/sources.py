"""Refused sources of images."""

import pytest

from tresnet_jax.data.sources import open_source
from tresnet_jax.errors import DataError


def refuse(data: str, split: str | None = 'train', **options) -> str:
    """Return the error of opening a source, after checking that it is one line that names the data."""
    with pytest.raises(DataError) as caught:
        open_source(data, split, **options)
    message = str(caught.value)
    assert '\n' not in message and data in message
    return message
