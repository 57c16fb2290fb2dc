"""The checks of a release can fail."""

import sys
import zipfile
from email.message import Message
from pathlib import Path

import pytest
import release_check
from release_check import CheckError

INFO = 'tresnet_jax-0.1.0.dist-info'
CONTENTS = {
    *(f'{INFO}/licenses/{name}' for name in release_check.LICENCES), 'convert.py', 'tresnet_jax/py.typed',
    'tresnet_jax/convert/py.typed', 'tresnet_jax/convert/__main__.py', f'tresnet_jax/embedded/{release_check.EMBEDDED}',
}  # fmt: skip


def test_contents():
    release_check.check_contents(CONTENTS, INFO)
    for name in CONTENTS:
        with pytest.raises(CheckError, match='the wheel lacks'):
            release_check.check_contents(CONTENTS - {name}, INFO)
    for name in ('tests/conftest.py', 'convert/__init__.py', 'tresnet_jax/convert.py'):
        with pytest.raises(CheckError, match='the wheel has'):
            release_check.check_contents(CONTENTS | {name}, INFO)


def metadata(link: str = 'https://github.com/a/b', owner: str = 'a') -> Message:
    message = Message()
    for name, value in (
        ('Author', 'a'), ('Project-URL', f'Repository, https://github.com/{owner}/b'), ('License-Expression', 'b'),
        ('Requires-Python', '>=3.11'), ('Classifier', 'Development Status :: 4 - Beta'),
        *(('Classifier', f'Programming Language :: Python :: {version}') for version in release_check.PYTHONS),
        *(('License-File', name) for name in release_check.LICENCES),
    ):  # fmt: skip
        message[name] = value
    message.set_payload('[a](#b)\n' * 10 + f'[c]({link})')
    return message


def test_metadata(monkeypatch):
    release_check.check_metadata(metadata())
    with pytest.raises(CheckError, match='links that PyPI cannot follow: docs/a.md'):
        release_check.check_metadata(metadata('docs/a.md'))
    for field in ('Author', 'Project-URL', 'Classifier', 'License-File'):
        incomplete = metadata()
        del incomplete[field]
        with pytest.raises(CheckError, match='lack'):
            release_check.check_metadata(incomplete)
    monkeypatch.setattr(release_check, 'PUBLISHING', True)
    monkeypatch.setenv('GITHUB_REPOSITORY', 'a/b')
    release_check.check_metadata(metadata())
    with pytest.raises(CheckError, match='are not of a/b: replace OWNER'):
        release_check.check_metadata(metadata(owner='OWNER'))


def test_version(monkeypatch):
    release_check.check_version('0.2.0', '# Changes\n\n## 0.2.0\n\n## 0.1.0\n')
    with pytest.raises(CheckError, match='does not begin with 0.2.0'):
        release_check.check_version('0.2.0', '# Changes\n\n## 0.1.0\n')
    monkeypatch.setattr(release_check, 'PUBLISHING', True)
    monkeypatch.setenv('GITHUB_REF_NAME', 'v0.2.0')
    release_check.check_version('0.2.0', '## 0.2.0\n')
    with pytest.raises(CheckError, match='still marked as unreleased'):
        release_check.check_version('0.2.0', '## 0.2.0 (unreleased)\n')
    with pytest.raises(CheckError, match='the tag v0.2.0 is not v0.3.0'):
        release_check.check_version('0.3.0', '## 0.3.0\n')


def test_an_interpreter_is_found():
    version = '.'.join(map(str, sys.version_info[:2]))
    assert release_check.interpreter(version) is not None
    assert release_check.interpreter('2.99') is None


def test_the_other_distribution(tmp_path):
    with zipfile.ZipFile(release_check.make_other(tmp_path)) as archive:
        assert {'convert/__init__.py', 'other_convert-1.0.dist-info/RECORD'} <= set(archive.namelist())


def test_a_program_that_fails():
    with pytest.raises(CheckError, match=r'ended with 3:\nwhy'):
        release_check.run(sys.executable, '-c', 'print("why"); raise SystemExit(3)', cwd=Path('.'))
