"""The directive `command-help`: what a command line prints for ``--help``."""

import os
import re
import subprocess
import sys
from pathlib import Path

from docutils import nodes
from docutils.parsers.rst import Directive

ROOT = Path(__file__).parents[2]
WIDTH = 72  # columns of the text, which fit on the page


def help_of(words: list[str]) -> str:
    """Return what ``python WORDS --help`` prints, without the frames that are for a terminal."""
    environment = {**os.environ, 'COLUMNS': str(WIDTH + 4), 'NO_COLOR': '1'}
    result = subprocess.run(
        [sys.executable, *words, '--help'], cwd=ROOT, capture_output=True, text=True, env=environment, check=True
    )
    lines = []
    for line in result.stdout.splitlines():
        if title := re.match(r'╭─ (.*?) ─*╮', line):
            lines += ['', f'{title[1]}:']
        elif not line.startswith('╰'):
            lines.append(re.sub(r'^│ ?|\s*│$', '', line).rstrip())
    return '\n'.join(lines).strip() + '\n'


class CommandHelp(Directive):
    """``{command-help} scripts/predict.py`` shows its help as a literal block."""

    required_arguments = 1
    final_argument_whitespace = True

    def run(self) -> list[nodes.Node]:
        text = help_of(self.arguments[0].split())
        return [nodes.literal_block(text, text, language='text')]


def setup(app) -> dict[str, bool]:
    app.add_directive('command-help', CommandHelp)
    return {'parallel_read_safe': True}
