"""Faults of the network, of a server and of the cache: one line, nothing wrong is kept, and the next try works.

The real client, in forks of a process that has imported it: what is done to one of them ends with it.
"""

import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import huggingface_hub
import pytest
from packaging.version import Version

from tests.helpers import hub_server
from tests.helpers.hub_server import client_environment

# Lines of [source, file names, code] in. A fork runs the code, tells its number, and then what it found.
WORKER = r"""
import errno, json, os, resource, sys, time
from huggingface_hub import constants
from tresnet_jax.hub.client import find
constants.DOWNLOAD_CHUNK_SIZE = 4096
def tell(answer):
    os.write(1, (json.dumps(answer) + '\n').encode())
for line in sys.stdin:
    source, names, code = json.loads(line)
    if os.fork():
        continue
    exec(code)
    tell(os.getpid())
    try:
        tell([str(find(source, names)), ''])
    except Exception as error:
        tell([type(error).__name__, str(error)])
    os._exit(0)
"""
AT_ONCE = 'time.sleep = lambda seconds: None'  # the pauses between the client's attempts
# For servers that are silent on purpose; on a busy machine any server can be silent for as long.
IMPATIENT = f'{AT_ONCE}; constants.HF_HUB_DOWNLOAD_TIMEOUT = {{}}'
READ_ONLY = r"""
CHANGES = 'os.mkdir', 'os.rename', 'os.remove', 'os.symlink', 'os.chmod', 'os.rmdir', 'os.truncate', 'os.utime'
def refuse(event, arguments):
    writes = event == 'open' and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
    if (writes or event in CHANGES) and any(str(path).startswith(os.environ['HF_HOME']) for path in arguments[:2]):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(arguments[0]))
sys.addaudithook(refuse)
"""
FULL = 'resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))'
WITH_TOKEN = f'os.environ["HF_TOKEN"] = {hub_server.TOKEN!r}'
WEIGHTS, CONFIG = 'model.safetensors', 'config.json'
FILES = {WEIGHTS: bytes(range(256)) * 1000, CONFIG: b'{"architecture": "test_resnet"}'}


OLDER = Version(huggingface_hub.__version__) < Version('1.31')  # does not count redirects


class Worker:
    """The process. `start` begins to find a file, and `answer` waits for what comes of it."""

    def __init__(self, env: dict[str, str]):
        self.process = subprocess.Popen(
            [sys.executable, '-c', WORKER], stdin=-1, stdout=-1, stderr=subprocess.DEVNULL, text=True, env=env
        )

    def start(self, repository: str, name: str, code: str) -> None:
        print(json.dumps([f'hf-hub:{repository}', [name], code]), file=self.process.stdin, flush=True)

    def answer(self) -> list[str] | int:
        return json.loads(self.process.stdout.readline())


@pytest.fixture(scope='module')
def worker(hub, home):
    worker = Worker(client_environment(home, hub.endpoint))
    yield worker
    worker.process.communicate()


@pytest.fixture
def repository(hub, request):
    """A repository of the test's own, so that all can share hub, cache and worker."""
    name = 'org/' + hashlib.sha1(request.node.name.encode()).hexdigest()[:8]
    hub.repositories[name] = dict(FILES)
    return name


@pytest.fixture
def find(worker, repository):
    """A function from a file name and code to the path that was found, or to the error."""

    def run(name: str = WEIGHTS, code: str = AT_ONCE) -> Path | str:
        worker.start(repository, name, code)
        worker.answer()
        found, message = worker.answer()
        assert found == 'HubError' or not message, message
        assert '\n' not in message and 'Traceback' not in message
        return message or Path(found)

    return run


@pytest.fixture
def folder(home, repository):
    """Where the cache keeps the repository."""
    return home / 'hub' / f'models--{repository.replace("/", "--")}'


def blobs(folder: Path) -> list[Path]:
    return sorted((folder / 'blobs').glob('*'))


def asked(hub, repository, what='STORAGE'):
    return sum(request.startswith(f'{what} {repository} ') for request in hub.requests)


def test_a_slow_download_goes_on_as_long_as_bytes_come(find, hub, repository):
    hub.faults[repository] = hub_server.SLOW  # 2.4 s, where 1.8 s of silence are too long
    assert find(code=IMPATIENT.format(1.8)).read_bytes() == FILES[WEIGHTS]
    assert asked(hub, repository) == 1


@pytest.mark.parametrize(
    'fault, message',
    [
        (hub_server.STALLED, 'timed out'),
        (hub_server.ENDLESS, 'it sends more than 3 times the 256,000 bytes of the file'),
        (hub_server.HUGE, 'it sends more than 3 times the 256,000 bytes of the file'),
        (hub_server.STORAGE_LOOP, 'redirects'),
        (hub_server.STORAGE_TO_FILE, 'protocol'),
        (hub_server.TO_FILE, 'protocol|http 404'),  # older clients ask the hub for its path
        pytest.param(hub_server.HUB_LOOP, 'redirects', marks=pytest.mark.skipif(OLDER, reason='asks without end')),
    ],
)
def test_a_download_that_fails(fault, message, find, hub, repository, folder):
    hub.faults[repository] = fault
    found = find(code=IMPATIENT.format(0.5) if fault == hub_server.STALLED else AT_ONCE)
    assert isinstance(found, str) and re.search(message, found.lower()), found
    assert found.startswith(f'{repository}: ') and f'{repository} from the Hugging Face hub' in found
    assert blobs(folder) == []
    assert asked(hub, repository) <= 21
    del hub.faults[repository]
    assert find().read_bytes() == FILES[WEIGHTS]


def test_a_small_file_with_wrong_bytes(find, hub, repository, folder):
    """Its ETag is the hash that git gives it."""
    hub.faults[repository] = hub_server.WRONG_CONFIG
    assert 'does not have the announced checksum (SHA-1 ' in find(CONFIG)
    assert blobs(folder) == []
    del hub.faults[repository]
    assert find(CONFIG).read_bytes() == FILES[CONFIG]


@pytest.mark.parametrize('name', [CONFIG, WEIGHTS])
def test_a_token_does_not_follow_to_another_host(name, find, hub, repository):
    hub.faults[repository] = hub_server.CONFIG_ELSEWHERE
    hub.requests.clear(), hub.tokens.clear()
    assert find(name, WITH_TOKEN).read_bytes() == FILES[name]
    tokens = {request.split()[0]: token for request, token in zip(hub.requests, hub.tokens, strict=True)}
    assert tokens['STORAGE'] is None and tokens['HEAD'] == f'Bearer {hub_server.TOKEN}'


def test_two_processes_at_once(worker, hub, repository, folder):
    """One downloads, the other waits for it."""
    hub.faults[repository] = hub_server.SLOW
    for _ in range(2):
        worker.start(repository, WEIGHTS, '')
    answers = [worker.answer() for _ in range(4)]
    (first, _), (second, _) = [answer for answer in answers if isinstance(answer, list)]
    assert first == second and Path(first).read_bytes() == FILES[WEIGHTS]
    assert asked(hub, repository) == 1 and len(blobs(folder)) == 1


def test_a_process_that_dies_while_it_downloads(worker, find, hub, repository):
    """Its lock ends with it, and what it had is not taken for the file."""
    hub.faults[repository] = hub_server.STALLED
    worker.start(repository, WEIGHTS, '')
    number = worker.answer()
    while not asked(hub, repository):
        time.sleep(0.01)
    os.kill(number, signal.SIGKILL)
    del hub.faults[repository]
    assert find().read_bytes() == FILES[WEIGHTS]


def test_a_read_only_cache(find, repository, folder, hub):
    error = find(code=READ_ONLY)
    assert 'Read-only file system' in error and str(folder.parent) in error
    assert not folder.exists()
    path = find()
    assert find(code=READ_ONLY) == path
    hub.faults[repository] = hub_server.DOWN
    assert find(code=READ_ONLY) == path


def test_a_full_disk(find, folder):
    error = find(code=FULL)
    assert 'could not be downloaded' in error and 'File too large' in error
    assert blobs(folder) == []
    assert find().read_bytes() == FILES[WEIGHTS]


def test_links_in_the_cache_that_lead_to_nothing(find, folder):
    path = find()
    blob = path.parent / os.readlink(path)
    blob.unlink()
    assert find().read_bytes() == FILES[WEIGHTS]
    for target in ('nothing', path.name):  # the second link leads to itself
        path.unlink()
        path.symlink_to(target)
        assert find().read_bytes() == FILES[WEIGHTS]
    blob.unlink()
    blob.symlink_to(blob)
    assert find().read_bytes() == FILES[WEIGHTS]


@pytest.mark.parametrize('kind', ['file', 'device', 'folder'])
def test_links_in_the_cache_that_lead_elsewhere(kind, find, tmp_path):
    """What they lead to stays as it was; the links are removed."""
    own = tmp_path / 'own'
    if kind == 'file':
        own.write_bytes(b"the user's own")
    elif kind == 'folder':
        own.mkdir()
    else:
        own = Path('/dev/zero')
    path = find()
    blob = path.parent / os.readlink(path)
    blob.unlink()
    blob.symlink_to(own)
    error = find()
    assert 'it was removed from the cache; try again' in error
    assert kind != 'file' or own.read_bytes() == b"the user's own"
    assert find().read_bytes() == FILES[WEIGHTS] and own.exists()


@pytest.mark.parametrize('kind', ['link', 'relative', 'repository'])
def test_a_cache_behind_a_link(kind, find, folder, hub, repository, tmp_path):
    """The whole cache, also a relative path, or the folder of the repository: damaged files are removed from it."""
    code = AT_ONCE
    if kind != 'repository':
        (tmp_path / 'cache').mkdir()
        (tmp_path / 'link').symlink_to(tmp_path / 'cache')
        cache = str(tmp_path / 'link') if kind == 'link' else os.path.relpath(tmp_path / 'cache')
        code = f'import functools; find = functools.partial(find, cache_dir={cache!r})'
    else:
        folder.parent.mkdir(exist_ok=True)
        folder.symlink_to(tmp_path)
    blob = find(code=code).resolve()
    blob.write_bytes(b'damaged')
    assert 'it was removed from the cache; try again' in find(code=code)
    assert not blob.exists() and find(code=code).read_bytes() == FILES[WEIGHTS]
    blob.write_bytes(b'damaged')
    hub.faults[repository] = hub_server.DOWN
    assert 'it was removed from the cache; try again' in find(code=code)
    assert not blob.exists()
