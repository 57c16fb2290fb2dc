"""Settings of the whole suite. The tests of tests/parity need torch and timm; the others need neither."""

import os
from collections.abc import Callable

os.environ.setdefault('JAX_PLATFORMS', 'cpu')

import jax
import pytest

jax.config.update('jax_num_cpu_devices', 4)
jax.config.update('jax_numpy_rank_promotion', 'raise')
jax.config.update('jax_numpy_dtype_promotion', 'strict')


@pytest.fixture
def x64():
    """float64 in JAX for one test."""
    with jax.enable_x64(True):
        yield


@pytest.fixture
def record_error(request) -> Callable[[str, str, float], None]:
    """record_error(architecture, what was compared, relative error); travels with the report between processes."""
    return lambda *record: request.node.user_properties.append(('relative error', record))


def pytest_terminal_summary(terminalreporter) -> None:
    """The largest relative error of every comparison of whole models, as a table at the end."""
    table: dict[tuple[str, str], float] = {}
    for report in terminalreporter.getreports('passed') + terminalreporter.getreports('failed'):
        for name, value in report.user_properties:
            if name == 'relative error' and report.when == 'call':
                architecture, what, error = value
                table[architecture, what] = max(error, table.get((architecture, what), 0.0))
    if not table:
        return
    columns = sorted({what for _, what in table})
    terminalreporter.section('largest relative errors against timm')
    terminalreporter.write_line(' ' * 14 + ''.join(f'{column:>18}' for column in columns))
    for architecture in sorted({name for name, _ in table}):
        cells = (table.get((architecture, column)) for column in columns)
        line = ''.join(f'{"":>18}' if error is None else f'{error:>18.1e}' for error in cells)
        terminalreporter.write_line(f'{architecture:<14}{line}')
