"""Sizes and options drawn at random, against timm in float64."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.helpers.closeness import assert_close
from tests.helpers.reference import call, images, nhwc, ours, reference
from tests.helpers.tolerances import EVALUATION

POOLS = ('avg', 'max', 'avgmax', 'catavgmax', 'fast', 'fastcatavgmax')
some = settings(max_examples=6, deadline=None, derandomize=True)


def compare(name: str, size: tuple[int, int], batch: int, ours_options: dict, **options) -> None:
    model = reference(name, **options)
    x = images(batch, options['in_chans'], *size)
    with torch.no_grad():
        expected = nhwc(model(x))
    assert_close(call(ours(model, name, dtype='float64', **ours_options), nhwc(x)), expected, EVALUATION)


@pytest.mark.usefixtures('x64')
class TestRandomOptions:
    @some
    @given(
        st.tuples(st.integers(1, 90), st.integers(1, 90)), st.integers(1, 3), st.integers(1, 5), st.integers(1, 12),
        st.sampled_from(POOLS), st.sampled_from([8, 16, 32]),
    )  # fmt: skip
    def test_resnet(self, size, batch, in_chans, num_classes, pool, output_stride):
        options = {'num_classes': num_classes, 'in_chans': in_chans, 'global_pool': pool}
        ours_options = {'output_stride': output_stride, 'global_pool': pool}
        compare('test_resnet', size, batch, ours_options, output_stride=output_stride, **options)

    @some
    @given(
        st.tuples(st.integers(5, 25), st.integers(5, 25)), st.integers(1, 3), st.integers(1, 5), st.integers(1, 12),
        st.sampled_from(POOLS),
    )  # fmt: skip
    def test_tresnet(self, size, batch, in_chans, num_classes, pool):
        options = {'num_classes': num_classes, 'in_chans': in_chans, 'global_pool': pool}
        compare('test_tresnet', (4 * size[0], 4 * size[1]), batch, {'global_pool': pool}, **options)
