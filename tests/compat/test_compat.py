"""Files of every format and version that this package ever wrote load; those of newer versions are refused."""

import gzip
import json
import lzma
import shutil
import tarfile
from pathlib import Path

import jax
import numpy as np
import pytest
import safetensors.numpy

import convert
import tresnet_jax
from tresnet_jax.checkpoints.run import MODEL_FILE
from tresnet_jax.cli import train
from tresnet_jax.errors import ConversionError
from tresnet_jax.formats import CHECKPOINT, EXPORTED, FEATURES
from tresnet_jax.training.embedding import INDEX_FILE, Shards

HERE = Path(__file__).parent


def names(kind: str) -> list[str]:
    return sorted(path.name for path in HERE.glob(f'{kind}_*.*'))


def unpacked(name: str, folder: Path) -> Path:
    """Return the file or the folder of an archive, unpacked into `folder`."""
    path = folder / name.partition('.')[0]
    if name.endswith('.tar.xz'):
        with tarfile.open(HERE / name) as archive:
            archive.extractall(folder, filter='data')
        (top,) = {member.parts[0] for member in map(Path, tarfile.open(HERE / name).getnames())}
        return folder / top
    path = path.with_suffix(Path(name.rpartition('.')[0]).suffix)
    opened = lzma.open if name.endswith('.xz') else gzip.open
    with opened(HERE / name) as source, path.open('wb') as target:
        shutil.copyfileobj(source, target)
    return path


def assert_leaves_count(model) -> None:
    """In the order of the trees, every value of the n-th leaf is (n mod 256) / 256."""
    _, params, batch_stats = tresnet_jax.functional(model)
    leaves = jax.tree.leaves((params, batch_stats))
    assert len(leaves) > 50
    for number, leaf in enumerate(leaves, 1):
        np.testing.assert_array_equal(leaf, np.float32(number % 256 / 256))


def test_there_is_a_file_of_every_version():
    for kind, version in (
        ('flax', CHECKPOINT.version), ('run', CHECKPOINT.version), ('export', EXPORTED.version),
        ('features', FEATURES.version),
    ):  # fmt: skip
        for number in range(version + 1):
            assert [name for name in names(kind) if name.startswith((f'{kind}_{number}_', f'{kind}_{number}.'))]
    table = (HERE / 'README.md').read_text(encoding='utf-8')
    found = [name for kind in ('flax', 'run', 'export', 'features') for name in names(kind)]
    assert len(found) >= 18 and all(f'| `{name}` |' in table for name in found)


@pytest.mark.parametrize('name', names('flax'))
def test_a_flax_file_loads(name, tmp_path):
    path = unpacked(name, tmp_path)
    assert_leaves_count(tresnet_jax.create_model('test_tresnet', checkpoint=path))
    convert.save_torch(tmp_path / 'timm.safetensors', convert.to_torch(*convert.to_flax(convert.read(path))[:2]))


@pytest.mark.parametrize('name', names('run'))
def test_a_run_loads(name, tmp_path):
    folder = unpacked(name, tmp_path)
    model = tresnet_jax.create_model('test_tresnet', checkpoint=folder)
    assert model.pretrained_cfg.mean == (0.4, 0.5, 0.6) and model.pretrained_cfg.crop_pct == 0.9
    if name != 'run_0_config.tar.xz':
        assert tresnet_jax.class_names(model) == tuple(f'kind {i}' for i in range(10))
    assert_leaves_count(model)


@pytest.mark.parametrize('name', names('export'))
def test_an_exported_model_runs(name, tmp_path):
    loaded = tresnet_jax.load_exported(unpacked(name, tmp_path))
    assert loaded.metadata['architecture'] == 'test_tresnet' and loaded.metadata['class_names'][9] == 'Ankle boot'
    logits = np.asarray(loaded(np.ones((1, 32, 32, 3), np.float32)))
    assert logits.shape == (1, 10) and np.ptp(logits) < 1e-3 * logits.max()  # equal weights, equal logits


@pytest.mark.parametrize('name', names('features'))
def test_features_resume(name, tmp_path):
    folder = unpacked(name, tmp_path)
    identity = {'model': 'test_tresnet.fashion_mnist', 'data': 'embedded:fashion_mnist'}
    shards = Shards(folder, identity, batches=4, batches_per_shard=2)
    assert shards.open(['a.png', 'b.png']) == [True, False]


MESSAGE = (
    rf'has format version 99, and tresnet_jax {tresnet_jax.__version__} reads up to 1; run: pip install '
    r"'tresnet_jax>=7\.2\.0'$"
)
NEWER = {'format_version': 99, 'readable_since': '7.2.0'}


def newer_flax(tmp_path: Path, fields: dict) -> Path:
    path = unpacked('flax_1.safetensors.xz', tmp_path)
    with safetensors.safe_open(path, 'np') as file:
        metadata, tensors = file.metadata(), file.get_tensors()
    safetensors.numpy.save_file(tensors, path, metadata | {key: str(value) for key, value in fields.items()})
    return path


def test_a_newer_flax_file_is_refused(tmp_path):
    path = newer_flax(tmp_path, NEWER)
    with pytest.raises(ConversionError, match=MESSAGE):
        tresnet_jax.create_model('test_tresnet', checkpoint=path)


@pytest.mark.parametrize('release', ['', "1.0' --index-url https://elsewhere '", '1.0\n', '1', '\x1b[31m'])
def test_the_release_in_the_message_is_one(tmp_path, release):
    """The file may come from anyone; the message is a command to copy."""
    path = newer_flax(tmp_path, NEWER | {'readable_since': release})
    with pytest.raises(ConversionError, match='run: pip install --upgrade tresnet_jax$'):
        convert.read(path)


@pytest.mark.parametrize('version', ['', 'new', '-1', '1.5', '9' * 5000, '\u0661'])
def test_a_version_that_is_no_number_is_refused(tmp_path, version):
    path = newer_flax(tmp_path, {'format_version': version})
    with pytest.raises(ConversionError, match='format_version must be a whole number, got') as caught:
        convert.read(path)
    assert len(str(caught.value)) < 400 and '\n' not in str(caught.value)


@pytest.mark.parametrize('version', [True, None, [1], 2.0])
def test_a_version_of_another_type_is_refused(version):
    with pytest.raises(ConversionError, match='must be a whole number'):
        CHECKPOINT.check('file', {'format_version': version})


def test_a_newer_run_is_refused(tmp_path, capsys):
    folder = unpacked('run_1.tar.xz', tmp_path)
    file = folder / MODEL_FILE
    file.write_text(json.dumps(json.loads(file.read_text()) | NEWER))
    with pytest.raises(ConversionError, match=MESSAGE):
        tresnet_jax.create_model('test_tresnet', checkpoint=folder)
    # Its configuration may have options that this release does not know; the version is checked first.
    (folder / 'config.json').write_text('{"new": 1}')
    before = sorted(path.name for path in folder.rglob('*'))
    assert train.main(['--workdir', str(folder)]) == 2
    assert "pip install 'tresnet_jax>=7.2.0'" in capsys.readouterr().err
    assert sorted(path.name for path in folder.rglob('*')) == before


def test_a_newer_exported_model_is_refused(tmp_path):
    path = unpacked('export_1.stablehlo.xz', tmp_path)
    program, newline, line = path.read_bytes().rpartition(b'\n')
    path.write_bytes(program + newline + json.dumps(json.loads(line) | NEWER).encode())
    with pytest.raises(ConversionError, match=MESSAGE):
        tresnet_jax.load_exported(path)


def test_newer_features_are_refused(tmp_path):
    folder = unpacked('features_1.tar.xz', tmp_path)
    index = folder / INDEX_FILE
    index.write_text(json.dumps(json.loads(index.read_text()) | NEWER))
    with pytest.raises(ConversionError, match=MESSAGE):
        Shards(folder, {}, batches=4, batches_per_shard=2).open(['a.png', 'b.png'])
