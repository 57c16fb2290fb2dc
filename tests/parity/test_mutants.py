"""The suite detects mistakes: every mutant of tests/helpers/mutants moves a comparison over its tolerance."""

import ast
import functools
from typing import Any

import pytest

from tests.helpers.comparisons import COMPARISONS, SMALL_ROWS
from tests.helpers.mutants import MUTANTS
from tests.helpers.paths import ROOT
from tresnet_jax import variants

pytestmark = pytest.mark.usefixtures('x64', 'small_rows')

# A mutant must exceed the tolerance ten times, so that it does not pass by luck.
MARGIN = 10


@pytest.fixture
def small_rows(monkeypatch):
    for name, config in SMALL_ROWS.items():
        monkeypatch.setitem(variants.ARCHITECTURES, name, config)


@functools.cache
def unpatched(comparison: str) -> float:
    return COMPARISONS[comparison]()


def current(target: Any, name: str) -> Any:
    return target[name] if isinstance(target, dict) else getattr(target, name)


# Taken before any patch.
ORIGINALS = {
    (mutant.name, index): current(target, name)
    for mutant in MUTANTS
    for index, (target, name, _) in enumerate(mutant.patches)
}


@pytest.mark.parametrize('name', sorted(COMPARISONS))
def test_comparisons_hold_without_a_mutant(name):
    assert unpatched(name) <= COMPARISONS[name].tolerance


@pytest.mark.parametrize('mutant', MUTANTS, ids=lambda mutant: mutant.name)
def test_the_comparison_detects_the_mutant(mutant, monkeypatch, record_property):
    check = COMPARISONS[mutant.comparison]
    assert unpatched(mutant.comparison) <= check.tolerance
    for target, name, value in mutant.patches:
        if isinstance(target, dict):
            monkeypatch.setitem(target, name, value)
        else:
            monkeypatch.setattr(target, name, value)
    error = check()
    record_property('error', error)
    record_property('tolerance', check.tolerance)
    assert error > MARGIN * check.tolerance, f'{mutant.comparison} does not detect it: {error:.1e}'


def test_the_table_of_mutants_is_complete():
    """Every row changes something, every patch was undone, and every comparison has a row."""
    assert len({mutant.name for mutant in MUTANTS}) == len(MUTANTS)
    assert {mutant.comparison for mutant in MUTANTS} == set(COMPARISONS)
    for mutant in MUTANTS:
        assert mutant.patches, mutant.name
        for index, (target, name, value) in enumerate(mutant.patches):
            original = ORIGINALS[mutant.name, index]
            # Two dicts that differ only in their order are equal.
            same = value is original or (value == original and not isinstance(value, dict))
            assert not same, f'{mutant.name}: {name} is patched with itself'
            now = current(target, name)
            assert now is original or now == original, f'{mutant.name}: {name} was left patched'


@pytest.mark.parametrize('name', sorted(COMPARISONS))
def test_a_comparison_names_a_test_that_exists(name):
    if suite := COMPARISONS[name].suite:
        module, _, test = suite.partition('.')
        tree = ast.parse((ROOT / 'tests' / 'parity' / f'{module}.py').read_text(encoding='utf-8'))
        assert test in {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
