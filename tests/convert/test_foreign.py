"""The layouts of other libraries: whole key lists, files of every library, small faults, and networks that are refused.

The key lists come from the libraries themselves. Their numbers are compared in `tests/parity/test_foreign.py`.
"""

import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy

import convert
from convert.foreign import LAYOUTS
from tests.helpers.foreign import BY_NAME, Entry, as_in, key_lists
from tresnet_jax.checkpoints.choose import rows
from tresnet_jax.checkpoints.find import Network, find
from tresnet_jax.checkpoints.layouts import to_timm
from tresnet_jax.checkpoints.structure import Shape, architecture_shape, differences, expected_shapes, tensors_shape
from tresnet_jax.errors import ConversionError
from tresnet_jax.factory import embedded_path
from tresnet_jax.variants import ALL_BOTTLENECK, BASIC, BOTTLENECK, PRETRAINED

COUNTER = 'num_batches_tracked'
LISTS = [
    (library, instance)
    for library, lists in key_lists().items()
    for instance, entries in lists.items()
    if all(entry.timm for entry in entries)
]
PROJECTED = [(library, 'small_basic') for library, lists in key_lists().items() if 'small_basic' in lists]
PREFIXES = {'mmpretrain': 'backbone.', 'mmdetection': 'backbone.', 'transformers RT-DETR': 'model.backbone.model.'}
WIDE = (64, 128, 256, 512)
Tensors = dict[str, Any]


def zeros(shapes: dict[str, tuple[int, ...]]) -> Tensors:
    """Return arrays of these shapes that take no memory."""
    return {name: np.broadcast_to(np.float32(0), shape) for name, shape in shapes.items()}


def found(tensors: Tensors) -> list[Network]:
    """Return the networks that all layouts find."""
    return find(tensors, LAYOUTS)


@pytest.fixture(scope='module')
def small() -> dict[str, np.ndarray]:
    """The weights of test_resnet, 92 tensors under timm's names; its stages are basic, basic, bottleneck, basic."""
    return to_timm(convert.read(embedded_path(PRETRAINED['test_resnet.fashion_mnist']))).tensors


def write(tensors: Tensors, path: Path) -> Path:
    """Write a safetensors file."""
    safetensors.numpy.save_file({key: np.ascontiguousarray(value) for key, value in tensors.items()}, path)
    return path


def paddle_head(name: str, tensors: Tensors) -> Tensors:
    """Transpose the classifier where the library does."""
    return {
        key: value.T if BY_NAME[name].transposed and key == 'fc.weight' else value for key, value in tensors.items()
    }


# Whole key lists


@pytest.mark.parametrize(('library', 'instance'), LISTS)
def test_key_lists_map_onto_timms(library: str, instance: str) -> None:
    """Every key list becomes exactly timm's set of keys, with timm's shapes and all counters."""
    entries = key_lists()[library][instance]
    (network,) = found(zeros({entry.name: entry.shape for entry in entries}))
    prefix = PREFIXES.get(library, '')
    assert (network.layout.name, network.prefix, network.problem) == (library, prefix, None)
    inside = [entry for entry in entries if entry.name.startswith(prefix)]
    expected = {entry.timm: entry for entry in inside if not entry.name.endswith(COUNTER)}
    assert network.tensors.keys() == expected.keys()
    for key, entry in expected.items():
        assert key is not None
        turned = library == 'PaddleClas' and key == 'fc.weight'
        assert network.tensors[key].shape == (entry.shape[::-1] if turned else entry.shape)
    shape = tensors_shape(network.tensors)
    assert shape is not None and not any(differences(network.tensors, shape))
    assert network.counters.keys() == {entry.timm for entry in inside if entry.name.endswith(COUNTER)}
    assert network.beside.keys() == {entry.name for entry in entries} - {entry.name for entry in inside}
    if instance == 'resnet50d':
        assert network.architecture == 'resnet50d'


def depths(library: str) -> list[str]:
    """Return the architectures of a library that are timm's."""
    deep = ['resnet50d', 'resnet101d', 'resnet152d']
    return deep if 'Paddle' in library or 'RT-DETR' in library else ['resnet18d', 'resnet34d', *deep]


@pytest.mark.parametrize(('library', 'architecture'), [(name, depth) for name in BY_NAME for depth in depths(name)])
def test_every_depth(library: str, architecture: str) -> None:
    """All depths are read off the names: those of PaddleClas number blocks through, PaddleDetection's have letters."""
    shapes = expected_shapes(architecture_shape(architecture))
    (network,) = found(zeros({f'net.{key}': shape for key, shape in as_in(library, shapes).items()}))
    assert (network.architecture, network.prefix, network.layout.name) == (architecture, 'net.', library)


def test_names_of_deep_stages() -> None:
    """Stages with more than ten blocks have numbers in PaddleDetection: a, b1, b2, ...; PaddleClas counts through."""
    shapes = expected_shapes(architecture_shape('resnet101d'))
    assert 'res4.res4b22.branch2c.norm._mean' in as_in('PaddleDetection', shapes)
    assert 'res3.res3d.branch2c.conv.weight' in as_in('PaddleDetection', shapes)
    assert 'blocks.32.conv2.bn._variance' in as_in('PaddleClas', shapes)
    assert 'blocks.30.short.conv.weight' in as_in('PaddleClas', shapes)


# Files


@pytest.mark.parametrize('library', BY_NAME)
def test_files(library: str, small: dict[str, np.ndarray], tmp_path: Path) -> None:
    """A file with a wrapper, a prefix and the library's classifier has the values that it has under timm's names."""
    named = paddle_head(library, as_in(library, small))
    if library in ('mmpretrain', 'mmdetection'):
        named = {f'module.backbone._orig_mod.{key}': value for key, value in named.items()}
        named |= {f'module.head.fc.{leaf}': small[f'fc.{leaf}'] for leaf in ('weight', 'bias')}
    else:
        named = {f'module.{key}': value for key, value in named.items()}
    checkpoint = convert.read(write(named, tmp_path / 'file.safetensors'))
    params, batch_stats, report = convert.to_flax(checkpoint)
    assert (report.layout, report.architecture) == (library, 'test_resnet')
    has_head = library.startswith(('mm', 'fastai')) or library == 'PaddleClas'
    assert report.num_classes == (10 if has_head else 0)
    expected = {key: value for key, value in small.items() if has_head or not key.startswith('fc.')}
    got = convert.to_torch(params, batch_stats)
    got = {key: value for key, value in got.items() if not key.endswith(COUNTER)}
    assert got.keys() == expected.keys()
    assert all(np.array_equal(got[key], expected[key].astype(np.float32)) for key in expected)


@pytest.mark.parametrize('nested', [False, True])
def test_pdparams(nested: bool, small: dict[str, np.ndarray], tmp_path: Path) -> None:
    """Paddle's files are pickles of arrays with a table of names; in nested dictionaries each array has its name."""
    named: Tensors = paddle_head('PaddleClas', as_in('PaddleClas', small))
    if nested:
        named = {'student': {key: (f'conv2d_{i}.w_0', value) for i, (key, value) in enumerate(named.items())}}
    else:
        named['StructuredToParameterName@@'] = {key: f'conv2d_{i}.w_0' for i, key in enumerate(named)}
    path = tmp_path / 'ResNet_vd.pdparams'
    path.write_bytes(pickle.dumps(named, protocol=4))
    state = to_timm(convert.read(path))
    assert state.tensors.keys() == small.keys()
    assert all(np.array_equal(state.tensors[key], small[key]) for key in small)


def test_learner(small: dict[str, np.ndarray], tmp_path: Path) -> None:
    """The body of fastai's vision_learner is found under '0.'; its head is not one linear layer."""
    named = {f'0.{key}': value for key, value in as_in('fastai 2', small).items() if not key.startswith('11.')}
    named |= {f'1.{i}.weight': np.zeros(shape, np.float32) for i, shape in ((2, 192), (4, (512, 192)), (8, (10, 512)))}
    checkpoint = convert.read(write(named, tmp_path / 'learner.safetensors'))
    with pytest.raises(ConversionError, match=r'another head than one linear layer.*1\.2, 1\.4, 1\.8.*--drop-head'):
        convert.to_flax(checkpoint)
    assert convert.to_flax(checkpoint, num_classes=0)[2].architecture == 'test_resnet'


@pytest.mark.parametrize(
    ('library', 'words'),
    [
        ('mmpretrain', "style='caffe'"),
        ('mmdetection', "style='caffe'"),
        ('PaddleSeg', 'ResNet50_vc'),
        ('fastai 2', 'act_cls'),
    ],
)
def test_what_names_cannot_tell(library: str, words: str, small: dict[str, np.ndarray], tmp_path: Path) -> None:
    """A note names the networks of the library with the same tensors, and not those of timm."""
    notes = convert.read(write(as_in(library, small), tmp_path / 'file.safetensors')).notes
    assert len(notes) == 1 and words in notes[0] and 'config.json' not in notes[0]


# Small faults


@pytest.mark.parametrize('library', BY_NAME)
@pytest.mark.parametrize('seed', range(5))
def test_faults(library: str, seed: int) -> None:
    """A key too few, too many or renamed leaves no complete network."""
    entries = [entry for entry in key_lists()[library]['resnet50d'] if not str(entry.timm).startswith('fc.')]
    rng = np.random.default_rng(seed)
    entry: Entry = entries[rng.integers(len(entries))]
    owner, _, leaf = entry.name.rpartition('.')
    whole = {entry.name: entry.shape for entry in entries}
    without = {name: shape for name, shape in whole.items() if name != entry.name}
    for shapes in (
        without,
        whole | {f'{owner}x.{leaf}': entry.shape},
        whole | {f'{owner}.gamma': entry.shape},
        without | {f'{owner}x.{leaf}': entry.shape},
        without | {entry.name: (*entry.shape, 2)},
    ):
        assert [network.architecture for network in found(zeros(shapes)) if network.architecture] == []
    (network,) = found(zeros(whole))
    assert network.architecture == 'resnet50d'


@pytest.mark.parametrize('library', ['fastai 1', 'fastai 2'])
@pytest.mark.parametrize('seed', range(5))
def test_batch_norm_at_another_index(library: str, seed: int) -> None:
    """The index of fastai's batch norm is 1; one at index 2 is none of the layout."""
    entries = key_lists()[library]['resnet50d']
    norms = sorted({entry.name.rpartition('.')[0] for entry in entries if entry.name.endswith('running_var')})
    norm = norms[np.random.default_rng(seed).integers(len(norms))]
    moved = {re.sub(rf'^{re.escape(norm)}\.', f'{norm[:-1]}2.', entry.name): entry.shape for entry in entries}
    (row,) = rows(found(zeros(moved)))
    assert f'a network of {library} with bn_1st=False' in row


# Networks that are refused


def renamed(
    library: str, pattern: str, replacement: str | Callable[[re.Match[str]], str]
) -> Callable[[Tensors], Tensors]:
    """Return a function that names tensors as the library and then replaces a part of the names."""

    def make(tensors: Tensors) -> Tensors:
        named = as_in(library, tensors)
        changed = {re.sub(pattern, replacement, key): value for key, value in named.items()}
        assert changed.keys() != named.keys()
        return changed

    return make


def extended(library: str, **shapes: tuple[int, ...]) -> Callable[[Tensors], Tensors]:
    """Return a function that names tensors as the library and adds others; '__' in a name stands for a dot."""
    added = {name.replace('__', '.'): np.zeros(shape, np.float16) for name, shape in shapes.items()}
    return lambda tensors: as_in(library, tensors) | added


def projected(library: str) -> Callable[[Tensors], Tensors]:
    """Return a function that adds a projection to stage 1, as networks of 18 and 34 layers have."""
    added = {'layer1.0.downsample.1.weight': np.zeros((32, 32, 1, 1), np.float16)}
    added |= {
        f'layer1.0.downsample.2.{leaf}': np.ones(32, np.float16)
        for leaf in ('weight', 'bias', 'running_mean', 'running_var')
    }
    return lambda tensors: as_in(library, tensors | added)


def plain(library: str, pattern: str) -> Callable[[Tensors], Tensors]:
    """Return a function that leaves out the second and third convolution of the stem."""
    return lambda tensors: {k: v for k, v in as_in(library, tensors).items() if not re.search(pattern, k)}


V1C = (r'(downsample)\.([12])', lambda match: f'{match[1]}.{int(match[2]) - 1}')  # no pooling before the projection
REFUSED = {
    'V1c, mmpretrain': (renamed('mmpretrain', *V1C), 'a ResNet-C'),
    'V1c, mmsegmentation': (renamed('mmdetection', *V1C), 'a ResNet-C'),
    'SE, mmpretrain': (
        extended('mmpretrain', layer1__0__se_layer__conv1__conv__weight=(2, 32, 1, 1)),
        'squeeze-excite',
    ),
    '18, PaddleClas': (projected('PaddleClas'), 'one more projection'),
    '18, PaddleDetection': (projected('PaddleDetection'), 'one more projection'),
    '18, PaddleSeg': (projected('PaddleSeg'), 'one more projection'),
    '18, RT-DETR': (projected('RT-DETR'), 'one more projection'),
    '18, transformers': (projected('transformers RT-DETR'), 'one more projection'),
    'plain, PaddleClas': (plain('PaddleClas', r'stem\.[12]'), 'whose stem is one convolution'),
    'plain, PaddleDetection': (plain('PaddleDetection', r'conv1\.conv1_[23]'), 'whose stem is one convolution'),
    'plain, PaddleSeg': (plain('PaddleSeg', r'^conv1_[23]'), 'whose stem is one convolution'),
    'plain, RT-DETR': (plain('RT-DETR', r'conv1\.conv1_[23]'), 'whose stem is one convolution'),
    'c, PaddleDetection': (renamed('PaddleDetection', r'\.short\.conv\.(conv|norm)\.', r'.short.\1.'), 'a ResNet-C'),
    'c, RT-DETR': (renamed('RT-DETR', r'\.short\.conv\.(conv|norm)\.', r'.short.\1.'), 'a ResNet-C'),
    'SE_ResNet_vd': (extended('PaddleSeg', bb_0_0__scale__squeeze__weight=(32, 2)), 'squeeze-excite'),
    'ResNet50_vc': (extended('PaddleSeg', out__weight=(96, 10), out__bias=(10,)), 'not a ResNet-D'),
    'bn_1st': (renamed('fastai 2', r'^([012])\.1\.', r'\1.2.'), 'bn_1st=False'),
    'pool_first': (renamed('fastai 2', r'idpath\.1\.', 'idpath.0.'), 'pool_first=False'),
    'deep': (extended('fastai 2', **{'8__0__convpath__0__0__weight': (96, 96, 3, 3)}), 'six stages'),
    'xse': (extended('fastai 2', **{'4__0__convpath__2__layers__1__0__weight': (2, 32, 1, 1)}), 'squeeze-excite'),
    'sa, fastai 1': (extended('fastai 1', **{'6__0__convs__3__gamma': (1,)}), 'self-attention'),
}


@pytest.mark.parametrize('case', REFUSED)
def test_refused_by_name(case: str, small: dict[str, np.ndarray], tmp_path: Path) -> None:
    """Other networks of the libraries are named in one line, which says what is different."""
    make, words = REFUSED[case]
    path = write(make(small), tmp_path / 'file.safetensors')
    with pytest.raises(ConversionError) as error:
        convert.to_flax(convert.read(path))
    assert words in str(error.value) and '\n' not in str(error.value)


@pytest.mark.parametrize(('library', 'instance'), PROJECTED)
def test_networks_with_one_more_projection(library: str, instance: str) -> None:
    """The key lists of 18 and 34 layers, from the libraries themselves."""
    (row,) = rows(found(zeros({entry.name: entry.shape for entry in key_lists()[library][instance]})))
    assert 'one more projection, in stage 1' in row


@pytest.mark.parametrize('library', ['PaddleClas', 'PaddleSeg'])
def test_resnet200_vd(library: str) -> None:
    """PaddleClas's network of 200 layers has other depths than timm's."""
    shapes = expected_shapes(Shape('resnetd', (3, 12, 48, 3), ALL_BOTTLENECK, 32, WIDE))
    (row,) = rows(found(zeros(as_in(library, shapes))))
    assert 'ResNet200_vd (3, 12, 48, 3 blocks)' in row


@pytest.mark.parametrize(
    ('name', 'layers', 'blocks'),
    [
        ("ML-Decoder's tresnet_s", (3, 4, 6, 3), (BASIC, BASIC, BOTTLENECK, BOTTLENECK)),
        ("ML-Decoder's tresnet_xl", (3, 8, 34, 5), ALL_BOTTLENECK),
        ("ML-Danbooru's tresnet_d", (3, 6, 14, 3), ALL_BOTTLENECK),
    ],
)
def test_other_tresnets(name: str, layers: tuple[int, ...], blocks: tuple[str, ...]) -> None:
    """TResNets that timm does not have are named; their repositories use timm's older names, as timm itself loads."""
    (row,) = rows(found(zeros(expected_shapes(Shape('tresnet', layers, blocks, 64, WIDE)))))
    assert name in row


def test_bfloat16_of_paddle(small: dict[str, np.ndarray], tmp_path: Path) -> None:
    """Paddle writes bfloat16 as uint16, which would be read as large numbers."""
    tensors = {key: value.astype(np.uint16) for key, value in as_in('PaddleSeg', small).items()}
    with pytest.raises(ConversionError, match='uint16, as Paddle writes bfloat16'):
        convert.read(write(tensors, tmp_path / 'file.safetensors'))
