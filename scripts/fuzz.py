"""Open generated files that are damaged, hostile or enormous, and report what happens. See docs/robustness.md.

    make fuzz N=1000 KIND=safetensors

Each file depends on the kind, the seed and its number alone. `--only NUMBER` opens one again and prints what is wrong.
"""

import dataclasses
import json
import os
import sys
import tempfile
import time
from pathlib import Path

import jax
from fuzzing.children import Kind, Outcome, run
from fuzzing.kinds import KINDS
from fuzzing.summary import Row, publish, save, table

from tresnet_jax.cli.common import parse

PAGE = Path(__file__).resolve().parents[1] / 'docs' / 'robustness.md'


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Open generated files and report what happens."""

    n: int = 1000
    """Files of each kind."""

    kind: tuple[str, ...] = tuple(KINDS)
    """Kinds of files."""

    seed: int = 0
    """Seed of the files."""

    start: int = 0
    """Number of the first file."""

    only: int | None = None
    """Open this file alone and print the outcome."""

    out: Path = Path('build/fuzz')
    """Folder of the files with a fault, and of the summary."""

    publish: tuple[Path, ...] = ()
    """Open no files: write the table of these summaries to docs/robustness.md."""

    seconds: float | None = None
    """End each kind after this time."""


def main() -> int:
    """Run the kinds one after the other, and return 1 if there was a fault."""
    arguments = parse(Arguments, None)
    os.environ['HF_HUB_OFFLINE'] = '1'
    sys.dont_write_bytecode = True
    jax.config.update('jax_platforms', 'cpu')
    jax.config.update('jax_enable_compilation_cache', False)
    if arguments.publish:
        publish(arguments.publish, PAGE)
        return 0
    unknown = [name for name in arguments.kind if name not in KINDS]
    if unknown:
        print(f'error: unknown kinds {", ".join(unknown)}; choose of {", ".join(KINDS)}', file=sys.stderr)
        return 2
    out = arguments.out.absolute()
    out.mkdir(parents=True, exist_ok=True)
    rows = []
    for name in arguments.kind:
        row = _run(KINDS[name], arguments, out)
        rows.append(row)
        save(out / 'summary.json', row)
    print(table(rows))
    return 1 if any(row.faults for row in rows) else 0


def _run(kind: Kind, arguments: Arguments, out: Path) -> Row:
    indices = (
        list(range(arguments.start, arguments.start + arguments.n)) if arguments.only is None else [arguments.only]
    )
    outcomes: list[Outcome] = []
    begin = time.monotonic()
    with tempfile.TemporaryDirectory(prefix='fuzz-', ignore_cleanup_errors=True) as folder:
        for outcome in run(kind, arguments.seed, indices, Path(folder), out):
            outcomes.append(outcome)
            if outcome.status == 'fault':
                print(f'{kind.name} {arguments.seed}-{outcome.index}: {outcome.message[:300]}', flush=True)
            if arguments.only is not None:
                print(json.dumps(dataclasses.asdict(outcome), indent=1))
            if len(outcomes) % 1000 == 0:
                print(f'{kind.name}: {len(outcomes):,} in {time.monotonic() - begin:.0f} s', flush=True)
            if arguments.seconds is not None and time.monotonic() - begin > arguments.seconds:
                break
    return Row.of(kind, arguments.seed, outcomes)


if __name__ == '__main__':
    sys.exit(main())
