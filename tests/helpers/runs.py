"""Training configurations of small runs, and folders of runs that were never trained."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import grain
import jax
import numpy as np
import optax
import tensorstore

import tresnet_jax
from tresnet_jax.checkpoints.run import save_description
from tresnet_jax.models.functional import functional
from tresnet_jax.training.batches import eval_data_config
from tresnet_jax.training.checkpoint import Checkpoints
from tresnet_jax.training.config import TrainConfig
from tresnet_jax.training.devices import replicate
from tresnet_jax.training.run_config import save_config
from tresnet_jax.training.step import TrainState, create_state

CONFIG = TrainConfig(
    model='test_resnet', data='embedded:fashion_mnist', val_split='test[:40]', num_classes=10, image_size=32,
    mean=(0.4, 0.5, 0.6), std=(0.25, 0.5, 0.75), interpolation='bilinear', crop_pct=0.9, crop_mode='center',
    model_ema=True,
)  # fmt: skip


# Eight steps with mixup, erasing, stochastic depth and moving averages.
TINY = TrainConfig(
    model='test_resnet', data='embedded:fashion_mnist', train_split='train[:96]', val_split='test[:40]', image_size=32,
    batch_size=16, val_batch_size=16, steps=8, eval_every=0.7, checkpoint_every=3, log_every=2, crop='pad',
    warmup_epochs=0, lr=0.05, mixup=0.2, reprob=0.3, drop_path=0.1, model_ema=True, model_ema_decay=0.5, devices=2,
    threads=2, dtype='float32', interpolation='bicubic', crop_pct=0.875, crop_mode='center',
)  # fmt: skip


def make_run(
    folder: Path, config: TrainConfig = CONFIG, steps: dict[int, float | None] | None = None, devices: int = 1
) -> TrainState:
    """Save the folder of a run and return the state of its first checkpoint as NumPy arrays.

    The averaged weights are the pretrained ones, the others half of them. The n-th checkpoint holds n times the state.

    Args:
        folder: the folder to make.
        config: the configuration of the run.
        steps: the top-1 accuracy of each checkpoint by its step; None: steps 3, 5 and 7, of which 3 is the best and 7
            was not evaluated.
        devices: the number of devices that save the first checkpoint; more take longer.
    """
    model = tresnet_jax.create_model(f'{config.model}.fashion_mnist', pretrained=True, abn_slope=config.abn_slope)
    _, params, batch_stats = functional(model)
    state = create_state(params, batch_stats, optax.sgd(0.1, momentum=0.9), config.model_ema)
    state = jax.tree.map(np.asarray, state)
    state = dataclasses.replace(state, params=jax.tree.map(lambda leaf: leaf / 2, state.params))
    folder.mkdir(exist_ok=True)
    save_config(config, folder)
    save_description(folder, model, eval_data_config(config), None)
    checkpoints = Checkpoints(folder, keep_last=5, keep_best=1)
    data = iter(grain.MapDataset.source([0]).to_iter_dataset())
    for number, (step, top1) in enumerate((steps or {3: 0.5, 5: 0.25, 7: None}).items(), 1):
        scaled = jax.tree.map(lambda leaf, number=number: leaf * leaf.dtype.type(number), state)
        saved = replicate(scaled, jax.devices()[: devices if number == 1 else 1])
        checkpoints.save(step, saved, data)
        if top1 is not None:
            checkpoints.rate(step, top1)
    checkpoints.close()
    return state


def change_arrays(state: Path, suffix: str, change: Callable[[bytes], bytes]) -> None:
    """Change what the state of a checkpoint stores under the keys with a suffix.

    Args:
        state: the folder of the state.
        suffix: '/zarr.json' for the descriptions of arrays, '/c/0' for the data of vectors.
        change: a function from the bytes stored under one key to others.
    """
    store = tensorstore.KvStore.open({'driver': 'ocdbt', 'base': {'driver': 'file', 'path': f'{state}/'}}).result()
    for key in store.list().result():
        if key.endswith(suffix.encode()):
            store.write(key, change(store.read(key).result().value)).result()
