"""Tables of Markdown."""

from collections.abc import Iterable, Sequence


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """The lines of a table, each with its end; cells are taken as they are, so they may hold no '|'."""
    lines = [heads, ['---'] * len(heads), *rows]
    return ''.join(f'| {" | ".join(cells)} |\n' for cells in lines)
