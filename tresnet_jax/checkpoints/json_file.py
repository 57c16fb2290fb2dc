"""Read JSON that comes with weights, and that anyone may have written."""

import json
from pathlib import Path
from typing import Any

from tresnet_jax.errors import ConversionError, reason

LARGEST = 64 * 2**20  # bytes; the index of a ResNet-200-D has 100 kB, the names of 21,000 classes 500 kB


def read_json(path: Path) -> Any:
    """Return the content of a JSON file in UTF-8.

    Raises:
        ConversionError: the file is missing, is not a regular file, is too large, or is not JSON.
    """
    try:
        if path.exists() and not path.is_file():  # a link to a device never ends
            raise ConversionError(f'{path}: not a regular file; expected JSON')
        with path.open('rb') as file:
            content = file.read(LARGEST + 1)
        if len(content) > LARGEST:
            raise ConversionError(f'{path}: too large; expected at most {LARGEST // 2**20} MiB of JSON')
        return json.loads(content.decode('utf-8'))
    except ConversionError:
        raise
    except (OSError, ValueError, RecursionError) as error:
        raise ConversionError(f'{path}: cannot be read as JSON: {reason(error)}') from error
