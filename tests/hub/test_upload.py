"""`push_to_hub` against the hub of the tests, in a process of its own, as the client reads its settings on import."""

import json
import subprocess
import sys

import numpy as np
import pytest

import convert
import tresnet_jax
from tests.helpers import hub_uploads
from tests.helpers.hub_server import TOKEN, client_environment
from tests.helpers.paths import ROOT
from tresnet_jax.errors import HubError
from tresnet_jax.hub.model_card import describe, render
from tresnet_jax.variants import PRETRAINED

TAG = 'test_resnet.fashion_mnist'

# Lines of [repository, arguments] in, one answer for each out.
WORKER = """
import json, sys
import tresnet_jax
model = tresnet_jax.create_model('test_resnet.fashion_mnist', pretrained=True)
for line in sys.stdin:
    repository, arguments = json.loads(line)
    try:
        if arguments is None:
            again = tresnet_jax.create_model(f'hf-hub:{repository}', pretrained=True)
            answer = {'bias': again.get_classifier().bias[...].tolist(), 'names': again.pretrained_cfg.label_names}
        else:
            answer = {'url': tresnet_jax.push_to_hub(model, repository, **arguments)}
    except Exception as error:
        answer = {'type': type(error).__name__, 'error': str(error)}
    print('answer', json.dumps(answer), flush=True)
"""


@pytest.fixture(scope='module')
def ask(hub, tmp_path_factory):
    """A function that uploads to a repository, or loads it if the arguments are None."""
    # Xet is another protocol of the hub, which needs a server of its own.
    env = client_environment(tmp_path_factory.mktemp('home'), hub.endpoint, HF_HUB_DISABLE_XET='1')
    pipe = subprocess.PIPE
    process = subprocess.Popen(
        [sys.executable, '-c', WORKER], stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, text=True, env=env, cwd=ROOT
    )

    def ask(repository, arguments=None):
        process.stdin.write(json.dumps([repository, arguments]) + '\n')
        process.stdin.flush()
        for line in process.stdout:
            if line.startswith('answer '):
                return json.loads(line.removeprefix('answer '))
        raise AssertionError('the process ended')

    yield ask
    process.stdin.close()
    process.stdout.close()
    process.wait(30)


def test_a_model_comes_back(hub, ask, tmp_path):
    names = [f'kind {i}' for i in range(10)]
    answer = ask('org/whole', {
        'token': TOKEN, 'private': True, 'commit_message': 'The first', 'model_config': {'label_names': names},
        'data_config': {'crop_pct': 0.5}, 'model_args': {'drop_rate': 0.1},
    })  # fmt: skip
    files = hub.repositories['org/whole']
    assert answer == {'url': f'{hub.endpoint}/org/whole/commit/{hub.commit("org/whole")}'}
    assert set(files) == {'README.md', 'config.json', 'model.safetensors'}
    # Older clients say 'private', newer ones 'visibility'.
    assert (hub.created[-1].get('private'), hub.created[-1].get('visibility')) in ((True, None), (None, 'private'))
    assert hub.commits[-1]['summary'] == 'The first'
    assert hub.tokens[-1] == f'Bearer {TOKEN}'
    config = json.loads(files['config.json'])
    assert config['label_names'] == names and config['model_args']['drop_rate'] == 0.1
    assert config['pretrained_cfg']['crop_pct'] == 0.5 and config['architecture'] == 'test_resnet'

    model = tresnet_jax.create_model(TAG, pretrained=True)
    assert ask('org/whole') == {'bias': model.get_classifier().bias[...].tolist(), 'names': names}
    (tmp_path / 'model.safetensors').write_bytes(files['model.safetensors'])
    found = convert.read(tmp_path / 'model.safetensors').tensors
    for key, value in convert.to_torch(model).items():
        np.testing.assert_array_equal(found[key], value)


def test_the_card_of_an_upload(hub, ask):
    card = {'license': 'other', 'details': {'Dataset': ['a', 'b']}, 'tags': ['mine'], 'comparison': 'None.'}
    assert 'url' in ask('org/card', {'model_card': card, 'task_name': 'image-feature-extraction'})
    text = hub.repositories['org/card']['README.md'].decode()
    assert text.startswith(
        '---\npipeline_tag: "image-feature-extraction"\nlibrary_name: "tresnet_jax"\ntags: ["mine"]\n'
    )
    assert 'license: "other"\n---\n' in text and '- **Dataset:**\n  - a\n  - b\n' in text
    assert "create_model('hf-hub:org/card', pretrained=True)" in text and '## Model comparison\n\nNone.' in text


def test_a_pull_request(hub, ask):
    hub.repositories['org/other'] = {'notes.txt': b'stay'}
    answer = ask('org/other', {'create_pr': True, 'revision': 'main'})
    assert answer == {'url': f'{hub.endpoint}/org/other/discussions/1'}
    assert hub.repositories['org/other']['notes.txt'] == b'stay'


@pytest.mark.parametrize(
    'arguments, message',
    [
        ({'model_args': {'num_classes': 4}}, 'says num_classes 4, and the model has 10'),
        ({'model_config': {'architecture': 'resnet18d'}}, "says architecture 'resnet18d'"),
        ({'data_config': {'mean': 'grey'}}, "cannot be used: config.json: mean cannot be 'grey'"),
    ],
)  # fmt: skip
def test_a_configuration_of_another_model(hub, ask, arguments, message):
    answer = ask('org/never', arguments)
    assert answer['type'] == 'ValueError' and message in answer['error'] and '\n' not in answer['error']
    assert 'org/never' not in hub.repositories


def test_a_repository_that_cannot_be_written(hub, ask):
    hub.repositories['org/locked'], hub.faults['org/locked'] = {}, hub_uploads.READ_ONLY
    answer = ask('org/locked', {})
    assert answer['type'] == 'HubError' and answer['error'].startswith('org/locked: could not be uploaded: ')
    assert 'HTTP 403' in answer['error'] and '\n' not in answer['error'] and hub.repositories['org/locked'] == {}


@pytest.mark.parametrize('name', ['name', 'hf-hub:org/name', 'a/b/c'])
def test_names(name):
    with pytest.raises(HubError, match="expected 'org/name'"):
        tresnet_jax.push_to_hub(None, name)


@pytest.mark.parametrize('tag', [TAG, 'test_tresnet.fashion_mnist'])
def test_the_default_card(tag):
    """Published accuracies and the license are those of the tag's own weights, and a model does not tell."""
    model = tresnet_jax.create_model(tag, pretrained=True)
    text = render(describe(model, 'org/name', pretrained=True), 'name')
    accuracy = PRETRAINED[tag].accuracies[0]
    assert f'top-1 {accuracy.top1:g} %, top-5 {accuracy.top5:g} %' in text and 'license: "mit"' in text
    text = render(describe(tresnet_jax.create_model(tag), 'org/name'), 'name')
    assert 'top-1' not in text and 'license' not in text and tag not in text
    assert ('2003.13630' if 'tresnet' in tag else '1812.01187') in text


def test_the_example_of_the_card_runs(tmp_path, monkeypatch, capsys):
    model = tresnet_jax.create_model(TAG, pretrained=True)
    tresnet_jax.save_pretrained(model, tmp_path / 'saved')
    bag = ROOT / 'tresnet_jax' / 'embedded' / 'pictures' / '8_bag.png'
    (tmp_path / 'image.jpg').write_bytes(bag.read_bytes())
    monkeypatch.chdir(tmp_path)
    usage = describe(model, 'org/name')['usage'].replace('hf-hub:org/name', f'local-dir:{tmp_path / "saved"}')
    exec(usage.removeprefix('```python').removesuffix('```'), {})
    assert capsys.readouterr().out == '[8]\n'


def test_a_field_cannot_end_the_header():
    text = render({'license': 'mit\n---\nlicense: other', 'tags': ['a"\n---']}, 'name\n---')
    header, _, rest = text.removeprefix('---\n').partition('\n---\n')
    assert len(header.splitlines()) == 4 and rest.startswith('\n# Model card for name ---\n')
