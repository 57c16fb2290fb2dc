"""CSV files of accuracies, with the columns of timm's validate.py."""

import csv
import io
from pathlib import Path
from typing import Any

import jax

from tresnet_jax.cli.inputs import Inputs
from tresnet_jax.errors import TrainingError, reason, shown
from tresnet_jax.files import save_text
from tresnet_jax.models.functional import functional

COLUMNS: tuple[str, ...] = (
    'model', 'top1', 'top1_err', 'top5', 'top5_err', 'param_count', 'img_size', 'crop_pct', 'interpolation',
)  # fmt: skip


def timm_row(inputs: Inputs, top1: float, top5: float) -> dict[str, Any]:
    """Return a row of a table of accuracies, rounded as in timm.

    Args:
        inputs: the model and the data.
        top1, top5: in percent.
    """
    _, params, _ = functional(inputs.model)
    return {
        'model': inputs.name,
        'top1': round(top1, 4),
        'top1_err': round(100 - top1, 4),
        'top5': round(top5, 4),
        'top5_err': round(100 - top5, 4),
        'param_count': round(sum(leaf.size for leaf in jax.tree.leaves(params)) / 1e6, 2),
        'img_size': inputs.data_config['input_size'][-1],
        'crop_pct': inputs.data_config['crop_pct'],
        'interpolation': inputs.data_config['interpolation'],
    }


def read_results(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a table of accuracies; [] if the file does not exist.

    Raises:
        TrainingError: the file cannot be read, or has other columns; or its folder does not exist.
    """
    try:
        if not path.exists():
            if not path.parent.is_dir():
                raise TrainingError(f'{shown(path)}: the folder {shown(path.parent)} does not exist; make it first')
            return []
        table = csv.DictReader(io.StringIO(path.read_text(encoding='utf-8'), newline=''), strict=True)
        rows = list(table)
    except (OSError, ValueError, csv.Error) as error:
        if isinstance(error, TrainingError):
            raise
        raise TrainingError(f'{shown(path)}: cannot be read as a CSV file: {reason(error)}') from error
    if table.fieldnames != [*COLUMNS] or any(None in row or None in row.values() for row in rows):
        raise TrainingError(f'{shown(path)}: expected the columns {",".join(COLUMNS)}; give another file for --results')
    return rows


def write_result(path: Path, row: dict[str, Any]) -> None:
    """Add a row to a table of accuracies, which is made if it does not exist.

    Raises:
        TrainingError: as `read_results`.
        ConversionError: the file cannot be written.
    """
    text = io.StringIO(newline='')
    table = csv.DictWriter(text, COLUMNS, lineterminator='\n')
    table.writeheader()
    table.writerows([*read_results(path), row])
    save_text(path, text.getvalue())
