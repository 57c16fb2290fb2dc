"""Whatever is wrong with a checkpoint, the converter says just that; whatever is only a cast, it takes."""

import re
from pathlib import Path

import ml_dtypes
import numpy as np
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st

import convert
from tests.helpers.paths import EMBEDDED

STATES = {
    name: safetensors.numpy.load_file(EMBEDDED / f'{name}.fashion_mnist.safetensors')
    for name in ('test_resnet', 'test_tresnet')
}
DTYPES = (np.float16, np.float32, np.float64, ml_dtypes.bfloat16)
quick = settings(max_examples=40, deadline=None, derandomize=True)


def weights(name: str) -> list[str]:
    """The keys that are weights or statistics; what tells the architecture and its classifier is left alone."""
    telling = re.compile(
        r'num_batches_tracked|^fc\.|^head\.|^conv1\.0\.weight|^body\.conv1\.conv|\.0\.conv[13](\.conv)?\.w'
    )
    return [key for key in STATES[name] if not telling.search(key)]


def checkpoint(state: dict[str, np.ndarray]) -> convert.Checkpoint:
    return convert.Checkpoint(Path('a.safetensors'), 'safetensors', state, {})


def names_with_keys():
    return st.sampled_from(sorted(STATES)).flatmap(
        lambda name: st.tuples(st.just(name), st.sets(st.sampled_from(weights(name)), min_size=1, max_size=6))
    )


def message_of(state: dict[str, np.ndarray], name: str) -> str:
    try:
        convert.to_flax(checkpoint(state), name)
    except convert.ConversionError as error:
        return str(error)
    raise AssertionError('the converter took it')


def listed(message: str, title: str) -> list[str]:
    """The names of one list of the message, in its order."""
    found = re.search(rf'^{title} \(\d+\):\n((?:  .*\n?)*)', message, re.M)
    return [line.split()[0].rstrip(':') for line in found[1].splitlines()] if found else []


@quick
@given(names_with_keys())
def test_dropped_tensors_are_listed(drawn):
    name, keys = drawn
    message = message_of({k: v for k, v in STATES[name].items() if k not in keys}, name)
    assert listed(message, 'missing from the file') == sorted(keys)
    assert not listed(message, 'unexpected in the file') and not listed(message, 'of another shape')


@quick
@given(names_with_keys())
def test_renamed_tensors_are_listed_on_both_sides(drawn):
    name, keys = drawn
    message = message_of({f'extra.{k}' if k in keys else k: v for k, v in STATES[name].items()}, name)
    assert listed(message, 'missing from the file') == sorted(keys)
    assert listed(message, 'unexpected in the file') == sorted(f'extra.{key}' for key in keys)


@quick
@given(names_with_keys(), st.sampled_from(['transposed', 'longer', 'flat']))
def test_tensors_of_another_shape_are_listed(drawn, how):
    name, keys = drawn
    state = dict(STATES[name])
    for key in keys:
        value = state[key]
        wrong = {'transposed': value[None], 'longer': np.concatenate([value, value]), 'flat': value.ravel()[:1]}
        state[key] = wrong[how]
    message = message_of(state, name)
    assert listed(message, 'of another shape') == sorted(keys)
    assert not listed(message, 'missing from the file')


@quick
@given(st.sampled_from(sorted(STATES)), st.data())
def test_any_mixture_of_float_dtypes_is_taken(name, data):
    """Each tensor comes out as float32 or float64 with the value the cast left it, and its dtype is kept in mind."""
    state = {}
    for key, value in STATES[name].items():
        counter = key.endswith('num_batches_tracked')
        state[key] = value if counter else value.astype(data.draw(st.sampled_from(DTYPES)))
    params, stats, report = convert.to_flax(checkpoint(state), name)
    for key, value in convert.to_torch(params, stats, num_batches_tracked=report.counters).items():
        assert value.dtype == (
            np.float64 if state[key].dtype == np.float64 else np.int64 if not value.shape else np.float32
        )
        np.testing.assert_array_equal(value, state[key].astype(value.dtype))
        if value.shape:
            assert report.source_dtypes[key] == state[key].dtype.name


@quick
@given(st.sampled_from(sorted(STATES)), st.randoms())
def test_the_order_of_keys_says_nothing(name, random):
    keys = list(STATES[name])
    random.shuffle(keys)
    params, stats, _ = convert.to_flax(checkpoint({key: STATES[name][key] for key in keys}))
    expected = convert.to_torch(*convert.to_flax(checkpoint(STATES[name]), name)[:2])
    got = convert.to_torch(params, stats)
    assert list(got) == list(expected)
    assert all(np.array_equal(got[key], expected[key]) for key in got)
