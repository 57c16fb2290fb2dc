"""``embed.py``: the features, shards that are whole or not there, going on after anything, and several hosts."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
import safetensors.numpy

import tresnet_jax
from tests.helpers.images import write_classes
from tests.helpers.paths import ROOT
from tests.helpers.processes import free_port
from tests.helpers.tar_files import image_members, write_tar
from tresnet_jax.cli import common, neighbours
from tresnet_jax.cli import embed as embed_command
from tresnet_jax.cli.embed import main
from tresnet_jax.data.transforms import create_transform, resolve_data_config
from tresnet_jax.errors import ConversionError
from tresnet_jax.models.functional import functional
from tresnet_jax.training import embedding

NAME = 'test_resnet.fashion_mnist'
MODEL = ('--model', NAME, '--pretrained')
DATA = ('--data', 'embedded:fashion_mnist', '--split', 'test[:60]')


@pytest.fixture
def embed(capsys, monkeypatch):
    """Run the command line; gives exit code, standard output, standard error without lines of progress."""
    monkeypatch.setattr(common, 'INTERVAL', float('inf'))

    def embed(*arguments) -> tuple[int, str, str]:
        code = main([str(a) for a in arguments])
        return code, *capsys.readouterr()

    return embed


@pytest.fixture
def toy(monkeypatch):
    """The mean colour in place of the network, which takes long to compile."""

    def apply(params, batch_stats, x):
        return x.mean((1, 2))

    monkeypatch.setattr(embed_command, 'functional', lambda model: (apply, *functional(model)[1:]))


def load(folder: Path) -> dict[str, np.ndarray]:
    """As scripts/embed.py says."""
    shards = [safetensors.numpy.load_file(path) for path in sorted(folder.glob('features-*.safetensors'))]
    found = {key: np.concatenate([shard[key] for shard in shards]) for key in ('features', 'labels', 'indices')}
    return found | {'names': json.loads((folder / 'names.json').read_text())}


def assert_same(a: Path, b: Path) -> None:
    """All files but for names, which say where the data were."""
    assert sorted(p.name for p in a.iterdir()) == sorted(p.name for p in b.iterdir())
    for path in a.glob('features-*'):
        assert path.read_bytes() == (b / path.name).read_bytes()


def test_features_are_those_before_the_classifier(embed, tmp_path):
    """Ten images of a folder without splits, on 4 devices, in shards of one batch of four."""
    images = write_classes(tmp_path / 'photos', {'class0': 5, 'class1': 5})
    out = tmp_path / 'out'
    data = ('--data', f'folder:{tmp_path / "photos"}')
    code, said, err = embed(*MODEL, *data, '--out', out, '--batch-size', 4, '--shard-size', 4)
    assert (code, err) == (0, '') and 'features of 10 images in 3 files' in said
    model = tresnet_jax.create_model(NAME, pretrained=True)
    transform = create_transform(**resolve_data_config(model))
    x = np.stack([transform(image) for image in images])
    head = jax.jit(lambda model, x: model.forward_head(model.forward_features(x), pre_logits=True))
    found = load(out)
    assert found['features'].dtype == np.float32 and found['features'].shape == (10, 96)
    np.testing.assert_allclose(found['features'], head(model, x), rtol=1e-4, atol=1e-5)
    assert found['labels'].tolist() == [0] * 5 + [1] * 5 and found['indices'].tolist() == list(range(10))
    assert found['labels'].dtype == found['indices'].dtype == np.int32
    assert [Path(found['names'][i]).name for i in found['indices']] == [f'{i:02}.png' for i in range(10)]
    index = json.loads((out / 'index.json').read_text())
    assert (index['model'], index['pictures'], index['class_names']) == (NAME, 10, ['class0', 'class1'])


def test_missing_shards_are_made_again_and_others_kept(embed, toy, tmp_path):
    flags = (*MODEL, *DATA, '--shard-size', 16)
    whole, out = tmp_path / 'whole', tmp_path / 'out'
    for folder in (whole, out):
        assert embed(*flags, '--out', folder, '--batch-size', 8)[0] == 0
    shards = sorted(out.glob('features-*'))
    assert [path.name for path in shards] == [f'features-0000{i}-of-00004.safetensors' for i in range(4)]
    for path in shards:
        os.utime(path, (1, 1))
    shards[1].unlink()
    shards[3].unlink()
    (out / '.features-00001-of-00004.safetensors.123.part').write_bytes(b'half of it')
    code, said, _ = embed(*flags, '--out', out, '--batch-size', 16)  # batches may change, shards may not
    assert code == 0 and 'already there: 2 files; wrote features of 28 images' in said
    assert_same(whole, out)
    assert [path.stat().st_mtime == 1 for path in shards] == [True, False, True, False]
    code, said, _ = embed(*flags, '--out', out)
    assert code == 2  # 256 images at a time make other shards
    code, said, _ = embed(*flags, '--out', out, '--batch-size', 8)
    assert code == 0 and 'already there: 4 files; wrote features of 0 images' in said


def test_a_sheet_of_nearest_neighbours(embed, tmp_path, monkeypatch):
    """By the mean of each row: images of the data with their neighbours, which are not the image itself."""
    sheets = []
    apply = lambda params, batch_stats, x: x.mean((2, 3))  # noqa: E731
    monkeypatch.setattr(embed_command, 'functional', lambda model: (apply, *functional(model)[1:]))
    monkeypatch.setattr(neighbours, 'contact_sheet', lambda *arguments, **options: sheets.append((arguments, options)))
    out, sheet = tmp_path / 'out', tmp_path / 'out' / 'sheet.png'  # in the folder that the program makes
    flags = (*MODEL, *DATA, '--shard-size', 16, '--batch-size', 16, '--out', out, '--sheet', sheet, '--neighbours', 3)
    code, said, err = embed(*flags)
    assert (code, err) == (0, '') and said.endswith(f'{sheet}: 8 images and 3 neighbours of each\n')
    ((images, captions, path), options) = sheets[0]
    assert (len(images), len(captions), path, options['columns']) == (32, 32, sheet, 4)
    found = load(out)
    features = found['features'] / np.linalg.norm(found['features'], axis=1, keepdims=True)
    similarities = features[-1] @ features.T
    order = np.argsort(-similarities, kind='stable')
    nearest = [index for index in order if index != 59][:3]
    names = tresnet_jax.class_names(NAME)
    assert captions[-4] == f'…dded:fashion_mnist test[:60] 59\n{names[found["labels"][59]]}'
    expected = [f'{names[found["labels"][index]]}\n{similarities[index]:.3f}' for index in nearest]
    assert captions[-3:] == expected


def test_neighbours_of_given_images(embed, tmp_path, monkeypatch):
    """An image of the data is its own nearest neighbour; the file is made from the features that are there."""
    sheets = []
    monkeypatch.setattr(neighbours, 'contact_sheet', lambda *arguments, **options: sheets.append(arguments))
    write_classes(tmp_path / 'photos', {'class0': 3, 'class1': 3})
    flags = (*MODEL, '--data', f'folder:{tmp_path / "photos"}', '--out', tmp_path / 'out', '--batch-size', 4)
    query = tmp_path / 'photos' / 'class1' / '04.png'
    code, said, err = embed(*flags, '--sheet', tmp_path / 'sheet.png', '--neighbours', 9, '--query', query)
    assert (code, err) == (0, '') and 'sheet.png: 1 image and 6 neighbours of each' in said
    assert sheets[0][1][:2] == ['04.png', 'class1\n1.000'] and len(sheets[0][1]) == 7


@pytest.mark.parametrize(
    'flags, message',
    [
        (('--neighbours', 3), '--query and --neighbours are for --sheet FILE.png, which is not given'),
        (('--sheet', 'missing/a.png'), '--sheet missing/a.png: cannot be written there'),
        (('--sheet', 'a.png', '--query', 'missing.png'), 'missing.png'),
        (('--sheet', 'a.png', '--neighbours', 0), '--neighbours must be positive, got 0'),
    ],
)
def test_wrong_flags_of_a_sheet_come_before_the_work(embed, tmp_path, monkeypatch, flags, message):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(embed_command, 'load_inputs', lambda *arguments, **options: pytest.fail('loaded in vain'))
    code, said, err = embed(*MODEL, *DATA, '--out', 'out', *flags)
    assert (code, said) == (2, '') and err.startswith('error: ') and message in err and err.count('\n') == 1


@pytest.mark.parametrize(
    'error, code, message',
    [
        (KeyboardInterrupt(), 130, 'interrupted; to resume '),
        (ConversionError('out: cannot be written: no space left'), 2, 'error: out: cannot be written: no space left'),
    ],
)
def test_stopped_in_the_middle_and_resumed(embed, toy, tmp_path, monkeypatch, error, code, message):
    flags = (*MODEL, *DATA, '--shard-size', 8, '--batch-size', 8)
    whole, out = tmp_path / 'whole', tmp_path / 'out'
    assert embed(*flags, '--out', whole)[0] == 0
    save = embedding.save_safetensors

    def fail(path, tensors):
        if '00003' in path.name:
            raise error
        save(path, tensors)

    monkeypatch.setattr(embedding, 'save_safetensors', fail)
    found, said, err = embed(*flags, '--out', out)
    assert (found, said) == (code, '') and err.startswith(message) and err.count('\n') == 1
    assert len(list(out.glob('features-*'))) == 3
    monkeypatch.setattr(embedding, 'save_safetensors', save)
    code, said, _ = embed(*flags, '--out', out)
    assert code == 0 and 'already there: 3 files; wrote features of 36 images' in said
    assert_same(whole, out)


def test_tar_shards_without_labels(embed, toy, tmp_path, monkeypatch):
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
    path = write_tar(tmp_path / 's.tar', image_members([None] * 3, key='dog/{}'))
    code, said, err = embed(*MODEL, '--data', f'wds:{path}', '--out', tmp_path / 'out', '--batch-size', 4)
    assert (code, err) == (0, '') and 'features of 3 images' in said
    found = load(tmp_path / 'out')
    assert (
        found['names'] == [f'{path}: dog/{number}.png' for number in range(3)] and found['labels'].tolist() == [0] * 3
    )


def test_another_model_or_data_is_an_error_and_changes_nothing(embed, toy, tmp_path):
    out = tmp_path / 'out'
    flags = (*MODEL, *DATA, '--out', out, '--batch-size', 20)
    assert embed(*flags)[0] == 0
    before = {path: path.read_bytes() for path in out.iterdir()}
    for changed, message in (
        (('--model', 'test_tresnet.fashion_mnist'), "model was 'test_resnet.fashion_mnist', is 'test_tresnet.f"),
        (('--split', 'test[:59]'), 'pictures was 60, is 59'),
        (('--image-size', '40'), 'data_config was'),
        (('--crop-pct', '0.9'), 'data_config was'),
        (('--dtype', 'bfloat16'), "dtype was 'float32', is 'bfloat16'"),
    ):
        code, _, err = embed(*flags, *changed)
        assert code == 2 and message in err and err.count('\n') == 1 and 'Give another --out' in err
    assert {path: path.read_bytes() for path in out.iterdir()} == before
    (out / 'index.json').unlink()
    code, _, err = embed(*flags)
    assert code == 2 and 'holds features but no index.json' in err


def test_other_weights_of_the_same_name(embed, toy, tmp_path):
    """A file that was replaced is another model."""
    from tresnet_jax.checkpoints.match import to_torch
    from tresnet_jax.checkpoints.write import save_torch

    file, out = tmp_path / 'weights.safetensors', tmp_path / 'out'
    flags = (
        '--model',
        'test_resnet',
        '--checkpoint',
        file,
        *DATA,
        '--out',
        out,
        '--batch-size',
        20,
        '--image-size',
        32,
    )
    tensors = to_torch(tresnet_jax.create_model(NAME, pretrained=True))
    save_torch(file, tensors)
    assert embed(*flags)[0] == 0
    tensors['conv1.0.weight'][0, 0, 0, 0] += 1
    save_torch(file, tensors)
    code, _, err = embed(*flags)
    assert code == 2 and 'weights_sha256 was' in err


def test_images_without_class_folders(embed, toy, tmp_path):
    """A damaged one has no features and is named."""
    images = write_classes(tmp_path / 'classes', {'class0': 3, 'class1': 3})
    flat, out = tmp_path / 'flat', tmp_path / 'out'
    flat.mkdir()
    for path in (tmp_path / 'classes').rglob('*.png'):
        path.rename(flat / path.name)
    (flat / '03.png').write_bytes(b'no image')
    flags = (*MODEL, '--data', f'folder:{flat}', '--out', out, '--batch-size', 4, '--max-unreadable', 0.2)
    code, said, _ = embed(*flags)
    assert code == 0 and 'features of 6 images' in said and 'wrote features of 5 images' in said
    found = load(out)
    assert found['indices'].tolist() == [0, 1, 2, 4, 5] and found['labels'].tolist() == [0] * 5
    assert [Path(name).name for name in found['names']] == [f'{i:02}.png' for i in range(6)]
    assert '03.png' in (out / 'unreadable.log').read_text()
    transform = create_transform(**resolve_data_config(NAME))
    np.testing.assert_allclose(found['features'][0], transform(images[0]).mean((0, 1)), atol=1e-5)


@pytest.mark.parametrize(
    'arguments, message',
    [
        ((*MODEL, *DATA, '--shard-size', 0), '--shard-size must be positive, got 0'),
        ((*MODEL, '--data', 'folder:empty'), 'no images in empty'),
        ((*MODEL, '--data', 'folder:missing'), 'the folder missing does not exist'),
        ((*MODEL, *DATA, '--out', 'file'), 'cannot be made'),
        (DATA, 'which model?'),
    ],
)
def test_mistakes_are_one_line(embed, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'empty').mkdir()
    (tmp_path / 'file').write_text('a file')
    code, out, err = embed('--out', 'out', *arguments)
    assert (code, out) == (2, '') and err.startswith('error: ') and message in err and err.count('\n') == 1


@pytest.mark.slow
def test_two_processes(embed, tmp_path):
    """Two processes with two devices each write every second shard, the same as one process alone."""
    flags = [*MODEL, *DATA, '--batch-size', '8', '--shard-size', '16']
    hosts = ['--coordinator', f'127.0.0.1:{free_port()}', '--num-processes', '2', '--process-id']
    command = [sys.executable, 'scripts/embed.py', *flags, '--out', str(tmp_path / 'two'), '--devices', '2', *hosts]
    pipes = {'stdout': subprocess.PIPE, 'stderr': subprocess.STDOUT, 'text': True}
    processes = [subprocess.Popen([*command, str(i)], cwd=ROOT, **pipes) for i in range(2)]
    said = [process.communicate(timeout=300)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], said
    assert 'process 0 of 2' in said[0] and 'wrote features of 32 images' in said[0]
    assert 'process 1 of 2' in said[1] and 'wrote features of 28 images' in said[1]
    assert embed(*flags, '--out', tmp_path / 'one')[0] == 0
    one, two = load(tmp_path / 'one'), load(tmp_path / 'two')
    np.testing.assert_allclose(two.pop('features'), one.pop('features'), rtol=1e-4, atol=1e-6)
    for key in ('labels', 'indices'):
        np.testing.assert_array_equal(one[key], two[key])
    assert one['names'] == two['names']
