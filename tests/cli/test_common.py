"""The parser of all command lines."""

import dataclasses

import pytest

from tresnet_jax.cli.common import parse
from tresnet_jax.errors import UNSHOWABLE


@dataclasses.dataclass(frozen=True)
class Flags:
    """Flags."""

    name: str = ''
    number: int = 0


@pytest.mark.parametrize(
    'arguments', [['\x1b[31ma'], ['--\x1b[31m', '3'], ['--number', '\x9b31m\u202e'], ['--number=\x07']]
)
def test_arguments_are_repeated_without_control_characters(arguments, capsys):
    with pytest.raises(SystemExit) as exit:
        parse(Flags, arguments)
    said = capsys.readouterr().err
    assert exit.value.code == 2 and not UNSHOWABLE.search(said.replace('\n', '')) and '\\x' in said


def test_arguments_are_parsed_as_they_are():
    assert parse(Flags, ['--name', '\x1b[31ma', '--number', '3']) == Flags('\x1b[31ma', 3)
