"""Pooled features of a large data set in a folder of shards, which can be gone on with after anything."""

import contextlib
import dataclasses
import hashlib
import json
import reprlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from tresnet_jax.checkpoints.write import save_safetensors
from tresnet_jax.errors import TrainingError
from tresnet_jax.files import save_text
from tresnet_jax.models.base import Tree
from tresnet_jax.training.devices import AXIS
from tresnet_jax.training.step import Batch, normalise

INDEX_FILE, NAMES_FILE = 'index.json', 'names.json'


@dataclasses.dataclass(frozen=True)
class Shards:
    """The folder: index.json says what it is of, names.json lists the images, and shards hold the features.

    ``features-00003-of-00079.safetensors`` holds `features` (n, F) float32, `labels` (n,) int32 and `indices` (n,)
    int32, places in names.json, rising. A shard is whole or not there. Images that cannot be read are left out.

    Attributes:
        folder: where all this is.
        identity: what makes features comparable: model, weights, data, size; what goes on must agree.
        batches: how many there are.
        batches_each: of a shard.
    """

    folder: Path
    identity: dict[str, Any]
    batches: int
    batches_each: int

    @property
    def count(self) -> int:
        return -(-self.batches // self.batches_each)

    def path(self, number: int) -> Path:
        return self.folder / f'features-{number:05d}-of-{self.count:05d}.safetensors'

    def open(self, names: list[str]) -> list[bool]:
        """Make the folder, or go on with it: which shards are there, on any host. Every process calls this.

        Raises:
            TrainingError: the folder holds features of something else.
            ConversionError: it cannot be written.
        """
        text = json.dumps(names, indent=0)
        identity = json.loads(json.dumps(self.identity | {'names_sha256': hashlib.sha256(text.encode()).hexdigest()}))
        index = self.folder / INDEX_FILE
        if index.exists():
            self._check_same(index, identity)
        elif any(self.folder.glob('features-*')):
            raise TrainingError(f'{self.folder}: holds features but no {INDEX_FILE}; give another --out')
        first = jax.process_index() == 0
        if first:
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise TrainingError(f'{self.folder}: cannot be made: {error}') from error
            for left in self.folder.glob('.features-*.part'):  # of a process that was killed while it wrote
                left.unlink()
        there = [self.path(number).exists() for number in range(self.count)]
        if jax.process_count() > 1:  # all must begin with the same batch; and no process writes before this
            everywhere = np.asarray(multihost_utils.process_allgather(np.array(there)))
            there = [bool(column.any()) for column in everywhere.T]
        if first and not index.exists():
            for name, content in ((NAMES_FILE, text), (INDEX_FILE, json.dumps(identity, indent=2) + '\n')):
                save_text(self.folder / name, content)
        return there

    def _check_same(self, index: Path, identity: dict[str, Any]) -> None:
        try:
            saved = json.loads(index.read_text(encoding='utf-8'))
        except (OSError, ValueError) as error:
            raise TrainingError(f'{index}: cannot be read as JSON ({error}); give another --out') from error
        if not isinstance(saved, dict):
            raise TrainingError(f'{index}: expected a JSON object; give another --out')
        changed = [name for name in identity if saved.get(name) != identity[name]]
        if changed:
            what = '; '.join(f'{n} was {reprlib.repr(saved.get(n))}, is {reprlib.repr(identity[n])}' for n in changed)
            raise TrainingError(f'{self.folder}: holds features of something else: {what}. Give another --out')


def make_feature_step(
    apply: Callable[..., Any], *, mean: tuple[float, ...], std: tuple[float, ...], dtype: Any = jnp.float32
) -> Callable[[tuple[Tree, Tree], Batch], Batch]:
    """The step for `over_devices`: (params, batch_stats) of a model without classifier, and a batch of `eval_dataset`.

    Returns features (B, F) float32, labels, indices and mask (B,) of the whole batch, over all devices and hosts.
    """

    def step(variables: tuple[Tree, Tree], batch: Batch) -> Batch:
        features = apply(*variables, normalise(batch['image'], mean, std, dtype)).astype(jnp.float32)
        found = {'features': features, 'labels': batch['label'], 'indices': batch['index'], 'mask': batch['mask']}
        # What leaves a step must be the same on every device.
        return jax.lax.all_gather(found, AXIS, tiled=True)

    return step


def embed(
    step: Callable[[Any, Any], Batch],
    variables: Any,
    batches: Any,
    shards: Shards,
    there: list[bool],
    tick: Callable[[int], object] = lambda count: None,
) -> int:
    """Write the shards that are missing; returns how many images this process wrote features of.

    Reading begins with the first missing shard. Of several hosts each writes every so-many-th shard.

    Args:
        step: of `make_feature_step`, over devices.
        variables: (params, batch_stats) on every device.
        batches: of `to_devices`.
        shards, there: the folder, and what `Shards.open` found in it.
        tick: told how many batches are done, for progress.

    Raises:
        DataError: the images cannot be read.
        ConversionError: a shard cannot be written; those before it stay.
    """
    if all(there):
        return 0
    written, rows = 0, []
    first = there.index(False) * shards.batches_each
    with contextlib.closing(iter(batches)) as iterator:
        iterator.set_state({'batches': first})
        for done, found in enumerate(_one_behind(step(variables, batch) for batch in iterator), first + 1):
            shard = (done - 1) // shards.batches_each
            if not there[shard] and shard % jax.process_count() == jax.process_index():
                rows.append({name: np.asarray(value) for name, value in found.items()})
                if done == shards.batches or done % shards.batches_each == 0:
                    written += _write(shards.path(shard), rows)
                    rows = []
            tick(done)
    return written


def digest(tree: Any) -> str:
    """SHA-256 of all names and values of a pytree, in hexadecimal."""
    sha256 = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        sha256.update(jax.tree_util.keystr(path).encode())
        sha256.update(np.ascontiguousarray(leaf).tobytes())
    return sha256.hexdigest()


def _one_behind(items: Iterable[Any]) -> Iterable[Any]:
    """The same items, each when the next one is begun, so that the devices always have work."""
    waiting: list[Any] = []
    for item in items:
        waiting.append(item)
        if len(waiting) > 1:
            yield waiting.pop(0)
    yield from waiting


def _write(path: Path, rows: list[dict[str, np.ndarray]]) -> int:
    found = {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}
    order = np.argsort(found['indices'], kind='stable')
    order = order[found.pop('mask')[order] > 0]
    save_safetensors(path, {name: value[order] for name, value in found.items()})
    return len(order)
