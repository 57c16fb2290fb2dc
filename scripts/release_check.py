"""Check what is uploaded to PyPI: build it, read its metadata, and use the wheel where there is no checkout.

    make release-check    # python scripts/release_check.py --out dist

Needs build, twine, check-wheel-contents, cffconvert and uv in the environment that runs it. The demo runs from the
wheel on every Python version of PYTHONS that is found on the path or among pyenv's; missing ones are named.
"""

import argparse
import dataclasses
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from email.parser import Parser
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PYTHONS = ('3.11', '3.12', '3.13')
LICENCES = {
    'LICENSE',
    'NOTICE',
    'tresnet_jax/class_names/WORDNET_LICENSE',
    'tresnet_jax/embedded/FASHION_MNIST_LICENSE',
}
DEMO = ('demo.py', 'predict.py', 'train.py')
# In a workflow that a tag has started, the release is published after these checks.
PUBLISHING = os.environ.get('GITHUB_REF_TYPE') == 'tag'
EMBEDDED = 'test_resnet.fashion_mnist.safetensors'


class CheckError(Exception):
    """Something in the release is wrong."""


def say(text: str) -> None:
    """Print a line at once."""
    print(text, flush=True)


def run(*command: str | Path, cwd: Path, **variables: str) -> str:
    """Run a program without the environment of this one's Python, and return what it printed.

    Raises:
        CheckError: it failed.
    """
    environment = {k: v for k, v in os.environ.items() if not k.startswith(('PYTHON', 'VIRTUAL_ENV'))} | variables
    done = subprocess.run([*map(str, command)], cwd=cwd, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise CheckError(f'{" ".join(map(str, command))} ended with {done.returncode}:\n{done.stdout}{done.stderr}')
    return done.stdout


def expect(fact: bool, message: str) -> None:
    """Raise CheckError with a message if a fact is false."""
    if not fact:
        raise CheckError(message)


# The files of the release.


@dataclasses.dataclass(frozen=True)
class Release:
    """A built release: the version, the source distribution and the wheel."""

    version: str
    sdist: Path
    wheel: Path


def build(folder: Path) -> Release:
    """Build from a copy of the tracked files; the wheel is built from the source distribution."""
    source = folder / 'source'
    for name in run('git', 'ls-files', '-z', cwd=ROOT).split('\0'):
        if name and (ROOT / name).exists():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, source / name)
    run(sys.executable, '-m', 'build', '--outdir', folder / 'dist', source, cwd=folder)
    (sdist,), (wheel,) = (list((folder / 'dist').glob(pattern)) for pattern in ('*.tar.gz', '*.whl'))
    return Release(wheel.name.split('-')[1], sdist, wheel)


def check_files(release: Release) -> None:
    """Check the names and the metadata of the files, the citation and the change log."""
    scripts = Path(sys.executable).parent
    run(scripts / 'twine', 'check', '--strict', release.sdist, release.wheel, cwd=ROOT)
    run(scripts / 'check-wheel-contents', release.wheel, cwd=ROOT)
    run(scripts / 'cffconvert', '--validate', '-i', 'CITATION.cff', cwd=ROOT)

    with zipfile.ZipFile(release.wheel) as archive:
        names = set(archive.namelist())
        info = f'tresnet_jax-{release.version}.dist-info'
        metadata = Parser().parsestr(archive.read(f'{info}/METADATA').decode())
    check_contents(names, info)
    check_metadata(metadata)
    with tarfile.open(release.sdist) as archive:
        within = {name.partition('/')[2] for name in archive.getnames()}
    for name in ('tests/conftest.py', 'scripts/demo.py', 'convert/__main__.py', 'CITATION.cff', *LICENCES):
        expect(name in within, f'{release.sdist.name}: lacks {name}')
    check_version(release.version, (ROOT / 'CHANGELOG.md').read_text(encoding='utf-8'))


def check_contents(names: set[str], info: str) -> None:
    """Check that the wheel has the package, its data, its licences, and nothing of the checkout."""
    wanted = [f'{info}/licenses/{name}' for name in LICENCES]
    wanted += ['tresnet_jax/py.typed', 'tresnet_jax/convert/py.typed', 'tresnet_jax/convert/__main__.py', 'convert.py']
    for name in (*wanted, f'tresnet_jax/embedded/{EMBEDDED}'):
        expect(name in names, f'the wheel lacks {name}')
    tops = {name.partition('/')[0] for name in names}
    expect(tops == {'tresnet_jax', 'convert.py', info}, f'the wheel has {", ".join(sorted(tops))}')
    expect('tresnet_jax/convert.py' not in names, 'the wheel has tresnet_jax/convert.py, which is for the checkout')


def check_metadata(metadata) -> None:
    """Check what the page on PyPI shows."""
    for field in ('Author', 'Project-URL', 'License-Expression', 'Requires-Python'):
        expect(field in metadata, f'the metadata lack {field}')
    classifiers = metadata.get_all('Classifier', [])
    expect(any(c.startswith('Development Status') for c in classifiers), 'the classifiers lack Development Status')
    for version in PYTHONS:
        expect(f'Programming Language :: Python :: {version}' in classifiers, f'the classifiers lack Python {version}')
    missing = LICENCES - set(metadata.get_all('License-File', []))
    expect(not missing, f'the metadata lack the licence {", ".join(missing)}')
    links = re.findall(r'\]\(([^)\s]+)\)', metadata.get_payload())
    dead = [link for link in links if not link.startswith(('https://', '#'))]
    expect(len(links) > 10 and not dead, f'README has links that PyPI cannot follow: {", ".join(dead)}')
    if PUBLISHING:
        repository = os.environ['GITHUB_REPOSITORY']
        found = [url.partition(', ')[2] for url in metadata.get_all('Project-URL')]
        expect(
            all(f'github.com/{repository}' in url for url in found),
            f'[project.urls] are not of {repository}: replace OWNER/tresnet_jax in pyproject.toml and CITATION.cff',
        )
    elif 'OWNER' in str(metadata['Project-URL']):
        say('  note: replace OWNER in pyproject.toml and CITATION.cff before publishing')


def check_version(version: str, changes: str) -> None:
    """Check that the change log begins with this version, and that no other file states one."""
    heading = re.search(r'^## (\S+)(.*)$', changes, re.M)
    expect(heading is not None and heading[1] == version, f'CHANGELOG.md does not begin with {version}')
    if heading and 'unreleased' in heading[2]:
        expect(not PUBLISHING, f'CHANGELOG.md: {version} is still marked as unreleased')
        say(f'  note: CHANGELOG.md marks {version} as unreleased')
    for name in ('pyproject.toml', 'CITATION.cff'):
        text = (ROOT / name).read_text(encoding='utf-8')
        stated = re.search(r'^version\s*[:=]', text, re.M)
        expect(stated is None, f'{name}: states a version; it is in tresnet_jax/version.py')
    tag = os.environ.get('GITHUB_REF_NAME')
    expect(not PUBLISHING or tag == f'v{version}', f'the tag {tag} is not v{version}')


# The wheel in use.


def interpreter(version: str) -> Path | None:
    """Return a Python of a version, from the path or from pyenv."""
    candidates = [shutil.which(f'python{version}')]
    root = Path(os.environ.get('PYENV_ROOT', Path.home() / '.pyenv'))
    candidates += sorted(root.glob(f'versions/{version}.*/bin/python'), reverse=True)
    for candidate in candidates:
        if candidate:
            code = 'import sys, venv; print(*sys.version_info[:2], sep=".")'
            done = subprocess.run([candidate, '-c', code], capture_output=True, text=True)
            if done.stdout.strip() == version:
                return Path(candidate)
    return None


@dataclasses.dataclass(frozen=True)
class Environment:
    """A virtual environment, and an empty folder in which its programs run."""

    folder: Path
    work: Path

    @classmethod
    def create(cls, folder: Path, python: Path) -> 'Environment':
        run('uv', 'venv', '--quiet', '--python', python, folder / 'venv', cwd=folder.parent)
        (folder / 'work').mkdir()
        return cls(folder / 'venv', folder / 'work')

    def uv(self, action: str, *arguments: str | Path) -> None:
        run('uv', 'pip', action, '--quiet', '--python', self.folder / 'bin/python', *arguments, cwd=self.work)

    def run(self, program: str, *arguments: str | Path) -> str:
        return run(self.folder / 'bin' / program, *arguments, cwd=self.work, JAX_PLATFORMS='cpu')


def check_programs(environment: Environment) -> None:
    """Check the package without extras: import, data, the programs and both names of the converter."""
    code = f"""
import importlib.resources, pathlib, sys
import convert, convert.verify, tresnet_jax, tresnet_jax.convert
assert pathlib.Path(tresnet_jax.__file__).is_relative_to(sys.prefix), tresnet_jax.__file__
assert convert is tresnet_jax.convert and convert.verify is sys.modules['tresnet_jax.convert.verify']
model = tresnet_jax.create_model('test_resnet.fashion_mnist', pretrained=True)
folder = importlib.resources.files('tresnet_jax') / 'embedded'
assert convert.read(folder / '{EMBEDDED}').tensors
print(folder)
"""
    embedded = Path(environment.run('python', '-c', code).strip())
    file = embedded / EMBEDDED
    for command in (
        ('tresnet-jax-convert',),
        ('python', '-m', 'convert'),
        ('python', '-m', 'tresnet_jax.convert'),
    ):
        expect('test_resnet' in environment.run(*command, 'inspect', file), f'{" ".join(command)} does not work')
    bag, model = embedded / 'pictures' / '8_bag.png', 'test_resnet.fashion_mnist'
    predicted = environment.run('tresnet-jax-predict', bag, '--model', model, '--topk', '1')
    expect('Bag' in predicted, 'tresnet-jax-predict does not recognise the bag')


# A distribution of others with a package of the name `convert`, and what it says.
THEIRS = 'print("theirs")\n'
OURS_WORKS = """
import tresnet_jax.convert, tresnet_jax.convert.verify
from tresnet_jax.cli import start
assert tresnet_jax.convert.read and tresnet_jax.convert.verify.compare_with_stored
"""


def make_other(folder: Path) -> Path:
    """Write a wheel of another distribution that has a package `convert`."""
    path, info = folder / 'other_convert-1.0-py3-none-any.whl', 'other_convert-1.0.dist-info'
    files = {
        'convert/__init__.py': THEIRS,
        'convert/reading.py': THEIRS,
        f'{info}/METADATA': 'Metadata-Version: 2.1\nName: other-convert\nVersion: 1.0\n',
        f'{info}/WHEEL': 'Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n',
    }
    files[f'{info}/RECORD'] = ''.join(f'{name},,\n' for name in (*files, f'{info}/RECORD'))
    with zipfile.ZipFile(path, 'w') as archive:
        for name, text in files.items():
            archive.writestr(name, text)
    return path


def check_name(environment: Environment, release: Release) -> None:
    """Check that our programs work, and that theirs do, whichever is installed first and removed first."""
    other = make_other(environment.work)

    def check(state: str, name: str, ours: bool = True) -> None:
        """Check that `import convert` gives 'ours', 'theirs' or 'nothing', and that our own name works."""
        code = 'import convert; print("ours" if hasattr(convert, "save_flax") else "")'
        try:
            found = environment.run('python', '-c', code).strip()
        except CheckError as error:
            found = 'nothing' if "No module named 'convert'" in str(error) else str(error)
        expect(found == name, f'{state}: import convert gives {found}, expected {name}')
        if ours:
            environment.run('python', '-c', OURS_WORKS)
            environment.run('tresnet-jax-convert', '--help')
            environment.run('python', '-m', 'tresnet_jax.convert', '--help')

    environment.uv('install', other)
    check('theirs after ours', 'theirs')
    environment.uv('uninstall', 'other-convert')
    check('theirs was removed', 'ours')
    environment.uv('uninstall', 'tresnet_jax')
    environment.uv('install', other)
    environment.uv('install', '--no-deps', release.wheel)
    check('ours after theirs', 'theirs')
    environment.uv('uninstall', 'tresnet_jax')
    check('ours was removed', 'theirs', ours=False)
    environment.uv('install', '--no-deps', release.wheel)
    environment.uv('uninstall', 'other-convert')
    check('theirs was removed first', 'ours')


def check_demo(environment: Environment, release: Release) -> str:
    """Run the demo of the source distribution with the wheel. Return its last lines."""
    environment.uv('install', f'tresnet_jax[train] @ {release.wheel.as_uri()}')
    with tarfile.open(release.sdist) as archive:
        for name in DEMO:
            member = archive.extractfile(f'tresnet_jax-{release.version}/scripts/{name}')
            (environment.work / name).write_bytes(member.read() if member else b'')
    printed = environment.run('python', 'demo.py', '--out', 'demo_output')
    (result,) = re.findall(r'^Fine-tuning: top-1 .*$', printed, re.M)
    (largest,) = re.findall(r'^Largest difference overall: (\S+)\.', printed, re.M)
    expect(float(largest) < 1e-5, f'the demo differs from timm by {largest}')
    return f'{result.partition(";")[0]}; largest difference from timm {largest}'


def check_programs_start(environment: Environment) -> None:
    """Check that every console script prints its help."""
    names = sorted(path.name for path in (environment.folder / 'bin').glob('tresnet-jax-*'))
    expect('tresnet-jax-train' in names, f'the wheel has the console scripts {", ".join(names)}')
    for name in names:
        expect('usage: ' in environment.run(name, '--help'), f'{name} --help is empty')


def main(argv: list[str] | None = None) -> int:
    """Run all checks, then copy the files to the folder of --out. Return the exit code."""
    parser = argparse.ArgumentParser(description='Check what is uploaded to PyPI.')
    parser.add_argument('--out', type=Path, help='where to put the source distribution and the wheel')
    out = parser.parse_args(argv).out
    found = {version: interpreter(version) for version in PYTHONS}
    try:
        with tempfile.TemporaryDirectory(prefix='release_check_') as temporary:
            folder = Path(temporary)
            release = build(folder)
            sizes = [f'{path.name} {path.stat().st_size / 1e6:.1f} MB' for path in (release.sdist, release.wheel)]
            say(f'built {", ".join(sizes)}')
            check_files(release)
            say('metadata, licences, links, citation and change log: good')
            for number, (version, python) in enumerate(found.items()):
                if python is None:
                    say(f'Python {version}: not found, not tried')
                    continue
                environment = Environment.create(folder / version, python)
                environment.uv('install', release.wheel)
                check_programs(environment)
                if number == min(n for n, p in enumerate(found.values()) if p):
                    check_name(environment, release)
                    say('another distribution with a package convert: both work')
                say(f'Python {version}: {check_demo(environment, release)}')
                check_programs_start(environment)
            expect(any(found.values()), f'found none of Python {", ".join(PYTHONS)}')
            if out is not None:
                shutil.rmtree(out, ignore_errors=True)
                shutil.copytree(release.sdist.parent, out)
    except CheckError as error:
        print(f'error: {error}', file=sys.stderr)
        return 2
    return 0


if __name__ == '__main__':
    raise SystemExit(main())
