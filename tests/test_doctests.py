"""The examples in docstrings run and print what they say."""

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
# Public functions that need an example.
FUNCTIONS = (
    'convert.read',
    'convert.save_flax',
    'convert.save_torch',
    'convert.to_flax',
    'convert.to_torch',
    'tresnet_jax.card_image_size',
    'tresnet_jax.class_names',
    'tresnet_jax.create_model',
    'tresnet_jax.create_transform',
    'tresnet_jax.export',
    'tresnet_jax.fold_batchnorm',
    'tresnet_jax.functional',
    'tresnet_jax.grad_cam',
    'tresnet_jax.list_models',
    'tresnet_jax.list_pretrained',
    'tresnet_jax.load_exported',
    'tresnet_jax.profile',
    'tresnet_jax.resolve_data_config',
    'tresnet_jax.save_pretrained',
)


@pytest.mark.parametrize('module', MODULES)
def test_the_examples_of_a_module_run(module):
    result = doctest.testmod(importlib.import_module(module))
    assert result.attempted > 0 and result.failed == 0


@pytest.mark.parametrize('function', FUNCTIONS)
def test_a_public_function_has_an_example(function):
    package, _, name = function.partition('.')
    docstring = getattr(importlib.import_module(package), name).__doc__
    assert doctest.DocTestParser().get_examples(docstring)
