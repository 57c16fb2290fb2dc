"""A process of several that ends: the others end with one line, and the run resumes."""

import contextlib
import dataclasses
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers.forked_training import Training, Trainings, forked_trainings
from tests.helpers.processes import free_port
from tests.helpers.run_folders import end_of, last_step, new_run
from tests.helpers.runs import TINY
from tresnet_jax.training import links
from tresnet_jax.training.links import Links


@pytest.fixture
def ended(monkeypatch) -> list[int]:
    """The exit codes with which `Links` would have ended this process."""
    codes: list[int] = []
    monkeypatch.setattr(links, '_end', codes.append)
    return codes


@pytest.fixture(params=['first', 'other'])
def connected(request) -> Iterator[tuple[Links, socket.socket, socket.socket]]:
    """Links, and the two ends of a connection through them: the client's and the service's."""
    found = Links()
    with contextlib.ExitStack() as stack:
        port = free_port()
        arguments = {'coordinator_address': f'127.0.0.1:{port}', 'num_processes': 2}
        arguments |= found.through(arguments | {'process_id': 0 if request.param == 'first' else 1})
        client_address = ('127.0.0.1', port)
        if request.param == 'other':
            host, _, number = arguments['coordinator_address'].rpartition(':')
            client_address = (host, int(number))
            with socket.create_connection(client_address) as early:  # before the first process listens
                assert early.recv(9) == b''
        inner = arguments.get('coordinator_bind_address', f'127.0.0.1:{port}').rpartition(':')
        service = stack.enter_context(socket.create_server((inner[0], int(inner[2]))))
        client = stack.enter_context(socket.create_connection(client_address))
        accepted, _ = service.accept()
        yield found, client, stack.enter_context(accepted)


def talk(client: socket.socket, service: socket.socket) -> None:
    for sender, receiver in ((client, service), (service, client)):
        sender.sendall(b'hello' * 50_000)
        left = 250_000
        while left:
            left -= len(receiver.recv(left))


def wait_for(condition) -> bool:
    until = time.monotonic() + 30
    while not condition() and time.monotonic() < until:
        time.sleep(0.005)
    return condition()


@pytest.mark.parametrize('which', ['client', 'service'])
def test_a_connection_that_closes(which, connected, ended, capfd):
    _, client, service = connected
    talk(client, service)
    assert not ended
    (client if which == 'client' else service).close()
    assert wait_for(lambda: ended) and ended[0] == 2
    line = capfd.readouterr().err.splitlines()[0]
    assert line.startswith('error: ') and ' of this run has ended, so this one ends too' in line


def test_no_reason_to_end(connected, ended):
    """The run is over, or nobody of the run had connected."""
    _, client, service = connected
    service.sendall(b'settings')  # a service speaks first; who looks for open ports says nothing
    assert client.recv(99) == b'settings'
    client.close()
    assert service.recv(9) == b'' and not ends_soon(ended)


def test_a_run_that_is_over(connected, ended):
    found, client, service = connected
    talk(client, service)
    found.over()
    client.close()
    assert service.recv(9) == b'' and not ends_soon(ended)


def ends_soon(ended: list[int]) -> bool:
    time.sleep(0.2)
    return bool(ended)


WITH_LOCK = """
import ctypes, os, signal, socket, sys
from tresnet_jax.training.links import Links

with socket.create_server(('127.0.0.1', 0)) as free:
    port = free.getsockname()[1]
given = {'coordinator_address': f'127.0.0.1:{port}', 'num_processes': 2, 'process_id': 0}
host, _, inner = Links().through(given)['coordinator_bind_address'].rpartition(':')
service = socket.create_server((host, int(inner)))
client = socket.create_connection(('127.0.0.1', port))
accepted, _ = service.accept()
holding = ctypes.PyDLL(None)  # its functions keep the interpreter's lock while they run
buffer = ctypes.create_string_buffer(99)
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
    signal.signal(number, signal.SIG_IGN)
os.killpg(0, signal.SIGTERM)
holding.send(client.fileno(), b'hello', 5, 0)
assert holding.recv(accepted.fileno(), buffer, 99, 0) == 5
holding.send(accepted.fileno(), b'hello', 5, 0)
assert holding.recv(client.fileno(), buffer, 99, 0) == 5
print('delivered', flush=True)
if sys.argv[1] == 'lost':
    sys.setswitchinterval(60)  # the thread that listens does not get the lock between these calls
    holding.shutdown(client.fileno(), socket.SHUT_WR)
    holding.sleep(60)
"""


@pytest.mark.parametrize('ending', ['normal', 'lost'])
def test_messages_while_the_interpreter_is_locked(ending):
    """JAX holds the lock while it waits for messages, which come nevertheless. So does the end of another process."""
    command = [sys.executable, '-c', WITH_LOCK, ending]
    process = subprocess.run(command, capture_output=True, text=True, timeout=50, start_new_session=True, check=False)
    assert process.stdout == 'delivered\n', process.stderr
    assert process.returncode == (-9 if ending == 'lost' else 0)
    assert process.stderr.count(' of this run has ended, so this one ends too') == (ending == 'lost')


def test_one_process_or_a_launcher(ended):
    """Without an address nothing is watched; a process alone returns its exit code."""
    found, arguments = Links(), {'cluster_detection_method': 'slurm', 'num_processes': 2, 'process_id': 0}
    assert found.through(arguments) == arguments and not found.connect
    found.failed()
    assert found.leave(3) == 3 and not ended


CONFIG = dataclasses.replace(
    TINY, devices=1, steps=45, checkpoint_every=3, eval_every=4.0, log_every=1, keep_last=2, keep_best=0
)


@pytest.fixture(scope='module')
def trainings(tmp_path_factory) -> Iterator[Trainings]:
    with forked_trainings(tmp_path_factory.mktemp('trainings')) as found:
        yield found


def start(trainings: Trainings, workdir: Path) -> list[Training]:
    flags = ('--workdir', workdir, '--coordinator', f'127.0.0.1:{free_port()}', '--num-processes', '2')
    return [trainings.start(*flags, '--process-id', str(number)) for number in range(2)]


@pytest.mark.slow
def test_killed_hosts(trainings, tmp_path):
    """kill -9 of either: the other ends within a minute, with one line; nothing but the steps since a save is lost."""
    whole, run = tmp_path / 'whole', tmp_path / 'run'
    for folder in (whole, run):
        new_run(folder, CONFIG)
    for process in start(trainings, whole):
        assert process.wait() == 0, process.output()
    for victim in (1, 0, 1):
        processes, had = start(trainings, run), last_step(run)
        assert processes[0].wait_until(lambda had=had: last_step(run) >= had + 7), processes[0].output()
        os.kill(processes[victim].pid, 9)
        began = time.monotonic()
        other = processes[1 - victim]
        assert other.wait(60) == 2, other.output()
        print(
            f'process {victim} killed at step {last_step(run)}; the other ended {time.monotonic() - began:.1f} s later'
        )
        assert processes[victim].wait() == -9
        errors = [line for line in other.output().splitlines() if line.startswith('error: ')]
        who = 'another process' if victim else 'the first process'
        assert len(errors) == 1 and errors[0].startswith(f'error: {who} of this run has ended'), other.output()
        assert 'Traceback' not in other.output() and 'stack trace' not in other.output()
    for process in start(trainings, run):
        assert process.wait() == 0, process.output()
    assert end_of(run) == end_of(whole)
