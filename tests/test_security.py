"""Every promise of SECURITY.md names tests, and they exist."""

import ast
import re

from tests.helpers.paths import ROOT

TEXT = (ROOT / 'SECURITY.md').read_text(encoding='utf-8')
PROMISES = re.findall(r'^\| ([A-Z].*?) \| (.*) \|$', TEXT, re.M)


def functions(path) -> set[str]:
    """Return the names of the tests of a file."""
    tree = ast.parse(path.read_text(encoding='utf-8'))
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}


def test_each_promise_names_tests():
    assert len(PROMISES) >= 20
    for promise, tests in PROMISES:
        assert re.fullmatch(r'`[\w/]+\.py::test_\w+`(, `[\w/]+\.py::test_\w+`)*', tests), promise


def test_the_tests_exist():
    named = re.findall(r'`(tests/[\w/]+\.py)::(\w+)`', TEXT)
    missing = [f'{file}::{name}' for file, name in named if name not in functions(ROOT / file)]
    assert not missing
