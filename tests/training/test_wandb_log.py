"""Weights & Biases: what a run sends there, one run for one folder, and the offline mode of the real package."""

import dataclasses
import math
import os
import subprocess
import sys
from types import ModuleType
from typing import Any

import pytest

from tests.helpers.paths import ROOT
from tests.helpers.runs import TINY
from tresnet_jax.errors import MissingExtraError, TrainingError
from tresnet_jax.training.metrics import RunLog
from tresnet_jax.training.wandb_log import ID_FILE, open_wandb

CONFIG = dataclasses.replace(TINY, log_wandb=True, wandb_project='photos', wandb_tags=('a', 'b'))
EVALUATION = {'step': 4, 'top1': 0.5, 'top5': 1.0, 'loss': math.inf, 'count': 40}


class Package(ModuleType):
    """Stands for wandb, and for its runs; remembers the arguments of all calls."""

    Error = type('Error', (Exception,), {})

    def __init__(self):
        super().__init__('wandb')
        self.calls: list[tuple[str, Any]] = []
        self.problem: Exception | None = None

    def Settings(self, **options):
        return options

    def init(self, **options):
        if self.problem:
            raise self.problem
        self.calls.append(('init', options))
        return self

    def define_metric(self, name, step_metric):
        self.calls.append(('axis', (name, step_metric)))

    def log(self, values):
        self.calls.append(('log', values))

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.calls.append(('finish', error[0]))


@pytest.fixture
def wandb(monkeypatch) -> Package:
    package = Package()
    monkeypatch.setitem(sys.modules, 'wandb', package)
    return package


def test_what_is_sent(wandb, tmp_path):
    """The same metrics as in metrics.jsonl, over the steps of the run."""
    with pytest.raises(KeyError), open_wandb(CONFIG, tmp_path) as run:
        log = RunLog(tmp_path, start=0, steps=8, active=True, wandb=run)
        log.evaluation(EVALUATION)
        log.close()
        raise KeyError
    (_, options), *others = wandb.calls
    assert (options['project'], options['tags'], options['name']) == ('photos', ('a', 'b'), tmp_path.name)
    assert options['config']['lr'] == TINY.lr and options['dir'] == str(tmp_path) and options['resume'] == 'allow'
    sent = {'step': 4, 'eval/top1': 0.5, 'eval/top5': 1.0, 'eval/loss': math.inf, 'eval/count': 40}
    assert others == [('axis', ('*', 'step')), ('log', sent), ('finish', KeyError)]


def test_one_run_for_one_folder(wandb, tmp_path):
    other = tmp_path / 'other'
    other.mkdir()
    given = dataclasses.replace(CONFIG, wandb_resume_id='given')
    for config, folder in ((CONFIG, tmp_path), (CONFIG, tmp_path), (CONFIG, other), (given, other), (CONFIG, other)):
        open_wandb(config, folder)
    first, again, another, *rest = [options['id'] for name, options in wandb.calls if name == 'init']
    assert first == again != another and rest == ['given', 'given']
    assert (tmp_path / ID_FILE).read_text() == f'{first}\n'


def test_it_cannot_start(wandb, tmp_path, monkeypatch):
    for problem in (wandb.Error, ValueError):  # not logged in; pydantic refuses a tag
        wandb.problem = problem('api_key not configured (no-tty). call\nwandb.login')
        with pytest.raises(TrainingError) as error:
            open_wandb(CONFIG, tmp_path)
        expected = (
            '--log-wandb: api_key not configured (no-tty). call wandb.login; if it needs a login, run wandb login '
        )
        assert str(error.value) == f'{expected}or set WANDB_MODE=offline'
    monkeypatch.setitem(sys.modules, 'wandb', None)
    with pytest.raises(MissingExtraError, match=r"wandb is not installed; run: pip install 'tresnet_jax\[wandb\]'"):
        open_wandb(CONFIG, tmp_path)
    with open_wandb(TINY, tmp_path) as run:
        assert run is None


OFFLINE = """
import dataclasses, sys
from pathlib import Path
from tests.helpers.runs import TINY
from tresnet_jax.training.metrics import RunLog
from tresnet_jax.training.wandb_log import open_wandb

folder = Path(sys.argv[1])
for step in (4, 8):
    with open_wandb(dataclasses.replace(TINY, log_wandb=True, wandb_project='photos'), folder) as run:
        log = RunLog(folder, start=0, steps=8, active=True, wandb=run)
        log._write('eval', {'step': step, 'top1': 0.5})
        log.close()
"""


def test_offline(tmp_path):
    """The real package keeps its files in the folder of the run, twice under the same id."""
    environment = os.environ | {'WANDB_MODE': 'offline', 'PYTHONPATH': str(ROOT), 'JAX_PLATFORMS': 'cpu'}
    subprocess.run([sys.executable, '-c', OFFLINE, str(tmp_path)], env=environment, check=True, capture_output=True)
    name = (tmp_path / ID_FILE).read_text().strip()
    # wandb numbers the folders of one second: offline-run-TIME-ID, offline-run-TIME-ID-1.
    files = list(tmp_path.glob(f'wandb/offline-run-*/run-{name}.wandb'))
    assert files and all(b'eval/top1' in file.read_bytes() for file in files)
    assert set(tmp_path.glob('wandb/offline-run-*')) == {file.parent for file in files}
