"""The compilation cache of the command lines: where it lies, and that nothing in it or about it can do harm."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tresnet_jax.cli import predict

PROGRAM = """
import jax, numpy
from tresnet_jax.compilation_cache import use_compilation_cache
use_compilation_cache()
print(jax.jit(lambda x: (x @ x.T).sum())(numpy.ones((3, 4), numpy.float32)))
"""
SETTINGS = ('JAX_ENABLE_COMPILATION_CACHE', 'JAX_COMPILATION_CACHE_DIR', 'XDG_CACHE_HOME')


def run(**settings: str | Path) -> subprocess.CompletedProcess:
    """Compute 36 in a process of its own, where everything is worth keeping."""
    environment = {key: value for key, value in os.environ.items() if key not in SETTINGS}
    environment |= {'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0', **{k: str(v) for k, v in settings.items()}}
    result = subprocess.run([sys.executable, '-c', PROGRAM], env=environment, capture_output=True, text=True)
    assert (result.returncode, result.stdout) == (0, '36.0\n'), result.stderr
    return result


def kept(folder: Path) -> list[Path]:
    return sorted(folder.rglob('*-cache'))


def test_programs_are_kept_and_damage_is_outlived(tmp_path):
    run(HOME=tmp_path)
    programs = kept(tmp_path / '.cache' / 'tresnet_jax' / 'compiled')
    assert programs
    assert 'Error reading' not in run(HOME=tmp_path).stderr
    for program in programs:
        program.write_bytes(program.read_bytes()[:100])
    assert 'Error reading' in run(HOME=tmp_path).stderr  # it was asked for, and did no harm


def test_where_it_lies(tmp_path):
    run(XDG_CACHE_HOME=tmp_path / 'xdg', JAX_COMPILATION_CACHE_DIR=tmp_path / 'jax')
    assert kept(tmp_path / 'jax') and not (tmp_path / 'xdg').exists()
    run(XDG_CACHE_HOME=tmp_path / 'xdg')
    assert kept(tmp_path / 'xdg' / 'tresnet_jax' / 'compiled')


@pytest.mark.parametrize('what', ['a file', 'off'])
def test_without_a_folder(tmp_path, what):
    """A file lies where the folder should be, or JAX's own switch is off."""
    place = tmp_path / 'cache'
    if what == 'a file':
        place.touch()
    result = run(XDG_CACHE_HOME=place, **({'JAX_ENABLE_COMPILATION_CACHE': 'false'} if what == 'off' else {}))
    assert not kept(tmp_path) and 'cache' not in result.stderr


def test_predict_switches_it_on(tmp_path, monkeypatch):
    switched_on = []
    monkeypatch.setattr(predict, 'use_compilation_cache', lambda: switched_on.append(True))
    assert predict.main([str(tmp_path), '--model', 'test_resnet.fashion_mnist']) == 2  # no images
    assert switched_on
