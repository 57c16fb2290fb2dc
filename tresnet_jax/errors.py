"""All errors that a user can meet. A message gives the file, the key, what was expected and what to do."""

import os
import re
from collections.abc import Iterable


class ConversionError(ValueError):
    """A checkpoint cannot be read, recognised, converted or written.

    Example:
        >>> import convert
        >>> try:
        ...     convert.read('absent.pth')
        ... except convert.ConversionError as error:
        ...     print(error)
        absent.pth: no such file
    """


class HubError(ValueError):
    """A folder or a repository of the hub lacks a model or its weights, or the hub cannot be reached.

    Example:
        >>> import tresnet_jax
        >>> try:
        ...     tresnet_jax.create_model('local-dir:absent', pretrained=True)
        ... except tresnet_jax.HubError as error:
        ...     print(error)
        local-dir:absent: no such folder
    """


class DataError(ValueError):
    """A data set cannot be used for training or evaluation."""


class TrainingError(ValueError):
    """A run cannot start, resume or continue."""


class ImageError(ValueError):
    """A file cannot be read as an image."""


class MissingExtraError(ValueError):
    """An optional dependency is not installed; the message gives the pip command."""


# Import name of an optional package -> the extra that installs it.
EXTRAS = {
    'absl': 'train',
    'datasets': 'hfds',
    'grain': 'train',
    'matplotlib': 'plot',
    'onnx': 'onnx',
    'optax': 'train',
    'orbax': 'train',
    'tensorboardX': 'train',
    'tensorflow': 'tf',
    'tensorflow_datasets': 'train',
    'torch': 'convert',
    'wandb': 'wandb',
}


def missing_extra(error: ModuleNotFoundError) -> MissingExtraError | None:
    """Return the error that names the extra to install, or None if the missing module is not an optional one."""
    package = (error.name or '').partition('.')[0]
    if package not in EXTRAS:
        return None
    return MissingExtraError(f"{package} is not installed; run: pip install 'tresnet_jax[{EXTRAS[package]}]'")


# Control characters, characters that end a line or change the direction of text, and surrogates.
UNSHOWABLE = re.compile('[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]')


def shown(text: str | os.PathLike) -> str:
    """Return a name as printable text on one line: bytes that are not UTF-8 and control characters are escaped.

    Python keeps bytes of a file name that are not UTF-8 as surrogates, which cannot be printed or written.

    Example:
        >>> print(shown(b'caf\\xe9'.decode('utf-8', 'surrogateescape')))
        caf\\xe9
    """
    return UNSHOWABLE.sub(_escaped, os.fspath(text))


def _escaped(match: re.Match[str]) -> str:
    code = ord(match[0])
    if 0xDC80 <= code <= 0xDCFF:  # a byte, by Python's error handler 'surrogateescape'
        return f'\\x{code - 0xDC00:02x}'
    return repr(match[0])[1:-1]


def reason(error: BaseException) -> str:
    """Return why an error happened, in one line of at most about 300 characters; unprintable characters are escaped."""
    text = getattr(error, 'strerror', None) or ' '.join(str(error)[:2000].split())
    return shown(text[:300]) or type(error).__name__


def amount(count: int, noun: str, nouns: str | None = None) -> str:
    """Return a number with its noun, for people: '1 image', '2,000 images'.

    Args:
        count: the number.
        noun: the thing.
        nouns: its plural. None: the noun with an s.
    """
    return f'{count:,} {noun if count == 1 else nouns or noun + "s"}'


def listing(title: str, items: Iterable[str], most: int = 12) -> str:
    """Return a titled, sorted list with one item per line, cut after `most` items; '' if there are none."""
    items = sorted(items)
    if not items:
        return ''
    more = [f'... and {len(items) - most} more'] if len(items) > most else []
    return '\n'.join([f'{title} ({len(items)}):', *(f'  {item}' for item in [*items[:most], *more])])
