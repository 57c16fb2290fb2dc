"""Folders of training runs and of the hub: files are missing, exchanged, enormous or of another run."""

import contextlib
import copy
import json
import os
import random
import shutil
import tempfile
from pathlib import Path
from typing import Any

import safetensors.numpy

import convert
import tresnet_jax
from convert import ConversionError
from fuzzing import seeds, values
from fuzzing.children import Kind
from tresnet_jax.checkpoints.run import stored_label_names, stored_network
from tresnet_jax.cli.common import quiet_libraries
from tresnet_jax.errors import HubError, TrainingError
from tresnet_jax.hub.config import read_config
from tresnet_jax.training.run_config import load_config

RUNS = ('run_1', 'run_0_task', 'run_0_config', 'run_0_label_names')
SECRET = 'secret'  # a file beside the folder, which nothing in the folder may open
STEPS = ('5', '0', '-1', '٣', '99999999999999999999', '4.orbax-checkpoint-tmp', 'best', '04')
HUB_CONFIG: dict[str, Any] = {
    'architecture': 'test_resnet',
    'num_classes': 10,
    'num_features': 96,
    'global_pool': 'avg',
    'model_args': {'in_chans': 3, 'num_classes': 10, 'global_pool': 'avg', 'drop_rate': 0.1, 'output_stride': 32},
    'label_names': [f'kind {index}' for index in range(10)],
    'label_descriptions': {'0': 'a'},
    'task': 'multilabel',
    'pretrained_cfg': {
        'tag': 'a', 'input_size': [3, 32, 32], 'test_input_size': [3, 64, 64], 'interpolation': 'bicubic',
        'crop_pct': 0.9,
        'test_crop_pct': 1.0, 'crop_mode': 'center', 'mean': [0.5, 0.5, 0.5], 'std': [0.5, 0.5, 0.5], 'num_classes': 10,
        'first_conv': 'conv1.0', 'classifier': 'fc', 'license': 'mit', 'url': 'http://localhost/',
        'file': '/etc/passwd',
        'hf_hub_id': 'a/b', 'hf_hub_filename': '../secret',
    },
}  # fmt: skip
OTHER_CONFIGS: tuple[dict[str, Any], ...] = (
    {'encoder_name': 'tu-test_resnet', 'in_channels': 3, 'encoder_output_stride': 32},
    {
        'model_type': 'timm_backbone',
        'backbone': 'test_resnet',
        'num_channels': 3,
        'out_indices': [1, 2],
        'output_stride': 32,
    },
    {
        'model_type': 'timm_wrapper',
        'architecture': 'test_resnet',
        'architectures': ['TimmWrapperModel'],
        'num_labels': 3,
    },
    {'model_type': 'rt_detr_resnet', 'layer_type': 'bottleneck', 'depths': [3, 4, 6, 3], 'hidden_act': 'relu'},
    {'backbone_config': {'model_type': 'timm_backbone', 'backbone': 'resnet50d'}, 'id2label': {'0': 'a', '1': 'b'}},
)


def make_run(rng: random.Random, folder: Path) -> Path:
    """Write the folder of a run in which something is wrong."""
    run = folder / 'run'
    files = seeds.run_files(rng.choice(RUNS))
    _write(run, files)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        with contextlib.suppress(OSError):  # what was spoilt before may be in the way
            _spoil(rng, run, files)
    return run


def _write(folder: Path, files: dict[str, bytes]) -> None:
    for name, data in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


def _spoil(rng: random.Random, run: Path, files: dict[str, bytes]) -> None:
    """Spoil one file or folder of a run."""
    small = [name for name in files if '/' not in name or name.endswith(('metrics', '_METADATA'))]
    name = rng.choice(small if rng.random() < 0.5 else list(files))
    path = run / name
    if path.is_symlink() or (path.exists() and not path.is_file()):
        return
    match rng.randrange(12):
        case 0:
            path.unlink(missing_ok=True)
        case 1:
            path.write_bytes(values.damaged(rng, files[name], 300))
        case 2 | 3 | 4:
            try:
                document = json.loads(files[name])
            except ValueError:
                document = None
            data = files[name] if document is None else values.as_json(rng, values.changed(rng, document))
            path.write_bytes(values.damaged(rng, data) if document is None else data)
        case 5:  # of another run, or another file of this one
            other = seeds.run_files(rng.choice(RUNS))
            path.write_bytes(other.get(name, b'') if rng.random() < 0.5 else files[rng.choice(list(files))])
        case 6:  # holes, which take no place on the disk
            path.write_bytes(files[name])
            os.truncate(path, rng.choice((2**27, 2**30, 2**33)))
        case 7:
            path.unlink(missing_ok=True)
            rng.choice(
                (
                    path.mkdir,
                    lambda: os.mkfifo(path),
                    lambda: path.symlink_to(path),
                    lambda: path.symlink_to('/dev/zero'),
                )
            )()
        case 8:
            place = run / 'checkpoints' / rng.choice(STEPS)
            if not place.exists():
                rng.choice((place.mkdir, lambda: place.write_bytes(b''), lambda: _copy(run, place)))()
        case 9:
            gone = path.parent
            if gone != run:
                shutil.rmtree(gone)
        case 10:
            path.write_bytes(
                rng.choice((b'', b'null', b'[]', b'{}', b'""', b'0', b'\xff', b'{"top1": ' + b'9' * 400 + b'}'))
            )
        case 11:
            path.write_bytes(values.as_json(rng, values.value(rng)))


def _copy(run: Path, place: Path) -> None:
    if (run / 'checkpoints' / '4').is_dir():
        shutil.copytree(run / 'checkpoints' / '4', place, ignore=_special)


def _special(folder: str, names: list[str]) -> list[str]:
    return [name for name in names if not os.path.isfile(f'{folder}/{name}') and not os.path.isdir(f'{folder}/{name}')]


def make_hub(rng: random.Random, folder: Path) -> Path:
    """Write a folder of the hub with its configuration, and weights in one file or several."""
    hub = folder / 'hub'
    hub.mkdir()
    config = HUB_CONFIG if rng.random() < 0.8 else rng.choice(OTHER_CONFIGS)
    wrong = rng.random() < 0.7
    (hub / 'config.json').write_bytes(
        values.as_json(rng, values.changed(rng, config)) if wrong else json.dumps(config).encode()
    )
    if rng.random() < 0.5:
        data = seeds.timm_file()
        (hub / 'model.safetensors').write_bytes(data if rng.random() < 0.9 else values.damaged(rng, data, 9000))
        return hub
    state = seeds.state()
    keys = sorted(state)
    parts = [keys[:40], keys[40:]]
    names = [f'model-0000{number}-of-00002.safetensors' for number in (1, 2)]
    for name, part in zip(names, parts, strict=True):
        (hub / name).write_bytes(safetensors.numpy.save({key: state[key] for key in part}))
    safetensors.numpy.save_file({**state, SECRET: state[keys[0]]}, folder / f'{SECRET}.safetensors')
    index: Any = {
        'metadata': {'total_size': 1},
        'weight_map': {key: names[part] for part in (0, 1) for key in parts[part]},
    }
    if rng.random() < 0.8:
        index = _lying(rng, copy.deepcopy(index))
    (hub / 'model.safetensors.index.json').write_bytes(
        values.as_json(rng, index) if rng.random() < 0.4 else _dump(index)
    )
    if rng.random() < 0.2:
        (hub / rng.choice(names)).write_bytes(values.damaged(rng, seeds.timm_file(), 9000))
    return hub


def _dump(document: Any) -> bytes:
    return json.dumps(document).encode('utf-8', 'surrogatepass')


def _lying(rng: random.Random, index: Any) -> Any:
    """Return an index that names a file elsewhere, or a tensor that is not there, or is of another form."""
    places = index['weight_map']
    key = rng.choice(list(places))
    elsewhere = (
        f'../{SECRET}.safetensors', f'./../{SECRET}.safetensors', f'{tempfile.gettempdir()}/{SECRET}.safetensors',
        '/etc/passwd', '..', '.', 'model.safetensors.index.json', f'a/../../{SECRET}.safetensors',
        f'..\\{SECRET}.safetensors', 'con', '-rf', 'a' * 300, 'config.json', '%2e%2e/secret.safetensors',
        'file:///etc/passwd', 'model-00001-of-00002.safetensors\0',
    )  # fmt: skip
    match rng.randrange(7):
        case 0 | 1:
            places[key] = rng.choice(elsewhere)
        case 2:
            places[SECRET] = rng.choice((f'../{SECRET}.safetensors', places[key]))
        case 3:
            places[values.text(rng)] = places.pop(key)
        case 4:
            places[key] = values.value(rng)
        case 5:
            places |= {f'a{number}': f'{number}.safetensors' for number in range(rng.choice((3, 1001, 20_000)))}
        case 6:
            return values.changed(rng, index)
    return index


def _read(path: Path) -> object:
    checkpoint = convert.read(path)
    assert SECRET not in checkpoint.tensors, 'reads a file outside of the folder'
    return seeds.converted(checkpoint)


def _read_run(path: Path) -> object:
    quiet_libraries()  # as the command lines do
    return seeds.converted(convert.read(path))


def _read_facts(path: Path) -> object:
    return stored_network(path), stored_label_names(path), load_config(path)


def _create(path: Path) -> object:
    return tresnet_jax.create_model(f'local-dir:{path}', pretrained=True)


RUN = Kind('run', 'folders of training runs', make_run, (_read_run, _read_facts), (ConversionError, TrainingError))
HUB = Kind(
    'hub', 'folders of the hub: config.json, index files', make_hub,
    (_read, lambda path: read_config(f'local-dir:{path}'), _create), (ConversionError, HubError, ValueError),
)  # fmt: skip
