"""Every row of the migration page names things that exist in timm and here."""

import dataclasses
import importlib
import re

import pytest
import timm

import convert
import tresnet_jax
from tests.helpers.paths import ROOT
from tresnet_jax.training.config import TrainConfig

PAGE = (ROOT / 'docs' / 'howto' / 'migrate_from_timm.md').read_text(encoding='utf-8')
CELL = r'`([^`]+)`'
NAMES = re.findall(rf'^\| {CELL} \| {CELL} \|', PAGE, re.M)
FLAGS = re.findall(r'^\| .*`-.*` \| `--([\w-]+)` \|', PAGE, re.M)
ROOTS = {'timm': timm, 'tresnet_jax': tresnet_jax, 'convert': convert}


def exists(name: str, model) -> bool:
    """Return whether a dotted name can be found; `model` stands for a model."""
    root, *attributes = name.split('.')
    found = model if root == 'model' else ROOTS[root]
    for i, attribute in enumerate(attributes, 1):
        if not hasattr(found, attribute):
            try:
                importlib.import_module('.'.join([root, *attributes[:i]]))
            except ImportError:
                return False
        found = getattr(found, attribute)
    return True


@pytest.fixture(scope='module')
def theirs():
    return timm.create_model('test_resnet')


@pytest.fixture(scope='module')
def ours():
    return tresnet_jax.create_model('test_resnet.fashion_mnist', pretrained=True)


@pytest.mark.parametrize('pair', [pair for pair in NAMES if pair[0].split('.')[0] in ('timm', 'model')], ids=str)
def test_both_names_exist(pair, theirs, ours):
    assert exists(pair[0], theirs)
    assert exists(pair[1], ours)


def test_the_flags_exist():
    fields = {field.name.replace('_', '-') for field in dataclasses.fields(TrainConfig)} | {'workdir'}
    assert len(FLAGS) > 10 and set(FLAGS) <= fields


def test_the_page_has_rows():
    assert len(NAMES) > 40
