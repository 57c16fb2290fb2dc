"""The parser of all command lines, and errors of the system in every program."""

import dataclasses

import pytest

import convert.__main__ as converter
from tresnet_jax.cli import embed, evaluate, explain, predict, train
from tresnet_jax.cli.common import fail, parse
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


LONG = 'a' * 300


@pytest.mark.parametrize(
    'main, arguments',
    [
        (
            evaluate.main,
            ['--model', 'test_resnet', '--checkpoint', 'absent', '--data', 'folder:absent', '--report', LONG],
        ),
        (embed.main, ['--out', 'out', '--model', 'test_resnet', '--data', 'folder:absent', '--checkpoint', LONG]),
        (train.main, ['--model', 'test_resnet', '--data', 'folder:absent', '--workdir', LONG]),
        (predict.main, ['--model', 'test_resnet', '--checkpoint', LONG, 'absent.jpg']),
        (explain.main, ['--model', 'test_resnet', '--checkpoint', LONG, '--out', 'out', 'absent.jpg']),
        (converter.main, [LONG, 'out.safetensors']),
        (converter.main, ['inspect', LONG]),
        (converter.main, ['average', LONG, LONG, '--output', 'out.safetensors']),
    ],
)
def test_a_path_that_is_too_long(main, arguments, capsys, tmp_path, monkeypatch):
    """Every program names the path and the reason in one line."""
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    line = capsys.readouterr().err
    assert line.startswith('error: ') and LONG in line and line.count('\n') == 1
    assert 'File name too long' in line or 'no such file' in line
    assert not any(tmp_path.iterdir())


def test_an_output_that_is_closed_is_no_error_of_the_user():
    with pytest.raises(BrokenPipeError):
        fail(BrokenPipeError(32, 'Broken pipe'))
