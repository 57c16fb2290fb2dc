"""Files of safetensors whose headers lie about sizes, places, dtypes and metadata."""

import copy
import json
import random
from pathlib import Path
from typing import Any

from convert import ConversionError
from fuzzing import seeds, values
from fuzzing.children import Kind

DTYPES = (
    'BOOL', 'U8', 'I8', 'I16', 'U16', 'F16', 'BF16', 'I32', 'U32', 'F32', 'F64', 'I64', 'U64', 'F8_E4M3', 'F8_E5M2',
    'F8_E8M0', 'F6_E2M3', 'F6_E3M2', 'F4', 'C64', 'F8_E4M3FNUZ', 'F128', 'f32', 'O', '', 'float32', 'BF16\x1b[31m',
)  # fmt: skip
FIELDS = (
    'format', 'format_version', 'readable_since', 'architecture', 'tag', 'num_classes', 'in_chans', 'head',
    'num_of_groups',
    'decoder_embedding', 'global_pool', 'output_stride', 'abn_slope', 'data_config', 'label_names', 'task',
    'source_dtypes',
    'num_batches_tracked', 'source_sha256',
)  # fmt: skip
SMALL = {
    'a': {'dtype': 'F32', 'shape': [2, 3], 'data_offsets': [0, 24]},
    'b.weight': {'dtype': 'F16', 'shape': [4], 'data_offsets': [24, 32]},
    'c': {'dtype': 'I64', 'shape': [], 'data_offsets': [32, 40]},
}


def make(rng: random.Random, folder: Path) -> Path:
    """Write one file; most have a network of ours, and the others three small tensors."""
    path = folder / 'model.safetensors'
    header, data = _good(rng)
    kind = rng.randrange(10)
    if rng.random() < 0.01:
        return _flood(rng, path)
    if kind < 3:
        header['__metadata__'] = _metadata(rng, header.get('__metadata__', {}))
    elif kind < 7:
        for _ in range(rng.choice((1, 1, 2, 3))):
            _lie(rng, header, len(data))
    written = values.as_json(rng, header) if kind < 8 else json.dumps(header).encode()
    if kind == 7:
        data = values.damaged(rng, data)
    whole = _length(rng, len(written)) + written + data
    path.write_bytes(values.damaged(rng, whole, len(written) + 8) if kind == 8 else whole)
    return path


def _flood(rng: random.Random, path: Path) -> Path:
    """Write a file with more tensors, or a larger field of the metadata, than any reader needs."""
    header, data = copy.deepcopy(seeds.own_file())
    if rng.random() < 0.5:
        empty = {'dtype': rng.choice(('U8', 'F32')), 'shape': [0], 'data_offsets': [0, 0]}
        name = rng.choice(('a{}', 'layer1.{}.conv1.weight', 'a.{}.conv1.0.weight', '{}.b.c.d.e.f.g'))
        header |= {name.format(number): empty for number in range(rng.choice((10_000, 200_000)))}
    else:
        part = rng.choice(('[],', '{},', '"ab",', '"a\\ud800",', '1e9,', '[[[[1]]]],'))
        header['__metadata__'][rng.choice(FIELDS)] = '[' + part * rng.choice((10**5, 10**6, 5 * 10**6)) + '1]'
    written = json.dumps(header).encode()
    path.write_bytes(len(written).to_bytes(8, 'little') + written + data)
    return path


def _good(rng: random.Random) -> tuple[dict[str, Any], bytes]:
    if rng.random() < 0.4:
        return copy.deepcopy(SMALL), bytes(40)
    header, data = seeds.split(seeds.timm_file()) if rng.random() < 0.3 else seeds.own_file()
    return copy.deepcopy(header), data


def _length(rng: random.Random, length: int) -> bytes:
    if rng.random() < 0.95:
        return length.to_bytes(8, 'little')
    return (rng.choice((0, 1, length - 1, length + 1, 2 * length, 10**8, 2**31, 2**63, 2**64 - 1)) % 2**64).to_bytes(
        8, 'little'
    )


def _metadata(rng: random.Random, metadata: dict[str, str]) -> Any:
    """Return metadata in which one or several fields lie."""
    for field in rng.sample(FIELDS, rng.choice((1, 1, 1, 2, 4))):
        match rng.randrange(8):
            case 0:
                metadata.pop(field, None)
            case 1:
                metadata[field] = values.text(rng)
            case 2:
                metadata[field] = values.nested(rng)
            case 3:
                metadata[field] = values.value(rng)  # text alone is valid
            case 4 | 5:
                metadata[field] = json.dumps(values.changed(rng, _parsed(metadata.get(field))))
            case _:
                metadata[field] = json.dumps(values.value(rng))
    return metadata if rng.random() < 0.97 else values.value(rng)


def _parsed(text: Any) -> Any:
    try:
        return json.loads(text)
    except (ValueError, TypeError, RecursionError):
        return text


def _lie(rng: random.Random, header: dict[str, Any], size: int) -> None:
    """Change one tensor of a header."""
    names = [name for name in header if name != '__metadata__' and isinstance(header[name], dict)]
    if not names:
        return
    name = rng.choice(names)
    entry = header[name]
    match rng.randrange(9):
        case 0 | 1:
            entry['dtype'] = rng.choice(DTYPES)
        case 2:
            entry['shape'] = rng.choice(
                ([], [0], [-1], [2**63], [2**32, 2**32], [1] * 1000, [1.5], [0, 2**62], values.value(rng))
            )
        case 3:
            start = rng.choice((0, 1, -1, size, size - 1, 2**63, values.number(rng)))
            entry['data_offsets'] = rng.choice(
                ([start, start], [0, size], [size, 0], [start, size], [start], values.value(rng))
            )
        case 4:
            entry['data_offsets'] = header[rng.choice(names)].get('data_offsets')  # two tensors in one place
        case 5:
            header[name] = values.value(rng)
        case 6:
            del header[name]
        case 7:
            header[values.text(rng)] = header.pop(name)
        case 8:
            entry[values.text(rng)] = values.value(rng)


KIND = Kind('safetensors', 'safetensors: headers and our metadata that lie', make, seeds.readers(), (ConversionError,))
