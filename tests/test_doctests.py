"""The examples in docstrings run and print what they say."""

import doctest
import importlib
import inspect
import re

import pytest

import convert
import tresnet_jax
from tests.helpers.paths import ROOT

MODULES = sorted(
    '.'.join(path.relative_to(ROOT).with_suffix('').parts).removesuffix('.__init__')
    for package in ('tresnet_jax', 'convert')
    for path in (ROOT / package).rglob('*.py')
    if '>>> ' in path.read_text(encoding='utf-8')
)
NAMES = [
    f'{package.__name__}.{name}'
    for package in (tresnet_jax, convert)
    for name, value in sorted(vars(package).items())
    if not name.startswith('_') and not inspect.ismodule(value)
]


@pytest.mark.parametrize('module', MODULES)
def test_the_examples_of_a_module_run(module):
    result = doctest.testmod(importlib.import_module(module))
    assert result.attempted > 0 and result.failed == 0


@pytest.mark.parametrize('name', NAMES)
def test_a_public_name_has_an_example(name):
    package, _, attribute = name.partition('.')
    docstring = getattr(importlib.import_module(package), attribute).__doc__
    assert doctest.DocTestParser().get_examples(docstring)


@pytest.mark.parametrize('name', NAMES)
def test_the_reference_has_a_public_name(name):
    package, _, attribute = name.partition('.')
    page = (ROOT / 'docs' / 'reference' / f'{package}.md').read_text(encoding='utf-8')
    assert re.search(rf'^\.\. auto\w+:: {attribute}(\(\))?$', page, re.M)
