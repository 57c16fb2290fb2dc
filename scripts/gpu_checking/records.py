"""What a check found, and the file that holds it."""

import dataclasses
import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from tresnet_jax.errors import reason
from tresnet_jax.files import read_json, save_text

SCHEMA = 1  # of gpu_check.json; raised by a change that readers must know about

FINISHED, OUT_OF_TIME, UNFINISHED = 'finished', 'out of time', 'not finished'
FAILED, LEFT_OUT = 'failed', 'left out'
Value = float | int | str | None


class CheckError(ValueError):
    """The check cannot run or a file of it cannot be read; the message is one line."""


@dataclasses.dataclass(frozen=True)
class Finding:
    """One row of a table.

    Attributes:
        group: the title of the table.
        name: what was measured; unique within the group.
        values: the figures by column; the columns name the units. None: unknown.
        passed: whether the figures are right; None where there is no right answer.
        note: a remark, such as why something is unavailable.
    """

    group: str
    name: str
    values: Mapping[str, Value] = dataclasses.field(default_factory=dict)
    passed: bool | None = None
    note: str = ''


@dataclasses.dataclass(frozen=True)
class PartResult:
    """The findings of a part.

    Attributes:
        part: its name, a key of `plan.PARTS`.
        status: FINISHED, OUT_OF_TIME (the findings are those made before), UNFINISHED (the same, while it runs; the
            whole check was ended if it stays so), FAILED or LEFT_OUT.
        message: why, unless it finished.
        seconds: how long it took.
        findings: the rows of its tables.
    """

    part: str
    status: str
    message: str
    seconds: float
    findings: tuple[Finding, ...]

    @property
    def failures(self) -> list[str]:
        """What is wrong, one line each."""
        wrong = [f'{one.group}: {one.name}' for one in self.findings if one.passed is False]
        if self.status == OUT_OF_TIME and not self.findings:
            wrong.append(f'{self.part}: {self.message}, before it found anything')
        return wrong + ([self.message] if self.status == FAILED else [])

    def after(self, earlier: 'PartResult | None') -> 'PartResult':
        """Return this result with the rows of an earlier one that this one has not come to."""
        if earlier is None or self.status in (FINISHED, LEFT_OUT):
            return self
        again = {(one.group, one.name) for one in self.findings}
        kept = tuple(one for one in earlier.findings if (one.group, one.name) not in again)
        return dataclasses.replace(self, findings=self.findings + kept)


@dataclasses.dataclass(frozen=True)
class Report:
    """A file gpu_check.json.

    Attributes:
        about: device, driver, versions and commit.
        settings: the level and whether the sizes are tiny.
        parts: the results by part.
    """

    about: Mapping[str, Any]
    settings: Mapping[str, Any]
    parts: dict[str, PartResult]

    def fits(self, other: 'Report') -> bool:
        """Return whether both were measured with the same device, versions, commit and settings."""
        # How much memory JAX may use depends on what other programs take.
        mine, theirs = ({**report.about, 'memory_bytes': None} for report in (self, other))
        return (mine, self.settings) == (theirs, other.settings)

    def write(self, path: Path) -> None:
        """Write the file, completely or not at all."""
        document = {
            'schema': SCHEMA,
            'about': self.about,
            'settings': self.settings,
            'parts': [dataclasses.asdict(result) for result in self.parts.values()],
        }
        save_text(path, json.dumps(document, indent=1) + '\n')


def read_report(path: Path) -> Report:
    """Read a file of `Report.write`.

    Raises:
        CheckError: it is missing, it is not such a file, or a newer release wrote it.
    """
    document = read_json(path, CheckError, 'expected a gpu_check.json that gpu_check.py wrote')
    schema = document.get('schema') if isinstance(document, dict) else None
    if isinstance(schema, int) and schema > SCHEMA:
        raise CheckError(f'{path}: schema {schema} is newer than {SCHEMA}; read it with the release that wrote it')
    try:
        results = [
            PartResult(**{**fields, 'findings': findings_of(fields['findings'])}) for fields in document['parts']
        ]
        about, settings = dict(document['about']), dict(document['settings'])
    except (KeyError, TypeError, ValueError) as error:
        raise CheckError(f'{path}: not a gpu_check.json that gpu_check.py wrote ({reason(error)})') from None
    return Report(about, settings, {result.part: result for result in results})


def last_error(printed: str) -> str:
    """Return the line of a program's standard error that names its error; JAX adds lines of its own after it."""
    lines = [line.strip() for line in printed.splitlines() if line.strip()]
    named = [line for line in lines if re.match(r'(error:|[\w.]*(Error|Exception|Interrupt)\b)', line)]
    return (named or lines or ['it failed'])[-1][:300]


def findings_of(rows: Iterable[Mapping[str, Any]]) -> tuple[Finding, ...]:
    """Return findings from their JSON."""
    return tuple(Finding(**row) for row in rows)
