"""The fuzzer finds every kind of fault, its files do not change, and inputs that were handled badly stay harmless."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from fuzzing import children
from fuzzing.children import Kind, case_of, contents, examine, text_problem
from fuzzing.kinds import KINDS
from fuzzing.summary import Row, save, table, with_table

from convert import ConversionError
from tests.helpers.paths import FILES, ROOT

CORPUS = FILES / 'fuzz'  # KIND/what it is/...: inputs that were handled badly once


def outcome(use, folder: Path, size: int = 10) -> children.Outcome:
    folder.mkdir(exist_ok=True)
    path = folder / 'file'
    path.write_bytes(bytes(size))
    return examine(Kind('a', 'a', lambda rng, folder: path, (use,), (ConversionError, ValueError)), path, folder)


def refuse(message: str):
    def use(path: Path) -> None:
        raise ConversionError(f'{path}: {message}')

    return use


def test_acceptance_and_refusal(tmp_path):
    assert outcome(lambda path: path.read_bytes(), tmp_path).status == 'accepted'
    refused = outcome(refuse('is damaged'), tmp_path)
    assert refused.status == 'refused' and refused.message == f'{tmp_path}/file: is damaged'


def fill(path: Path) -> None:
    b'a' * (400 * 2**20)


def write(path: Path) -> None:
    (path.parent / 'other').touch()
    raise ConversionError(f'{path}: is damaged')


FAULTS = {
    'a key': (lambda path: {}[path], 'KeyError'),
    'an error of a library': (lambda path: b'\xff'.decode(), 'UnicodeDecodeError'),
    'an exit': (lambda path: sys.exit(1), 'SystemExit'),
    'an escape code': (refuse('has \x1b[31m'), r"a message with '\x1b'"),
    'another direction': (refuse('has \u202e'), 'a message with'),
    'a long message': (refuse('a' * 10_000), 'a message of'),
    'memory': (fill, 'MiB for 10 bytes'),
    'a new file': (write, 'files changed'),
    'a changed file': (lambda path: path.write_bytes(b'a'), 'files changed'),
}


@pytest.mark.parametrize('case', FAULTS)
def test_faults_are_found(case, tmp_path):
    use, message = FAULTS[case]
    found = outcome(use, tmp_path / 'case')
    assert found.status == 'fault' and message in found.message


def test_a_slow_file_is_a_fault(tmp_path, monkeypatch):
    monkeypatch.setattr(children, 'SECONDS', 0.05)

    def work(path: Path) -> None:
        while True:
            pass

    assert 'takes more than' in outcome(work, tmp_path).message


def environment() -> dict[str, str]:
    return os.environ | {'PYTHONPATH': f'{ROOT}:{ROOT / "scripts"}', 'JAX_PLATFORMS': 'cpu'}


def test_what_a_process_does_and_how_it_ends(tmp_path):
    """In a process of its own, because a hook for audit events stays, and because of the fork."""
    code = f"""
import os, pathlib
from fuzzing.children import Kind, run
def use(path):
    match path.read_text():
        case '0': open(path).close()
        case '1': os.abort()
        case '2': os.system('true')
        case '3': open(path, 'a')
        case '4': pathlib.Path('MARKER').symlink_to('a')
def make(rng, folder):
    (folder / 'file').write_text(str(numbers.pop(0)))
    return folder / 'file'
numbers = [0, 1]
kind = Kind('a', 'a', make, (use,), ())
folder = pathlib.Path({str(tmp_path)!r})
for outcome in run(kind, 0, [0, 1], folder / 'work', folder / 'found'):
    print(outcome.index, outcome.status, outcome.message)
numbers = [2, 3, 4]
for outcome in run(kind, 0, [2, 3, 4], folder / 'work', folder / 'found'):
    print(outcome.index, outcome.status, outcome.message)
"""
    run = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, env=environment())
    lines = run.stdout.splitlines()
    assert lines[:2] == ['0 accepted ', '1 fault the process ended by SIGABRT'], run.stderr
    assert 'does what no reader does: os.system' in lines[2] and 'writes: opens' in lines[3]
    assert 'writes: os.symlink' in lines[4] and len(lines) == 5
    assert (tmp_path / 'found/a/0-1/case/file').read_text() == '1'


def test_tracebacks_in_printed_text():
    assert 'prints a traceback' in text_problem('error\nTraceback (most recent call last):\n  File')
    assert text_problem('error: caf\xe9 \u6f22: no such file\n') == ''
    assert text_problem("error: no key 'a Traceback (most recent call last):'\n") == ''


@pytest.mark.parametrize('name', sorted(KINDS))
def test_the_same_seed_makes_the_same_files(name, tmp_path):
    for index in range(4):
        made = []
        for folder in (tmp_path / 'a', tmp_path / 'b'):
            case_of(KINDS[name], 0, index, folder)
            files = sorted(path for path in folder.rglob('*') if path.is_file() and path.stat().st_size < 2**24)
            made.append([(path.relative_to(folder), path.read_bytes()) for path in files])
        assert made[0] == made[1]


QUICK = sorted(set(KINDS) - {'run', 'command'})


@pytest.mark.parametrize('name', QUICK)
def test_some_files(name, tmp_path):
    """Others than `make fuzz` begins with."""
    for index in range(8 if name == 'hub' else 25):
        kind = KINDS[name]
        given = case_of(kind, 1, index, tmp_path / 'case')
        found = examine(kind, given, tmp_path / 'case', index)
        assert found.status != 'fault', f'make fuzz KIND={name} SEED=1, file {index}: {found.message}'


@pytest.mark.parametrize('case', [f'{path.parent.name}/{path.name}' for path in sorted(CORPUS.glob('*/*'))])
def test_files_that_were_handled_badly(case, tmp_path):
    kind = KINDS[case.partition('/')[0]]
    before = contents(CORPUS / case)
    if kind.name == 'command':
        given = json.loads((CORPUS / case / 'command.json').read_text())
    else:
        (given,) = (CORPUS / case).iterdir()
    found = examine(kind, given, CORPUS / case)
    assert found.status != 'fault' and contents(CORPUS / case) == before, found.message


def test_the_summary(tmp_path):
    outcomes = [
        children.Outcome(0, 'accepted'),
        children.Outcome(1, 'refused', 'a', 0.25, 3 * 2**20),
        children.Outcome(2, 'fault'),
    ]
    row = Row.of(KINDS['image'], 7, outcomes)
    assert (row.tried, row.refused, row.accepted, row.faults, row.memory) == (3, 1, 1, 1, 3)
    for _ in range(2):
        save(tmp_path / 'a.json', row)
    assert (tmp_path / 'a.json').read_text().count('"seed": 7') == 1
    assert '| `image` |' in table([row]) and '| 7 | 3 | 1 | 1 | 1 | 0.2 s | 3 MiB |' in table([row])


def test_the_page_has_the_stored_rows():
    page = ROOT / 'docs/robustness.md'
    rows = [Row(**row) for row in json.loads(page.with_suffix('.json').read_text(encoding='utf-8'))]
    text = page.read_text(encoding='utf-8')
    assert {row.kind for row in rows} == set(KINDS) and with_table(text, rows) == text
    assert all(row.tried == row.refused + row.accepted + row.faults > 0 for row in rows)
