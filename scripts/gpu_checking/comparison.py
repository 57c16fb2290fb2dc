"""Ratios of the figures of two checks."""

from collections.abc import Iterator

from markdown_table import table

from gpu_checking.records import Report, Value


def comparison(old: Report, new: Report) -> str:
    """Return a Markdown table of the figures of both reports with their ratios, or one line if they share none."""
    rows = []
    before = dict(figures(old))
    for (part, group, name, column), value in figures(new):
        earlier = before.get((part, group, name, column))
        if earlier is not None:
            ratio = f'{value / earlier:.3f}' if earlier else ''
            rows.append([part, group, name, column, shown(earlier), shown(value), ratio])
    differing = [
        f'{what}: {old.about.get(what)} before, {new.about.get(what)} now'
        for what in {**old.about, **new.about}
        if old.about.get(what) != new.about.get(what) and what != 'versions'
    ]
    versions = [dict(report.about.get('versions', {})) for report in (old, new)]
    differing += [
        f'{name} {versions[0].get(name)} before, {versions[1].get(name)} now'
        for name in {**versions[0], **versions[1]}
        if versions[0].get(name) != versions[1].get(name)
    ]
    lines = [f'* {line}\n' for line in differing]
    if not rows:
        return ''.join(lines) + 'The two checks have no figure in common.\n'
    return ''.join([*lines, '\n' * bool(lines)]) + table(
        ['part', 'table', 'row', 'figure', 'before', 'now', 'now / before'], rows
    )


def figures(report: Report) -> Iterator[tuple[tuple[str, str, str, str], float]]:
    """Yield (part, group, name, column) and the value of each number."""
    for part, result in report.parts.items():
        for finding in result.findings:
            for column, value in finding.values.items():
                if isinstance(value, int | float):
                    yield (part, finding.group, finding.name, column), value


def shown(value: Value) -> str:
    """Return a value for a cell: numbers with three or four digits, '' for None."""
    if value is None:
        return ''
    if isinstance(value, str):
        return value.replace('|', '/')
    if value == 0 or 0.001 <= abs(value) < 1e4:
        return f'{value:.4g}'
    return f'{value:.2e}' if abs(value) < 0.001 or abs(value) >= 1e7 else f'{value:,.0f}'
