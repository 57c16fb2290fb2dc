"""Write one small file of each format with the code of today: ``python -m tests.compat.make`` in an empty folder.

The files are compressed and named after the versions of their formats.
"""

import lzma
import shutil
import tarfile
from pathlib import Path

import grain
import jax
import numpy as np
import optax
from flax import nnx

import convert
import tresnet_jax
from tresnet_jax.checkpoints.run import save_description
from tresnet_jax.checkpoints.write import save_safetensors
from tresnet_jax.factory import embedded_path
from tresnet_jax.formats import CHECKPOINT, EXPORTED, FEATURES
from tresnet_jax.models.base import Tree
from tresnet_jax.models.functional import functional
from tresnet_jax.training.batches import eval_data_config
from tresnet_jax.training.checkpoint import Checkpoints
from tresnet_jax.training.config import TrainConfig
from tresnet_jax.training.devices import replicate
from tresnet_jax.training.embedding import Shards
from tresnet_jax.training.run_config import save_config
from tresnet_jax.training.step import create_state
from tresnet_jax.variants import PRETRAINED

TAG = 'test_tresnet.fashion_mnist'


def counted(tree: Tree) -> Tree:
    """Return a tree whose n-th leaf has the value (n mod 256) / 256 everywhere."""
    leaves, structure = jax.tree.flatten(tree)
    return structure.unflatten(np.full(leaf.shape, n % 256 / 256, np.float32) for n, leaf in enumerate(leaves, 1))


def make_flax(path: Path) -> None:
    """Write a file of `save_flax`."""
    params, batch_stats, report = convert.to_flax(convert.read(embedded_path(PRETRAINED[TAG])), 'test_tresnet')
    convert.save_flax(path, *counted((params, batch_stats)), report)


def make_run(folder: Path) -> None:
    """Save the folder of a run with one checkpoint."""
    config = TrainConfig(
        model='test_tresnet', data='embedded:fashion_mnist', num_classes=10, image_size=32, mean=(0.4, 0.5, 0.6),
        std=(0.25, 0.5, 0.75), interpolation='bilinear', crop_pct=0.9,
    )  # fmt: skip
    model = tresnet_jax.create_model('test_tresnet', num_classes=10)
    state = create_state(*counted(functional(model)[1:]), optax.sgd(0.1), False)
    folder.mkdir()
    save_config(config, folder)
    save_description(folder, model, eval_data_config(config), [f'kind {i}' for i in range(10)])
    checkpoints = Checkpoints(folder, keep_last=1, keep_best=1)
    data = iter(grain.MapDataset.source([0]).to_iter_dataset())
    checkpoints.save(4, replicate(state, jax.devices()[:1]), data)
    checkpoints.rate(4, 0.5)
    checkpoints.close()


def make_exported(path: Path) -> None:
    """Write a file of `export`."""
    model = tresnet_jax.create_model(TAG, pretrained=True)
    nnx.update(model, jax.tree.map(lambda leaf: np.full(leaf.shape, 1 / 64, np.float32), nnx.state(model)))
    tresnet_jax.export(model, path, image_size=32, platforms=['cpu'], batch=1)


def make_features(folder: Path) -> None:
    """Write a folder of `embed.py`: two shards, of which one is finished."""
    shards = Shards(folder, {'model': TAG, 'data': 'embedded:fashion_mnist'}, batches=4, batches_per_shard=2)
    shards.open(['a.png', 'b.png'])
    features = {'features': np.ones((2, 3), np.float32), 'labels': np.arange(2, dtype=np.int32)}
    features |= {'indices': features['labels']}
    save_safetensors(shards.path(0), features)


def anonymous(member: tarfile.TarInfo) -> tarfile.TarInfo:
    """Return a member of an archive without its owner."""
    return member.replace(uid=0, gid=0, uname='', gname='', deep=False)


def pack(path: Path) -> None:
    """Replace a file or a folder by its compressed form."""
    if path.is_dir():
        with tarfile.open(f'{path}.tar.xz', 'w:xz') as archive:
            archive.add(path, path.name, filter=anonymous)
        return shutil.rmtree(path)
    Path(f'{path}.xz').write_bytes(lzma.compress(path.read_bytes()))
    path.unlink()


def main() -> None:
    """Write all files into the current folder."""
    for make, name in (
        (make_flax, f'flax_{CHECKPOINT.version}.safetensors'),
        (make_run, f'run_{CHECKPOINT.version}'),
        (make_exported, f'export_{EXPORTED.version}.stablehlo'),
        (make_features, f'features_{FEATURES.version}'),
    ):
        make(Path(name))
        pack(Path(name))


if __name__ == '__main__':
    main()
