"""The outcomes for all files of a kind: the tables in docs/robustness.md and on the screen."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

from markdown_table import table as markdown

from fuzzing.children import Kind, Outcome
from tresnet_jax.files import save_text

# The table of docs/robustness.md is between these two lines.
MARKS = '<!-- table of scripts/fuzz.py -->', '<!-- end of the table -->'


@dataclasses.dataclass(frozen=True)
class Row:
    """One kind with one seed.

    Attributes:
        kind, what: its name, and what it is.
        seed: the seed.
        tried, refused, accepted, faults: numbers of files.
        seconds: of the processor, the most that one file took.
        memory: MiB, the most that one file took.
    """

    kind: str
    what: str
    seed: int
    tried: int
    refused: int
    accepted: int
    faults: int
    seconds: float
    memory: int

    @classmethod
    def of(cls, kind: Kind, seed: int, outcomes: Sequence[Outcome]) -> 'Row':
        """Return the row of outcomes."""
        counts = {status: sum(o.status == status for o in outcomes) for status in ('refused', 'accepted', 'fault')}
        seconds = max((o.seconds for o in outcomes), default=0.0)
        memory = max((o.memory for o in outcomes), default=0) // 2**20
        return cls(
            kind.name,
            kind.what,
            seed,
            len(outcomes),
            counts['refused'],
            counts['accepted'],
            counts['fault'],
            round(seconds, 1),
            memory,
        )


def save(path: Path, row: Row) -> None:
    """Add a row to a JSON file of rows, or replace the one of its kind and seed."""
    rows = json.loads(path.read_text(encoding='utf-8')) if path.exists() else []
    rows = [other for other in rows if (other['kind'], other['seed']) != (row.kind, row.seed)]
    save_text(path, json.dumps([*rows, dataclasses.asdict(row)], indent=1) + '\n')


def table(rows: Sequence[Row]) -> str:
    """Return the rows as a Markdown table."""
    names = ['kind', 'files', 'seed', 'tried', 'refused', 'accepted', 'faults', 'longest', 'most memory']
    return markdown(
        names,
        [
            [f'`{row.kind}`', row.what, str(row.seed), f'{row.tried:,}', f'{row.refused:,}', f'{row.accepted:,}',
                str(row.faults),
             f'{row.seconds:.1f} s', f'{row.memory} MiB']
            for row in rows
        ],
    )  # fmt: skip


def publish(files: Sequence[Path], page: Path) -> None:
    """Replace the table of a page with the rows of these files, and store them beside the page."""
    rows = [Row(**row) for file in files for row in json.loads(file.read_text(encoding='utf-8'))]
    save_text(page.with_suffix('.json'), json.dumps([dataclasses.asdict(row) for row in rows], indent=1) + '\n')
    save_text(page, with_table(page.read_text(encoding='utf-8'), rows))


def with_table(text: str, rows: Sequence[Row]) -> str:
    """Return a page with the table of these rows between the two marks."""
    before, rest = text.split(MARKS[0])
    return f'{before}{MARKS[0]}\n{table(rows)}{MARKS[1]}{rest.split(MARKS[1])[1]}'
