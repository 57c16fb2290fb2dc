"""scripts/benchmark_sources.py: the same images as every kind of data, and the table of our side alone."""

import benchmark_data
import benchmark_sources
import pytest

from tests.helpers.images import encode, noise_image
from tresnet_jax.data.sources import open_source
from tresnet_jax.errors import DataError

FORMATS = {'.png': 'PNG', '.jpg': 'JPEG', '.webp': 'WEBP', '.jpeg': 'JPEG'}


@pytest.fixture
def photos(tmp_path):
    """A folder of 80 small images with four suffixes, and a file that is not one."""
    (tmp_path / 'photos' / 'more').mkdir(parents=True)
    for number in range(80):
        suffix = [*FORMATS][number % 4]
        folder = tmp_path / 'photos' / ('more' if number % 3 else '')
        (folder / f'{number:02}{suffix}').write_bytes(encode(noise_image(12, 10, seed=number), FORMATS[suffix]))
    (tmp_path / 'photos' / 'notes.txt').write_text('no image')
    return tmp_path / 'photos'


def test_every_kind_of_data_has_the_same_images(photos, tmp_path):
    files = benchmark_sources.read_files(photos, 20)
    assert len(files) == 20 and {suffix for suffix, _ in files} == {*FORMATS} - {'.jpeg'}
    expected = sorted((data, number % benchmark_sources.CLASSES) for number, (_, data) in enumerate(files))
    with benchmark_sources.datasets_cache(tmp_path / 'cache'):
        layouts = benchmark_sources.write_layouts(files, tmp_path)
        assert [*layouts] == ['folder', 'hfds', 'wds']
        for kind, layout in layouts.items():
            source = open_source(layout.data, 'train')
            records = [source[index] for index in range(len(source))]
            assert sorted((record['image'], record['label']) for record in records) == expected, kind
    with pytest.raises(DataError, match='has 80 images .*, --count is 81'):
        benchmark_sources.read_files(photos, 81)


def one_round(what, cores, ours, timm, rounds):
    return benchmark_data.PipelineTiming(what, cores, ours(), timm, 0.0)


def test_the_table(photos, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(benchmark_sources, 'has_timm', lambda: False)
    monkeypatch.setattr(benchmark_sources, 'measure', one_round)
    options = {'image_size': 8, 'batch_size': 2, 'batches': 1, 'rounds': 1, 'cores': 1, 'images': photos}
    benchmark_sources.main(count=68, **options, out=tmp_path / 'out')
    page = capsys.readouterr().out
    rows = [line.split(' | ') for line in page.splitlines() if line.startswith('| ')][2:]
    assert [row[0] for row in rows] == [
        f'| {kind}{end}'
        for kind in ('folder', 'hfds', 'wds')
        for end in ('', ', JPEG decoded as small as the crop allows')
    ]
    assert all(float(row[2]) > 0 and row[3:5] == ['', ''] for row in rows)
    assert (tmp_path / 'out' / 'data.md').read_text() in page
    with pytest.raises(DataError, match='--count 67: a round reads 68 different images'):
        benchmark_sources.main(count=67, **options)


def test_what_several_cores_build_in_advance_is_not_timed(monkeypatch):
    """The time of a batch is that of building it, not that of taking it."""
    now, taken = [0.0], []

    def batches():
        for number in range(100):
            now[0] += 0.0 if number < 5 else 2.0
            taken.append(number)
            yield number

    monkeypatch.setattr(benchmark_data.time, 'perf_counter', lambda: now[0])
    assert benchmark_data.speed(batches(), cores=2, batch_size=8, batches=4) == 4.0 and len(taken) == 9
