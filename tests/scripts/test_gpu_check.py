"""scripts/gpu_check.py: parts in fake processes, resuming, comparing, files, and the Python that runs it."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import gpu_python
import jax
import pytest
from benchmarking.processes import TRACEBACKS
from gpu_checking import child, command, machine, page, parity, plan, runner, speed
from gpu_checking.charts import draw
from gpu_checking.comparison import comparison
from gpu_checking.records import CheckError, Finding, PartResult, Report, read_report
from gpu_checking.sizes import BY_SIZE, SECONDS, TINY, sizes_of

from tests.helpers.paths import FILES
from tresnet_jax.variants import ARCHITECTURES

ABOUT = {
    'platform': 'gpu', 'device': 'NVIDIA H100 80GB HBM3', 'devices': 1, 'memory_bytes': 80 * 10**9, 'runtime': 'cuda',
    'driver': '570.1', 'versions': {'jax': '0.10.2'}, 'commit': 'abc',
}  # fmt: skip
SHARES = {'a': 0.2, 'b': 0.3, 'c': 0.5}
FOUND = Finding('speed', 'row', {'images/s': 100.0, 'mode': 'lean'}, passed=True)


def result(part: str = 'parity', *findings: Finding, status: str = 'finished', message: str = '') -> PartResult:
    return PartResult(part, status, message, 1.0, findings or (FOUND,))


# A part in a process of its own. The fake one reads what it does from the name of the part.

FAKE = """
import json, os, subprocess, sys, time
part, settings, folder, out = sys.argv[1:]
rows = [{'group': 'g', 'name': 'first', 'values': {'pid': os.getpid()}, 'passed': True, 'note': ''}]
def save(status=''):
    open(out, 'w').write(json.dumps({'status': status, 'message': '', 'findings': rows}))
print('started', settings, flush=True)
save()
if part == 'memory':
    rows[0]['values']['pid'] = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)']).pid
    save()
    time.sleep(60)
if part == 'speed':
    os.abort()
save('finished')
"""


@pytest.fixture
def fake_child(tmp_path, monkeypatch) -> None:
    (tmp_path / 'fake_child.py').write_text(FAKE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(runner, 'CHILD', 'fake_child')


def test_a_part_that_finishes(fake_child, tmp_path):
    (found,) = runner.run_parts(['parity'], {'level': 'quick', 'tiny': True}, 30, tmp_path)
    assert (found.status, found.message, found.findings[0].name) == ('finished', '', 'first')
    assert 'started {"level": "quick", "tiny": true}' in (tmp_path / 'logs' / 'parity.log').read_text()


def test_a_part_that_runs_out_of_time(fake_child, tmp_path, monkeypatch):
    """It is stopped with the processes that it started, and what it found counts. Others finish meanwhile."""
    monkeypatch.setattr(runner, 'SAVE_SECONDS', 0.1)
    began = time.monotonic()
    *before, found = runner.run_parts(['parity', 'memory'], {}, 2, tmp_path)
    assert time.monotonic() - began < 30
    assert (found.status, found.message, len(found.findings)) == ('out of time', 'stopped after 2 s', 1)
    assert not is_alive(found.findings[0].values['pid'])
    ended = [(one.part, one.status) for one in before if one.status != 'not finished']
    assert ended == [('parity', 'finished')]
    running = {one.part: one for one in before if one.status == 'not finished'}
    assert running['memory'].findings[0].name == 'first' and not command.is_measured(running['memory'])


def test_the_next_part_waits_for_killed_processes(fake_child, tmp_path, monkeypatch):
    """They hold memory of the device until they have ended."""
    assert runner._is_alive(os.getpgid(0))
    answers = [True, True, False]
    monkeypatch.setattr(runner, '_is_alive', lambda group: answers.pop(0))
    assert [one.status for one in runner.run_parts(['parity'], {}, 30, tmp_path)] == ['finished'] and not answers


def test_processes_end_with_the_command(fake_child, tmp_path, monkeypatch):
    monkeypatch.setattr(runner, 'SAVE_SECONDS', 0.1)
    parts = runner.run_parts(['memory'], {}, 60, tmp_path)
    while (pid := next(parts).findings[0].values['pid']) is None:
        pass
    parts.close()
    assert not is_alive(pid)


def is_alive(pid) -> bool:
    """Return whether a process runs; one that has ended may still wait to be reaped."""
    try:
        return Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()[0] != 'Z'
    except FileNotFoundError:
        return False


def test_a_part_that_dies(fake_child, tmp_path):
    (found,) = runner.run_parts(['speed'], {}, 30, tmp_path)
    assert found.status == 'failed' and 'exit code -6; see' in found.message
    assert found.findings[0].passed and found.failures == [found.message]


def test_a_part_without_its_packages(monkeypatch, tmp_path):
    monkeypatch.setattr(runner, 'missing_packages', lambda names: [name for name in names if name != 'grain'])
    (found,) = runner.run_parts(['training'], {}, 30, tmp_path)
    assert found.status == 'left out' and not found.failures
    assert found.message == "orbax, tensorboardX are not installed: pip install 'tresnet_jax[train]'"


def test_time_that_a_part_leaves_goes_to_the_next(monkeypatch):
    for level in SECONDS:
        assert sum(part.shares[level] for part in plan.PARTS.values()) == pytest.approx(1)
    parts = {name: plan.Part('', parity.run, {'quick': 0.5, 'default': share}) for name, share in SHARES.items()}
    monkeypatch.setattr(runner, 'PARTS', parts)
    assert runner.limit_of([['a'], ['b'], ['c']], 600, 'default') == pytest.approx(120)
    assert runner.limit_of([['a', 'b'], ['c']], 600, 'default') == pytest.approx(300)
    assert runner.limit_of([['b'], ['c']], 300, 'default') == pytest.approx(300 * 0.3 / 0.8)
    assert runner.limit_of([['b'], ['c']], 300, 'quick') == 150
    assert runner.limit_of([['c']], 50, 'default') == 50


def test_parts_that_run_at_the_same_time():
    """Those that time nothing, if the device has room for them."""
    names = plan.parts_of('default')
    assert runner.stages_of(names, False) == [[name] for name in names]
    together = ['parity', 'memory', 'determinism', 'training']
    assert runner.stages_of(names, True) == [together, ['speed'], ['autotuning']]
    assert runner.stages_of(['speed', 'memory'], True) == [['memory'], ['speed']]
    assert runner.stages_of(['speed'], True) == [['speed']] and runner.stages_of([], True) == []
    large, small = ABOUT | {'compute_mode': 'Default'}, ABOUT | {'memory_bytes': 8 * 10**9}
    assert machine.has_room_for_several(large) and not machine.has_room_for_several(small)
    assert not machine.has_room_for_several(large | {'compute_mode': 'Exclusive_Process'})
    assert not machine.has_room_for_several({'memory_bytes': None})


def test_the_process_of_a_part(monkeypatch, tmp_path, capsys):
    """Each finding is in the file before the next is looked for, and after an error."""
    out = tmp_path / 'result.json'

    def run(sizes, folder):
        assert sizes == TINY and folder == tmp_path
        yield FOUND
        assert len(json.loads(out.read_text())['findings']) == 1
        raise RuntimeError('no such\nkernel')

    monkeypatch.setitem(plan.PARTS, 'parity', plan.Part('', run, {}))
    monkeypatch.setenv(TRACEBACKS, '1')
    child.main('parity', '{"level": "default", "tiny": true}', str(tmp_path), str(out))
    document = json.loads(out.read_text())
    assert (document['status'], document['message']) == ('failed', 'RuntimeError: no such kernel')
    assert document['findings'] == [dataclasses.asdict(FOUND)]
    printed = capsys.readouterr()
    assert f's  {FOUND.group}: {FOUND.name}' in printed.out and "raise RuntimeError('no such" in printed.err


@pytest.mark.parametrize('part', [*plan.PARTS])
def test_who_takes_the_device(part, tmp_path, monkeypatch):
    """Only 'parity' and 'speed' compute in the process of the part itself. All but two leave memory to others."""

    config: Any = jax.config  # its attributes are defined at run time
    before = config.jax_platforms

    def run(sizes, folder):
        yield dataclasses.replace(FOUND, values={'platforms': config.jax_platforms})

    changed = dataclasses.replace(plan.PARTS[part], run=run)
    monkeypatch.setitem(plan.PARTS, part, changed)
    config.update('jax_platforms', 'cuda,cpu')
    try:
        child.main(part, '{"level": "default", "tiny": true}', str(tmp_path), str(tmp_path / 'result.json'))
    finally:
        config.update('jax_platforms', before)
    found = json.loads((tmp_path / 'result.json').read_text())['findings'][0]['values']['platforms']
    environment = runner.environment(changed, tmp_path, str(tmp_path))
    assert found == ('cuda,cpu' if part in ('parity', 'speed') else 'cpu')
    assert environment.get('JAX_PLATFORMS') == os.environ.get('JAX_PLATFORMS') and environment[TRACEBACKS]
    if part in ('autotuning', 'largest'):
        assert 'XLA_PYTHON_CLIENT_PREALLOCATE' not in environment
    else:
        assert environment['XLA_PYTHON_CLIENT_PREALLOCATE'] == 'false'


# The command line, with fake parts.


@pytest.fixture
def ran(monkeypatch) -> list[str]:
    """The names of the parts that ran; every part finishes, and 'speed' has a check that fails."""
    names: list[str] = []

    def run_parts(parts, settings, limit, out):
        for name in parts:
            names.append(name)
            yield result(name, dataclasses.replace(FOUND, passed=name != 'speed'))

    monkeypatch.setattr(command, 'run_parts', run_parts)
    monkeypatch.setattr(command, 'describe_machine', lambda: ABOUT)
    monkeypatch.setattr(command, 'draw', lambda report, out: [])
    return names


def test_resuming(ran, tmp_path, monkeypatch, capsys):
    out = ['--out', str(tmp_path / 'out')]
    assert command.main([*out, '--only', 'parity', 'memory']) == 0
    assert ran == ['parity', 'memory']
    assert command.main(out) == 1, 'a check of speed fails'
    assert ran[2:] == ['determinism', 'training', 'speed', 'autotuning']
    captured = capsys.readouterr()
    assert 'failed: speed: row' in captured.err and 'speed: finished, 0 passed, 1 failed, 1 s' in captured.out
    assert command.main(out) == 1 and len(ran) == 6, 'it still fails, and nothing runs again'
    assert command.main([*out, '--again', '--only', 'memory']) == 1 and ran[6:] == ['memory']
    document = json.loads((tmp_path / 'out' / 'gpu_check.json').read_text())
    assert document['schema'] == 1 and document['about'] == ABOUT
    assert [row['part'] for row in document['parts']] == plan.parts_of('default')
    monkeypatch.setattr(command, 'describe_machine', lambda: ABOUT | {'memory_bytes': 5})
    assert command.main(out) == 1 and len(ran) == 7
    monkeypatch.setattr(command, 'describe_machine', lambda: ABOUT | {'commit': 'def'})
    assert command.main([*out, '--only', 'parity']) == 0 and ran[7:] == ['parity']
    assert read_report(tmp_path / 'out' / command.EARLIER).about['commit'] == 'abc'
    assert list(read_report(tmp_path / 'out' / 'gpu_check.json').parts) == ['parity']


@pytest.fixture(params=[signal.SIGTERM, signal.SIGHUP])
def number(request):
    """A signal with its default action, which nohup and others may have changed for the tests."""
    before = signal.signal(request.param, signal.SIG_DFL)
    yield request.param
    signal.signal(request.param, before)


def test_signals(number, ran, tmp_path, monkeypatch, capsys):
    """They end the part that is running too, as Ctrl-C does; afterwards they do what they did before."""

    def run_parts(*arguments):
        assert signal.getsignal(number) is signal.default_int_handler
        signal.raise_signal(number)

    monkeypatch.setattr(command, 'run_parts', run_parts)
    assert command.main(['--out', str(tmp_path)]) == 1
    assert 'to resume' in capsys.readouterr().err and signal.getsignal(number) == signal.SIG_DFL


def test_ignored_signals_stay_ignored(number, ran, tmp_path, monkeypatch):
    """As those of a command under nohup."""
    signal.signal(number, signal.SIG_IGN)
    handlers = []

    def run_parts(names, *arguments):
        handlers.append(signal.getsignal(number))
        return map(result, names)

    monkeypatch.setattr(command, 'run_parts', run_parts)
    assert command.main(['--out', str(tmp_path)]) == 0
    assert {*handlers, signal.getsignal(number)} == {signal.SIG_IGN}


def test_parts_that_run_again():
    assert not command.is_measured(None) and not command.is_measured(result(status='failed'))
    assert command.is_measured(result()) and not command.is_measured(result(status='out of time'))
    stopped = PartResult('parity', 'out of time', 'stopped after 1 s', 1.0, ())
    assert not command.is_measured(stopped)
    assert stopped.failures == ['parity: stopped after 1 s, before it found anything']
    assert result(status='out of time').failures == []


def test_rows_that_were_measured_before():
    """They stay until they are measured again, unless the part finishes."""
    first, second = FOUND, dataclasses.replace(FOUND, name='second')
    better = dataclasses.replace(FOUND, values={})
    before = result('speed', first, second, status='out of time')
    for status in ('out of time', 'not finished', 'failed'):
        now = result('speed', better, status=status)
        assert now.after(before).findings == (better, second) and now.after(None) == now
    assert result('speed', better).after(before).findings == (better,)


def test_a_program_is_compiled_once(tmp_path):
    """Where it is called from does not make it another one, and the names of its layers do."""
    code = """
import jax
def call(name):
    def run(x):
        with jax.named_scope(name):
            return x + 1
    jax.clear_caches()
    return jax.jit(run)(1.0)
call('conv1')
call('conv1')
call('conv2')
"""
    environment = runner.environment(plan.PARTS['speed'], tmp_path, str(tmp_path))
    environment |= {'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0', 'JAX_ENABLE_COMPILATION_CACHE': 'true'}
    subprocess.run([sys.executable, '-c', code], env=environment, check=True)
    assert len(list((tmp_path / 'compiled' / 'alone').glob('jit_run-*-cache'))) == 2


def test_levels(ran, tmp_path, monkeypatch):
    limits = []
    monkeypatch.setattr(
        command, 'run_parts', lambda names, settings, limit, out: limits.append(limit) or map(result, names)
    )
    monkeypatch.setattr(command.time, 'monotonic', lambda: 0.0)
    assert command.main(['--out', str(tmp_path / 'a'), '--quick', '--only', 'parity', 'speed']) == 0
    assert limits == pytest.approx([120 * 0.2 / 0.6, 120])
    assert command.main(['--out', str(tmp_path / 'b'), '--only', 'parity', '--minutes', '8.5']) == 0
    assert limits[2:] == pytest.approx([510])
    assert command.main(['--out', str(tmp_path / 'c'), '--only', 'parity', '--minutes', '0.1']) == 0
    late = read_report(tmp_path / 'c' / 'gpu_check.json').parts['parity']
    assert late.message.startswith('not started') and not command.is_measured(late) and len(limits) == 3
    assert set(BY_SIZE) == set(ARCHITECTURES) == set(sizes_of('default', False).architectures)
    assert sizes_of('full', True) == TINY != sizes_of('full', False)


def test_comparing(ran, tmp_path, capsys):
    assert command.main(['--out', str(tmp_path), '--only', 'parity']) == 0
    old = tmp_path / 'old.json'
    faster = read_report(tmp_path / 'gpu_check.json')
    values = {'images/s': 50.0, 'gone': 1.0}
    parts = {'parity': result('parity', dataclasses.replace(FOUND, values=values))}
    dataclasses.replace(faster, parts=parts, about=ABOUT | {'driver': '560.0'}).write(old)
    capsys.readouterr()
    assert command.main(['--out', str(tmp_path), '--only', 'parity', '--compare', str(old)]) == 0
    text = capsys.readouterr().out
    assert '* driver: 560.0 before, 570.1 now' in text
    assert '| parity | speed | row | images/s | 50 | 100 | 2.000 |' in text
    assert '2.000' in (tmp_path / 'gpu_check.md').read_text()


@pytest.mark.parametrize(
    ('flags', 'message'),
    [
        (['--quick', '--full'], 'give --quick or --full, not both'),
        (['--quick', '--only', 'parity', 'autotuning'], '--only autotuning: this level has no time for it; leave out'),
        (['--only', 'largest'], '--only largest: this level has no time for it; use --full'),
        (['--minutes', '0'], '--minutes must be positive, got 0'),
        (['--compare', 'absent.json'], 'absent.json: cannot be read as JSON'),
        (['--compare', str(FILES / 'gpu_program.hlo')], 'expected a gpu_check.json'),
    ],
)
def test_user_errors(ran, tmp_path, capsys, flags, message):
    assert command.main(['--out', str(tmp_path), *flags]) == 2
    err = capsys.readouterr().err
    assert message in err and err.count('\n') == 1 and not ran


@pytest.mark.parametrize(
    'text', ['[]', '{}', '{"schema": 99}', '{"schema": 1, "about": {}, "settings": {}, "parts": [1]}']
)
def test_other_files(tmp_path, text):
    (tmp_path / 'a.json').write_text(text)
    with pytest.raises(CheckError, match='gpu_check.py wrote|newer than 1'):
        read_report(tmp_path / 'a.json')


def test_a_machine_without_a_gpu(monkeypatch):
    about = {key: ABOUT[key] for key in ('device', 'devices', 'memory_bytes', 'runtime')} | {'platform': 'cpu'}
    monkeypatch.setattr(machine, 'in_new_process', lambda *arguments, limit: about)
    monkeypatch.setattr(machine, '_output', lambda *words: '')
    monkeypatch.setenv('XLA_FLAGS', '--xla_flag')
    found = machine.describe_machine()  # the tests run with JAX_PLATFORMS=cpu
    assert found['variables']['XLA_FLAGS'] == '--xla_flag' and 'JAX_PLATFORMS' not in found['variables']
    assert found['driver'].startswith('unavailable') and found['commit'].startswith('unavailable')
    assert found['versions']['jax'] == jax.__version__
    monkeypatch.delenv('JAX_PLATFORMS')
    for plugin, remedy in ((None, 'install its CUDA plugin'), ('xla_cuda13', 'xla_cuda13 is installed but finds none')):
        monkeypatch.setattr(machine, 'plugin', lambda plugin=plugin: plugin)
        with pytest.raises(CheckError, match=f'JAX sees no GPU: .*{remedy}'):
            machine.describe_machine()


def test_the_environment_of_a_driver(monkeypatch):
    monkeypatch.delenv('JAX_PLATFORMS')
    line = '| NVIDIA-SMI 570.86    Driver Version: 570.86    CUDA Version: {}     |'
    found = [gpu_python.extra_for(line.format(version), '9.0') for version in ('12.8', '13.0')]
    assert found == ['cuda12', 'cuda13']
    newer = '| NVIDIA-SMI 595.1    KMD Version: 595.1    CUDA UMD Version: 13.2     |'
    assert gpu_python.extra_for(newer, '7.5\n12.0') == 'cuda13'
    assert gpu_python.extra_for(newer, '9.0\n7.0\n') == 'cuda12', 'CUDA 13 has no code for a V100'
    assert gpu_python.extra_for(newer, 'Field "compute_cap" is not a valid field to query.') == 'cuda13'
    for text in ('', line.format('11.4')):
        with pytest.raises(ValueError, match='install'):
            gpu_python.extra_for(text, '9.0')


def test_the_packages_that_it_needs():
    """It starts without those that docs/gpu_check.md says are optional."""
    absent = ('grain', 'matplotlib', 'orbax', 'tensorboardX', 'tensorflow_datasets', 'timm', 'torch', 'torchvision')
    code = f'import sys; sys.modules.update(dict.fromkeys({absent})); import gpu_checking.child, gpu_checking.command'
    environment = os.environ | {'PYTHONPATH': os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, '-c', code], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


NOTHING = gpu_python.Found("ModuleNotFoundError: No module named 'jax'")
EVERYTHING = gpu_python.Found('')
NO_TYRO = gpu_python.Found('', ('tyro', 'grain'), ('/opt/site-packages',))


@pytest.fixture
def installed(monkeypatch, tmp_path) -> list[list[str]]:
    """The commands that make the environment tmp_path / 'env', which then has everything; no package is installed."""
    commands: list[list[str]] = []

    def run(words, otherwise):
        commands.append(words)
        python = tmp_path / 'env' / 'bin' / 'python'
        if 'venv' in words:
            version = f'python{sys.version_info[0]}.{sys.version_info[1]}'
            (tmp_path / 'env' / 'lib' / version / 'site-packages').mkdir(parents=True)
            python.parent.mkdir()
            python.touch()

    monkeypatch.setattr(gpu_python, 'run', run)
    monkeypatch.setattr(gpu_python, 'nvidia_smi', lambda *flags: '' if flags else 'CUDA Version: 13.0')
    monkeypatch.delenv('JAX_PLATFORMS')
    return commands


def looking_at(monkeypatch, this: gpu_python.Found, made: gpu_python.Found = EVERYTHING) -> None:
    """Let `gpu_python` find this in the Python that runs it, and `made` in every other one."""
    monkeypatch.setattr(gpu_python, 'look_at', lambda python: this if python == sys.executable else made)


def test_the_python_that_runs_make(monkeypatch, tmp_path, capsys, installed):
    looking_at(monkeypatch, gpu_python.Found('', ('grain',)))  # an optional package
    assert gpu_python.main(tmp_path / 'env') == 0
    assert capsys.readouterr().out == f'{sys.executable}\n' and not installed
    monkeypatch.setattr(sys, 'version_info', (3, 10, 12))
    assert gpu_python.main(tmp_path / 'env') == 1
    assert 'this is Python 3.10, not 3.11 or newer: make gpu-check PYTHON=' in capsys.readouterr().err


def test_an_environment_with_everything(monkeypatch, tmp_path, capsys, installed):
    looking_at(monkeypatch, NOTHING)
    assert gpu_python.main(tmp_path / 'env') == 0
    captured = capsys.readouterr()
    assert captured.out == f'{tmp_path / "env" / "bin" / "python"}\n' and "No module named 'jax'; using" in captured.err
    venv, needed, optional = installed
    assert 'venv' in venv and {'jax[cuda13]>=0.10,<0.13', 'optax>=0.2.5', 'tyro>=1.0.16'} <= set(needed)
    assert {'grain>=0.2.18', 'matplotlib>=3.10.7'} <= set(optional)
    assert gpu_python.main(tmp_path / 'env') == 0 and len(installed) == 3, 'it is made once'


def test_an_environment_that_adds_packages(monkeypatch, tmp_path, capsys, installed):
    """JAX is not installed a second time where one is that sees the GPU."""
    looking_at(monkeypatch, NO_TYRO)
    assert gpu_python.main(tmp_path / 'env') == 0
    assert 'tyro is not installed; using' in capsys.readouterr().err
    assert [words[-1] for words in installed[1:]] == ['tyro>=1.0.16', 'grain>=0.2.18']
    (added,) = (tmp_path / 'env').rglob('gpu_check.pth')
    assert added.read_text() == "import site; site.addsitedir('/opt/site-packages')\n"


def test_packages_that_cannot_be_installed(monkeypatch, tmp_path, capsys, installed):
    """As without a network: an error for those that are needed, and without the others it runs."""
    failing = ['grain']
    make = gpu_python.run

    def run(words, otherwise):
        make(words, otherwise)
        if any(word.startswith(tuple(failing)) for word in words[-1:]):
            raise ValueError(otherwise)

    monkeypatch.setattr(gpu_python, 'run', run)
    looking_at(monkeypatch, NO_TYRO)
    assert gpu_python.main(tmp_path / 'env') == 0
    assert 'without grain>=0.2.18: parts of the check are left out' in capsys.readouterr().err
    failing.append('tyro')
    (tmp_path / 'env').rename(tmp_path / 'before')
    assert gpu_python.main(tmp_path / 'env') == 1
    assert 'pip cannot install tyro>=1.0.16; without a network, PIP_NO_INDEX=1' in capsys.readouterr().err


def test_a_python_without_its_packages_or_a_driver(monkeypatch, tmp_path, capsys, installed):
    looking_at(monkeypatch, NO_TYRO, NO_TYRO)
    assert gpu_python.main(tmp_path / 'env') == 1
    assert capsys.readouterr().err.endswith(f'error: {tmp_path / "env"}: tyro is not installed\n')
    monkeypatch.setattr(gpu_python, 'nvidia_smi', lambda *flags: '')
    looking_at(monkeypatch, NOTHING, NOTHING)
    assert gpu_python.main(tmp_path / 'absent') == 1
    assert 'nvidia-smi shows no driver' in capsys.readouterr().err


def test_what_a_python_has(tmp_path):
    found = gpu_python.look_at(sys.executable)  # the tests run with JAX_PLATFORMS=cpu
    assert not found.problem and not found.needed and any(path.endswith('site-packages') for path in found.folders)
    broken = tmp_path / 'python'
    broken.write_text('#!/bin/sh\necho no such library >&2; exit 1\n')
    broken.chmod(0o755)
    assert gpu_python.look_at(str(broken)).problem == 'no such library'


def test_requirements():
    """Each package has one, so that none is installed in a version that does not work."""
    assert gpu_python.requirements('dependencies')[0].startswith('jax>=')
    assert 'matplotlib>=3.10.7' in gpu_python.requirements('train'), 'of the extra plot, which train includes'
    for name in (*gpu_python.NEEDED, *gpu_python.OPTIONAL):
        (text,) = gpu_python.requirements(gpu_python.ON_PYPI.get(name, name))
        assert text.startswith(gpu_python.ON_PYPI.get(name, name))


# The page and the charts.


def test_page_and_charts(tmp_path):
    wrong = Finding(parity.OUTPUTS, 'resnet50d, bfloat16', {'its error': 0.5, 'bound': 0.1}, passed=False)
    left_out = Finding(speed.SPEED, 'other libraries', note='left out: timm is not installed')
    parts = {
        'parity': result('parity', wrong),
        'speed': result('speed', Finding(speed.SPEED, 'ours', {'images/s': 1234.5}), left_out),
        'training': PartResult('training', 'left out', 'grain is not installed', 0.0, ()),
    }
    report = Report(ABOUT, {'level': 'default', 'tiny': False}, parts)
    charts = draw(report, tmp_path)
    assert charts == ['parity.png', 'speed.png']
    assert (tmp_path / 'speed.png').read_bytes().startswith(b'\x89PNG')
    text = page.page(report, charts)
    assert '| resnet50d, bfloat16 | 0.5 | 0.1 | **FAIL** |' in text
    assert '| Parity with timm | finished | 0 | 1 | 1 |' in text and f'* {parity.OUTPUTS}: resnet50d, bfloat16' in text
    assert '| ours | 1234 |' in text or '| ours | 1235 |' in text
    assert 'left out: grain is not installed' in text and '![images per second](speed.png)' in text
    assert comparison(report, Report(ABOUT, {}, {})) == 'The two checks have no figure in common.\n'


@pytest.mark.slow
def test_the_whole_command(tmp_path):
    assert command.main(['--out', str(tmp_path), '--only', 'parity', 'memory', '--tiny']) == 0
    assert os.listdir(tmp_path / 'logs') and 'A trial on a CPU' in (tmp_path / 'gpu_check.md').read_text()
