"""What changed from one report to another."""

from collections.abc import Iterable, Mapping

from markdown_table import table

from gpu_reporting.program import Program
from gpu_reporting.rows import Row
from gpu_reporting.running import Figures

COMPARED = (
    'temp_bytes', 'argument_bytes', 'traffic_bytes', 'kernels', 'convolutions', 'fused_convolutions', 'operations'
)  # fmt: skip


def changes(rows: Iterable[Row], before: Mapping[Program, Figures], now: Mapping[Program, Figures]) -> str:
    """The figures of `rows` that differ, and their ratios, as a table of Markdown; or a line where none does.

    A row that is not in `before` is not compared, and named.
    """
    cells, new, same = [], [], 0
    for row in rows:
        old, found = _numbers(row, before), _numbers(row, now)
        if not old:
            new.append(row.program.name)
            continue
        pairs = [(what, old[what], found[what]) for what in found if what in old]
        different = [pair for pair in pairs if pair[1] != pair[2]]
        same += not different
        cells += [[row.program.name, what, f'{a:,}', f'{b:,}', f'{b / a:.3f}' if a else ''] for what, a, b in different]
    lines = [table(['', 'figure', 'before', 'now', 'ratio'], cells)] if cells else []
    lines += [f'{same} programs have the same figures as before.'] if same else []
    lines += [f'Not in the earlier report: {", ".join(new)}.'] if new else []
    return '\n'.join(lines) + '\n'


def _numbers(row: Row, figures: Mapping[Program, Figures]) -> dict[str, int]:
    """What is compared of a row, as far as it is known; empty where nothing is."""
    if row.program not in figures:
        return {}
    found = row.known(figures) or figures[row.program]  # a report from before its largest batch was looked for
    numbers = {what: found[what] for what in COMPARED}
    return numbers | {f'largest batch, {limit}': batch for limit, batch in found.get('largest', {}).items()}
