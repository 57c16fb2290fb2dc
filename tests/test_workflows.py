"""The workflows are safe to take over: fewest permissions, pinned actions, and only targets of the Makefile."""

import re

import pytest

from tests.helpers.paths import ROOT

WORKFLOWS = sorted((ROOT / '.github' / 'workflows').glob('*.yml'))
TARGETS = set(re.findall(r'^([\w-]+):', (ROOT / 'Makefile').read_text(encoding='utf-8'), re.M))


@pytest.mark.parametrize('path', WORKFLOWS, ids=lambda path: path.stem)
def test_a_workflow(path):
    text = path.read_text(encoding='utf-8')
    assert '\npermissions:\n  contents: read\n' in text and '\nconcurrency:\n' in text
    # Only the job that publishes may ask for an identity, and it runs nothing of ours.
    publish = text.partition('\n  publish:\n')[2]
    assert text.count('write') == publish.count('write') <= 1 and 'run:' not in publish and 'secrets.' not in text
    actions = re.findall(r'uses: (.*)', text)
    assert actions and all(re.fullmatch(r'[\w./-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+', action) for action in actions)
    assert text.count('actions/checkout@') == text.count('persist-credentials: false')
    commands = re.findall(r'run: (.*)', text)
    assert all(command.startswith('make ') for command in commands)
    called = {command.split()[1] for command in commands} - {'"$TARGET"'} | set(re.findall(r'target: ([\w-]+)', text))
    assert called <= TARGETS, f'not in the Makefile: {called - TARGETS}'


def test_there_are_the_workflows():
    assert {path.stem for path in WORKFLOWS} >= {'check', 'release', 'test'}
