"""Each program in a process of its own, and what was found kept until the code changes."""

import ast
import dataclasses
import hashlib
import importlib.metadata
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import tresnet_jax
from gpu_reporting.devices import DESCRIPTION, environment, plugin
from gpu_reporting.program import Program
from tresnet_jax.files import save_text

Figures = dict[str, Any]  # of `program.measure`
LIBRARY = Path(tresnet_jax.__file__).parent
HERE = Path(__file__).parent
MEASURING = ('program.py', 'hlo.py', 'convolutions.py', 'devices.py')
PACKAGES = ('jax', 'jaxlib', 'jax-cuda12-plugin', 'jax-cuda13-plugin', 'nvidia-cudnn-cu12', 'flax', 'optax')


class ReportError(ValueError):
    """A program that cannot be compiled, or a report that cannot be read, and what to do."""


def require_plugin() -> None:
    """Raises ReportError where JAX's CUDA plugin is not installed."""
    if plugin() is None:
        raise ReportError(
            "compiling for a GPU needs JAX's CUDA plugin, though no GPU: pip install 'tresnet_jax[cuda12,train]', "
            'or in a clone: make gpu-report'
        )


def run(program: Program) -> Figures:
    """`program.measure` in a process of its own, which can need much memory, or crash, and has the environment.

    Raises:
        ReportError: there is no CUDA plugin, the program is none, or its compilation failed.
    """
    program.check()
    require_plugin()
    command = [sys.executable, '-P', '-m', 'gpu_reporting.program', json.dumps(dataclasses.asdict(program))]
    # The child's code is that of this process, wherever that was found.
    path = os.pathsep.join(filter(None, [str(LIBRARY.parent), str(HERE.parent), os.environ.get('PYTHONPATH')]))
    done = subprocess.run(command, env={**environment(), 'PYTHONPATH': path}, capture_output=True, text=True)
    if done.returncode == 0:
        return json.loads(done.stdout)
    last = (done.stderr.strip().splitlines() or [f'exit code {done.returncode}'])[-1]
    raise ReportError(last.removeprefix('error: ') if done.returncode == 2 else f'{program.name}: {last}')


class Results:
    """Figures by program, kept in a file from one run to the next; those of other code or versions are unknown.

    Args:
        kept: where they are kept; a missing file is an empty one.
        report: one that is done, whose figures are known too if it is there.
    """

    def __init__(self, kept: Path, report: Path):
        self.kept = kept
        self.code = fingerprint()
        self.figures: dict[Program, Figures] = {}
        for path in (report, kept):
            if path.exists() and (document := read_document(path))['code'] == self.code:
                self.figures |= figures_of(document)

    def get(self, program: Program) -> Figures:
        """The figures of a program, compiled if they are not known, and then kept.

        Raises:
            ReportError: it cannot be compiled.
        """
        if program not in self.figures:
            self.figures[program] = run(program)
            self.write(self.kept)
        return self.figures[program]

    def write(self, path: Path, **more: Any) -> None:
        """A file for `read_document`, with `more` of one's own in it."""
        rows = [
            {'name': program.name, 'program': dataclasses.asdict(program), 'figures': found}
            for program, found in self.figures.items()
        ]
        document = {'code': self.code, 'versions': versions(), **more, 'programs': rows}
        save_text(path, json.dumps(document, indent=1) + '\n')


def read_document(path: Path) -> dict[str, Any]:
    """What `Results.write` wrote.

    Raises:
        ReportError: it is not such a file.
    """
    try:
        document = json.loads(path.read_text(encoding='utf-8'))
        figures_of(document)
        return {'code': document['code']} | document
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ReportError(f'{path}: not a report that gpu_report.py wrote ({error})') from None


def figures_of(document: dict[str, Any]) -> dict[Program, Figures]:
    return {Program(**row['program']): row['figures'] for row in document['programs']}


def versions() -> dict[str, str]:
    """Of the packages that decide what is compiled, those that are installed."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            pass
    return found


def fingerprint() -> str:
    """Of all that decides the figures: the library's modules, those that measure, versions, and XLA's flags.

    Comments, docstrings and layout do not count, and neither do the subpackages, but for what measures.
    """
    digest = hashlib.sha256(json.dumps([versions(), os.environ.get('XLA_FLAGS', ''), DESCRIPTION]).encode())
    for path in [*sorted(LIBRARY.rglob('*.py')), *(HERE / name for name in MEASURING)]:
        digest.update(code_of(path.read_text(encoding='utf-8')).encode())
    return digest.hexdigest()[:16]


def code_of(source: str) -> str:
    """What is run of a module: its syntax tree without docstrings."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        body = getattr(node, 'body', None)
        if isinstance(body, list) and body and isinstance(body[0], ast.Expr):
            if isinstance(body[0].value, ast.Constant) and isinstance(body[0].value.value, str):
                del body[0]
    return ast.dump(tree)
