"""Files of `export` in which something is wrong. The programs are never run: by design they may do anything."""

import json
import random
from pathlib import Path

import tresnet_jax
from fuzzing import seeds, values
from fuzzing.children import Kind

FILES = ('export_0_first.stablehlo', 'export_0.stablehlo', 'export_1.stablehlo')


def make(rng: random.Random, folder: Path) -> Path:
    """Write one file: the program, the line of metadata, or both are damaged."""
    program, _, line = seeds.unpacked(rng.choice(FILES)).rpartition(b'\n')
    match rng.randrange(4):
        case 0:
            program = values.damaged(rng, program)
        case 1:
            program = values.damaged(rng, program, 200)
        case 2:
            line = values.as_json(rng, values.changed(rng, json.loads(line)))
        case 3:
            program, line = values.damaged(rng, program + b'\n' + line).rpartition(b'\n')[::2]
    path = folder / 'model.stablehlo'
    path.write_bytes(program + b'\n' + line)
    return path


def _load(path: Path) -> object:
    loaded = tresnet_jax.load_exported(path)
    return repr(loaded.metadata), loaded.exported.in_avals


KIND = Kind('exported', 'StableHLO files of `export`', make, (_load,), (ValueError,))
