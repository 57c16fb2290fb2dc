"""Our reader beside torch.load: every kind of file, tensors equal bit for bit."""

import argparse
import collections
import copy
import io
import pathlib
import pickle
import re
import types
import warnings
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm.utils
import torch
from torch import nn

from convert.golden import timm_model
from tresnet_jax.checkpoints.records import Global, Record
from tresnet_jax.checkpoints.stored import DTYPES, StoredTensor
from tresnet_jax.checkpoints.torch_file import load, recognise
from tresnet_jax.errors import ConversionError

FORMATS = pytest.mark.parametrize('zipped', [True, False], ids=['zip', 'legacy'])


def bits(tensor: torch.Tensor) -> bytes:
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def assert_same(ours: Any, theirs: Any) -> int:
    """Compare what `load` returned with what torch.load did; the number of tensors."""
    match theirs:
        case torch.Tensor():
            assert isinstance(ours, StoredTensor)
            assert ours.dtype == DTYPES[str(theirs.dtype)] and ours.shape == tuple(theirs.shape)
            assert ours.numpy().tobytes() == bits(theirs)
            return 1
        case np.ndarray():
            assert ours.numpy().dtype == theirs.dtype and ours.numpy().tobytes() == theirs.tobytes()
            return 1
        case dict():
            assert type(ours) is dict and list(ours) == list(theirs)
            return sum(assert_same(ours[key], theirs[key]) for key in theirs)
        case list() | tuple():
            assert type(ours) is (list if isinstance(theirs, list) else tuple) and len(ours) == len(theirs)
            return sum(map(assert_same, ours, theirs))
        case argparse.Namespace() | types.SimpleNamespace():
            assert ours.class_name == f'{type(theirs).__module__}.{type(theirs).__qualname__}'
            return assert_same(ours.attributes, vars(theirs))
        case pathlib.PurePath():
            assert pathlib.PurePath(*ours.arguments) == theirs  # 'a' and 'b', since Python 3.13 'a/b'
        case np.generic():
            assert ours == theirs.item() and type(ours) is type(theirs.item())
        case type():
            assert ours.name == f'{theirs.__module__}.{theirs.__qualname__}'
        case _:
            assert ours == theirs and type(ours) is type(theirs)
    return 0


def save(path: Path, value: Any, zipped: bool = True, **options: Any) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # of modules without source code, of sparse tensors
        torch.save(value, path, _use_new_zipfile_serialization=zipped, **options)
    return path


def compare(path: Path) -> int:
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        theirs = torch.load(path, map_location='cpu', weights_only=False)
    return assert_same(load(path), theirs)


def of_dtype(dtype: torch.dtype) -> torch.Tensor:
    """Every byte, so that all kinds of numbers are there, infinite ones and NaN too."""
    values = torch.arange(256, dtype=torch.int32).to(torch.uint8).repeat(dtype.itemsize)
    if dtype == torch.bool:
        return values % 2 == 1
    return values.reshape(dtype.itemsize, 256).T.contiguous().reshape(-1).view(dtype).reshape(16, -1)


TORCH_DTYPES = [getattr(torch, name.removeprefix('torch.')) for name in DTYPES]


@FORMATS
def test_dtypes(tmp_path, zipped):
    """torch 2.14 writes older files of the dtypes without a storage class, but does not read them."""
    state = {str(dtype): of_dtype(dtype) for dtype in TORCH_DTYPES}
    assert assert_same(load(save(tmp_path / 'a.pt', state, zipped)), state) == len(DTYPES) == 20
    older = {name: value for name, value in state.items() if zipped or not re.search('float8|uint[1-9][^8]', name)}
    assert compare(save(tmp_path / 'b.pt', older, zipped)) == len(older) == (20 if zipped else 12)


@FORMATS
def test_views_and_shared_storages(tmp_path, zipped):
    whole = torch.randn(6, 8, 10)
    half = whole.half()
    state = {
        'whole': whole,
        'transposed': whole.permute(2, 0, 1),
        'part': whole[1:4, ::3, 5],
        'expanded': whole[0, 0, :1].expand(7, 3, 1),
        'windows': whole.flatten().unfold(0, 5, 2),
        'scalar': whole[5, 7, 9],
        'empty': whole[:0],
        'of other memory': torch.empty(0),
        'channels last': torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
        'half': half[2:],
        'half again': half.T if half.dim() == 2 else half.transpose(0, 2),
        'diagonal': torch.eye(5).diagonal(),
        'flipped': whole.flip(0),
    }
    assert compare(save(tmp_path / 'a.pt', state, zipped)) == len(state)


class Mine(torch.Tensor):
    pass


@FORMATS
def test_parameters_buffers_and_subclasses(tmp_path, zipped):
    marked = nn.Parameter(torch.randn(3))
    marked.no_decay = True
    shared = nn.Parameter(torch.randn(4))
    mine = torch.randn(3).as_subclass(Mine)
    mine.note = 'a'
    state = {
        'parameter': nn.Parameter(torch.randn(2, 3)),
        'with an attribute': marked,
        'of integers': nn.Parameter(torch.arange(3), requires_grad=False),
        'buffer': nn.Buffer(torch.randn(5)),
        'subclass': mine,
        'shared': [shared, shared, shared.data],
        'of a gradient': (torch.ones(2, requires_grad=True) * 2).detach(),
    }
    path = save(tmp_path / 'a.pt', state, zipped)
    assert compare(path) == 9
    root = load(path)
    assert root['shared'][0] is root['shared'][1]


@pytest.mark.parametrize('protocol', range(2, 6))
@FORMATS
def test_pickle_protocols(tmp_path, zipped, protocol):
    state = timm_model('test_resnet').state_dict()
    assert compare(save(tmp_path / 'a.pt', state, zipped, pickle_protocol=protocol)) == len(state)


@pytest.mark.parametrize('protocol', range(2, 6))
def test_plain_pickles(tmp_path, protocol):
    state = timm_model('test_resnet').state_dict()
    (tmp_path / 'a.pkl').write_bytes(pickle.dumps(state, protocol))
    assert assert_same(load(tmp_path / 'a.pkl'), dict(state)) == len(state)


def rewritten(path: Path, change: Any, compression: int = zipfile.ZIP_STORED) -> Path:
    """The archive with change(name, data) of every member."""
    source = zipfile.ZipFile(io.BytesIO(path.read_bytes()))
    with zipfile.ZipFile(path, 'w', compression) as archive:
        for name in source.namelist():
            archive.writestr(name, change(name, source.read(name)))
    return path


def test_compressed_archives(tmp_path):
    state = timm_model('test_resnet').state_dict()
    path = rewritten(save(tmp_path / 'a.pt', state), lambda name, data: data, zipfile.ZIP_DEFLATED)
    assert compare(path) == len(state)


def test_big_endian_archives(tmp_path):
    """torch swaps the bytes as the class of the storage says."""
    dtypes = [dtype for dtype in TORCH_DTYPES if dtype.itemsize == 1 or 'uint' not in str(dtype)]
    state = {str(dtype): of_dtype(dtype)[2:] for dtype in dtypes}
    path = rewritten(save(tmp_path / 'a.pt', state), lambda name, data: b'big' if name.endswith('/byteorder') else data)
    assert compare(path) == len(state) == 17


def test_archives_without_checksums(tmp_path):
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        assert compare(save(tmp_path / 'a.pt', {'a': torch.randn(100)})) == 1
    finally:
        torch.serialization.set_crc32_options(before)


@FORMATS
def test_tensors_of_a_gpu(tmp_path, monkeypatch, zipped):
    monkeypatch.setattr(torch.serialization, 'location_tag', lambda storage: 'cuda:3')
    path = save(tmp_path / 'a.pt', {'a': torch.randn(3), 'b': torch.randn(3).bfloat16()}, zipped)
    assert compare(path) == 2


@FORMATS
@pytest.mark.parametrize('optimizer', [torch.optim.AdamW, torch.optim.SGD, torch.optim.RMSprop])
def test_training_checkpoints(tmp_path, zipped, optimizer):
    model = timm_model('test_resnet', num_classes=3)
    average = timm.utils.ModelEmaV3(model)
    steps = optimizer([{'params': model.fc.parameters(), 'lr': 0.1}, {'params': model.conv1.parameters()}], lr=0.2)
    model(torch.randn(2, 3, 32, 32)).sum().backward()
    steps.step()
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(steps, 10)
    checkpoint = {
        'epoch': 7,
        'arch': 'test_resnet',
        'state_dict': model.state_dict(),
        'state_dict_ema': average.module.state_dict(),
        'model_ema': torch.optim.swa_utils.AveragedModel(model).state_dict(),
        'optimizer': steps.state_dict(),
        'scheduler': schedule.state_dict(),
        'metric': np.float64(81.5),
        'history': np.arange(5.0),
        'predictions': np.random.default_rng(0).random((3, 4)).astype(np.float32),
        'args': argparse.Namespace(lr=0.1, data=pathlib.PurePosixPath('/data'), mean=(0.5, 0.4), act=nn.ReLU),
        'config': types.SimpleNamespace(sizes=[224, 256], split={'train', 'val'}),
        'idx_to_class': {0: 'bag', 1: 'boot'},
        'counts': collections.Counter('aab'),
        'default': collections.defaultdict(list, {'a': [torch.ones(2)]}),
        'random': torch.get_rng_state(),
        'size': torch.Size([3, 4]),
        'none': None,
    }
    assert compare(save(tmp_path / 'a.pth.tar', checkpoint, zipped)) > 3 * len(model.state_dict())


def state_of(module: Record) -> dict[str, StoredTensor]:
    """The state dict of a pickled module."""
    state = {}
    attributes = module.attributes
    unsaved = attributes.get('_non_persistent_buffers_set', ())
    for name, value in {**attributes['_parameters'], **attributes['_buffers']}.items():
        if value is not None and name not in unsaved:
            state[name] = value
    for name, child in attributes['_modules'].items():
        state |= {f'{name}.{key}': value for key, value in state_of(child).items()}
    return state


class Wrapper(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model
        self.register_buffer('mean', torch.zeros(3), persistent=False)
        self.register_buffer('nothing', None)
        self.register_parameter('bias', None)


MODULES = {
    'resnet': lambda: timm_model('test_resnet'),
    'tresnet': lambda: timm_model('test_tresnet').half(),
    'data parallel': lambda: nn.DataParallel(timm_model('test_resnet')),
    'wrapper': lambda: Wrapper(timm_model('test_resnet', act_layer='silu')),
    'averaged': lambda: torch.optim.swa_utils.AveragedModel(timm_model('test_resnet')),
}


@pytest.mark.parametrize('kind, zipped', [*((kind, True) for kind in MODULES), ('resnet', False), ('wrapper', False)])
def test_whole_modules(tmp_path, kind, zipped):
    model = MODULES[kind]()
    root = load(save(tmp_path / 'a.pt', {'model': model, 'ema': copy.deepcopy(model)}, zipped))
    for module in root.values():
        assert module.class_name == f'{type(model).__module__}.{type(model).__qualname__}'
        assert assert_same(state_of(module), dict(model.state_dict())) == len(model.state_dict())


def module_tensors(record: Any, prefix: str = '') -> dict[str, StoredTensor]:
    """The tensors of a TorchScript module by their paths."""
    found = {}
    for name, value in record.attributes.items():
        if isinstance(value, StoredTensor):
            found[f'{prefix}{name}'] = value
        elif isinstance(value, Record):
            found |= module_tensors(value, f'{prefix}{name}.')
    return found


@pytest.fixture(scope='module')
def traced():
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # torch.jit is deprecated
        model = timm_model('test_resnet').eval()
        return model, torch.jit.trace(model, torch.zeros(1, 3, 32, 32)), torch.jit.script(model)


def test_torchscript(tmp_path, traced):
    model, *programs = traced
    state = dict(model.state_dict())
    for program in programs:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            torch.jit.save(program, tmp_path / 'a.pt')
            torch.jit.save(torch.jit.freeze(program), tmp_path / 'frozen.pt')
        root = load(tmp_path / 'a.pt')
        found = module_tensors(root)
        assert root.class_name.startswith('__torch__.') and recognise(tmp_path / 'a.pt') is None
        assert assert_same({key: found[key] for key in state}, state) == len(state) == len(found)
        assert 'torch.jit.freeze' in str(recognise(tmp_path / 'frozen.pt'))


def test_exported_programs_are_named(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        program = torch.export.export(nn.Linear(2, 3), (torch.zeros(1, 2),))
        torch.export.save(program, tmp_path / 'a.pt2')
    assert "torch.save(torch.export.load('a.pt2').state_dict, 'weights.pth')" in str(recognise(tmp_path / 'a.pt2'))


@FORMATS
def test_tensors_that_have_no_plain_values(tmp_path, zipped):
    """They are records, and what has nothing else is named."""
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # deprecated, or experimental
        halves = torch.zeros(2, dtype=torch.complex32)
        quantised = torch.quantize_per_tensor(torch.randn(3), 0.1, 2, torch.qint8)
        channels = torch.quantize_per_channel(torch.randn(3, 2), torch.ones(3), torch.zeros(3), 0, torch.quint8)
    plain = torch.randn(2)
    path = save(tmp_path / 'a.pt', {'a': quantised, 'b': channels, 'c': plain}, zipped)
    root = load(path)
    assert (root['a'].class_name, root['b'].class_name) == ('torch._utils._rebuild_qtensor',) * 2
    assert_same(root['c'], plain)
    assert 'the weights are quantised' in str(recognise(path))

    odd = {
        'sparse': torch.eye(3).to_sparse(),
        'conjugated': torch.randn(3, dtype=torch.complex64).conj(),
        'complex32': halves,
    }
    root = load(save(tmp_path / 'b.pt', odd, zipped))
    assert {type(value) for value in root.values()} == {Record}
    path = save(tmp_path / 'c.pt', nn.Linear(2, 3, device='meta').state_dict(), zipped)
    assert 'on the meta device' in str(recognise(path))
    path = save(tmp_path / 'd.pt', torch.optim.SGD(nn.Linear(2, 3).parameters(), momentum=0.9).state_dict(), zipped)
    assert not recognise(path)  # nothing in it is a tensor yet


def test_distributed_checkpoints_are_named(tmp_path):
    import torch.distributed.checkpoint as distributed

    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        distributed.save({'a': torch.ones(2)}, checkpoint_id=tmp_path / 'run', no_dist=True)
    assert 'dcp_to_torch' in str(recognise(tmp_path / 'run'))
    (tmp_path / 'run' / '.metadata').rename(tmp_path / 'metadata.pt')
    assert 'dcp_to_torch' in str(recognise(tmp_path / 'metadata.pt'))


class Trap:
    def __reduce__(self):
        return (eval, ('1 / 0',))


@FORMATS
def test_code_of_a_file_does_not_run(tmp_path, zipped):
    path = save(tmp_path / 'a.pt', {'trap': Trap(), 'weight': torch.ones(2), 'class': Trap}, zipped)
    root = load(path)
    assert root['trap'].class_name == 'builtins.eval' and root['trap'].arguments == ('1 / 0',)
    assert isinstance(root['class'], Global)
    assert assert_same(root['weight'], torch.ones(2)) == 1


@FORMATS
def test_damaged_files_are_refused_where_torch_refuses_them(tmp_path, zipped):
    path = save(tmp_path / 'a.pt', {'weight': torch.randn(1000)}, zipped)
    data = path.read_bytes()
    for share in (0.2, 0.5, 0.9, 0.999):
        path.write_bytes(data[: int(len(data) * share)])
        with pytest.raises(Exception):  # noqa: B017  torch raises many kinds
            torch.load(path)
        with pytest.raises(ConversionError):
            load(path)
