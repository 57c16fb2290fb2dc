"""Whatever is wrong with a checkpoint, the converter says just that; whatever is only a cast, it takes."""

import json
import re
from pathlib import Path

import ml_dtypes
import numpy as np
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st

import convert
from tests.helpers.paths import EMBEDDED
from tests.helpers.states import assert_is, body, counted, nested, prefixed, saved, without
from tresnet_jax.checkpoints.layouts import to_timm

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


fewer = settings(max_examples=20, deadline=None, derandomize=True)
PLACES = ('its own', 'beside the network', 'another dictionary', 'the same dictionary, flat', 'above')


@fewer
@given(
    st.sampled_from(sorted(STATES)),
    st.sampled_from(PLACES),
    st.sampled_from(['fc', 'classifier', 'head.1', 'linear_7']),
    st.sampled_from(['', 'module.', 'net.backbone.']),
    st.booleans(),
    st.booleans(),
    st.booleans(),
    st.integers(1, 5),
)
def test_any_place_of_the_classifier(tmp_path_factory, name, place, owner, prefix, nest, thop, more, shards):
    """The network and its classifier come out, whatever contains them, and from several files too."""
    folder = tmp_path_factory.mktemp('place')
    expected, head = STATES[name], {'test_resnet': 'fc.', 'test_tresnet': 'head.fc.'}[name]
    classifier = {key.removeprefix(head): value for key, value in expected.items() if key.startswith(head)}
    inner = prefixed(expected if place == 'its own' else body(expected), prefix)
    if place == 'beside the network':
        inner |= prefixed(classifier, f'x.{owner}.')
    inner = counted(inner) if thop else inner
    network = nested(inner) if nest and not thop else inner  # thop's counters have the names of tensors within a module
    around = {'epoch': 3, 'optimizer': {'state': {0: {'exp_avg': classifier['weight']}}, 'param_groups': []}}
    tree = {'backbone': network, **(around if more else {})}
    if place == 'another dictionary':
        tree |= nested(prefixed(classifier, f'{owner}.'))
    elif place == 'the same dictionary, flat':
        tree |= prefixed(classifier, f'{owner}.')
    elif place == 'above':
        tree = {'state_dict': tree, owner.partition('.')[0]: classifier}
    state = to_timm(convert.read(saved(folder, tree)))
    assert_is(state.tensors, expected)
    assert state.head is None
    if place in PLACES[:2] and not nest:
        file_of = {key: f'{index % shards}.safetensors' for index, key in enumerate(inner)}
        for file in set(file_of.values()):
            safetensors.numpy.save_file({key: inner[key] for key in inner if file_of[key] == file}, folder / file)
        (folder / 'model.safetensors.index.json').write_text(json.dumps({'weight_map': file_of}))
        assert_is(to_timm(convert.read(folder)).tensors, expected)


@quick
@given(st.sampled_from(sorted(STATES)), st.data())
def test_parts_that_are_missing_are_never_invented(name, data):
    """Without some tensors a file is refused in one sentence, or converts what it has: all but the classifier."""
    lost = data.draw(st.sets(st.sampled_from(sorted(STATES[name])), min_size=1, max_size=3))
    lost = {key for key in lost if not key.endswith('num_batches_tracked')}
    state = without(STATES[name], *lost)
    try:
        params, stats, report = convert.to_flax(checkpoint(state))
    except convert.ConversionError as error:
        assert str(error).startswith('a.safetensors: ') and lost
        return
    got = convert.to_torch(params, stats)
    assert not report.num_classes if lost else report.num_classes == 10
    assert got.keys() >= {key for key in state if not key.endswith('num_batches_tracked')}
