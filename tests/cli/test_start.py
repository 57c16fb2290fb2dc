"""What all command lines share: their names, missing extras, Ctrl-C and progress."""

import os
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest

from convert import __main__ as convert
from tests.helpers.paths import ROOT
from tresnet_jax.cli import common, embed, evaluate, explain, predict, start, train
from tresnet_jax.cli.common import Progress
from tresnet_jax.errors import MissingExtraError
from tresnet_jax.training import loop
from tresnet_jax.training.devices import interruption
from tresnet_jax.training.metrics import RunLog

MODEL = ('--model', 'test_resnet.fashion_mnist')
DATA = ('--pretrained', '--data', 'embedded:fashion_mnist')
IMAGE = str(ROOT / 'tresnet_jax' / 'embedded' / 'pictures' / '8_bag.png')
COMMAND_LINES = {
    'train': (train, ('--workdir', 'run'), 'train'),
    'evaluate': (evaluate, (*MODEL, *DATA), 'load_inputs'),
    'embed': (embed, (*MODEL, *DATA, '--out', 'out'), 'load_inputs'),
    'predict': (predict, (IMAGE, *MODEL), 'load_classifier'),
    'explain': (explain, (IMAGE, *MODEL, '--out', 'out'), 'load_classifier'),
    'convert': (convert, ('inspect', 'weights.safetensors'), 'inspect'),
}

# A process in which some packages cannot be imported, and then one of the entry points.
WITHOUT = """
import sys

class Hidden:
    def find_spec(self, name, path=None, target=None):
        if name.partition('.')[0] in {packages!r}:
            raise ModuleNotFoundError(f'No module named {{name!r}}', name=name)

sys.meta_path.insert(0, Hidden())
from tresnet_jax.cli import start
sys.exit(start.{name}())
"""


def run_without(packages: tuple[str, ...], name: str, *arguments: str) -> subprocess.CompletedProcess:
    code = WITHOUT.format(packages=packages, name=name)
    return subprocess.run([sys.executable, '-c', code, *arguments], capture_output=True, text=True, cwd=ROOT)


@pytest.mark.parametrize('name', ['train', 'evaluate', 'embed'])
def test_a_missing_extra_is_one_line(name, tmp_path):
    """Nothing of the training extra is installed, except optax, which Flax requires."""
    arguments = {'train': ('--workdir', str(tmp_path / 'run')), 'evaluate': (), 'embed': ()}[name]
    done = run_without(('grain', 'orbax', 'matplotlib', 'tensorboardX'), name, *arguments)
    assert (done.returncode, done.stdout) == (2, '')
    assert done.stderr.startswith('error: ') and done.stderr.count('\n') == 1
    assert done.stderr.endswith(" is not installed; run: pip install 'tresnet_jax[train]'\n")
    assert not (tmp_path / 'run').exists()


def test_predict_needs_no_extra():
    done = run_without(('grain', 'orbax', 'matplotlib', 'tensorboardX'), 'predict', IMAGE, *MODEL, '--topk', '1')
    assert (done.returncode, done.stderr) == (0, '') and done.stdout.startswith(f'{IMAGE}\n  Bag 0.')


def test_a_contact_sheet_without_matplotlib(monkeypatch, tmp_path, capsys):
    """The error comes before the model is loaded."""
    monkeypatch.setitem(sys.modules, 'matplotlib.figure', None)
    monkeypatch.setattr(predict, 'load_classifier', lambda *arguments: pytest.fail('loaded in vain'))
    assert predict.main([IMAGE, *MODEL, '--plot', str(tmp_path / 'sheet.png')]) == 2
    expected = "error: matplotlib is not installed; run: pip install 'tresnet_jax[plot]'\n"
    assert capsys.readouterr().err == expected


@pytest.mark.parametrize('package, extra', [('tensorboardX', 'train'), ('matplotlib.figure', 'plot')])
def test_a_run_that_cannot_be_logged_does_not_start(monkeypatch, tmp_path, package, extra):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingExtraError, match=rf"pip install 'tresnet_jax\[{extra}\]'$"):
        RunLog(tmp_path, start=0, steps=1, active=True)


def test_an_unknown_missing_module_is_not_hidden(monkeypatch):
    def fail(module):
        raise ModuleNotFoundError('No module named "nothing"', name='nothing')

    monkeypatch.setattr(start.importlib, 'import_module', fail)
    with pytest.raises(ModuleNotFoundError):
        start.train()


@pytest.mark.parametrize('name', COMMAND_LINES)
def test_interrupted(name, monkeypatch, capsys, tmp_path):
    """Ctrl-C ends with one line and exit code 130."""

    def interrupt(*arguments, **options):
        raise KeyboardInterrupt

    module, arguments, function = COMMAND_LINES[name]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(loop if name == 'train' else module, function, interrupt)
    assert module.main(arguments) == 130
    out, err = capsys.readouterr()
    assert out == '' and err.startswith('interrupted') and err.count('\n') == 1


def test_interrupted_while_modules_are_imported(monkeypatch, capsys):
    def interrupt(module):
        raise KeyboardInterrupt

    monkeypatch.setattr(start.importlib, 'import_module', interrupt)
    assert start.evaluate() == 130
    assert capsys.readouterr() == ('', 'interrupted\n')


def test_the_second_ctrl_c_stops_a_run_at_once():
    before = signal.getsignal(signal.SIGINT)
    with interruption() as interrupted:
        assert not interrupted()
        os.kill(os.getpid(), signal.SIGINT)
        assert interrupted()
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(1)
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.parametrize(
    'started, name',
    [
        ('/usr/bin/tresnet-jax-NAME', 'tresnet-jax-NAME'),
        ('scripts/NAME.py', 'NAME.py'),
        ('/lib/NAME/__main__.py', 'python -m NAME'),
    ],
)
@pytest.mark.parametrize('program', COMMAND_LINES)
def test_help_shows_the_name_of_the_program(started, name, program, monkeypatch, capsys):
    monkeypatch.setattr(sys, 'argv', [started.replace('NAME', program), '--help'])
    with pytest.raises(SystemExit) as stop:
        getattr(start, program)()
    assert stop.value.code == 0
    assert capsys.readouterr().out.startswith(f'usage: {name.replace("NAME", program)} ')


@pytest.mark.parametrize('program', COMMAND_LINES)
def test_help_without_none(program, monkeypatch, capsys):
    monkeypatch.setattr(sys, 'argv', [program, *(['convert'] if program == 'convert' else []), '--help'])
    with pytest.raises(SystemExit):
        getattr(start, program)()
    assert 'None' not in capsys.readouterr().out


@pytest.mark.parametrize('program', ['train', 'convert'])
def test_the_reader_of_the_output_has_gone(program, monkeypatch, capsys):
    """As in `train.py --help | head -1`: no traceback, neither at once nor when Python exits."""
    reader, writer = os.pipe()
    os.close(reader)
    monkeypatch.setattr(sys, 'argv', [program, '--help'])
    with open(writer, 'w') as output:
        monkeypatch.setattr(sys, 'stdout', output)
        with pytest.raises(SystemExit) as stop:
            getattr(start, program)()
    assert stop.value.code == 1
    assert capsys.readouterr().err == ''


def show(total: int, active: bool = True) -> None:
    with Progress(total, 'images', active) as progress:
        for done in range(1, total + 1):
            progress.write(f'image {done}')
            progress.update(done)


def test_progress_on_a_terminal_is_a_bar(monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, 'isatty', lambda: True)
    show(3)
    out, err = capsys.readouterr()
    assert out.split('\n') == ['image 1', 'image 2', 'image 3', '']
    assert '3/3' in err and 'images/s' in err


def test_progress_elsewhere_is_a_line_every_30_seconds(monkeypatch, capsys):
    now = 0.0

    def clock() -> float:
        nonlocal now
        now += 10
        return now

    monkeypatch.setattr(common, 'time', SimpleNamespace(monotonic=clock))
    show(7)
    out, err = capsys.readouterr()
    assert out.count('\n') == 7
    assert err == '3 of 7 images (43 %)\n6 of 7 images (86 %)\n'


@pytest.mark.parametrize('terminal', [True, False])
def test_progress_of_other_processes_is_hidden(terminal, monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, 'isatty', lambda: terminal)
    monkeypatch.setattr(common, 'INTERVAL', 0.0)
    show(2, active=False)
    assert capsys.readouterr() == ('image 1\nimage 2\n', '')
