"""Files and folders without readable weights -> one line: what they are, and the command that saves weights from them.

The content decides, except for formats of TensorFlow that begin with data at once. `SAVE` is for the program that made
the file; other commands are for a shell.
"""

import re
import shlex
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tresnet_jax.checkpoints.records import Global, Record, children, printable, walk
from tresnet_jax.checkpoints.stored import StoredTensor

SAVE = "torch.save(model.state_dict(), 'weights.pth')"
JOBLIB = "np.savez('weights.npz', **joblib.load({!r}))"
SAFETENSORS = 'the file is in the safetensors format'
TENSORFLOW = f'a TensorFlow model; no layout of TensorFlow is read; save the PyTorch model instead: {SAVE}'
DEEPSPEED = (
    'the files of DeepSpeed ZeRO hold parts of every tensor; run in their folder: python zero_to_fp32.py . weights'
)
LARGEST_HEADER = 100_000_000  # bytes; the limit of safetensors
COMPRESSED = {
    b'\x1f\x8b': ('gzip', 'gunzip'),
    b'BZh': ('bzip2', 'bunzip2'),
    b'\xfd7zXZ\0': ('xz', 'unxz'),
    b'\x28\xb5\x2f\xfd': ('zstandard', 'unzstd'),
    b"7z\xbc\xaf'\x1c": ('7-Zip', '7z x'),
    b'Rar!\x1a\x07': ('RAR', 'unrar x'),
}
# How pickles of protocols 0 and 1 begin: a dictionary, or a global. Later ones begin with their protocol.
OLD_PICKLES = (b'(dp', b'}q\0', b'ccollections\n', b'ccopy_reg\n', b'ccopyreg\n')
LEGACY_TAR = (b'sys_info\0', b'pickle\0', b'storages\0', b'tensors\0')  # the members of torch's format of 2016
ONNX = re.compile(
    rb'\x08[\x03-\x20][\x12\x1a\x22\x28\x32\x3a\x42]'
)  # the IR version and the next field of a ModelProto
SAVED_MODEL = re.compile(rb'\x08\x01\x12')
TENSORFLOW_NAME = re.compile(r'.*(\.data-\d{5}-of-\d{5}|\.index|\.pb)')
PADDLE_OPTIMIZER = re.compile(r'.+_(velocity|moment[12]?|beta[12]_pow_acc|mean_square|mean_grad|momentum_acc)_\d+')
DISTRIBUTED = ('torch.distributed.tensor.DTensor', 'torch.distributed._tensor.DTensor', 'ShardedTensor')


def of_bytes(head: bytes, name: str) -> str | None:
    """Return the line for a file by its first 512 bytes or more; None for a zip archive and a pickle.

    Args:
        head: the first bytes.
        name: the file's name, for the command.
    """
    name = printable(name)
    text = head.removeprefix(b'\xef\xbb\xbf').lstrip()
    compressed = next((COMPRESSED[magic] for magic in COMPRESSED if head.startswith(magic)), None)
    if not head:
        return 'the file is empty; fetch it again'
    # The length of the header in its first eight bytes; the first one can be that of a pickle.
    if head[8:9] == b'{' and int.from_bytes(head[:8], 'little') <= LARGEST_HEADER:
        return SAFETENSORS
    if head.startswith(b'\x80') and b'joblib.numpy_pickle' in head:
        return f'a file of joblib; run: import joblib, numpy as np; {JOBLIB.format(name)}'
    if name.endswith('.distcp'):
        return _distributed_checkpoint('.')
    if head.startswith((b'PK\x03\x04', b'\x80', *OLD_PICKLES)):
        return None
    if not head.strip(b'\0'):
        return 'the file begins with zeros only, like an interrupted download; fetch it again'
    if head.startswith(b'version https://git-lfs.github.com/spec/'):
        return f'a pointer of Git LFS, not the file itself; run: git lfs pull --include {shlex.quote(name)}'
    if compressed:
        return f'a file compressed with {compressed[0]}; run: {compressed[1]} {shlex.quote(name)}'
    if head.startswith(b'\x78\x9c'):
        return f'compressed with zlib, as by joblib; run: import joblib, numpy as np; {JOBLIB.format(name)}'
    if head.startswith(LEGACY_TAR):
        return f"the tar format of torch before 0.2; run: torch.save(torch.load({name!r}), 'weights.pth')"
    if head[257:262] == b'ustar':
        return f'a tar archive; run: tar -xf {shlex.quote(name)}'
    if head.startswith(b'\x89HDF\r\n\x1a\n'):
        return f'an HDF5 file; no layout of Keras is read; save the PyTorch model instead: {SAVE}'
    if head.startswith(b'\x12\x01\0\0\0\0\0\0'):
        arrays = f'{{k: v.asnumpy() for k, v in mx.nd.load({name!r}).items()}}'
        return f"a .params file of MXNet; run: import mxnet as mx, numpy as np; np.savez('weights.npz', **{arrays})"
    if head.startswith(b'\x93NUMPY') and b"'|O'" in head:
        arrays = f'**np.load({name!r}, allow_pickle=True).item()'
        return f"a NumPy array of Python objects; if it is a dictionary, run: np.savez('weights.npz', {arrays})"
    if head.startswith(b'\x93NUMPY'):
        return "one array of NumPy, without the names of tensors; save all of them: np.savez('weights.npz', **arrays)"
    if head.startswith(b'GGUF'):
        return f'a GGUF file; save the PyTorch model instead: {SAVE}'
    if head[4:8] == b'TFL3' or SAVED_MODEL.match(head):
        return TENSORFLOW
    if ONNX.match(head):
        return f'a graph of ONNX or Core ML, without the names of the weights; save the PyTorch model instead: {SAVE}'
    if text.startswith((b'{', b'[', b'"')):
        return _of_json(text)
    if text.startswith(b'<'):
        return 'a page of HTML or XML, not the checkpoint (a login, or an error); fetch the file by its download link'
    if TENSORFLOW_NAME.fullmatch(name):
        return TENSORFLOW
    if not re.search(rb'[^\t\n\r\x20-\x7e]', head):
        return f'a text file, not a checkpoint: {printable(text.decode(), 60)}'
    return 'neither a safetensors file nor one of torch, Paddle or NumPy (damaged, or of another program)'


def _of_json(text: bytes) -> str:
    if b'"weight_map"' in text:
        return 'the index of a checkpoint in several files; give the folder of the index and of those files'
    return f'a JSON document, not a checkpoint: {printable(text.decode("utf-8", "replace"), 60)}; fetch the file again'


def of_archive(names: Iterable[str], name: str) -> str:
    """Return the line for a zip archive that torch.save did not write.

    Args:
        names: the names of the members.
        name: the name of the archive.
    """
    names, name = list(names), printable(name)
    # torch puts everything below a folder with the name of the archive.
    short = {member.partition('/')[2] if '/' in member else member for member in names} | set(names)
    if short & {'archive_format', 'serialized_exported_program.json', 'models/model.json'}:
        return f"a program of torch.export; run: torch.save(torch.export.load({name!r}).state_dict, 'weights.pth')"
    if 'model.json' in short and any(member.startswith('tensors/') for member in short):
        return f"TorchScript of torch 1.0; run: torch.save(torch.jit.load({name!r}).state_dict(), 'weights.pth')"
    if '.data/extern_modules' in short:
        return f'a package of torch.package; load the model with torch.package.PackageImporter and run: {SAVE}'
    if 'model.weights.h5' in short:
        return f'a Keras model; no layout of Keras is read; save the PyTorch model instead: {SAVE}'
    if 'saved_model.pb' in short:
        return TENSORFLOW
    shown = printable(', '.join(names[:3]), 100) or 'none'
    return f'a zip archive of other files ({shown}); run: unzip {shlex.quote(name)}'


def of_structure(root: Any) -> str | None:
    """Return the line for what `torch_file.load` returned, where that has no weights of a network to read."""
    containers = list(walk(root))
    classes = {value.class_name for _, value in containers if isinstance(value, Record)}
    holders = [
        path for path, value in containers if any(isinstance(child, StoredTensor) for _, child in children(value))
    ]
    keys = set(root) if isinstance(root, dict) else set()
    if any(name.endswith('_rebuild_qtensor') or 'PackedParams' in name for name in classes):
        return f'the weights are quantised; save those from before quantisation: {SAVE}'
    if _zero_3(root) or 'optimizer_state_dict' in keys and keys & {'ds_version', 'ds_config'}:
        return DEEPSPEED
    if 'torch.distributed.checkpoint.metadata.Metadata' in classes:
        return _distributed_checkpoint('.')
    if any(name.endswith(('_rebuild_sparse_tensor', '_rebuild_sparse_csr_tensor')) for name in classes):
        dense = '{key: value.to_dense() for key, value in state_dict.items()}'
        return f"its tensors are sparse; run in its program: torch.save({dense}, 'weights.pth')"
    if not holders and 'numpy.ndarray' in classes:
        return "its arrays hold objects of Python; save each tensor as an array: np.savez('weights.npz', **tensors)"
    flat = any(
        name.rpartition('.')[2].strip('_') == 'flat_param' for _, value in containers for name, _ in children(value)
    )
    if flat:
        return (
            'its tensors are flattened by FSDP; save there within FSDP.state_dict_type(model, '
            f'StateDictType.FULL_STATE_DICT): {SAVE}'
        )
    inner = [
        name for name, value in children(root) if isinstance(value, bytes) and value.startswith((b'PK\3\4', b'\x80'))
    ]
    if inner and not holders:
        return f'its {printable(inner[0], 40)} is a file of its own; write these bytes to a file, and give that one'
    if any(name.endswith(DISTRIBUTED) for name in classes):
        return (
            'its tensors are parts of distributed ones; run there, from torch.distributed.checkpoint.state_dict: '
            "torch.save(get_model_state_dict(model, options=StateDictOptions(full_state_dict=True)), 'weights.pth')"
        )
    wrappers = [value.class_name for _, value in containers if isinstance(value, Record) and _wraps_tensors(value)]
    if wrappers:
        return f'its tensors are objects of {printable(wrappers[0], 100)}; save plain tensors from its program: {SAVE}'
    if 'torch._utils._rebuild_meta_tensor_no_storage' in classes:
        return f'its tensors are on the meta device and have no values; load weights into the model, then: {SAVE}'
    if isinstance(root, Record) and root.class_name.startswith('__torch__.') and not holders:
        return f'TorchScript without named weights (torch.jit.freeze); save the model before freezing: {SAVE}'
    if 'shadow_params' in keys:
        return 'averages of torch_ema, without names; run there: ema.copy_to(model.parameters()), then ' + SAVE
    optimizers = [
        path for path, value in containers if isinstance(value, dict) and {'state', 'param_groups'} <= set(value)
    ]
    tensors = [name for name, value in children(root) if isinstance(value, StoredTensor)]
    paddle = [name for name in tensors if PADDLE_OPTIMIZER.fullmatch(name)]
    if (
        holders
        and all(any(path[: len(o)] == o for o in optimizers) for path in holders)
        or tensors
        and tensors == paddle
    ):
        return f"an optimizer's state, without the network; give the file of the model, or: {SAVE}"
    return None


def _wraps_tensors(record: Record) -> bool:
    """Whether a record is a tensor made of other tensors, as torchao's and nested ones are."""
    function = record.arguments[0] if record.arguments else None
    return isinstance(function, Global) and function.name == 'torch._utils._rebuild_wrapper_subclass'


def _zero_3(root: Any) -> bool:
    """Whether all tensors of 'module' are empty, as ZeRO stage 3 saves them."""
    module = root.get('module') if isinstance(root, dict) else None
    tensors = [value for _, value in children(module) if isinstance(value, StoredTensor)]
    return bool(tensors) and all(0 in tensor.shape for tensor in tensors)


def _distributed_checkpoint(folder: str) -> str:
    command = f'python -m torch.distributed.checkpoint.format_utils dcp_to_torch {folder} weights.pth'
    return f'a distributed checkpoint of torch; run: {command}'


def of_folder(path: Path) -> str | None:
    """Return the line for a folder; None where nothing is known about it."""
    if (path / 'saved_model.pb').exists():
        return TENSORFLOW
    if (path / '.metadata').exists() and any(path.glob('*.distcp')):
        return _distributed_checkpoint(shlex.quote(printable(path)))
    models = sorted(path.glob('*/mp_rank_00_model_states.pt'))
    if any(path.glob('zero_pp_rank_*')) or any(path.glob('*/zero_pp_rank_*')):
        return DEEPSPEED
    if models:
        steps = ', '.join(printable(model.parent.name, 60) for model in models[:5])
        return f'a folder of DeepSpeed; give one of the folders in it: {steps}'
    return None
