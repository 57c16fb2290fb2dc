"""A fingerprint of everything that determines the figures, so that old figures are reused only for the same code."""

import ast
import functools
import hashlib
import importlib.metadata
import json
import os
from collections.abc import Sequence
from pathlib import Path

import tresnet_jax.variants  # not the package by itself, which imports all modules

ENTRY = 'gpu_reporting.measure'  # what runs in the process that compiles
ROOTS = (Path(__file__).resolve().parents[1], Path(tresnet_jax.__file__).resolve().parents[1])
CUDNN = ('nvidia-cudnn-cu12', 'nvidia-cudnn-cu13')
PACKAGES = ('jax', 'jaxlib', 'jax-cuda12-plugin', 'jax-cuda13-plugin', *CUDNN, 'flax', 'optax')


def fingerprint(roots: Sequence[Path] = ROOTS, *, within: str = '') -> str:
    """Return a hash of the code of `traced_modules`, the package versions and XLA's flags, 16 hexadecimal digits.

    Comments, docstrings and formatting do not count.

    Args:
        roots: as for `traced_modules`.
        within: only modules whose names begin like this count.
    """
    digest = hashlib.sha256(json.dumps([versions(), os.environ.get('XLA_FLAGS', '')]).encode())
    for name, path in traced_modules(roots).items():
        if not name.startswith(within):
            continue
        code, _ = _parsed(path.read_text(encoding='utf-8'))
        digest.update(f'{name}: {code}\n'.encode())
    return digest.hexdigest()[:16]


def traced_modules(roots: Sequence[Path] = ROOTS) -> dict[str, Path]:
    """Return the modules that `ENTRY` imports, directly or through others, with their files, sorted by name.

    Imports inside functions count. A package's ``__init__.py`` counts only if it is imported by name: elsewhere it
    only names what other modules define.

    Args:
        roots: folders in which modules are looked up. Modules found in none of them are third-party.
    """
    found: dict[str, Path] = {}
    waiting: list[tuple[str, ...]] = [(ENTRY,)]
    while waiting:
        files = ((name, _file_of(name, roots)) for name in waiting.pop())
        name, path = next(((name, path) for name, path in files if path is not None), ('', None))
        if path is not None and name not in found:
            found[name] = path
            waiting += _parsed(path.read_text(encoding='utf-8'))[1]
    return dict(sorted(found.items()))


def versions(packages: Sequence[str] = PACKAGES) -> dict[str, str]:
    """Return the versions of those packages that are installed, by default of those that determine what is compiled."""
    found = {}
    for package in packages:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            pass
    return found


def _file_of(name: str, roots: Sequence[Path]) -> Path | None:
    for root in roots:
        base = root.joinpath(*name.split('.'))
        for path in (base.with_suffix('.py'), base / '__init__.py'):
            if path.is_file():
                return path
    return None


@functools.lru_cache(maxsize=1024)
def _parsed(source: str) -> tuple[str, tuple[tuple[str, ...], ...]]:
    """Return the code of a module without docstrings as text, and its imports.

    Each import is the names that it may refer to, the first module among them being the one: ``from a import b`` gives
    ('a.b', 'a'), because b is either a module or something in a.
    """
    tree = ast.parse(source)
    names: list[tuple[str, ...]] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names += [(alias.name,) for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names += [(f'{node.module}.{alias.name}', node.module) for alias in node.names]
        body = getattr(node, 'body', None)
        if isinstance(body, list) and body and isinstance(body[0], ast.Expr):
            if isinstance(body[0].value, ast.Constant) and isinstance(body[0].value.value, str):
                del body[0]
    return ast.dump(tree), tuple(names)
