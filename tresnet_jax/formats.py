"""The formats of the files that this package writes, and their versions.

A file states its format, the version of the format, and the first release that reads that version. Files without a
version are from the development of 0.1.0; they count as version 0. Every version stays readable: `tests/compat` has
files of each. A version is raised when older releases would misread a file, not for a field that they can ignore.
"""

import re
import reprlib
from collections.abc import Mapping
from typing import Any, NamedTuple

from tresnet_jax.errors import ConversionError
from tresnet_jax.version import __version__

RELEASE = re.compile(r'[0-9]{1,4}(\.[0-9]{1,4}){1,3}')


class Format(NamedTuple):
    """One kind of file.

    Attributes:
        name: the field 'format' in its metadata.
        version: the version that is written, and the newest that is read.
        readable_since: the first release that reads this version.
    """

    name: str
    version: int
    readable_since: str

    def fields(self) -> dict[str, str | int]:
        """Return the fields that a file of this format starts with."""
        return {'format': self.name, 'format_version': self.version, 'readable_since': self.readable_since}

    def check(self, path: object, fields: Mapping[str, Any]) -> None:
        """Check that this release reads a file, given its metadata as text or as JSON.

        Raises:
            ConversionError: the version is newer; or it is not a whole number.
        """
        version = fields.get('format_version', 0)
        if isinstance(version, bool) or not re.fullmatch('[0-9]{1,6}', str(version)):
            raise ConversionError(
                f'{path}: format_version must be a whole number, got {reprlib.repr(version)}; the file is damaged'
            )
        if int(version) > self.version:
            release = str(fields.get('readable_since'))
            wanted = f"'tresnet_jax>={release}'" if RELEASE.fullmatch(release) else '--upgrade tresnet_jax'
            raise ConversionError(
                f'{path}: has format version {version}, and tresnet_jax {__version__} reads up to {self.version}; '
                f'run: pip install {wanted}'
            )


CHECKPOINT = Format('tresnet_jax', 1, '0.1.0')  # safetensors files of `save_flax`, and model.json of a run
EXPORTED = Format('tresnet_jax.export', 1, '0.1.0')  # files of `export`
FEATURES = Format('tresnet_jax.features', 1, '0.1.0')  # index.json of features that `embed` writes
