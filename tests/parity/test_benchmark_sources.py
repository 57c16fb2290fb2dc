"""timm's own readers, which scripts/benchmark_sources.py times, give the same images."""

import gc
from typing import Any

import benchmark_sources
import numpy as np
import pytest
from timm.data.dataset_factory import create_dataset

from tests.helpers.images import encode, noise_image
from tresnet_jax.data.images import decode
from tresnet_jax.data.sources import open_source


# timm leaves the files that it reads to the garbage collector.
@pytest.mark.filterwarnings('ignore::pytest.PytestUnraisableExceptionWarning', 'ignore::ResourceWarning')
def test_timms_readers_have_the_same_images(tmp_path):
    files = [('.png', encode(noise_image(12, 10, seed=number))) for number in range(12)]
    with benchmark_sources.datasets_cache(tmp_path / 'cache'):
        layouts = benchmark_sources.write_layouts(files, tmp_path)
        for kind in ('folder', 'hfds'):  # timm's reader of tar shards needs webdataset
            theirs: Any = create_dataset(**layouts[kind].timm)
            ours = open_source(layouts[kind].data, 'train')
            assert len(theirs) == len(ours) == 12
            for index in range(12):
                image, label = theirs[index]
                record = ours[index]
                assert label == record['label'] and np.array_equal(
                    np.asarray(image), np.asarray(decode(record['image']))
                )
            round_: Any = benchmark_sources.timms(layouts[kind], 1, {'size': 8, 'batch_size': 2, 'batches': 2})
            assert round_() > 0
    gc.collect()
