"""Images per second and core of folders, Hugging Face data sets and tar shards, beside timm's own readers and loader.

    python scripts/benchmark_sources.py --images photos
    python scripts/benchmark_sources.py              # generated images of 500 x 375 pixels

The same image files are written as a folder of classes, as parquet and as tar shards. Each side reads them with its own
reader, and crops and flips in the same way. The sides take turns in short rounds, so that other load on the machine
affects both; the table shows medians over the rounds. On one core, seconds are CPU time; on several cores, wall-clock
time. timm's columns stay empty if timm, or for tar shards webdataset, is not installed.
"""

import contextlib
import importlib.util
import io
import json
import sys
import tarfile
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import tyro
from benchmark_data import (
    CORES,
    Contender,
    first_batches,
    generate_images,
    has_timm,
    measure,
    our_pipeline,
    timings_page,
    timm_round,
    write_files,
)

from tresnet_jax.cli.common import Progress, fail, program_name
from tresnet_jax.data.sources import open_source
from tresnet_jax.errors import DataError, missing_extra
from tresnet_jax.options import flag

CLASSES = 2
SHARDS = 8
BUFFER = 64  # images in the shuffle buffer of timm's reader of tar shards, so that its rounds read as much as they use
SUFFIXES = ('.jpg', '.jpeg', '.png', '.webp')  # JPEG, PNG and WebP are what timm reads from tar shards by default


class Layout(NamedTuple):
    """The same images in one kind of data.

    Attributes:
        data: the data set for `open_source`.
        timm: arguments of ``timm.data.create_dataset``.
        needs: the package that timm's reader needs; '' if none.
    """

    data: str
    timm: dict[str, Any]
    needs: str = ''


def main(
    images: Annotated[Path | None, flag('DIR', 'generated images')] = None,
    count: int = 512,
    image_size: int = 224,
    batch_size: int = 32,
    batches: int = 6,
    rounds: int = 5,
    cores: int = CORES,
    out: Annotated[Path | None, flag('DIR', 'none')] = None,
) -> None:
    """Time the sources, print a table, and write OUT/data.md and OUT/data.csv.

    Args:
        images: folder of JPEG, PNG and WebP files, at any depth.
        count: number of images.
        image_size: edge of the crops in pixels.
        batch_size: images per batch.
        batches: batches per round, rounded up to a multiple of the cores.
        rounds: number of rounds.
        cores: number of our threads and of timm's worker processes, in the rows for several cores.
        out: folder for data.md and data.csv.
    """
    batches = -(-batches // cores) * cores  # the workers of timm's loader finish about one batch each at a time
    needed = (batches + first_batches(cores)) * batch_size + BUFFER
    if count < needed:
        raise DataError(f'--count {count}: a round reads {needed} different images; give at least as many')
    with tempfile.TemporaryDirectory() as folder, datasets_cache(Path(folder) / 'cache'):
        files = read_files(images, count) if images else generated(Path(folder) / 'generated', count)
        layouts = write_layouts(files, Path(folder))
        shape: dict[str, Any] = {'size': image_size, 'batch_size': batch_size, 'batches': batches}
        rows = []
        with Progress(2 * len(layouts) * len({1, cores}), 'rows') as progress:
            for kind, layout in layouts.items():
                source = open_source(layout.data, 'train')
                for number in sorted({1, cores}):
                    for what, draft in ((kind, False), (f'{kind}, JPEG decoded as small as the crop allows', True)):
                        ours = our_pipeline(source, threads=number, draft=draft, **shape)
                        rows.append(measure(what, number, ours, timms(layout, number, shape), rounds))
                        progress.update(len(rows))
    sizes = [len(data) for _, data in files]
    about = f'{images or "generated images"}: {count} images, median {np.median(sizes) / 1000:.0f} kB; '
    text = timings_page(rows, f'{about}crops of {image_size} px, batches of {batch_size}, medians of {rounds} rounds.')
    print(text)
    if out is not None:
        write_files(out, text, rows)


def read_files(folder: Path, count: int) -> list[tuple[str, bytes]]:
    """Return the suffix and the bytes of the first image files of a folder, in the order of their paths.

    A file that ends in .jpeg has the suffix .jpg, because timm's reader of tar shards skips .jpeg.

    Raises:
        DataError: it has fewer.
    """
    paths = sorted(path for path in folder.rglob('*') if path.suffix.lower() in SUFFIXES)
    if len(paths) < count:
        raise DataError(f'{folder}: has {len(paths)} images ({", ".join(SUFFIXES)}), --count is {count}')
    return [(path.suffix.lower().replace('.jpeg', '.jpg'), path.read_bytes()) for path in paths[:count]]


def generated(folder: Path, count: int) -> list[tuple[str, bytes]]:
    """Return generated JPEGs of about 80 kB, 64 different ones over and over."""
    generate_images(folder, min(count, 64))
    different = read_files(folder, min(count, 64))
    return [different[number % len(different)] for number in range(count)]


def write_layouts(files: Sequence[tuple[str, bytes]], folder: Path) -> dict[str, Layout]:
    """Write images as every kind of data, with the labels 0, 1, 0, 1, ...

    Raises:
        MissingExtraError: the library `datasets` is not installed.
    """
    try:
        import datasets
    except ModuleNotFoundError as error:
        raise missing_extra(error) or error from None
    labels = [number % CLASSES for number in range(len(files))]
    for number, ((suffix, data), label) in enumerate(zip(files, labels, strict=True)):
        path = folder / 'folder' / 'train' / str(label) / f'{number:06}{suffix}'
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    features = datasets.Features(image=datasets.Image(), label=datasets.ClassLabel(CLASSES))
    rows = {'image': [{'bytes': data, 'path': None} for _, data in files], 'label': labels}
    (folder / 'hfds').mkdir()
    datasets.Dataset.from_dict(rows, features).to_parquet(folder / 'hfds' / 'train.parquet')
    (folder / 'wds').mkdir()
    numbers = [range(shard, len(files), SHARDS) for shard in range(SHARDS)]
    names = [f'train-{shard:04}.tar' for shard in range(SHARDS)]
    for name, members in zip(names, numbers, strict=True):
        with tarfile.open(folder / 'wds' / name, 'w') as archive:
            for number in members:
                suffix, data = files[number]
                for end, content in ((suffix, data), ('.cls', str(labels[number]).encode())):
                    member = tarfile.TarInfo(f'{number:06}{end}')
                    member.size = len(content)
                    archive.addfile(member, io.BytesIO(content))
    split = {'name': 'train', 'num_samples': len(files), 'filenames': names, 'shard_lengths': [*map(len, numbers)]}
    (folder / 'wds' / '_info.json').write_text(json.dumps({'splits': {'train': split}}), encoding='utf-8')
    buffer = {'is_training': True, 'sample_shuffle_size': BUFFER, 'sample_initial_size': BUFFER}
    return {
        'folder': Layout(f'folder:{folder}/folder', {'name': '', 'root': f'{folder}/folder', 'split': 'train'}),
        'hfds': Layout(f'hfds:{folder}/hfds', {'name': f'hfds/{folder}/hfds', 'split': 'train'}, 'datasets'),
        'wds': Layout(
            f'wds:{folder}/wds', {'name': 'wds/', 'root': f'{folder}/wds', 'split': 'train', **buffer}, 'webdataset'
        ),
    }


def timms(layout: Layout, cores: int, shape: dict[str, Any]) -> Contender | None:
    """Return a round of timm's loader with its own reader; None if a package is missing."""
    if not has_timm() or (layout.needs and importlib.util.find_spec(layout.needs) is None):
        return None
    from timm.data.dataset_factory import create_dataset

    options = {**layout.timm, 'batch_size': shape['batch_size']}
    return timm_round(create_dataset(**options), workers=cores if cores > 1 else 0, **shape)


@contextlib.contextmanager
def datasets_cache(folder: Path) -> Iterator[None]:
    """Keep the Arrow files that the library `datasets` makes in a folder."""
    if importlib.util.find_spec('datasets') is None:
        yield
        return
    import datasets.config

    before = datasets.config.HF_DATASETS_CACHE
    datasets.config.HF_DATASETS_CACHE = folder
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        datasets.config.HF_DATASETS_CACHE = before
        datasets.enable_progress_bars()


if __name__ == '__main__':
    try:
        tyro.cli(main, prog=program_name())
    except (DataError, OSError) as error:
        sys.exit(fail(error))
