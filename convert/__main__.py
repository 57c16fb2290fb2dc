"""The command line of the converter: ``python -m convert SOURCE TARGET``."""

import dataclasses
import sys
import time
from pathlib import Path
from typing import Literal

import ml_dtypes  # noqa: F401  teaches NumPy the name 'bfloat16'
import numpy as np
import tyro

from convert.errors import ConversionError
from convert.params import to_flax, to_torch
from convert.read import read, sha256
from convert.write import save_flax, save_torch


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Convert a checkpoint of a TResNet or ResNet-D between PyTorch (timm) and Flax."""

    source: tyro.conf.Positional[Path]
    """A .safetensors or torch file with timm's names, or a file this command wrote."""

    target: tyro.conf.Positional[Path]
    """The file to write: .safetensors, or .pth with --to torch."""

    model: str | None = None
    """Architecture, with or without a tag, such as tresnet_m.miil_in1k; found from the shapes when left out."""

    to: Literal['flax', 'torch'] | None = None
    """What to write; the other side of what SOURCE is when left out."""


def convert(arguments: Arguments) -> None:
    """Read, convert, write, and print what was done.

    Raises:
        ConversionError: anything that stopped it; nothing is written then.
    """
    start = time.monotonic()
    source, target = arguments.source, arguments.target
    params, batch_stats, report = to_flax(read(source), arguments.model)
    to = arguments.to or ('torch' if report.layout == 'flax' else 'flax')
    if to == 'flax':
        save_flax(target, params, batch_stats, report, sha256(source))
    else:
        tensors = to_torch(params, batch_stats, num_batches_tracked=report.counters)
        # As the PyTorch checkpoint had them: the same dtypes, and no counters where it had none.
        tensors = {
            key: value.astype(np.dtype(report.source_dtypes.get(key, value.dtype.name)), copy=False)
            for key, value in tensors.items()
            if key in report.source_dtypes or key in report.counters
        }
        save_torch(target, tensors)
    print(report)
    size = target.stat().st_size / 1e6
    print(f'{target}: {to} layout, {size:.1f} MB, {time.monotonic() - start:.2f} s in all')


def main(argv: list[str] | None = None) -> int:
    """Exit code 0, or 2 when a message on standard error says why not."""
    arguments = tyro.cli(Arguments, args=argv, prog='python -m convert')
    try:
        convert(arguments)
    except ConversionError as error:
        print(f'error: {error}', file=sys.stderr)
        return 2
    return 0


if __name__ == '__main__':
    raise SystemExit(main())
