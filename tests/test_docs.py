"""The examples of README and docs run."""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.paths import ROOT

PAGES = [ROOT / 'README.md', *sorted((ROOT / 'docs').glob('*.md'))]


def blocks(language: str) -> list:
    """Return the fenced blocks of a language on all pages."""
    found = []
    for page in PAGES:
        texts = re.findall(rf'^```{language}\n(.*?)^```', page.read_text(encoding='utf-8'), re.M | re.S)
        found += [pytest.param(text, id=f'{page.stem}-{i}') for i, text in enumerate(texts)]
    return found


@pytest.fixture
def clone(tmp_path, monkeypatch) -> Path:
    """A folder that looks like a clone and in which examples may write."""
    for name in ('tresnet_jax', 'convert', 'scripts'):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.setenv('PYTHONPATH', str(ROOT))
    return tmp_path


@pytest.mark.parametrize('code', blocks('python'))
def test_a_python_example_runs(code, clone, monkeypatch, capsys):
    monkeypatch.chdir(clone)
    exec(compile(code, 'example', 'exec'), {'__name__': '__main__'})
    printed = capsys.readouterr().out
    for line in code.splitlines():  # print(...)  # the expected output
        if expected := re.match(r'print\(.*\)\s+# (.*)', line):
            assert expected[1] in printed


def commands(page: Path) -> list[str]:
    """Return the commands that run our scripts and modules, in the order of the page."""
    lines = page.read_text(encoding='utf-8').splitlines()
    return [line for line in lines if re.match(r'python (-m convert|scripts/)', line)]


# Runs commands one after another in one process, which imports JAX once.
RUNNER = """
import json, runpy, sys
for command, words in json.loads(sys.argv[1]):
    sys.argv, path = words, sys.path[:]
    try:
        if words[0] == '-m':
            sys.argv = words[1:]
            runpy.run_module(words[1], run_name='__main__', alter_sys=True)
        else:
            sys.path.insert(0, 'scripts')
            runpy.run_path(words[0], run_name='__main__')
    except SystemExit as end:
        if end.code:
            raise SystemExit(f'{command} ended with {end.code}') from None
    sys.path[:] = path
"""


@pytest.mark.parametrize('page', [page for page in PAGES if commands(page)], ids=lambda page: page.stem)
def test_the_commands_of_a_page_run(page, clone):
    todo = [(command, shlex.split(command, comments=True)[1:]) for command in commands(page)]
    result = subprocess.run([sys.executable, '-c', RUNNER, json.dumps(todo)], cwd=clone, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def test_readme_and_training_have_commands():
    assert {'README', 'training'} <= {page.stem for page in PAGES if commands(page)}
