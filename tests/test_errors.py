"""Words of messages."""

import pytest

from tresnet_jax.errors import amount, reason, shown


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


@pytest.mark.parametrize('text', ['a\x1b[31mb', 'a\x9b31mb', 'a\x00b', 'a\u202eb', 'a\ud800b', 'a\x7fb', 'a\u2067b'])
def test_reasons_are_plain(text):
    """The messages of a library can repeat what is in a file."""
    for said in (reason(ValueError(text)), shown(text)):
        assert said.isprintable() and said.startswith('a\\') and len(said) < 16
    assert reason(ValueError('caf\xe9 \u6f22\u3000\n  b')) == 'caf\xe9 \u6f22 b' and reason(KeyError()) == 'KeyError'
    assert shown('\u6f22\u3000\u5b57 caf\xe9') == '\u6f22\u3000\u5b57 caf\xe9'
