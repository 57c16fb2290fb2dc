"""Settings of the whole suite. Only tests/parity needs torch and timm."""

import datetime
import gc
import importlib.metadata
import os
import platform
import time
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault('JAX_PLATFORMS', 'cpu')
os.environ['JAX_ENABLE_COMPILATION_CACHE'] = 'false'  # a cached program would hide a compilation
# Most tests compile small programs that run once, for which LLVM's optimisations take longer than they save.
os.environ['JAX_DISABLE_MOST_OPTIMIZATIONS'] = 'true'
# XLA's older emitters compile these programs four times as fast. Other versions may not know the flags, which would end
# the process. With XLA_FLAGS= in the environment, the emitters are those that users have.
if importlib.metadata.version('jaxlib').startswith('0.10.'):
    flags = '--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1'
    os.environ.setdefault('XLA_FLAGS', flags)

import jax
import pytest

jax.config.update('jax_num_cpu_devices', 4)
jax.config.update('jax_numpy_rank_promotion', 'raise')
jax.config.update('jax_numpy_dtype_promotion', 'strict')


@pytest.fixture(autouse=True, scope='module')
def _settings_are_restored():
    """JAX's settings after a module are those before it: one left behind would change every test that follows."""
    before = dict(jax.config.values)
    yield
    assert dict(jax.config.values) == before


@pytest.fixture
def x64():
    """Allow float64 in JAX for one test."""
    with jax.enable_x64(True):
        yield


@pytest.fixture
def optimized():
    """Compile with LLVM's optimisations, for one test whose programs run for longer than they compile."""
    jax.config.update('jax_disable_most_optimizations', False)
    yield
    jax.config.update('jax_disable_most_optimizations', True)


@pytest.fixture
def record_error(request) -> Callable[[str, str, float], None]:
    """Return record_error(architecture, what was compared, relative error), for the table at the end."""
    # A plain float, because reports pass between processes and NumPy's floats cannot.
    return lambda name, what, error: request.node.user_properties.append(('relative error', (name, what, float(error))))


def pytest_addoption(parser) -> None:
    parser.addoption('--summary', type=Path, help='append the versions, the counts and the errors to a Markdown file')
    parser.addoption('--summary-title', default='Tests', help='what its section calls these tests')


def pytest_configure(config) -> None:
    config.started = time.monotonic()


def pytest_collection_modifyitems(items) -> None:
    """Put the training runs first: xdist splits the files at the end of the list, whose fixtures then run twice."""
    items.sort(key=lambda item: item.path.parent.name != 'training')


def pytest_collection_finish(session) -> None:
    """Leave what the imports made out of garbage collections, which otherwise take a tenth of the time of the tests."""
    gc.collect()
    gc.freeze()


def pytest_terminal_summary(terminalreporter, exitstatus, config) -> None:
    """Print the largest relative error of each comparison of whole models; append a section to --summary."""
    table: dict[tuple[str, str], float] = {}
    for report in terminalreporter.getreports('passed') + terminalreporter.getreports('failed'):
        for name, value in report.user_properties:
            if name == 'relative error' and report.when == 'call':
                architecture, what, error = value
                table[architecture, what] = max(error, table.get((architecture, what), 0.0))
    columns = sorted({what for _, what in table})
    rows = [
        [name, *('' if (name, column) not in table else f'{table[name, column]:.1e}' for column in columns)]
        for name in sorted({name for name, _ in table})
    ]
    if rows:
        terminalreporter.section('largest relative errors against timm')
        terminalreporter.write_line(' ' * 14 + ''.join(f'{column:>18}' for column in columns))
        for name, *cells in rows:
            terminalreporter.write_line(f'{name:<14}' + ''.join(f'{cell:>18}' for cell in cells))
    if config.option.summary and not hasattr(config, 'workerinput'):  # only the main process has all reports
        counts = {what: len(terminalreporter.getreports(what)) for what in ('passed', 'failed', 'error', 'skipped')}
        with config.option.summary.open('a', encoding='utf-8') as file:
            file.write(_summary(config, int(exitstatus), counts, columns, rows))


def _summary(config, exitstatus: int, counts: dict[str, int], columns: list[str], rows: list[list[str]]) -> str:
    """Return a section of Markdown about one run."""
    versions = []
    for package in ('jax', 'flax', 'numpy', 'torch', 'torchvision', 'timm', 'optax', 'orbax-checkpoint', 'grain'):
        try:
            versions.append(f'{package} {importlib.metadata.version(package)}')
        except importlib.metadata.PackageNotFoundError:
            pass
    minutes = (time.monotonic() - config.started) / 60
    mode = {True: 'graph', False: 'tree'}[os.environ.get('NNX_GRAPH_MODE', 'true') != 'false']
    lines = [
        f'## {config.option.summary_title}, NNX {mode} mode: {"passed" if exitstatus == 0 else "failed"}',
        '',
        f'- {datetime.date.today()}, Python {platform.python_version()}, {platform.machine()}, {os.cpu_count()} cores',
        f'- {", ".join(versions)}',
        f'- {", ".join(f"{number} {what}" for what, number in counts.items())} in {minutes:.0f} minutes',
        '',
    ]
    if rows:
        lines += ['| | ' + ' | '.join(columns) + ' |', '|' + '---|' * (len(columns) + 1)]
        lines += ['| ' + ' | '.join(row) + ' |' for row in rows]
        lines.append('')
    return '\n'.join(lines) + '\n'
