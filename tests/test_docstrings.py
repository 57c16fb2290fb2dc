"""The examples in docstrings run, and print what they say."""

import doctest
import importlib

import pytest

from tests.helpers.paths import ROOT

MODULES = sorted(
    '.'.join(path.relative_to(ROOT).with_suffix('').parts).removesuffix('.__init__')
    for package in ('tresnet_jax', 'convert')
    for path in (ROOT / package).rglob('*.py')
    if '>>> ' in path.read_text(encoding='utf-8')
)
PUBLIC = {
    'tresnet_jax': ('class_names', 'create_model', 'save_pretrained'),
    'convert': ('read', 'save_flax', 'save_torch', 'to_flax', 'to_torch'),
}


@pytest.mark.parametrize('name', MODULES)
def test_examples(name):
    result = doctest.testmod(importlib.import_module(name))
    assert result.attempted > 0 and result.failed == 0


@pytest.mark.parametrize('package', PUBLIC)
def test_public_functions_have_examples(package):
    module = importlib.import_module(package)
    for name in PUBLIC[package]:
        assert '    Example:\n        >>> ' in getattr(module, name).__doc__, name
