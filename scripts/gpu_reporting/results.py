"""The figures of compiled programs, saved in a file and reused while the programs and the versions are the same."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from gpu_reporting.fingerprint import fingerprint, versions
from gpu_reporting.program import Figures, Program
from gpu_reporting.subprocesses import ReportError, measure_in_subprocess
from tresnet_jax.errors import reason
from tresnet_jax.files import save_text


class Results:
    """Figures by program.

    Figures of the same code and versions are reused as they are. Those of other code or versions are reused if tracing
    shows that the program is still the same (`digest` in `measure.measure`).

    Args:
        partial: file in which new figures are saved one by one; it need not exist.
        report: a finished report whose figures are reused, if it exists.
    """

    def __init__(self, partial: Path, report: Path):
        self.partial = partial
        self.code = fingerprint()
        self.figures: dict[Program, Figures] = {}
        self.earlier: dict[Program, tuple[str, Figures]] = {}  # with the fingerprint of the code that they are from
        for path in (report, partial):
            for row in read_report(path)['programs'] if path.exists() else ():
                program, code, figures = Program(**row['program']), row['code'], row['figures']
                if code == self.code:
                    self.figures[program] = figures
                else:
                    self.earlier[program] = code, figures

    def get(self, program: Program) -> Figures:
        """Return the figures of a program. Compile it and save its figures if they are not known.

        Raises:
            ReportError: it cannot be compiled.
        """
        if program not in self.figures:
            _, earlier = self.earlier.get(program, ('', None))
            self.figures[program] = measure_in_subprocess(program, earlier)
            self.write(self.partial, self.earlier)
        return self.figures[program]

    def write(
        self, path: Path, earlier: Mapping[Program, tuple[str, Figures]] = MappingProxyType({}), **more: Any
    ) -> None:
        """Write a file that `read_report` reads, with the entries of `more`, and figures of `earlier` code too."""
        known = dict(earlier) | {program: (self.code, figures) for program, figures in self.figures.items()}
        rows = [
            {'name': program.name, 'code': code, 'program': dataclasses.asdict(program), 'figures': figures}
            for program, (code, figures) in known.items()
        ]
        save_text(path, json.dumps({'versions': versions(), **more, 'programs': rows}, indent=1) + '\n')


def read_report(path: Path) -> dict[str, Any]:
    """Read a file that `Results.write` wrote.

    Raises:
        ReportError: it is missing, or it is not such a file.
    """
    try:
        document = json.loads(path.read_text(encoding='utf-8'))
        for row in document['programs']:
            row.setdefault('code', document.get('code'))  # earlier reports have one for all
        figures_of(document)
        return document
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ReportError(f'{path}: not a report that gpu_report.py wrote ({reason(error)})') from None


def figures_of(document: dict[str, Any]) -> dict[Program, Figures]:
    """Return the figures in a document of `read_report`, by program."""
    return {Program(**row['program']): row['figures'] for row in document['programs']}
