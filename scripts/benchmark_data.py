"""Images per second and core of the data pipeline (decode, crop, augment, batch), compared with timm's loader.

    python scripts/benchmark_data.py --data folder:photos --out benchmark
    python scripts/benchmark_data.py              # generated images of 500 x 375 pixels

Both sides take turns in short rounds, so that other load on the machine affects both; the table shows medians over the
rounds. On one core, seconds are CPU time; on several cores, wall-clock time. Without timm its columns stay empty.
"""

import dataclasses
import importlib.util
import io
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro
from benchmarking.tables import write_csv
from benchmarking.turns import spread, take_turns
from markdown_table import table
from PIL import Image

from tresnet_jax.cli.common import Progress, fail, program_name
from tresnet_jax.data.images import decode
from tresnet_jax.data.pipeline import train_dataset
from tresnet_jax.data.sources import Source, open_source
from tresnet_jax.data.train_transforms import create_train_transform
from tresnet_jax.errors import DataError
from tresnet_jax.files import save_text
from tresnet_jax.options import flag

AUGMENTATIONS = {  # in addition to the random crop and the flip; the option names are timm's
    'crop and flip': {'color_jitter': 0.0},
    'crop, flip, colour jitter': {'color_jitter': 0.4},
    'crop, flip, AutoAugment': {'auto_augment': 'original'},
    # At m9, timm 1.0.31 sometimes asks Pillow to posterize to 0 bits, which Pillow 13 rejects.
    'crop, flip, RandAugment': {'auto_augment': 'rand-m6-mstd0.5-inc1'},
}
CORES = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1
Contender = Callable[[], float]  # runs one round and returns images per second


@dataclasses.dataclass(frozen=True)
class PipelineTiming:
    """One row of the table, in images per second and core; `timm` is None if timm was not run."""

    what: str
    cores: int
    ours: float
    timm: float | None
    spread: float  # of the ratio, or of ours without timm: interquartile range over median

    @property
    def ratio(self) -> float | None:
        return self.ours / self.timm if self.timm else None


def main(
    data: Annotated[str | None, flag('DATA', 'generated images')] = None,
    split: str = 'train',
    data_dir: Annotated[Path | None, flag('DIR', "TFDS's own")] = None,
    image_size: int = 224,
    batch_size: int = 32,
    batches: int = 6,
    rounds: int = 5,
    cores: int = CORES,
    out: Annotated[Path | None, flag('DIR', 'none')] = None,
) -> None:
    """Time the pipeline, print a table, and write OUT/data.md and OUT/data.csv.

    Args:
        data: data set, as for train.py.
        split: split of the data set.
        data_dir: folder of TensorFlow Datasets.
        image_size: edge of the crops in pixels.
        batch_size: images per batch.
        batches: batches per round.
        rounds: number of rounds.
        cores: number of our threads and of timm's worker processes, in the rows for several cores.
        out: folder for data.md and data.csv.
    """
    with tempfile.TemporaryDirectory() as folder:
        if data is None:
            generate_images(Path(folder))
        source = open_source(data or f'folder:{folder}', split, data_dir=data_dir)
        sizes = [memoryview(source[i]['image']).nbytes for i in range(min(100, len(source)))]
        about = f'{data or "generated images"}: {len(source)} images, median {np.median(sizes) / 1000:.0f} kB; '
        shape: dict[str, Any] = {'size': image_size, 'batch_size': batch_size, 'batches': batches}
        plans: list[tuple[str, int, Contender, Contender | None]] = [*stages(source, image_size, batch_size)]
        for number in sorted({1, cores}):
            timm = has_timm() and timm_round(TimmDataset(source), workers=number if number > 1 else 0, **shape)
            plans.append(('pipeline', number, our_pipeline(source, threads=number, **shape), timm or None))
            drafted = our_pipeline(source, threads=number, draft=True, **shape)
            plans.append(('pipeline, JPEG decoded as small as the crop allows', number, drafted, timm or None))
        rows = []
        with Progress(len(plans), 'rows') as progress:
            for plan in plans:
                rows.append(measure(*plan, rounds))
                progress.update(len(rows))
    text = timings_page(rows, f'{about}crops of {image_size} px, batches of {batch_size}, medians of {rounds} rounds.')
    print(text)
    if out is not None:
        write_files(out, text, rows)


def measure(what: str, cores: int, ours: Contender, timm: Contender | None, rounds: int) -> PipelineTiming:
    """Return medians over rounds in which the sides take turns, after a warm-up round."""
    speeds = take_turns({'ours': ours} | ({'timm': timm} if timm else {}), rounds)
    others = speeds.get('timm', [1.0] * rounds)
    return PipelineTiming(
        what,
        cores,
        statistics.median(speeds['ours']) / cores,
        statistics.median(others) / cores if timm else None,
        spread([a / b for a, b in zip(speeds['ours'], others, strict=True)]),
    )


def stages(source: Source, size: int, count: int) -> Iterator[tuple[str, int, Contender, Contender | None]]:
    """Yield (what, cores, ours, timm) for decoding, and for each augmentation of decoded images, in one thread."""
    records = [source[i]['image'] for i in range(min(count, len(source)))]
    images = [decode(record) for record in records]
    for image in images:
        image.load()

    def timed(function: Callable[[Any], object], items: list[Any]) -> Contender:
        def time_round() -> float:
            began = time.process_time()
            for item in items:
                function(item)
            return len(items) / (time.process_time() - began)

        return time_round

    if not isinstance(records[0], np.ndarray):
        plain = timed(lambda record: Image.open(io.BytesIO(record)).convert('RGB'), records)
        yield 'decode', 1, timed(lambda record: decode(record).load(), records), plain if has_timm() else None
    rng = np.random.default_rng(0)
    for what, options in AUGMENTATIONS.items():
        transform = create_train_transform(size, **options)
        timm = timed(timm_transform(size, options), images) if has_timm() else None
        yield what, 1, timed(lambda image, transform=transform: transform(image, rng), images), timm


def our_pipeline(
    source: Source, *, size: int, batch_size: int, batches: int, threads: int, draft: bool = False
) -> Contender:
    """Return a round of `train_dataset`."""
    transform = create_train_transform(size, color_jitter=0.0, draft=draft)

    def time_round() -> float:
        iterator = iter(train_dataset(source, transform, batch_size=batch_size, seed=0, threads=threads))
        try:
            return speed(iterator, threads, batch_size, batches)
        finally:
            iterator.close()

    return time_round


def has_timm() -> bool:
    """Return whether timm is installed."""
    return importlib.util.find_spec('timm') is not None


def timm_transform(size: int, options: dict[str, Any]) -> Callable[[Image.Image], Any]:
    """Return timm's training transform up to the arrays that its loader collates: (3, size, size) uint8."""
    from timm.data.transforms_factory import create_transform

    options = {'is_training': True, 'use_prefetcher': True, 'interpolation': 'random', 'color_jitter': None} | options
    transform: Any = create_transform(size, **options)
    return transform


class TimmDataset:
    """One of our sources as a data set for timm's loader, which reads, decodes and transforms each record."""

    transform: Callable[[Image.Image], Any]  # set by timm's loader

    def __init__(self, source: Source):
        self.source = source

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        record = self.source[index]
        image = record['image']
        image = Image.fromarray(image.squeeze()) if isinstance(image, np.ndarray) else Image.open(io.BytesIO(image))
        return self.transform(image.convert('RGB')), record['label']


def timm_round(dataset: Any, *, size: int, batch_size: int, batches: int, workers: int) -> Contender:
    """Return a round of timm's loader, up to the uint8 batches for the device; 0 workers means one thread."""
    import torch
    from timm.data.loader import create_loader

    torch.set_num_threads(1)
    loader: Any = create_loader(
        dataset,
        size,
        batch_size,
        is_training=True,
        color_jitter=0.0,
        interpolation='random',
        num_workers=workers,
        persistent_workers=False,
        device=torch.device('cpu'),
    )
    inner = loader.loader  # without the normalisation on the device

    def endless() -> Iterator[Any]:
        while True:
            yield from inner

    return lambda: speed(endless(), workers or 1, batch_size, batches)


def speed(iterator: Iterator[Any], cores: int, batch_size: int, batches: int) -> float:
    """Return images per second after the first batches: neither the start counts nor what was built meanwhile."""
    clock = time.process_time if cores == 1 else time.perf_counter
    for _ in range(first_batches(cores)):
        next(iterator)
    began = clock()
    for _ in range(batches):
        next(iterator)
    return batches * batch_size / (clock() - began)


def first_batches(cores: int) -> int:
    """Return the number of batches that are not timed: the first, and those that several cores build in advance."""
    return 1 if cores == 1 else 1 + 2 * cores


def generate_images(folder: Path, count: int = 64) -> None:
    """Write JPEGs of 500 x 375 pixels and about 80 kB, similar to ImageNet's: coarser noise is stronger."""
    rng = np.random.default_rng(0)
    for i in range(count):
        pixels = np.full((375, 500, 3), 128.0)
        for scale in (1, 2, 4, 8, 16, 32, 64):
            noise = rng.integers(0, 256, (375 // scale + 1, 500 // scale + 1, 3), np.uint8)
            smooth = Image.fromarray(noise).resize((500, 375), Image.Resampling.BICUBIC)
            pixels += (np.asarray(smooth, np.float64) - 128) * scale**0.5 / 8
        path = folder / 'train' / f'class{i % 2}' / f'{i}.jpg'
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path, quality=90)


def timings_page(rows: list[PipelineTiming], about: str) -> str:
    """Return the rows as Markdown."""
    cells = []
    for row in rows:
        timm = '' if row.timm is None else f'{row.timm:.0f}'
        ratio = '' if row.ratio is None else f'{row.ratio:.2f}'
        cells.append([row.what, str(row.cores), f'{row.ours:.0f}', timm, ratio, f'{row.spread:.0%}'])
    header = ['images per second and core', 'cores', 'ours', 'timm', 'ratio', 'spread']
    return f'{about}\n\n{table(header, cells)}'


def write_files(out: Path, text: str, rows: list[PipelineTiming]) -> None:
    """Write data.md and data.csv to a folder."""
    out.mkdir(parents=True, exist_ok=True)
    save_text(out / 'data.md', text)
    cells = [(row.what, row.cores, row.ours, row.timm, row.ratio, row.spread) for row in rows]
    write_csv(out / 'data.csv', ['what', 'cores', 'ours', 'timm', 'ratio', 'spread'], cells)


if __name__ == '__main__':
    try:
        tyro.cli(main, prog=program_name())
    except (DataError, OSError) as error:
        sys.exit(fail(error))
