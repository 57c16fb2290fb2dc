"""Words of messages."""

import pytest

from tresnet_jax.errors import amount


@pytest.mark.parametrize(
    'given, expected',
    [
        ((1, 'image'), '1 image'),
        ((0, 'image'), '0 images'),
        ((2000, 'image'), '2,000 images'),
        ((1, 'class', 'classes'), '1 class'),
        ((3, 'class', 'classes'), '3 classes'),
    ],
)
def test_amounts(given, expected):
    assert amount(*given) == expected
