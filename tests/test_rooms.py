"""The structure of the code: no file imports itself through others, wherever the import stands."""

import ast
from pathlib import Path

from tests.helpers.paths import ROOT, SCRIPTS

PACKAGES = ('tresnet_jax', 'convert', 'scripts')


def modules(root: Path = ROOT) -> dict[str, Path]:
    """Every module by its dotted name; those of scripts/ are imported without that folder."""
    found = {}
    for package in PACKAGES:
        for path in (root / package).rglob('*.py'):
            base = root / 'scripts' if package == 'scripts' else root
            found['.'.join(path.relative_to(base).with_suffix('').parts).removesuffix('.__init__')] = path
    return found


def imports(path: Path, known: set[str]) -> set[str]:
    """The known modules that a file imports, inside functions too."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding='utf-8'))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f'{path}: a relative import'
            for alias in node.names:
                whole = f'{node.module}.{alias.name}'
                found.add(whole if whole in known else str(node.module))
    return found & known


def circle(graph: dict[str, set[str]]) -> list[str]:
    """The modules of one circle in the order in which they import each other; empty if there is none."""
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


def test_no_file_imports_itself_through_others():
    found = modules()
    assert len(found) > 60
    graph = {name: imports(path, set(found)) for name, path in found.items()}
    assert not circle(graph), ' -> '.join(str(found[name].relative_to(ROOT)) for name in circle(graph))


def test_a_circle_is_found_and_named():
    assert circle({'a': {'b'}, 'b': {'c', 'd'}, 'c': set(), 'd': {'b'}}) == ['b', 'd']
    assert circle({'a': {'b', 'c'}, 'b': {'c'}, 'c': set()}) == []


def test_an_import_inside_a_function_counts(tmp_path):
    path = tmp_path / 'late.py'
    path.write_text('def f():\n    from tresnet_jax.models import base\n    import convert\n')
    assert imports(path, {'tresnet_jax.models.base', 'convert'}) == {'tresnet_jax.models.base', 'convert'}


def test_no_test_module_imports_another():
    for path in (ROOT / 'tests').rglob('*.py'):
        for node in ast.walk(ast.parse(path.read_text(encoding='utf-8'))):
            if isinstance(node, ast.ImportFrom) and (node.module or '').startswith('tests.'):
                assert '.test_' not in f'.{node.module}', f'{path.relative_to(ROOT)} imports {node.module}'


def test_scripts_are_thin_or_tools():
    """The command lines that users have are in tresnet_jax.cli."""
    for name in ('train', 'evaluate', 'embed', 'predict'):
        code = (SCRIPTS / f'{name}.py').read_text(encoding='utf-8').partition('"""\n')[2]
        assert len(code.splitlines()) <= 10
