"""What changed from one report to another."""

from collections.abc import Iterable, Mapping

from markdown_table import table

from gpu_reporting.program import Figures, Program
from gpu_reporting.rows import ReportRow

COMPARED = (
    'temp_bytes', 'argument_bytes', 'traffic_bytes', 'kernels', 'convolutions', 'fused_convolutions', 'operations'
)  # fmt: skip


def changes(rows: Iterable[ReportRow], before: Mapping[Program, Figures], now: Mapping[Program, Figures]) -> str:
    """Return a Markdown table of the figures that differ, with their ratios, or one line if none differs.

    Rows that are missing from `before` are not compared but named.
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


def _numbers(row: ReportRow, figures: Mapping[Program, Figures]) -> dict[str, int]:
    """Return the figures of a row that are compared, as far as they are known."""
    if row.program not in figures:
        return {}
    found = row.known(figures) or figures[row.program]  # the report may stem from before the largest batch was found
    numbers = {what: found[what] for what in COMPARED}
    return numbers | {f'largest batch, {limit}': batch for limit, batch in found.get('largest', {}).items()}
