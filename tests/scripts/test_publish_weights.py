"""Publishing of pretrained weights, with the embedded tags."""

import importlib.util
import shutil

import numpy as np
import publish_weights
import pytest

import tresnet_jax
from tests.helpers.paths import EMBEDDED
from tresnet_jax.cli import evaluate
from tresnet_jax.files import sha256

TAG = 'test_resnet.fashion_mnist'


@pytest.fixture
def weights(tmp_path, monkeypatch):
    """A folder with the checkpoint of one tag. Without timm, embedded tags are compared with its stored outputs."""
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None if name == 'timm' else find_spec(name))
    folder = tmp_path / 'weights'
    folder.mkdir()
    shutil.copy(EMBEDDED / f'{TAG}.safetensors', folder)
    (folder / 'notes.txt').write_text('no tag')
    return folder


def test_a_folder_for_the_hub(weights, tmp_path, capsys):
    out = tmp_path / 'out'
    assert publish_weights.main([str(weights), '--org', 'me', '--out', str(out)]) == 0
    printed = capsys.readouterr().out
    assert "largest difference from timm's stored outputs" in printed and "upload_folder(repo_id='me/" in printed
    assert sorted(path.name for path in out.iterdir()) == [TAG]
    assert sorted(path.name for path in (out / TAG).iterdir()) == ['README.md', 'config.json', 'model.safetensors']
    model = tresnet_jax.create_model(f'local-dir:{out / TAG}', pretrained=True)
    expected = tresnet_jax.create_model(TAG, pretrained=True)
    images = np.ones((1, 32, 32, 3), np.float32)
    np.testing.assert_array_equal(model(images), expected(images))
    assert (
        tresnet_jax.class_names(model)[9] == 'Ankle boot' and model.pretrained_cfg.mean == expected.pretrained_cfg.mean
    )
    card = (out / TAG / 'README.md').read_text(encoding='utf-8')
    assert f"create_model('hf-hub:me/{TAG}', pretrained=True)" in card and 'top-1 91.99 %' in card
    assert sha256(out / TAG / 'model.safetensors') in card and 'license: "mit"' in card

    assert publish_weights.main([str(weights), '--org', 'me', '--out', str(out)]) == 2
    assert 'exists already' in capsys.readouterr().err


@pytest.mark.parametrize('code', [0, 1])
def test_evaluation(weights, tmp_path, monkeypatch, code, capsys):
    flags = []
    monkeypatch.setattr(evaluate, 'main', lambda argv: flags.extend(argv) or code)
    out = tmp_path / 'out'
    arguments = [str(weights), '--org', 'me', '--out', str(out), '--no-verify', '--data', 'npz:all.npz']
    assert publish_weights.main([*arguments, '--val-split', 'test']) == 2 * code
    assert flags[:2] == ['--model', TAG] and flags[4:] == ['--data', 'npz:all.npz', '--split', 'test', '--check']
    if code:
        assert 'does not have the published accuracies' in capsys.readouterr().err and not list(out.iterdir())
    else:
        assert 'agree with the published accuracies on npz:all.npz' in (out / TAG / 'README.md').read_text()


def test_weights_of_another_network_leave_nothing(weights, tmp_path, capsys):
    shutil.copy(EMBEDDED / 'test_tresnet.fashion_mnist.safetensors', weights / f'{TAG}.safetensors')
    out = tmp_path / 'out'
    assert publish_weights.main([str(weights), '--org', 'me', '--out', str(out)]) == 2
    assert 'was not published' in capsys.readouterr().err and not list(out.iterdir())


def test_what_is_found(weights):
    assert publish_weights.sources(weights) == {TAG: weights / f'{TAG}.safetensors'}
    (weights / 'resnet50d.a1_in1k').mkdir()
    assert sorted(publish_weights.sources(weights)) == ['resnet50d.a1_in1k', TAG]
    (weights / f'{TAG}.pth').touch()
    with pytest.raises(publish_weights.ConversionError, match='keep one of them'):
        publish_weights.sources(weights)
    with pytest.raises(publish_weights.ConversionError, match='cannot be read'):
        publish_weights.sources(weights / 'none')
    (weights / 'empty').mkdir()
    with pytest.raises(publish_weights.ConversionError, match='holds no file or folder'):
        publish_weights.sources(weights / 'empty')
