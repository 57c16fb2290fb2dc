"""The figures of compiled programs, saved in a file and reused as long as the code and the versions are the same."""

import dataclasses
import json
from pathlib import Path
from typing import Any

from gpu_reporting.fingerprint import fingerprint, versions
from gpu_reporting.program import Figures, Program
from gpu_reporting.subprocesses import ReportError, measure_in_subprocess
from tresnet_jax.errors import reason
from tresnet_jax.files import save_text


class Results:
    """Figures by program. Figures of other code or versions are ignored.

    Args:
        partial: file in which new figures are saved one by one; it need not exist.
        report: a finished report whose figures are reused, if it exists.
    """

    def __init__(self, partial: Path, report: Path):
        self.partial = partial
        self.code = fingerprint()
        self.figures: dict[Program, Figures] = {}
        for path in (report, partial):
            if path.exists() and (document := read_report(path))['code'] == self.code:
                self.figures |= figures_of(document)

    def get(self, program: Program) -> Figures:
        """Return the figures of a program. Compile it and save its figures if they are not known.

        Raises:
            ReportError: it cannot be compiled.
        """
        if program not in self.figures:
            self.figures[program] = measure_in_subprocess(program)
            self.write(self.partial)
        return self.figures[program]

    def write(self, path: Path, **more: Any) -> None:
        """Write a file that `read_report` reads, with the entries of `more` added."""
        rows = [
            {'name': program.name, 'program': dataclasses.asdict(program), 'figures': found}
            for program, found in self.figures.items()
        ]
        document = {'code': self.code, 'versions': versions(), **more, 'programs': rows}
        save_text(path, json.dumps(document, indent=1) + '\n')


def read_report(path: Path) -> dict[str, Any]:
    """Read a file that `Results.write` wrote.

    Raises:
        ReportError: it is missing, or it is not such a file.
    """
    try:
        document = json.loads(path.read_text(encoding='utf-8'))
        figures_of(document)
        return {'code': document['code']} | document
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ReportError(f'{path}: not a report that gpu_report.py wrote ({reason(error)})') from None


def figures_of(document: dict[str, Any]) -> dict[Program, Figures]:
    """Return the figures in a document of `read_report`, by program."""
    return {Program(**row['program']): row['figures'] for row in document['programs']}
