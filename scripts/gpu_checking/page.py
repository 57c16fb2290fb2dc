"""The page gpu_check.md: a summary, and the tables of each part."""

from collections.abc import Iterator, Sequence

from markdown_table import table

from gpu_checking.charts import CHARTS
from gpu_checking.comparison import shown
from gpu_checking.plan import PARTS
from gpu_checking.records import FINISHED, Finding, PartResult, Report

VERDICTS = {True: 'pass', False: '**FAIL**', None: ''}


def page(report: Report, charts: Sequence[str], compared: str = '') -> str:
    """Return the page as Markdown.

    Args:
        report: the results.
        charts: names of the files of charts that exist beside the page.
        compared: a table of ratios to an earlier check, or ''.
    """
    return '\n'.join([*_head(report), *_summary(report), *_parts(report, charts), *_compared(compared)])


def _head(report: Report) -> Iterator[str]:
    about = report.about
    count = about.get('devices', 1)
    yield f'# GPU check: {about.get("device")}{f", {count} devices" if count != 1 else ""}\n'
    if about.get('platform') == 'cpu':
        yield 'A trial on a CPU: the times say nothing about a GPU.\n'
    versions = ', '.join(f'{name} {version}' for name, version in about.get('versions', {}).items())
    sizes = 'tiny' if report.settings.get('tiny') else report.settings.get('level')
    yield f'* sizes: {sizes}\n* driver: {about.get("driver")}\n* runtime: {about.get("runtime")}'
    yield f'* commit: {about.get("commit")}\n* versions: {versions}'
    if variables := about.get('variables'):
        yield f'* environment: {" ".join(f"{name}={value}" for name, value in variables.items())}'
    yield ''


def _summary(report: Report) -> Iterator[str]:
    rows = []
    for name, result in report.parts.items():
        verdicts = [finding.passed for finding in result.findings]
        state = result.status if result.status == FINISHED else f'{result.status}: {result.message}'
        cells = [PARTS[name].title if name in PARTS else name, state.replace('|', '/')]
        rows.append([*cells, str(verdicts.count(True)), str(verdicts.count(False)), f'{result.seconds:.0f}'])
    yield table(['part', 'state', 'passed', 'failed', 'seconds'], rows)
    if wrong := [line for result in report.parts.values() for line in result.failures]:
        yield 'Failed:\n'
        yield from (f'* {line}' for line in wrong)
        yield ''


def _parts(report: Report, charts: Sequence[str]) -> Iterator[str]:
    for name, result in report.parts.items():
        if not result.findings:
            continue
        yield f'## {PARTS[name].title if name in PARTS else name}\n'
        for group in dict.fromkeys(finding.group for finding in result.findings):
            yield f'### {group[0].upper()}{group[1:]}\n'
            yield _table([finding for finding in result.findings if finding.group == group])
        for chart in (chart for chart in CHARTS if chart.part == name and chart.file in charts):
            yield f'![{chart.title}]({chart.file})\n'


def _table(findings: Sequence[Finding]) -> str:
    columns = list(dict.fromkeys(column for finding in findings for column in finding.values))
    ends = [
        (head, cell)
        for head, cell in (('verdict', lambda f: VERDICTS[f.passed]), ('note', lambda f: shown(f.note)))
        if any(map(cell, findings))
    ]
    rows = [
        [shown(f.name), *(shown(f.values.get(column)) for column in columns), *(cell(f) for _, cell in ends)]
        for f in findings
    ]
    return table(['', *columns, *(head for head, _ in ends)], rows)


def _compared(text: str) -> Iterator[str]:
    if text:
        yield '## Compared with an earlier check\n'
        yield text


def summary_line(result: PartResult) -> str:
    """Return what is printed after a part: 'parity: finished, 12 passed, 0 failed, 48 s'."""
    verdicts = [finding.passed for finding in result.findings]
    state = result.status if result.status == FINISHED else f'{result.status} ({result.message})'
    counts = f'{verdicts.count(True)} passed, {verdicts.count(False)} failed'
    return f'{result.part}: {state}, {counts}, {result.seconds:.0f} s'
