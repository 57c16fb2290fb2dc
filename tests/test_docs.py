"""The examples of README, of every page and of every notebook run, in the order of the page."""

import io
import json
import re
import shlex
import subprocess
import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import tresnet_jax
from tests.helpers.hub_server import Hub, client_environment
from tests.helpers.paths import EMBEDDED, ROOT

PAGES = [ROOT / 'README.md', *sorted((ROOT / 'docs').rglob('*.md'))]
PYTHON = re.compile(r'^```(?:python|\{code-cell\} ipython3)\n(?::tags:.*\n)?(.*?)^```', re.M | re.S)
COMMAND = re.compile(r'^python (?:-m convert|scripts/)(?:.*\\\n)*.*$', re.M)  # a backslash continues a line
# A small network of a repository takes the place of a large one.
LARGE = re.compile(r"create_model\('(tresnet_l|resnet50d)', pretrained=True")
HUB = re.compile(r"'hf-hub:small|create_model\('test_resnet\.r160_in1k', pretrained=True")


def steps(page: Path) -> list[tuple[str, str]]:
    """Return ('python', code) for each example of a page, and ('command', line) for each command, in its order.

    Commands after a ``$`` need the reader's data or machines.
    """
    text = page.read_text(encoding='utf-8')
    found = [(match.start(), 'python', match[1]) for match in PYTHON.finditer(text)]
    found += [(match.start(), 'command', match[0].replace('\\\n', ' ')) for match in COMMAND.finditer(text)]
    return [
        (kind, LARGE.sub(r"create_model('hf-hub:small/\1', pretrained=True", what)) for _, kind, what in sorted(found)
    ]


def name(page: Path) -> str:
    return str(page.relative_to(ROOT).with_suffix(''))


def run_python(code: str, names: dict) -> None:
    """Run one example, and compare what it prints with the comments behind ``print(...)``."""
    with redirect_stdout(io.StringIO()) as out:
        exec(compile(code, 'example', 'exec'), names)
    for line in code.splitlines():  # print(...)  # the expected output
        if expected := re.match(r'print\(.*\)\s+# (.*)', line):
            assert expected[1] in out.getvalue(), f'{line}\nprinted {out.getvalue()}'


def words_of(command: str) -> list[str]:
    """Return the arguments of ``python`` in a command, which a backslash may continue on the next line."""
    return shlex.split(command.replace('\\\n', ' '), comments=True)[1:]


# Runs the steps of a page in one process, which imports JAX once.
RUNNER = """
import json, runpy, sys
from tests.test_docs import run_python
names = {'__name__': '__main__'}
for kind, text, words in json.loads(sys.stdin.read()):
    sys.argv, path = words, sys.path[:]
    try:
        if kind == 'python':
            run_python(text, names)
        elif words[0] == '-m':
            sys.argv = words[1:]
            runpy.run_module(words[1], run_name='__main__', alter_sys=True)
        else:
            sys.path.insert(0, 'scripts')
            runpy.run_path(words[0], run_name='__main__')
    except SystemExit as end:
        if end.code:
            raise SystemExit(f'{text} ended with {end.code}') from None
    sys.path[:] = path
"""


@pytest.fixture
def clone(tmp_path, monkeypatch) -> Path:
    """A folder that looks like a clone, with an image, in which examples may write."""
    for folder in ('tresnet_jax', 'convert', 'scripts'):
        (tmp_path / folder).symlink_to(ROOT / folder)
    Image.open(EMBEDDED / 'pictures' / '8_bag.png').convert('RGB').resize((96, 80)).save(tmp_path / 'dog.jpg')
    monkeypatch.setenv('PYTHONPATH', str(ROOT))
    return tmp_path


@pytest.fixture(scope='module')
def hub(tmp_path_factory):
    """A hub with timm's smallest tag, and with small networks in place of two large ones."""
    with Hub() as hub:
        for repository, model in {
            'timm/test_resnet.r160_in1k': 'test_resnet',
            'small/resnet50d': 'test_resnet',
            'small/tresnet_l': 'test_tresnet',
        }.items():
            folder = tmp_path_factory.mktemp('saved')
            tresnet_jax.save_pretrained(tresnet_jax.create_model(model, num_classes=1000), folder)
            hub.repositories[repository] = {path.name: path.read_bytes() for path in folder.iterdir()}
        yield hub


def marked(page: Path) -> Any:
    """Notebooks are slow tests, because ``make docs`` runs them; so are two pages that train several times."""
    slow = 'jupytext' in page.read_text(encoding='utf-8') or page.stem in ('multilabel', 'training')
    return pytest.param(page, id=name(page), marks=[pytest.mark.slow] if slow else [])


@pytest.mark.parametrize('page', [marked(page) for page in PAGES if steps(page)])
def test_the_examples_of_a_page_run(page, clone, monkeypatch, request):
    found = steps(page)
    needs_hub = any(HUB.search(text) for _, text in found)
    if not needs_hub and all(kind == 'python' for kind, _ in found) and 'main(' not in str(found):
        monkeypatch.chdir(clone)
        names = {'__name__': '__main__'}
        for _, code in found:
            run_python(code, names)
        return
    todo = [(kind, text, [] if kind == 'python' else words_of(text)) for kind, text in found]
    environment = client_environment(clone / 'home', request.getfixturevalue('hub').endpoint) if needs_hub else None
    result = subprocess.run(
        [sys.executable, '-c', RUNNER],
        input=json.dumps(todo),
        cwd=clone,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr


def test_pages_have_examples():
    assert {'README', 'docs/training', 'docs/inference'} <= {name(page) for page in PAGES if steps(page)}


def test_code_fits_the_page():
    """Code of more than 75 columns is cut on the site."""
    for page in PAGES:
        for code in PYTHON.findall(page.read_text(encoding='utf-8')):
            for line in code.splitlines():
                assert len(line) <= 75, f'{name(page)}: {line}'


def test_the_readme_is_short():
    assert len((ROOT / 'README.md').read_text(encoding='utf-8').splitlines()) <= 120
