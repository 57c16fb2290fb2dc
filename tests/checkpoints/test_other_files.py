"""Files that have no weights to read: recognised by their content, with the command that saves weights."""

import bz2
import gzip
import io
import json
import lzma
import shlex
import struct
import tarfile
import zipfile
import zlib

import pytest

from tests.helpers.pickle_files import Call, Name, storage, tensor, write_zip
from tresnet_jax.checkpoints.torch_file import load, recognise
from tresnet_jax.errors import ConversionError

SAVE = "torch.save(model.state_dict(), 'weights.pth')"


def zipped(*names: str) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, 'w') as archive:
        for name in names:
            archive.writestr(name, b'data')
    return file.getvalue()


def tarred(*names: str) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode='w') as archive:
        for name in names:
            archive.addfile(tarfile.TarInfo(name), io.BytesIO())
    return file.getvalue()


def onnx(producer: bytes = b'pytorch') -> bytes:
    return b'\x08\x08\x12' + bytes([len(producer)]) + producer + b'\x1a\x052.1.0:' + bytes(range(256))


LFS = b'version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab2935\nsize 102530333\n'
CONTENT = {
    'nothing': (b'', 'the file is empty; fetch it again'),
    'zeros': (bytes(5000), 'begins with zeros only, like an interrupted download; fetch it again'),
    'Git LFS': (LFS, 'a pointer of Git LFS, not the file itself; run: git lfs pull --include model.pth'),
    'HTML': (b'<!DOCTYPE html><html><head><title>Sign in</title>', 'a page of HTML or XML'),
    'HTML behind a byte order mark': (b'\xef\xbb\xbf\n<html>', 'a page of HTML or XML'),
    'XML': (b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>', 'a page of HTML or XML'),
    'a JSON error': (
        b'{"error": "Not\x1bFound"}',
        r'a JSON document, not a checkpoint: {"error": "Not\x1bFound"}; fetch',
    ),
    'a JSON index': (json.dumps({'metadata': {}, 'weight_map': {'a': 'b'}}).encode(), 'give the folder of the index'),
    'a text error': (b'404: Not Found', 'a text file, not a checkpoint: 404: Not Found'),
    'gzip': (gzip.compress(b'a'), 'a file compressed with gzip; run: gunzip model.pth'),
    'xz': (lzma.compress(b'a'), 'compressed with xz; run: unxz model.pth'),
    'bzip2': (bz2.compress(b'a'), 'compressed with bzip2; run: bunzip2 model.pth'),
    '7-Zip': (b"7z\xbc\xaf'\x1c\0\4", 'compressed with 7-Zip; run: 7z x model.pth'),
    'tar': (tarred('weights/a.pth'), 'a tar archive; run: tar -xf model.pth'),
    'torch of 2016': (
        tarred('sys_info', 'pickle', 'tensors', 'storages'),
        'the tar format of torch before 0.2; run: torch.',
    ),
    'HDF5': (
        b'\x89HDF\r\n\x1a\n\0\0\0\0',
        f'an HDF5 file; no layout of Keras is read; save the PyTorch model instead: {SAVE}',
    ),
    'Keras': (zipped('metadata.json', 'config.json', 'model.weights.h5'), 'a Keras model; no layout of Keras is read'),
    'MXNet': (
        struct.pack('<QQQ', 0x112, 0, 3),
        "run: import mxnet as mx, numpy as np; np.savez('weights.npz', **{k: v.",
    ),
    'GGUF': (b'GGUF\3\0\0\0', 'a GGUF file; save the PyTorch model instead: torch.save(model.state_dict()'),
    'ONNX': (onnx(), 'a graph of ONNX or Core ML, without the names of the weights; save the PyTorch model instead'),
    'ONNX of another program': (onnx(b'a' * 20), 'a graph of ONNX or Core ML'),
    'joblib': (
        b'\x80\x04\x95\x1f\0\0\0\0\0\0\0}\x94\x8c\x13joblib.numpy_pickle\x94\x8c\x11NumpyArrayWrapper\x94',
        "a file of joblib; run: import joblib, numpy as np; np.savez('weights.npz', **joblib.load('model.pth'))",
    ),
    'joblib with compression': (zlib.compress(bytes(9)), 'compressed with zlib, as by joblib; run: import joblib'),
    'TensorFlow Lite': (b'\x1c\0\0\0TFL3', 'a TensorFlow model; no layout of TensorFlow is read'),
    'SavedModel': (b'\x08\x01\x12\xf0\x9a\x02\x0a', 'a TensorFlow model'),
    'a zipped SavedModel': (zipped('model/saved_model.pb', 'model/variables/a'), 'a TensorFlow model'),
    'a NumPy array': (
        b'\x93NUMPY\1\0',
        "one array of NumPy, without the names of tensors; save all of them: np.savez('w",
    ),
    'a NumPy array of a dictionary': (
        b"\x93NUMPY\1\0v\0{'descr': '|O', 'fortran_order': False, 'shape': (), }",
        "np.savez('weights.npz', **np.load('model.pth', allow_pickle=True).item())",
    ),
    'torch.export': (
        zipped('m/archive_format', 'm/data/weights/weight_0'),
        "torch.save(torch.export.load('model.pth').state",
    ),
    'torch.export of torch 2.1': (zipped('serialized_exported_program.json'), 'a program of torch.export'),
    'TorchScript of torch 1.0': (
        zipped('m/version', 'm/model.json', 'm/tensors/0'),
        "torch.jit.load('model.pth').state_dict",
    ),
    'torch.package': (zipped('m/.data/extern_modules', 'm/model/model.pkl'), 'torch.package.PackageImporter'),
    'an archive': (zipped('a\x1b/b.pth'), r'a zip archive of other files (a\x1b/b.pth); run: unzip model.pth'),
    'bytes': (bytes(range(1, 128)) * 9, 'neither a safetensors file nor one of torch, Paddle or NumPy'),
}


@pytest.mark.parametrize('case', CONTENT)
def test_content(tmp_path, case):
    data, line = CONTENT[case]
    path = tmp_path / 'model.pth'
    path.write_bytes(data)
    found = recognise(path)
    assert found and line in found and found.isprintable()
    with pytest.raises(ConversionError) as caught:
        load(path)
    assert str(caught.value) == f'{path}: {found}'


def test_names_in_commands_are_quoted(tmp_path):
    name = "my model's; rm x.gz"
    for data, line in ((b'\x1f\x8b' + bytes(600), shlex.quote(name)), (b'\x78\x9c' + b'a' * 600, f'load({name!r})')):
        (tmp_path / name).write_bytes(data)
        assert line in str(recognise(tmp_path / name))


def test_parts_of_a_distributed_checkpoint(tmp_path):
    path = write_zip(tmp_path / '__0_0.distcp', WEIGHT, {'0': bytes(16)})
    assert 'dcp_to_torch . weights.pth' in str(recognise(path))


@pytest.mark.parametrize('name', ['model.ckpt.data-00000-of-00001', 'model.ckpt.index', 'frozen.pb'])
def test_files_of_tensorflow_are_known_by_their_names(tmp_path, name):
    (tmp_path / name).write_bytes(b'\xff\1\2\3' * 200)
    assert 'a TensorFlow model' in str(recognise(tmp_path / name))


HOOKS = Call(Name('collections', 'OrderedDict'))
WEIGHT = tensor(storage('0', 'FloatStorage', 4), (4,), (1,))
EMPTY = tensor(storage('0', 'FloatStorage', 0), (0,), (1,))
QUANTISED = Call(
    Name('torch._utils', '_rebuild_qtensor'),
    (storage('0', 'QInt8Storage', 4), 0, (4,), (1,), (Name('torch', 'per_tensor_affine'), 0.1, 0), False, HOOKS),
)
OPTIMIZER = {'state': {0: {'momentum_buffer': WEIGHT}}, 'param_groups': [{'lr': 0.1, 'params': [0]}]}
META = Call(Name('torch._utils', '_rebuild_meta_tensor_no_storage'), (Name('torch', 'float32'), (4,), (1,), False))


def wrapper(kind: Name) -> Call:
    """A subclass of torch.Tensor that wraps other tensors, as torch 2.14 writes it."""
    function = Name('torch._utils', '_rebuild_wrapper_subclass')
    sizes = (kind, Name('torch', 'float32'), (4,), (1,), 0, Name('torch', 'strided'), 'cpu', False)
    return Call(Name('torch._tensor', '_rebuild_from_type_v2'), (function, kind, sizes, (None, {'_local': WEIGHT})))


STRUCTURES = {
    'quantised': (
        {'conv.weight': QUANTISED, 'conv.bias': WEIGHT},
        f'quantised; save those from before quantisation: {SAVE}',
    ),
    'ZeRO 3': (
        {'module': {'conv.weight': EMPTY}, 'ds_version': '0.15'},
        'run in their folder: python zero_to_fp32.py . weights',
    ),
    'ZeRO optimizer': (
        {'optimizer_state_dict': {'fp32_flat_groups': [WEIGHT]}, 'ds_config': {}},
        'python zero_to_fp32.py',
    ),
    'frozen': (
        Call(Name('__torch__.timm', 'ResNet'), (), {'training': False}),
        'without named weights (torch.jit.freeze)',
    ),
    'an optimizer': (OPTIMIZER, "an optimizer's state, without the network"),
    'an optimizer inside': (
        {'optimizer': OPTIMIZER, 'epoch': 3, 'scheduler': {'last_epoch': 3}},
        "an optimizer's state",
    ),
    'Paddle optimizer': (
        {'conv2d_0.w_0_velocity_0': WEIGHT, 'bn.w_0_moment1_0': WEIGHT, 'LR_Scheduler': {'last_epoch': 3}},
        "an optimizer's state",
    ),
    'torch_ema': ({'decay': 0.9, 'shadow_params': [WEIGHT, WEIGHT]}, 'ema.copy_to(model.parameters())'),
    'meta': ({'conv.weight': META}, 'on the meta device and have no values'),
    'DTensor': (
        {'conv.weight': Call(Name('torch.distributed.tensor', 'DTensor'), ())},
        'parts of distributed ones; run there',
    ),
    'FSDP 2': (
        {'conv.weight': wrapper(Name('torch.distributed.tensor', 'DTensor')), 'bn.running_mean': WEIGHT},
        'parts of distributed ones; run there',
    ),
    'ShardedTensor': (
        {'conv.weight': wrapper(Name('torch.distributed._shard.sharded_tensor.api', 'ShardedTensor'))},
        'parts of distributed ones; run there',
    ),
    'torchao': (
        {'conv.weight': wrapper(Name('torchao.quantization', 'Int8Tensor')), 'conv.bias': WEIGHT},
        f'objects of torchao.quantization.Int8Tensor; save plain tensors from its program: {SAVE}',
    ),
    'sparse': (
        {'conv.weight': Call(Name('torch._utils', '_rebuild_sparse_tensor'), (0, ())), 'conv.bias': WEIGHT},
        'torch.save({key: value.to_dense() for key, value in state_dict.items()}',
    ),
    'FSDP': (
        {'module': {'_fsdp_wrapped_module._flat_param': WEIGHT}},
        'flattened by FSDP; save there within FSDP.state_dict_type(model, StateDictType.FULL_STATE_DICT)',
    ),
    'objects': (
        {'state': Call(Name('numpy._core.multiarray', '_reconstruct'), (0, (0,), b'b'), (1, (), None, False, [1]))},
        "np.savez('weights.npz', **tensors)",
    ),
    'a file in a file': ({'weights': b'PK\3\4abc', 'epoch': 3}, 'its weights is a file of its own; write these bytes'),
    'DCP': (
        Call(Name('torch.distributed.checkpoint.metadata', 'Metadata'), (), {}),
        'format_utils dcp_to_torch . weights.pth',
    ),
}


@pytest.mark.parametrize('case', STRUCTURES)
def test_structure(tmp_path, case):
    value, line = STRUCTURES[case]
    path = write_zip(tmp_path / 'model.pth', value, {'0': bytes(16)})
    found = recognise(path)
    assert found and line in found and found.isprintable()


@pytest.mark.parametrize(
    'value',
    [
        {'conv.weight': WEIGHT},
        {'state_dict': {'conv.weight': WEIGHT}, 'optimizer': OPTIMIZER},
        {'module': {'conv.weight': WEIGHT, 'empty': EMPTY}},
        Call(Name('timm.models.resnet', 'ResNet'), (), {'_parameters': {'a': WEIGHT}}),
        {'epoch': 3},
        [],
    ],
)
def test_what_may_have_weights_is_not_named(tmp_path, value):
    assert recognise(write_zip(tmp_path / 'model.pth', value, {'0': bytes(16)})) is None


def test_safetensors_are_left_to_their_own_reader(tmp_path):
    header = b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'
    (tmp_path / 'a.safetensors').write_bytes(struct.pack('<Q', len(header)) + header + bytes(4))
    assert recognise(tmp_path / 'a.safetensors') is None
    with pytest.raises(ConversionError, match='in the safetensors format'):
        load(tmp_path / 'a.safetensors')


@pytest.mark.parametrize(
    'files, line',
    [
        (['saved_model.pb', 'variables/variables.index'], 'a TensorFlow model'),
        (['.metadata', '__0_0.distcp'], 'dcp_to_torch'),
        (['global_step3/zero_pp_rank_0_mp_rank_00_optim_states.pt'], 'zero_to_fp32.py'),
        (['latest', 'global_step3/mp_rank_00_model_states.pt'], 'give one of the folders in it: global_step3'),
        (['config.json', 'model.safetensors'], None),
        ([], None),
    ],
)
def test_folders(tmp_path, files, line):
    for file in files:
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).write_bytes(b'')
    found = recognise(tmp_path)
    assert found is None if line is None else line in str(found)
