"""The hub: the real client against a small hub on 127.0.0.1, in other processes, as it reads its settings on import."""

import hashlib
import json
import os
import pickle
import subprocess
import sys

import numpy as np
import pytest
import safetensors.numpy

import convert
import tresnet_jax
from tests.helpers import hub_server
from tests.helpers.hub_server import client_environment
from tresnet_jax.errors import HubError
from tresnet_jax.hub.client import split_source

# Lines of [name, options] in, one answer for each out. The client's waits are counted, not waited; its chunks are
# made smaller than our file, so that a cut comes between two of them as it would in a large one.
WORKER = """
import json, sys, time
waited = []
time.sleep = waited.append
from huggingface_hub import constants
constants.DOWNLOAD_CHUNK_SIZE = 16384
import tresnet_jax
for line in sys.stdin:
    name, options = json.loads(line)
    waited.clear()
    try:
        model = tresnet_jax.create_model(name, **options)
        answer = {'bias': model.get_classifier().bias[...].tolist(), 'name': model.pretrained_cfg.name}
    except Exception as error:
        answer = {'type': type(error).__name__, 'error': str(error)}
    print('answer', json.dumps({**answer, 'waited': sum(waited)}), flush=True)
"""


class Worker:
    """A process in which models are made."""

    def __init__(self, env, code=WORKER):
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(
            [sys.executable, '-c', code], stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, text=True, env=env
        )

    def create(self, name, pretrained=True, **options):
        self.process.stdin.write(json.dumps([name, {'pretrained': pretrained, **options}]) + '\n')
        self.process.stdin.flush()
        for line in self.process.stdout:
            if line.startswith('answer '):
                return json.loads(line.removeprefix('answer '))
        raise AssertionError('the process ended')

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.process.stdin.close()
        self.process.stdout.close()
        self.process.wait(30)


@pytest.fixture(scope='module')
def worker(hub, home):
    with Worker(client_environment(home, hub.endpoint)) as worker:
        yield worker


@pytest.fixture(scope='module')
def files(tmp_path_factory):
    """What a repository has."""
    folder = tmp_path_factory.mktemp('saved')
    tresnet_jax.save_pretrained(tresnet_jax.create_model('test_resnet', num_classes=5), folder)
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(scope='module')
def bias(files, tmp_path_factory):
    path = tmp_path_factory.mktemp('bias') / 'x.safetensors'
    path.write_bytes(files['model.safetensors'])
    return convert.read(path).tensors['fc.bias'].tolist()


@pytest.fixture
def repository(hub, files, request):
    """A repository of the test's own; no two tests share one, so that they can share hub, cache and worker."""
    name = 'org/' + hashlib.sha1(request.node.name.encode()).hexdigest()[:8]
    hub.repositories[name] = dict(files)
    return name


def cached(home, repository, pattern='snapshots/*/*'):
    return sorted(path.name for path in (home / 'hub' / f'models--{repository.replace("/", "--")}').glob(pattern))


def asked(hub, repository, what='STORAGE'):
    return sum(request.startswith(f'{what} {repository} ') for request in hub.requests)


def test_a_repository(worker, hub, home, repository, bias):
    """Its config.json says what it is, its weights are loaded, and the next time they come from the cache."""
    answer = worker.create(f'hf-hub:{repository}')
    assert answer['bias'] == bias and answer['name'] == f'hf-hub:{repository}'
    assert cached(home, repository) == ['config.json', 'model.safetensors']
    assert asked(hub, repository) == 1
    assert worker.create(f'hf-hub:{repository}@main')['bias'] == bias
    assert asked(hub, repository) == 1
    assert len(worker.create(f'hf-hub:{repository}', pretrained=False, num_classes=3)['bias']) == 3
    assert 'no such revision' in worker.create(f'hf-hub:{repository}@v2')['error']


def test_a_tag(worker, hub, home, tmp_path):
    """timm/ARCHITECTURE.TAG without its config.json, which the table stands for; and a new version of it."""
    tresnet_jax.save_pretrained(tresnet_jax.create_model('test_resnet.r160_in1k'), tmp_path)
    weights = (tmp_path / 'model.safetensors').read_bytes()
    name = 'timm/test_resnet.r160_in1k'
    hub.repositories[name] = {'model.safetensors': weights}
    first = worker.create('test_resnet.r160_in1k')
    assert first['bias'] == convert.read(tmp_path / 'model.safetensors').tensors['fc.bias'].tolist()
    assert first['name'] == 'test_resnet.r160_in1k'
    assert worker.create('test_resnet', num_classes=5)['name'] == 'test_resnet.r160_in1k'
    assert cached(home, name) == ['model.safetensors'] and asked(hub, name) == 1

    state = convert.to_torch(tresnet_jax.create_model('test_resnet.r160_in1k'))
    convert.save_torch(tmp_path / 'model.safetensors', {**state, 'fc.bias': np.ones_like(state['fc.bias'])})
    hub.repositories[name] = {'model.safetensors': (tmp_path / 'model.safetensors').read_bytes()}
    assert worker.create('test_resnet.r160_in1k')['bias'] == [1] * 1000 and asked(hub, name) == 2


def test_bin_where_there_is_no_safetensors(worker, hub, home, repository, bias):
    weights = hub.repositories[repository].pop('model.safetensors')
    answer = worker.create(f'hf-hub:{repository}')
    assert answer['type'] == 'HubError'
    assert f'{repository}: there is no model.safetensors or ' in answer['error']
    assert answer['error'].endswith(' or pytorch_model.bin or pytorch_model.bin.index.json in this repository')
    hub.repositories[repository]['pytorch_model.bin'] = weights  # recognised by its bytes
    assert worker.create(f'hf-hub:{repository}')['bias'] == bias
    assert cached(home, repository, 'snapshots/*/*model*') == ['pytorch_model.bin']
    hub.faults[repository] = hub_server.DOWN
    assert worker.create(f'hf-hub:{repository}')['bias'] == bias


def divided(files, stem, suffix):
    """What a repository of `files` has once its weights are in two files with an index."""
    state = safetensors.numpy.load(files['model.safetensors'])
    names = [f'{stem}-{number:05}-of-00002{suffix}' for number in (1, 2)]
    parts = [dict(list(state.items())[number::2]) for number in (0, 1)]
    save = safetensors.numpy.save if suffix == '.safetensors' else pickle.dumps
    index = {'weight_map': {key: name for name, part in zip(names, parts, strict=True) for key in part}}
    return {
        'config.json': files['config.json'],
        f'{stem.partition(".")[0]}{suffix}.index.json': json.dumps(index).encode(),
        **{name: save(part) for name, part in zip(names, parts, strict=True)},
    }


@pytest.mark.parametrize(
    'stem, suffix', [('model', '.safetensors'), ('pytorch_model', '.bin'), ('model.fp16', '.safetensors')]
)
def test_weights_in_several_files(stem, suffix, worker, hub, home, files, repository, bias):
    """All are of the commit of the index, and come from the cache the next time, also offline."""
    hub.repositories[repository] = divided(files, stem, suffix)
    assert worker.create(f'hf-hub:{repository}')['bias'] == bias
    assert cached(home, repository) == sorted(hub.repositories[repository])
    asked_before = asked(hub, repository)
    hub.faults[repository] = hub_server.DOWN
    assert worker.create(f'hf-hub:{repository}')['bias'] == bias and asked(hub, repository) == asked_before
    del hub.faults[repository]
    hub.repositories[repository]['README.md'] = b'another commit with the same weights'
    assert worker.create(f'hf-hub:{repository}')['bias'] == bias
    assert len({path.parent for path in home.glob(f'hub/*{repository[4:]}/snapshots/*/*')}) == 2


def test_one_of_several_files_that_fails(worker, hub, files, repository, bias):
    hub.repositories[repository] = divided(files, 'model', '.safetensors')
    part = hub.repositories[repository].pop('model-00002-of-00002.safetensors')
    error = worker.create(f'hf-hub:{repository}')['error']
    assert error == f'{repository}: there is no model-00002-of-00002.safetensors in this repository'
    hub.repositories[repository]['model-00002-of-00002.safetensors'] = part
    hub.faults[repository] = hub_server.WRONG_BYTES
    error = worker.create(f'hf-hub:{repository}')['error']
    assert 'does not have the announced checksum' in error
    hub.faults[repository] = hub_server.STORAGE_DOWN
    error = worker.create(f'hf-hub:{repository}')['error']
    assert error.endswith(f'fetch all files of {repository} into a folder and use local-dir:FOLDER as the name')
    del hub.faults[repository]
    assert worker.create(f'hf-hub:{repository}')['bias'] == bias


@pytest.mark.parametrize('name', ['../other/model.safetensors', '/etc/passwd', 'a/b.safetensors', '..', 'x.index.json'])
def test_an_index_that_names_files_elsewhere(name, worker, hub, files, repository):
    """Nothing is requested."""
    index = json.dumps({'weight_map': {'fc.bias': name}}).encode()
    hub.repositories[repository] = {'config.json': files['config.json'], 'model.safetensors.index.json': index}
    answer = worker.create(f'hf-hub:{repository}')
    assert 'expected the name of a file in its folder' in answer['error'] and answer['type'] == 'ConversionError'
    assert {request.split()[-1] for request in hub.requests if repository in request} == {
        *hub.repositories[repository], 'model.safetensors',
    }  # fmt: skip


def test_a_renamed_repository(worker, hub, repository, bias):
    hub.renamed['org/old'] = repository
    assert worker.create('hf-hub:org/old')['bias'] == bias


FETCH = 'fetch config.json and model.safetensors of org/'


@pytest.mark.parametrize(
    'fault, messages',
    [
        (None, ['there is no such repository, or it is private (HTTP 404)', FETCH]),
        (hub_server.PRIVATE, ['private (HTTP 401)', 'HF_TOKEN', FETCH]),
        (hub_server.GATED, ['on request only (HTTP 403)', FETCH]),
        (hub_server.DOWN, ['http://127.0.0.1', 'answers HTTP 503', 'is not in the cache', FETCH]),
        (hub_server.PORTAL, ["is not a hub's", FETCH]),
    ],
)
def test_a_hub_that_does_not_give(fault, messages, worker, hub, repository):
    """One question, one line."""
    hub.faults[repository] = fault
    if fault is None:
        del hub.repositories[repository]
    answer = worker.create(f'hf-hub:{repository}')
    assert answer['type'] == 'HubError' and answer['error'].startswith(f'{repository}: ')
    assert all(message in answer['error'] for message in messages), answer['error']
    assert '\n' not in answer['error'] and 'Traceback' not in answer['error']
    assert answer['waited'] == 0 and asked(hub, repository, 'HEAD') == 1


def test_a_hub_that_is_silent(hub, home, repository):
    hub.faults[repository] = hub_server.SILENT
    with Worker(client_environment(home, hub.endpoint, HF_HUB_ETAG_TIMEOUT='1')) as impatient:
        answer = impatient.create(f'hf-hub:{repository}')
    assert answer['type'] == 'HubError' and answer['error'].startswith(f'{repository}: http://127.0.0.1')
    assert 'timed out' in answer['error'] and FETCH in answer['error'] and '\n' not in answer['error']
    assert answer['waited'] == 0 and asked(hub, repository, 'HEAD') == 1


@pytest.mark.parametrize(
    'fault, message, times',
    [
        (hub_server.CUT, 'peer closed connection', 7),
        (hub_server.CUT_AFRESH, 'it sends more than 3 times the ', 7),
        (hub_server.WRONG_SIZE, 'should be of size', 1),
        (hub_server.WRONG_BYTES, 'does not have the announced checksum (SHA-256 ', 1),
        (hub_server.STORAGE_DOWN, 'answers HTTP 503', 1),
        (hub_server.TRAVERSAL, "is not a hub's", 0),
    ],
)
def test_a_download_that_fails(fault, message, times, worker, hub, home, repository, bias):
    """It ends, says why, leaves nothing of it in the cache, and the next one works."""
    hub.faults[repository] = fault
    answer = worker.create(f'hf-hub:{repository}')
    assert answer['type'] == 'HubError' and message in answer['error'], answer
    assert 'model.safetensors' in answer['error'] or fault == hub_server.TRAVERSAL
    assert '\n' not in answer['error'] and answer['waited'] <= 10
    assert asked(hub, repository) <= times
    assert cached(home, repository) == ['config.json']
    assert len(cached(home, repository, 'blobs/*')) == 1
    assert not list(home.parent.rglob('*escaped*'))
    del hub.faults[repository]
    assert worker.create(f'hf-hub:{repository}')['bias'] == bias


def test_a_cut_download_goes_on_where_it_was_cut(worker, hub, repository, bias):
    hub.faults[repository] = hub_server.CUT_ONCE
    assert worker.create(f'hf-hub:{repository}')['bias'] == bias
    assert asked(hub, repository) == 2


def test_files_are_verified_once(worker, hub, home, repository, bias):
    """Also those that another program downloaded; again when the file has changed since."""
    assert worker.create(f'hf-hub:{repository}')['bias'] == bias
    digest = hashlib.sha256(hub.repositories[repository]['model.safetensors']).hexdigest()
    note = home / 'assets' / 'tresnet_jax' / 'hub' / 'verified' / digest
    assert note.is_file()
    (blob,) = (home / 'hub').glob(f'models--{repository.replace("/", "--")}/blobs/{digest}')
    status = blob.stat()
    content = bytearray(blob.read_bytes())
    content[-1] ^= 1
    blob.write_bytes(content)
    os.utime(blob, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert 'error' not in worker.create(f'hf-hub:{repository}')  # not hashed again
    os.utime(blob)
    assert 'does not have the announced checksum' in worker.create(f'hf-hub:{repository}')['error']
    assert not blob.exists()
    assert worker.create(f'hf-hub:{repository}')['bias'] == bias


def test_a_token_goes_to_the_hub_and_not_to_the_storage(hub, repository, bias, tmp_path):
    hub.faults[repository] = hub_server.PRIVATE
    hub.requests.clear(), hub.tokens.clear()
    with Worker(client_environment(tmp_path, hub.endpoint, HF_TOKEN=hub_server.TOKEN)) as worker:
        assert worker.create(f'hf-hub:{repository}')['bias'] == bias
    tokens = {request.split()[0]: token for request, token in zip(hub.requests, hub.tokens, strict=True)}
    assert tokens['STORAGE'] is None and tokens['HEAD'] == f'Bearer {hub_server.TOKEN}'


@pytest.mark.parametrize('offline', [True, False])
def test_without_a_network(offline, worker, hub, home, repository, bias, tmp_path):
    """What is in the cache is loaded, and what is not is asked for by name: offline by setting, or in fact."""
    worker.create(f'hf-hub:{repository}')
    endpoint, more = (hub.endpoint, {'HF_HUB_OFFLINE': '1'}) if offline else ('http://127.0.0.1:9', {})
    before = len(hub.requests)
    with Worker(client_environment(home, endpoint, **more)) as lone:
        assert lone.create(f'hf-hub:{repository}')['bias'] == bias
        answer = lone.create('resnet18d.ra2_in1k')
    assert len(hub.requests) == before
    reason = 'HF_HUB_OFFLINE is set' if offline else 'http://127.0.0.1:9: [Errno'
    assert answer['type'] == 'HubError' and answer['waited'] == 0
    assert answer['error'].startswith(f'timm/resnet18d.ra2_in1k: {reason}')
    assert str(home) in answer['error']
    fetch = 'fetch model.safetensors of timm/resnet18d.ra2_in1k from the Hugging Face hub and pass checkpoint=PATH'
    assert answer['error'].endswith(fetch)


def test_without_huggingface_hub(monkeypatch):
    monkeypatch.setitem(sys.modules, 'huggingface_hub', None)
    with pytest.raises(HubError, match='pip install huggingface_hub; or fetch model.safetensors of timm/resnet18d'):
        tresnet_jax.create_model('resnet18d.ra2_in1k', pretrained=True)


def test_names():
    assert split_source('resnet50d.a1_in1k') is None
    assert split_source('hf-hub:org/name@v1') == ('hf-hub', 'org/name@v1')
    assert split_source('hf_hub:org/name') == ('hf-hub', 'org/name')
    assert split_source('local-dir:C:\\weights') == ('local-dir', 'C:\\weights')


@pytest.mark.parametrize(
    'name, message',
    [
        ('org/name', "write 'hf-hub:org/name' for the hub or 'local-dir:org/name'"),
        ('C:\\weights', 'local-dir:C:'),
        ('s3:bucket', "unknown source 's3'"),
        ('hf-hub:', 'nothing after the colon'),
        ('hf-hub:../../etc', 'cannot be a repository'),
        ('local-dir:/nowhere', 'no such folder'),
    ],
)
def test_names_that_mean_nothing(name, message):
    with pytest.raises(HubError, match=message):
        tresnet_jax.create_model(name, pretrained=True)


def test_importing_does_not_ask_for_the_client():
    code = 'import sys, tresnet_jax; tresnet_jax.create_model("test_resnet"); print("huggingface_hub" in sys.modules)'
    result = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == 'False'


def test_the_bias_is_worth_comparing(bias):
    assert np.std(bias) > 0


def test_cache_dir_holds_what_is_downloaded(worker, home, repository, bias, tmp_path):
    """Configuration and weights go to the given folder, not to the Hugging Face cache, and are found there again."""
    for _ in range(2):
        assert worker.create(f'hf-hub:{repository}', cache_dir=str(tmp_path))['bias'] == bias
    folder = tmp_path / f'models--{repository.replace("/", "--")}'
    assert sorted(path.name for path in folder.glob('snapshots/*/*')) == ['config.json', 'model.safetensors']
    assert cached(home, repository) == []
