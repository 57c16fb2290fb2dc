"""The one error the converter raises for what a user can put right."""

from collections.abc import Iterable


class ConversionError(ValueError):
    """A checkpoint cannot be read, recognised, converted or written; the message names the file and the remedy."""


def listing(title: str, items: Iterable[str], most: int = 12) -> str:
    """A titled list, sorted, one item a line, cut after `most`; empty when there are none."""
    items = sorted(items)
    if not items:
        return ''
    more = [f'... and {len(items) - most} more'] if len(items) > most else []
    return '\n'.join([f'{title} ({len(items)}):', *(f'  {item}' for item in [*items[:most], *more])])
