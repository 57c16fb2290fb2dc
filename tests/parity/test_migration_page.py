"""Every row of the migration page names things that exist in timm and here."""

import dataclasses
import importlib
import re

import pytest
import timm

import convert
import tresnet_jax
from tests.helpers.paths import ROOT
from tresnet_jax.cli.inputs import InputFlags
from tresnet_jax.cli.timm_flags import EVALUATE, TRAIN
from tresnet_jax.training.config import TrainConfig

PAGE = (ROOT / 'docs' / 'howto' / 'migrate_from_timm.md').read_text(encoding='utf-8')
CELL = r'`([^`]+)`'
NAMES = re.findall(rf'^\| {CELL} \| {CELL} \|', PAGE, re.M)
FLAG_ROWS = re.findall(r'^\| ([^|]*`[^|]*) \| (`--[^|]*`) \|', PAGE, re.M)
OURS = {f'--{field.name.replace("_", "-")}' for field in dataclasses.fields(TrainConfig)}
OURS |= {'--workdir', '--recipe', '--no-sync-bn'}
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
    assert len(FLAG_ROWS) > 15
    assert {flag for _, ours in FLAG_ROWS for flag in re.findall(CELL, ours)} <= OURS


def test_flags_of_timm_are_refused_by_name():
    """Each of the page that is not ours, too; no flag of ours is."""
    theirs = {flag for names, _ in FLAG_ROWS for flag in re.findall('`(-[^`]*)`', names)}
    assert len(theirs) > 20 and theirs - OURS <= TRAIN.keys()
    assert not TRAIN.keys() & OURS
    assert not EVALUATE.keys() & {f'--{field.name.replace("_", "-")}' for field in dataclasses.fields(InputFlags)}
    for flags, own in ((TRAIN, OURS), (EVALUATE, OURS | {'--devices', '--test-size'})):
        assert {flag for text in flags.values() for flag in re.findall(r'--[a-z][a-z-]*', text)} <= own


def test_other_defaults():
    """The defaults of the page are those of the configuration."""
    table = PAGE.partition('and another default')[2].partition('An epoch')[0]
    rows = dict(re.findall(r'^\| `--([\w-]+)` \| ([^|]*) \|', table, re.M))
    assert rows.keys() == {'model', 'batch-size', 'seed', 'val-split', 'sched-on-updates', 'prefetcher', 'sync-bn'}
    for name, text in rows.items():
        default = getattr(TrainConfig(), name.replace('-', '_'))
        shown = {'True': 'on', 'False': 'off', 'None': 'the validation'}.get(str(default), str(default))
        assert text.strip('`').startswith(shown)


def test_the_page_has_rows():
    assert len(NAMES) > 40
