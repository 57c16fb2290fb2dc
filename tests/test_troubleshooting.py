"""Every message on the troubleshooting page is one of the library."""

import ast
import re

import pytest

from tests.helpers.paths import ROOT

PAGE = ROOT / 'docs' / 'howto' / 'troubleshooting.md'
GAP = '...'
MESSAGES = re.findall(r'^\*\*`(.+)`\*\*$', PAGE.read_text(encoding='utf-8'), re.M)


def texts() -> list[str]:
    """Return every string of the library, with a gap for each value that is filled in."""
    found = []
    for package in ('tresnet_jax', 'convert'):
        for path in (ROOT / package).rglob('*.py'):
            for node in ast.walk(ast.parse(path.read_text(encoding='utf-8'))):
                if isinstance(node, ast.JoinedStr):
                    parts = [v.value if isinstance(v, ast.Constant) else GAP for v in node.values]
                    found.append(''.join(map(str, parts)))
                elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                    found.append(node.value)
    return found


TEXTS = texts()


@pytest.mark.parametrize('message', MESSAGES)
def test_the_library_has_the_message(message):
    parts = [part for part in re.split(r"['\"]?\.\.\.['\"]?", message) if part.strip(' :;,')]
    pattern = re.compile('.*'.join(map(re.escape, parts)), re.S)
    assert any(pattern.search(text) for text in TEXTS)


def test_the_page_has_messages():
    assert len(MESSAGES) > 25
