"""Keeps the largest relative error of every comparison of whole models, and prints the table at the end."""

from collections.abc import Callable

import pytest

LARGEST = pytest.StashKey[dict[tuple[str, str], float]]()


@pytest.fixture
def record_error(request) -> Callable[[str, str, float], None]:
    """record_error(architecture, what was compared, relative error)."""
    table = request.config.stash.setdefault(LARGEST, {})

    def record(architecture: str, what: str, error: float) -> None:
        table[architecture, what] = max(error, table.get((architecture, what), 0.0))

    return record


def pytest_terminal_summary(terminalreporter, config) -> None:
    table = config.stash.get(LARGEST, {})
    if not table:
        return
    columns = sorted({what for _, what in table})
    terminalreporter.section('largest relative errors against timm')
    terminalreporter.write_line(' ' * 14 + ''.join(f'{column:>22}' for column in columns))
    for architecture in sorted({name for name, _ in table}):
        cells = (table.get((architecture, column)) for column in columns)
        line = ''.join(f'{"":>22}' if error is None else f'{error:>22.1e}' for error in cells)
        terminalreporter.write_line(f'{architecture:<14}{line}')
