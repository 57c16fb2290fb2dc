"""The structure of the code: no circular imports, no imports between test modules, thin scripts."""

import ast
from pathlib import Path

import pytest

from tests.helpers.paths import ROOT, SCRIPTS

PACKAGES = ('tresnet_jax', 'convert', 'scripts')


def modules(root: Path = ROOT) -> dict[str, Path]:
    """Return the path of every module by its dotted name; modules of scripts/ are imported without the folder."""
    found = {}
    for package in PACKAGES:
        for path in (root / package).rglob('*.py'):
            base = root / 'scripts' if package == 'scripts' else root
            found['.'.join(path.relative_to(base).with_suffix('').parts).removesuffix('.__init__')] = path
    return found


def imports(path: Path, known: set[str]) -> set[str]:
    """Return the known modules that a file imports, also inside functions."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding='utf-8'))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            # convert/ is tresnet_jax/convert/ in the wheel, so its files name each other relative to it.
            assert not node.level or (node.level, path.parent) == (1, ROOT / 'convert'), f'{path}: a relative import'
            module = f'convert.{node.module}' if node.level else str(node.module)
            for alias in node.names:
                whole = f'{module}.{alias.name}'
                found.add(whole if whole in known else module)
    return found & known


def circle(graph: dict[str, set[str]]) -> list[str]:
    """Return the modules of one circle in the order in which they import each other; none if there is no circle."""
    finished: set[str] = set()

    def visit(module: str, path: list[str]) -> list[str]:
        if module in path:
            return path[path.index(module) :]
        if module in finished:
            return []
        for other in sorted(graph[module]):
            if found := visit(other, [*path, module]):
                return found
        finished.add(module)
        return []

    return next((found for module in sorted(graph) if (found := visit(module, []))), [])


def test_no_imports_are_circular():
    found = modules()
    assert {'convert', 'tresnet_jax.models.base', 'benchmark'} <= set(found)
    graph = {name: imports(path, set(found)) for name, path in found.items()}
    assert not circle(graph), ' -> '.join(str(found[name].relative_to(ROOT)) for name in circle(graph))


def test_a_circle_is_reported():
    assert circle({'a': {'b'}, 'b': {'c', 'd'}, 'c': set(), 'd': {'b'}}) == ['b', 'd']
    assert circle({'a': {'b', 'c'}, 'b': {'c'}, 'c': set()}) == []


def test_an_import_inside_a_function_counts(tmp_path):
    path = tmp_path / 'late.py'
    path.write_text('def f():\n    from tresnet_jax.models import base\n    import convert\n')
    assert imports(path, {'tresnet_jax.models.base', 'convert'}) == {'tresnet_jax.models.base', 'convert'}


def imported_tests(path: Path) -> list[str]:
    """Return the test modules that a file imports, by whatever form of import."""
    names = []
    for node in ast.walk(ast.parse(path.read_text(encoding='utf-8'))):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names += [f'{"." * node.level}{node.module or ""}.{alias.name}' for alias in node.names]
    return [name for name in names if name.startswith(('tests.', '.')) and '.test_' in name]


def test_no_test_module_imports_another():
    found = {str(path.relative_to(ROOT)): imported_tests(path) for path in (ROOT / 'tests').rglob('*.py')}
    assert {path: names for path, names in found.items() if names} == {}


@pytest.mark.parametrize(
    'line',
    ['from tests.hub.test_client import hub', 'from tests.hub import test_client', 'import tests.hub.test_client',
     'from .test_client import hub'],
)  # fmt: skip
def test_every_form_of_import_is_found(tmp_path, line):
    path = tmp_path / 'module.py'
    path.write_text(f'from tests.helpers.images import pixels\nimport pytest\ndef f():\n    {line}\n')
    assert len(imported_tests(path)) == 1


def test_the_scripts_of_the_command_lines_are_thin():
    """The code is in tresnet_jax.cli."""
    for name in ('train', 'evaluate', 'embed', 'explain', 'predict'):
        code = (SCRIPTS / f'{name}.py').read_text(encoding='utf-8').partition('"""\n')[2]
        assert len(code.splitlines()) <= 10
