"""The compilation cache of the command lines: its place, and faults that must not stop a program."""

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
    """Compute 36 in a process that caches every program, with the given environment variables."""
    environment = {key: value for key, value in os.environ.items() if key not in SETTINGS}
    environment |= {'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0', **{k: str(v) for k, v in settings.items()}}
    result = subprocess.run([sys.executable, '-c', PROGRAM], env=environment, capture_output=True, text=True)
    assert (result.returncode, result.stdout) == (0, '36.0\n'), result.stderr
    return result


def cached(folder: Path) -> list[Path]:
    """Return the files of cached programs below a folder."""
    return sorted(folder.rglob('*-cache'))


def test_programs_are_cached_and_damaged_files_are_ignored(tmp_path):
    run(HOME=tmp_path)
    programs = cached(tmp_path / '.cache' / 'tresnet_jax' / 'compiled')
    assert programs
    assert 'Error reading' not in run(HOME=tmp_path).stderr
    for program in programs:
        program.write_bytes(program.read_bytes()[:100])
    assert 'Error reading' in run(HOME=tmp_path).stderr  # JAX read the damaged file and compiled again


def test_the_environment_sets_the_place(tmp_path):
    run(XDG_CACHE_HOME=tmp_path / 'xdg', JAX_COMPILATION_CACHE_DIR=tmp_path / 'jax')
    assert cached(tmp_path / 'jax') and not (tmp_path / 'xdg').exists()
    run(XDG_CACHE_HOME=tmp_path / 'xdg')
    assert cached(tmp_path / 'xdg' / 'tresnet_jax' / 'compiled')


@pytest.mark.parametrize('what', ['a file', 'off'])
def test_a_program_runs_without_a_cache(tmp_path, what):
    """A file is in the folder's place, or JAX's own switch is off."""
    place = tmp_path / 'cache'
    if what == 'a file':
        place.touch()
    result = run(XDG_CACHE_HOME=place, **({'JAX_ENABLE_COMPILATION_CACHE': 'false'} if what == 'off' else {}))
    assert not cached(tmp_path) and 'cache' not in result.stderr


def test_predict_switches_it_on(tmp_path, monkeypatch):
    switched_on = []
    monkeypatch.setattr(predict, 'use_compilation_cache', lambda: switched_on.append(True))
    assert predict.main([str(tmp_path), '--model', 'test_resnet.fashion_mnist']) == 2  # no images
    assert switched_on
