"""Pooled features of a large data set, written to a folder of shards. Resumable after any interruption."""

import contextlib
import dataclasses
import hashlib
import json
import reprlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from tresnet_jax.checkpoints.write import save_safetensors
from tresnet_jax.errors import TrainingError, reason
from tresnet_jax.files import read_json, save_text
from tresnet_jax.formats import FEATURES
from tresnet_jax.models.base import Tree
from tresnet_jax.training.devices import AXIS
from tresnet_jax.training.evaluate import one_behind
from tresnet_jax.training.step import Batch, normalise

INDEX_FILE, NAMES_FILE = 'index.json', 'names.json'


@dataclasses.dataclass(frozen=True)
class Shards:
    """A folder of features: index.json describes them, names.json lists the images, and shards hold the features.

    A shard ``features-00003-of-00079.safetensors`` holds `features` (n, F) float32, `labels` (n,) int32 and `indices`
    (n,) int32: positions in names.json, ascending. With any number of classes per image, `labels` are (n, classes)
    float32. Unreadable images have no features. A shard is complete or absent.

    Attributes:
        folder: the folder.
        identity: what makes features comparable: model, weights, data, size. Resuming requires the same values.
        batches: number of batches in all.
        batches_per_shard: number of batches in each shard but the last.
    """

    folder: Path
    identity: dict[str, Any]
    batches: int
    batches_per_shard: int

    @property
    def count(self) -> int:
        """The number of shards."""
        return -(-self.batches // self.batches_per_shard)

    def path(self, number: int) -> Path:
        """Return the file of a shard."""
        return self.folder / f'features-{number:05d}-of-{self.count:05d}.safetensors'

    def open(self, names: list[str]) -> list[bool]:
        """Make the folder, or check that it holds features of the same identity. Every process calls this.

        Args:
            names: one per image.

        Returns:
            For each shard, whether it is finished, on any host.

        Raises:
            TrainingError: the folder holds features of another identity, or cannot be made.
            ConversionError: a file cannot be written, or the features are of a newer release.
        """
        text = json.dumps(names, indent=0)
        identity = json.loads(json.dumps(self.identity | {'names_sha256': hashlib.sha256(text.encode()).hexdigest()}))
        index = self.folder / INDEX_FILE
        if index.exists():
            self._check_same(index, identity)
        elif any(self.folder.glob('features-*')):
            raise TrainingError(f'{self.folder}: holds features but no {INDEX_FILE}; give another --out')
        is_first_process = jax.process_index() == 0
        if is_first_process:
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise TrainingError(f'{self.folder}: cannot be made: {reason(error)}') from error
            for partial in self.folder.glob('.features-*.part'):  # left by a process that was killed while writing
                partial.unlink()
        finished = [self.path(number).exists() for number in range(self.count)]
        if jax.process_count() > 1:
            # All processes must start at the same batch. Also, no process writes before all have looked.
            everywhere = np.asarray(multihost_utils.process_allgather(np.array(finished)))
            finished = [bool(column.any()) for column in everywhere.T]
        if is_first_process and not index.exists():
            save_text(self.folder / NAMES_FILE, text)
            save_text(index, json.dumps(FEATURES.fields() | identity, indent=2) + '\n')
        return finished

    def _check_same(self, index: Path, identity: dict[str, Any]) -> None:
        """Raise TrainingError if the features have another identity, ConversionError if a newer release wrote them."""
        saved = read_json(index, TrainingError, 'give another --out')
        if not isinstance(saved, dict):
            raise TrainingError(f'{index}: expected a JSON object; give another --out')
        FEATURES.check(index, saved)
        changed = [name for name in identity if saved.get(name) != identity[name]]
        if changed:
            what = '; '.join(f'{n} was {reprlib.repr(saved.get(n))}, is {reprlib.repr(identity[n])}' for n in changed)
            raise TrainingError(f'{self.folder}: holds other features: {what}. Give another --out')


def make_feature_step(
    apply: Callable[..., Any], *, mean: tuple[float, ...], std: tuple[float, ...], dtype: Any = jnp.float32
) -> Callable[[tuple[Tree, Tree], Batch], Batch]:
    """Return the step for `over_devices` that computes the features of a batch.

    Args:
        apply: `functional` of a model without classifier.
        mean, std: normalisation of each channel, for values in [0, 1].
        dtype: dtype of the normalised images.

    Returns:
        A function of (params, batch_stats) and a batch of `eval_dataset`. It returns features (B, F) float32, labels,
        indices and mask (B,) of the whole batch, over all devices and hosts.
    """

    def step(variables: tuple[Tree, Tree], batch: Batch) -> Batch:
        features = apply(*variables, normalise(batch['image'], mean, std, dtype)).astype(jnp.float32)
        labels = batch['label'] if 'label' in batch else batch['target']
        found = {'features': features, 'labels': labels, 'indices': batch['index'], 'mask': batch['mask']}
        # The results of a step must be the same on every device.
        return jax.lax.all_gather(found, AXIS, tiled=True)

    return step


def embed(
    step: Callable[[Any, Any], Batch],
    variables: Any,
    batches: Any,
    shards: Shards,
    finished: list[bool],
    tick: Callable[[int], object] = lambda batches: None,
) -> int:
    """Write the missing shards. Return the number of images whose features this process wrote.

    Reading starts at the first missing shard. With P processes, each writes every P-th shard.

    Args:
        step: `make_feature_step`, over devices.
        variables: (params, batch_stats), on every device.
        batches: an `eval_dataset`, on the devices.
        shards: the folder.
        finished: which shards are finished, as `Shards.open` returns it.
        tick: called after each batch with the number of batches done so far, to show progress.

    Raises:
        DataError: the images cannot be read.
        ConversionError: a shard cannot be written; the finished ones stay.
    """
    if all(finished):
        return 0
    written, rows = 0, []
    first = finished.index(False) * shards.batches_per_shard
    with contextlib.closing(iter(batches)) as iterator:
        iterator.set_state({'batches': first})
        for done, found in enumerate(one_behind(step(variables, batch) for batch in iterator), first + 1):
            shard = (done - 1) // shards.batches_per_shard
            if not finished[shard] and shard % jax.process_count() == jax.process_index():
                rows.append({name: np.asarray(value) for name, value in found.items()})
                if done == shards.batches or done % shards.batches_per_shard == 0:
                    written += _write(shards.path(shard), rows)
                    rows = []
            tick(done)
    return written


def digest(tree: Any) -> str:
    """Return the SHA-256 of all names and values of a pytree, in hexadecimal."""
    sha256 = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        sha256.update(jax.tree_util.keystr(path).encode())
        sha256.update(np.ascontiguousarray(leaf).tobytes())
    return sha256.hexdigest()


def _write(path: Path, rows: list[dict[str, np.ndarray]]) -> int:
    """Write a shard from the results of its batches, without padding. Return the number of its images."""
    found = {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}
    order = np.argsort(found['indices'], kind='stable')
    order = order[found.pop('mask')[order] > 0]
    save_safetensors(path, {name: value[order] for name, value in found.items()})
    return len(order)
