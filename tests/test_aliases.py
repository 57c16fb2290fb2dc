"""`tresnet_jax.convert` and `convert` are one package."""

import subprocess
import sys

from tresnet_jax.convert.verify import compare_with_stored  # pyright: ignore

import convert
import tresnet_jax.convert
from convert import verify
from tests.helpers.paths import ROOT
from tresnet_jax.aliases import alias


def test_both_names_give_the_same_modules():
    assert tresnet_jax.convert is convert and compare_with_stored is verify.compare_with_stored
    for path in (ROOT / 'convert').glob('[a-z]*.py'):
        assert sys.modules[f'tresnet_jax.convert.{path.stem}'] is sys.modules[f'convert.{path.stem}']


def test_the_module_of_the_wheel(monkeypatch):
    """It gives the package another name; here the names are the other way round."""
    monkeypatch.setitem(sys.modules, 'other_name', None)
    for path in (ROOT / 'convert').glob('[a-z]*.py'):
        monkeypatch.delitem(sys.modules, f'other_name.{path.stem}', raising=False)
    alias('other_name', 'tresnet_jax.convert')
    from other_name.reading import read  # pyright: ignore

    assert read is convert.read and sys.modules['other_name'] is convert
    for path in (ROOT / 'convert').glob('[a-z]*.py'):
        del sys.modules[f'other_name.{path.stem}']


def test_both_names_run(tmp_path):
    for name in ('convert', 'tresnet_jax.convert'):
        command = [sys.executable, '-m', name, 'inspect', str(tmp_path / 'none')]
        done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
        assert (done.returncode, done.stderr) == (2, f'error: {tmp_path / "none"}: no such file\n')
