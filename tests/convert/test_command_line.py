"""The command line of the converter: subcommands, names, help, Ctrl-C and progress bars."""

import os
import subprocess
import sys

import numpy as np
import pytest
import safetensors.numpy

from convert import __main__ as command_line
from convert.__main__ import main
from tests.helpers.paths import EMBEDDED, ROOT
from tresnet_jax.checkpoints import match
from tresnet_jax.cli import start

RESNET = EMBEDDED / 'test_resnet.fashion_mnist.safetensors'
PROGRAMS = [('/lib/convert/__main__.py', 'python -m convert'), ('/bin/tresnet-jax-convert', 'tresnet-jax-convert')]


def help_of(capsys, *arguments: str) -> str:
    with pytest.raises(SystemExit) as stop:
        start.convert() if not arguments else main(arguments)
    assert stop.value.code == 0
    return capsys.readouterr().out


@pytest.mark.parametrize('started, name', PROGRAMS)
def test_help_shows_the_subcommands(started, name, monkeypatch, capsys):
    monkeypatch.setattr(sys, 'argv', [started, '--help'])
    text = help_of(capsys)
    assert text.startswith(f'usage: {name} [-h] {{convert,inspect,average,golden}}\n')
    assert 'SOURCE TARGET alone means: convert SOURCE TARGET' in text
    for kind in ('Convert', 'Inspect', 'Average', 'Golden'):
        kind = getattr(command_line, f'{kind}Arguments')
        assert str(kind.__doc__).split(':')[0][:30] in text


@pytest.mark.parametrize('started, name', PROGRAMS)
@pytest.mark.parametrize(
    'subcommand, arguments',
    [('convert', 'SOURCE TARGET'), ('inspect', 'FILE'), ('average', 'SOURCE ...'), ('golden', 'NAME TARGET')],
)
def test_help_of_a_subcommand(started, name, subcommand, arguments, monkeypatch, capsys):
    monkeypatch.setattr(sys, 'argv', [started])
    text = help_of(capsys, subcommand, '--help')
    usage = text.partition('\n\n')[0]
    assert usage.startswith(f'usage: {name} {subcommand} [-h] ') and arguments in usage
    assert 'None' not in text


def test_help_in_a_process():
    """The name comes from how the program was really started."""
    command = [sys.executable, '-m', 'convert', 'inspect', '--help']
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.startswith('usage: python -m convert inspect ')


@pytest.mark.parametrize('arguments', [[], ['convert'], ['source'], ['--to', 'torch'], ['inspect'], ['golden', 'x']])
def test_wrong_usage(arguments, capsys):
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    assert 'None' not in capsys.readouterr().err


@pytest.mark.parametrize(
    'arguments, message',
    [
        (
            ['SOURCE', 'TARGET', '--plot', 'chart.png'],
            '--plot shows the errors that --verify measures; give --verify too',
        ),
        (['SOURCE', 'TARGET', '--num-classes', '-1'], '--num-classes must be at least 0, got -1'),
        (['SOURCE', 'TARGET', '--abn-slope', '-1'], '--abn-slope must be at least 0, got -1.0'),
        (['SOURCE', 'TARGET', '--step', '-1'], '--step must be at least 0, got -1'),
    ],
)
def test_wrong_values(arguments, message, capsys):
    assert main(arguments) == 2
    assert capsys.readouterr().err == f'error: {message}\n'


@pytest.mark.parametrize(
    'arguments, message',
    [
        (['a.pth'], 'a Flax file is a .safetensors file; name it a.safetensors'),
        (['a.h5', '--to', 'torch'], 'unknown suffix; use one of '),
        (['missing/a.safetensors'], 'the folder missing does not exist; make it first'),
        (['a.safetensors', '--verify', '--plot', '.'], 'is a folder; give a file name'),
        (['average', '--output', 'a.pth'], 'a Flax file is a .safetensors file'),
    ],
)
def test_targets_are_checked_before_the_work(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr('convert.__main__.match', lambda *arguments, **options: pytest.fail('converts'))
    monkeypatch.setattr('convert.__main__.average', lambda *arguments, **options: pytest.fail('averages'))
    averages = arguments[0] == 'average'
    assert main([*arguments, str(RESNET), str(RESNET)] if averages else [str(RESNET), *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error and error.startswith('error: ') and error.count('\n') == 1


def test_convert_is_the_default(tmp_path):
    """SOURCE TARGET with options anywhere, and after the name of the subcommand."""
    orders = (
        lambda target: [str(RESNET), target, '--drop-head'],
        lambda target: ['--drop-head', str(RESNET), target],
        lambda target: ['convert', str(RESNET), '--drop-head', target],
    )
    contents = []
    for number, order in enumerate(orders):
        target = tmp_path / f'{number}.safetensors'
        assert main(order(str(target))) == 0
        contents.append(safetensors.numpy.load_file(target))
    assert contents[0].keys() == contents[1].keys() == contents[2].keys()
    assert 'params.fc.kernel' not in contents[0] and 'params.conv1.0.kernel' in contents[0]


def test_switches_in_both_forms(tmp_path):
    options = ['--ema', '--no-verify', '--no-drop-head']
    assert main([str(RESNET), str(tmp_path / 'a.safetensors'), *options]) == 0


@pytest.mark.parametrize('subcommand', ['convert', 'inspect', 'golden'])
def test_interrupted(subcommand, monkeypatch, capsys):
    def interrupt(*arguments, **options):
        raise KeyboardInterrupt

    function = {'convert': 'read', 'inspect': 'inspect', 'golden': 'write_golden'}[subcommand]
    monkeypatch.setattr(command_line, function, interrupt)
    assert main([subcommand, 'a', 'b'][: 2 if subcommand == 'inspect' else 3]) == 130
    assert capsys.readouterr() == ('', 'interrupted\n')


def test_interrupted_while_writing(monkeypatch, capsys, tmp_path):
    def interrupt(tensors, path, metadata=None):
        path.write_bytes(b'half')
        raise KeyboardInterrupt

    monkeypatch.setattr(safetensors.numpy, 'save_file', interrupt)
    assert main([str(RESNET), str(tmp_path / 'a.safetensors')]) == 130
    assert capsys.readouterr() == ('', 'interrupted\n') and list(tmp_path.iterdir()) == []


def test_inspect_never_prints_none(tmp_path, capsys):
    file = tmp_path / 'a.safetensors'
    for tensors in ({'conv1.weight': np.zeros((64, 3, 7, 7), np.float32)}, {'x': np.zeros(3)}, {}):
        safetensors.numpy.save_file(tensors, file)
        assert main(['inspect', str(file)]) == 0
        printed = capsys.readouterr().out
        assert 'None' not in printed
        rows = dict(line.split(maxsplit=1) for line in printed.splitlines() if not line.startswith('looks like'))
        assert (rows['classes'], rows['channels'], rows['tags']) == ('-', '-', '-')


@pytest.mark.parametrize(
    'weight', [np.zeros(()), np.zeros((64,)), np.zeros((64, 5, 3, 3)), np.zeros((64, 0, 3, 3)), np.zeros((0, 48, 3, 3))]
)
def test_stems_of_impossible_shapes(weight, tmp_path, capsys):
    """Described and refused, whatever the command."""
    file = tmp_path / 'a.safetensors'
    safetensors.numpy.save_file({'body.conv1.conv.weight': weight.astype(np.float32)}, file)
    assert main(['inspect', str(file)]) == 0
    assert 'no known architecture; the nearest is' in capsys.readouterr().out
    assert main([str(file), str(tmp_path / 'b.safetensors'), '--model', 'test_tresnet']) == 2
    shape = str(weight.shape)
    assert f'body.conv1.conv.weight: {shape} in the file, expected (16, 48, 3, 3)' in capsys.readouterr().err


@pytest.mark.parametrize(
    'options, message',
    [
        (['test_tresnet', '--image-size', '30'], 'the image size must be a multiple of 4 and at least 20, got 30'),
        (['test_tresnet', '--image-size', '16'], 'the image size must be a multiple of 4 and at least 20, got 16'),
        (['test_resnet', '--image-size', '0'], 'the image size must be a multiple of 1 and at least 1, got 0'),
        (['test_resnet', '--key', 'ema'], '--key (key) selects a network of --checkpoint; give it too'),
        (['test_resnet', '--seed', '-1'], 'the seed must not be negative, got -1'),
        (['resnet51d'], 'did you mean'),
    ],
)
def test_wrong_arguments_of_golden(options, message, tmp_path, capsys):
    name, *options = options
    assert main(['golden', name, str(tmp_path / 'a.safetensors'), *options]) == 2
    error = capsys.readouterr().err
    assert message in error and error.startswith('error: ') and error.count('\n') == 1
    assert list(tmp_path.iterdir()) == []


def run_with_progress(tmp_path, stderr) -> None:
    code = (
        'from tresnet_jax.checkpoints import match\n'
        'from convert.__main__ import main\n'
        'match.PROGRESS_FROM = 0\n'
        f'raise SystemExit(main([{str(RESNET)!r}, {str(tmp_path / "a.safetensors")!r}]))\n'
    )
    subprocess.run([sys.executable, '-c', code], stdout=subprocess.DEVNULL, stderr=stderr, check=True, cwd=ROOT)


def test_a_progress_bar_on_a_terminal(tmp_path):
    termios = pytest.importorskip('termios')
    ours, theirs = os.openpty()
    termios.tcsetwinsize(theirs, (24, 100))
    try:
        run_with_progress(tmp_path, theirs)
        shown = os.read(ours, 100_000).decode()
    finally:
        os.close(ours)
        os.close(theirs)
    assert 'tensor/s' in shown and '100%' in shown and RESNET.name in shown


def test_no_progress_bar_elsewhere(tmp_path):
    with (tmp_path / 'stderr').open('w') as file:
        run_with_progress(tmp_path, file)
    assert (tmp_path / 'stderr').read_text() == ''


def test_no_progress_bar_in_the_library(monkeypatch, capsys):
    """Not even on a terminal: a program decides what it shows."""
    monkeypatch.setattr(match, 'PROGRESS_FROM', 0)
    monkeypatch.setattr(sys.stderr, 'isatty', lambda: True)
    command_line.match(command_line.read(RESNET))
    assert capsys.readouterr().err == ''
